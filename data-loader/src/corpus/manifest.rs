//! The manifest: what a corpus holds, with the hash of every file.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// The format version this crate writes. Version 1, without a layout, is read too.
pub const FORMAT_VERSION: u32 = 2;

/// How the genes and values of cells lie in the shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layout {
    /// Two columns of lists, `genes` (ascending indices into the gene table) and `values`.
    #[default]
    List,
    /// Two columns of bytes, `genes` and `values`: see [`super::packed`].
    Packed,
    /// Files that somebody else wrote, read where they are.
    Foreign(ForeignLayout),
}

/// Where the genes and values of foreign Parquet files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignLayout {
    /// The column of lists of gene ids.
    pub genes: String,
    /// The column of lists of values, as long as those of the ids.
    pub values: String,
    /// The column of cell ids; without one a cell is named by its shard and row.
    pub cell_id: Option<String>,
    /// What the ids are: the id of each row of the gene table. `None` when ids are its row numbers.
    pub gene_ids: Option<Vec<i64>>,
    /// Whether entries with negative values at the head of a cell, which stand for special tokens, are
    /// left out.
    pub drop_negative_head: bool,
    /// Whether the values of a gene that a cell lists more than once are summed; otherwise that is an
    /// error. Lists need not be sorted then.
    pub sum_duplicates: bool,
    /// Whether ids that the gene table lacks are left out; otherwise they are an error.
    #[serde(default)]
    pub drop_unknown: bool,
}

/// An obs column that follows from another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lookup {
    /// The categorical column it follows from, by its name in the shards.
    pub column: String,
    /// What each value of that column stands for: a category (as its text) or a number; values that are
    /// not listed are missing.
    pub values: IndexMap<String, serde_json::Value>,
}

/// How an obs column that was added to a finished corpus follows from others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Derived {
    /// The categorical obs columns it follows from.
    pub by: Vec<String>,
    /// What their categories together stand for; combinations that are not listed are missing.
    pub values: Vec<(Vec<String>, String)>,
    /// Who made it, and how.
    pub origin: serde_json::Value,
}

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObsColumn {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ObsKind,
    /// The categories, in the order of their codes; empty for other kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Its name in the shards, when it goes by another one there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How it follows from another column, when it is not in the shards itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup: Option<Lookup>,
    /// How it follows from other obs columns, when it was added to the finished corpus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
}

impl ObsColumn {
    /// A column that is in the shards under its own name.
    pub fn new(name: impl Into<String>, kind: ObsKind, categories: Vec<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            categories,
            source: None,
            lookup: None,
            derived: None,
        }
    }
}

/// One Parquet file of cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Path below the corpus folder, or below the manifest's `root` when it has one.
    pub path: String,
    /// Cells in it.
    pub rows: u64,
    /// Cells in each of its row groups.
    pub row_group_rows: Vec<u32>,
    /// Size of the file.
    pub bytes: u64,
    /// Hash of the file; foreign files have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Hash of the Parquet footer (its metadata, without the length and the magic at the end).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footer_blake3: Option<String>,
    /// CRC-32 of each column chunk: by row group, then by leaf column of the Parquet schema. Whoever reads
    /// a chunk checks it. Empty for foreign files, and in corpora of early versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunk_crc32: Vec<Vec<u32>>,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format_version: u32,
    /// Number of cells.
    pub n_cells: u64,
    /// How cells lie in the shards.
    #[serde(default)]
    pub layout: Layout,
    /// The folder or URL that the paths of shards are below, when it is not the corpus folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
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
