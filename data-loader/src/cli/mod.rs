//! The subcommands.

pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod index;
pub(crate) mod inspect;
pub(crate) mod molecules;
pub(crate) mod progress;
pub(crate) mod quality;
pub(crate) mod split;
pub(crate) mod stats;
pub(crate) mod synth;
pub(crate) mod verify;
