//! Making a corpus from files of cells.

mod filter;
mod h5ad;
mod panel;
mod refine;
pub mod split;
mod values;

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::json;

pub use filter::{FilterOptions, HvgOptions};
pub use split::{SPLIT_COLUMN, SplitOptions};
pub use values::ValuesOption;

use crate::corpus::{Profile, Provenance, SourceFile, ValueKind, WriterOptions};
use crate::storage::hash_file;
use crate::{Error, Result};

/// Which matrix of a file is imported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MatrixOption {
    /// The main one.
    #[default]
    X,
    /// The one kept aside under `raw`, with its own genes.
    Raw,
    /// One of the layers.
    Layer(String),
}

/// What to import, and how.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The source file.
    pub input: PathBuf,
    /// The corpus folder to make.
    pub output: PathBuf,
    /// The obs column that labels the cells.
    pub label: Option<String>,
    /// The obs column that names the batch.
    pub batch: Option<String>,
    /// The obs columns to keep besides label and batch; `None` for all that can be read.
    pub obs: Option<Vec<String>>,
    /// Which matrix.
    pub matrix: MatrixOption,
    /// What the values are.
    pub values: ValuesOption,
    /// Parts to deal the cells out to.
    pub split: Option<SplitOptions>,
    /// Which genes and cells are kept.
    pub filter: FilterOptions,
    /// How the corpus is cut.
    pub writer: WriterOptions,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportReport {
    /// Number of cells.
    pub cells: u64,
    /// Number of genes.
    pub genes: u32,
    /// Number of values stored.
    pub nonzeros: u64,
    /// Size of all shards.
    pub bytes: u64,
    /// What the values are.
    pub value_kind: ValueKind,
}

/// Imports a file. `progress` is told how many cells are done, and of how many. On an error nothing
/// is left behind. Filters that depend on all cells need room on the disk for a second corpus.
///
/// # Errors
/// When the source cannot be used, or the output exists or cannot be written.
pub fn import(options: &ImportOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<ImportReport> {
    crate::corpus::check_output(&options.output, options.writer)?;
    let WriterOptions {
        row_group_cells,
        shard_cells,
        ..
    } = options.writer;
    for (name, value) in [
        ("--row-group-cells", row_group_cells),
        ("--shard-cells", shard_cells),
    ] {
        if value == 0 {
            return Err(Error::options(
                format!("{name} must be at least 1, got `0`"),
                "",
            ));
        }
    }
    options.filter.check()?;
    if !options.filter.needs_all_cells() {
        return h5ad::import(options, progress);
    }
    // What is kept follows from all cells: they are imported next to the output first, and then read
    // from there. An h5ad file cannot be read by column and by row alike, a corpus is read quickly.
    let scratch = Scratch::new(&options.output)?;
    let staged = ImportOptions {
        output: scratch.path().join("staged"),
        writer: WriterOptions {
            profile: Profile::List,
            ..options.writer
        },
        ..options.clone()
    };
    h5ad::import(&staged, progress)?;
    refine::refine(options, &staged.output)
}

impl ImportOptions {
    fn provenance(&self) -> Result<Provenance> {
        let bytes = std::fs::metadata(&self.input)
            .map_err(Error::io("read", &self.input))?
            .len();
        let name = self.input.file_name().unwrap_or_default();
        let matrix = match &self.matrix {
            MatrixOption::X => json!("X"),
            MatrixOption::Raw => json!("raw"),
            MatrixOption::Layer(layer) => json!({ "layer": layer }),
        };
        let split = self.split.as_ref().map(|s| {
            let parts: IndexMap<&str, f64> =
                s.parts.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            json!({ "parts": parts, "seed": s.seed })
        });
        let options = [
            ("matrix", matrix),
            ("values", json!(self.values.name())),
            ("label", json!(self.label)),
            ("batch", json!(self.batch)),
            ("obs", json!(self.obs)),
            ("split", json!(split)),
            ("row_group_cells", json!(self.writer.row_group_cells)),
            ("shard_cells", json!(self.writer.shard_cells)),
        ];
        Ok(Provenance {
            tool: "scpeft-data import".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            sources: vec![SourceFile {
                name: name.to_string_lossy().into_owned(),
                bytes,
                blake3: hash_file(&self.input)?,
            }],
            options: options
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .chain(self.filter.provenance()?)
                .collect(),
        })
    }
}

/// Consecutive cells of a source, as they are: genes may be unsorted and repeat.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rows {
    /// Number of the first cell.
    pub(crate) first: usize,
    pub(crate) offsets: Vec<usize>,
    pub(crate) genes: Vec<u32>,
    pub(crate) values: Vec<f64>,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn slice(&self, rows: Range<usize>) -> Self {
        let span = self.offsets[rows.start]..self.offsets[rows.end];
        Self {
            first: self.first + rows.start,
            offsets: self.offsets[rows.start..=rows.end]
                .iter()
                .map(|o| o - span.start)
                .collect(),
            genes: self.genes[span.clone()].to_vec(),
            values: self.values[span].to_vec(),
        }
    }
}

/// A folder for temporary files next to the output, removed in the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(output: &Path) -> Result<Self> {
        let path = crate::corpus::temp_sibling(output, "scratch")?;
        std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure leaves an empty hidden folder behind; there is nobody left to tell.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
