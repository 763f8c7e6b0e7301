//! scFoundation against numbers of the reference: tokens, states, outputs, losses and every gradient.
//!
//! The cases name their sizes and settings; nothing here depends on them.

#![allow(clippy::unwrap_used)]

mod annotation;
mod counts;
mod embedding;
mod executors;
mod golden;
mod perturbation;
mod published;
