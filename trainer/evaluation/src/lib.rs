//! Scores of what models predict. Responses to perturbations: metrics under their published names,
//! the simple baselines that every model must be seen beside, and splits that do not leak. Cell
//! types: scores of a confusion matrix. Embeddings: agreement of cells' places with their labels.
//!
//! Everything is computed in f64 on the host, and nothing here knows of models, files or
//! configurations. A score that is not defined is an [`Undefined`] with the reason, never a NaN.
//!
//! Profiles are mean expression per gene, in the units of the cells (usually log1p of normalised
//! counts). Deltas are differences to the mean profile of the control cells.
//!
//! ```
//! use scpeft_evaluation::profile::{Profiles, TopGenes};
//!
//! let control = [1.0, 1.0, 2.0];
//! let (real, predicted) = ([2.0, 1.0, 1.0], [1.5, 1.0, 1.5]);
//! let scores = Profiles::new(&control, &real, &predicted)?;
//! assert!(scores.pearson_delta()? > 0.999);
//! assert_eq!(TopGenes::by_delta(&scores, 2).genes(), [0, 2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod baselines;
pub mod ceiling;
pub mod cells;
pub mod clustering;
pub mod de;
pub mod discrimination;
pub mod distance;
mod eigen;
pub mod embedding;
mod error;
pub mod evaluate;
pub mod gears;
pub mod identification;
mod linalg;
pub mod markers;
pub mod page;
mod parallel;
pub mod pca;
pub mod profile;
pub mod rejection;
mod rng;
pub mod scgpt;
pub mod splits;
pub mod stats;
pub mod study;
pub mod summary;
pub mod umap;
pub mod vcc;
mod wide;

pub use error::{Error, Result, Score, Undefined};
