//! Geneformer against numbers of Hugging Face's BERT, and of that BERT with the reference's adapters:
//! hidden states, outputs, losses, every gradient, a trajectory; and the tokeniser against the
//! reference's.
//!
//! The cases name their sizes and settings; nothing here depends on them.

#![allow(clippy::unwrap_used)]

mod backbone;
mod counts;
mod executors;
mod golden;
mod tokens;
mod trajectory;
