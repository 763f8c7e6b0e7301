//! scBERT against numbers of the published code: random features and attention, hidden states, outputs,
//! losses, every gradient, with each of the reference's adapters; bins; parameters at full size.
//!
//! The cases name their sizes and settings; nothing here depends on them.

#![allow(clippy::unwrap_used)]

mod backbone;
mod counts;
mod executors;
mod golden;
mod kernel;
mod tokens;
