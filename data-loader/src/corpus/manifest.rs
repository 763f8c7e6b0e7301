//! The manifest: what a corpus holds, with the hash of every file.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// The format version this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueKind {
    /// Integer counts.
    Counts,
    /// Normalised, log-transformed expression.
    Lognorm,
}

impl ValueKind {
    /// The name in the manifest and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Lognorm => "lognorm",
        }
    }
}

/// What an obs column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObsKind {
    /// One of a list of categories, or missing.
    Category,
    /// A number, or missing.
    Number,
    /// Free text, or missing.
    String,
}

impl ObsKind {
    /// The kind in words.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Category => "categories",
            Self::Number => "numbers",
            Self::String => "free text",
        }
    }
}

/// One column about the cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObsColumn {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ObsKind,
    /// The categories, in the order of their codes; empty for other kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
}

/// One Parquet file of cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Path below the corpus folder.
    pub path: String,
    /// Cells in it.
    pub rows: u64,
    /// Cells in each of its row groups.
    pub row_group_rows: Vec<u32>,
    /// Size of the file.
    pub bytes: u64,
    /// Hash of the file.
    pub blake3: String,
}

/// The file of the gene table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneFile {
    /// Path below the corpus folder.
    pub path: String,
    /// Number of genes.
    pub n: u32,
    /// Hash of the file.
    pub blake3: String,
}

/// A file that the corpus was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name, without folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash.
    pub blake3: String,
}

/// Where a corpus came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The program that wrote it.
    pub tool: String,
    /// The version of that program.
    pub tool_version: String,
    /// What was read.
    pub sources: Vec<SourceFile>,
    /// The options in force.
    pub options: IndexMap<String, serde_json::Value>,
}

/// What a corpus holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format_version: u32,
    /// Number of cells.
    pub n_cells: u64,
    /// What the values are.
    pub value_kind: ValueKind,
    /// The obs column that labels the cells, when one was named on import.
    pub label: Option<String>,
    /// The obs column that names the batch, when one was named on import.
    pub batch: Option<String>,
    /// The gene table.
    pub genes: GeneFile,
    /// The obs columns.
    pub obs: Vec<ObsColumn>,
    /// The files of cells.
    pub shards: Vec<Shard>,
    /// Where the cells came from.
    pub provenance: Provenance,
}
