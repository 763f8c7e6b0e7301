//! The corpus format: a directory of Parquet shards, one row a cell, with a manifest and a gene table.

mod block;
mod cells;
mod checksums;
mod chunks;
mod decode;
mod derived;
mod manifest;
mod obs;
mod packed;
mod pages;
mod reader;
mod writer;

pub use block::Block;
pub(crate) use chunks::{Chunks, chunk_range, within};
pub use derived::add_column;
pub use manifest::{
    Derived, FORMAT_VERSION, ForeignLayout, GeneFile, Layout, Lookup, Manifest, ObsColumn, ObsKind,
    Provenance, Shard, SourceFile, ValueKind,
};
pub use packed::{CellBuffer, PackedBlock};
pub use reader::{Corpus, RowGroup};
pub use writer::{CellBatch, CellValues, CorpusWriter, Profile, WriterOptions, obs_array_type};
pub(crate) use writer::{check_output, complete, temp_sibling};

/// Name of the manifest in a corpus folder.
pub const MANIFEST: &str = "manifest.json";
/// Name of the gene table in a corpus folder.
pub const GENES: &str = "genes.parquet";
