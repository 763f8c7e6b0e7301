//! Backbones: one file each, with the architecture, the names of its tensors and its heads.

pub mod scgpt;
