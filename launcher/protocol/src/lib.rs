//! What the processes of a run agree on: exit codes, heartbeats, the metric catalogue and the names of
//! sections.
//!
//! This crate has no native dependencies, so that every binary can share it.

pub mod exit;
pub mod heartbeat;
pub mod metrics;
mod section;

pub use section::Section;
