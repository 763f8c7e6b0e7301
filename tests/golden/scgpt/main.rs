//! scGPT against numbers of the reference: outputs, losses, every gradient, buffers, trajectories.
//!
//! The cases name their shapes and settings; nothing here depends on them. Training mode without
//! dropout, and evaluation mode, in which the reference drops or doubles adapters and we must not.

#![allow(clippy::unwrap_used)]

mod attention;
mod golden;
mod losses;
mod modules;
mod paper;
mod perturbation;
mod properties;
mod styles;
mod tasks;
mod trajectory;
