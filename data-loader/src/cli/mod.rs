//! The subcommands.

pub(crate) mod import;
pub(crate) mod index;
pub(crate) mod inspect;
pub(crate) mod verify;
