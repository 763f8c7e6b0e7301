//! What the processes of a run agree on: exit codes, heartbeats and the metric catalogue.
//!
//! This crate has no native dependencies, so that every binary can share it.

pub mod exit;
pub mod heartbeat;
pub mod metrics;
