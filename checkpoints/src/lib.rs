//! Weights on disk: published checkpoints, adapter files in the HF PEFT layout, atomic run
//! checkpoints.
//!
//! Nothing here knows libtorch: tensors are bytes with a type and a shape ([`HostTensor`]), read
//! from memory-mapped files without a copy. Everything written is complete or invisible: files
//! through a synced temporary sibling, directories by publication under their final name.
//!
//! ```
//! use scpeft_checkpoint::{HostTensor, TensorFile, write_safetensors};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("x.safetensors");
//! let tensors = [("w".to_owned(), HostTensor::from_f32(vec![2], &[1.0, -2.0]))];
//! write_safetensors(&path, &tensors).unwrap();
//! let file = TensorFile::open(&path).unwrap();
//! assert_eq!(file.get("w").unwrap().to_f32().unwrap(), [1.0, -2.0]);
//! ```

mod error;
pub mod fsx;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod lora;
pub mod mapped;
#[cfg(feature = "mirror")]
pub mod mirror;
pub mod peft;
mod pickle;
pub mod published;
pub mod retention;
pub mod run;
mod safetensors_file;
mod tensor;
mod torch_zip;

pub use error::{Error, Result};
pub use mapped::{MappedTensor, Mapping};
#[cfg(feature = "mirror")]
pub use mirror::Mirror;
pub use peft::{AdapterConfig, read_adapter, write_adapter};
pub use published::geneformer::GeneformerDirectory;
pub use published::scbert::ScbertDirectory;
pub use published::scfoundation::ScfoundationDirectory;
pub use published::scgpt::ScgptDirectory;
pub use published::{LoadReport, fingerprint};
pub use retention::Policy;
pub use run::{CheckpointStore, Saved, Score};
pub use safetensors_file::write_safetensors;
pub use tensor::{Dtype, FileFormat, HostTensor, TensorFile};
