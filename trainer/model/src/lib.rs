//! Backbones, adapters, heads and losses on libtorch.
//!
//! A model is described before it exists: every part lists its tensors as [`TensorSpec`]s, the
//! freeze rule says which of them train, [`Params::build`] fills them from weights on disk or from
//! seeded initialisation, and the parts then bind to the tensors by name. Trainable tensors are
//! views of one flat f32 buffer with one flat gradient buffer; frozen tensors are separate and
//! read-only.
//!
//! Only this crate and the trainer above it use libtorch. This one reads no files and issues no
//! collectives.
//!
//! Shape letters in the documentation: B cells of the micro-batch, S tokens (`<cls>` included),
//! D `d_model`, H heads, L blocks.

pub mod adapter;
pub mod attention;
pub mod backbone;
pub mod determinism;
pub mod device;
mod dropout;
mod error;
pub mod exec;
pub mod gears;
pub mod head;
mod init;
pub mod loss;
pub mod norm;
mod ops;
pub mod params;
pub mod ranks;
pub mod shard;

pub use error::{Error, Result};
pub use init::Init;
pub use params::{Layout, Params, Precision, Role, Storage, TensorSpec};
