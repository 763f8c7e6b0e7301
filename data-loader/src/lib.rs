//! From files of cells to token batches: corpus format, importers, sample order, tokenisers,
//! batching, prefetch.
//!
//! A corpus is a directory of Parquet shards with a manifest ([`corpus`]). It is written by an
//! importer ([`import`]) and read back, row group by row group, by [`Loader`], which turns it into
//! micro-batches of gene tokens. What a batch holds is a pure function of the corpus, the seed and
//! the epoch: it depends neither on the number of ranks nor on threads.
//!
//! This crate knows nothing of tensors or models.

pub mod batch;
pub mod corpus;
pub mod doses;
mod error;
pub mod export;
pub mod genes;
pub mod hvg;
pub mod import;
pub mod index;
pub mod molecules;
pub mod order;
pub mod parallel;
pub mod perturbation;
pub mod pipeline;
pub mod preprocess;
pub mod quality;
pub mod rng;
pub mod sampler;
pub mod stats;
pub mod storage;
pub mod synth;
pub mod tokenize;
pub mod verify;
pub mod vocab;

pub use batch::{MicroBatch, StepBatches};
pub use corpus::{Block, Corpus, Manifest, ValueKind};
pub use error::{Error, Result};
pub use genes::GeneTable;
pub use order::{EpochOrder, OrderOptions, Selection, Shuffle};
pub use pipeline::{Corrupt, EpochStream, Loader, LoaderOptions, MaskDraw, SkippedCell};
pub use sampler::Sampler;
pub use storage::StoreOptions;
pub use tokenize::{
    Tokenizer,
    panel::{BinScale, PanelTokenizer},
    rank::{self, RankDictionary, RankTokenizer},
    scfoundation::{ScfoundationOptions, ScfoundationTokenizer, TargetDepth},
    scgpt::{ScgptOptions, ScgptTokenizer, ValueStyle},
};
pub use vocab::{GeneKey, GeneMap, Overlap, Vocab};
