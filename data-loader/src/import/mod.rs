//! Making a corpus from files of cells.

mod csc;
mod filter;
mod groups;
mod h5ad;
mod hashing;
mod hdf5;
mod join;
mod matrix;
mod obs;
mod orthologues;
mod panel;
mod record;
mod refine;
mod run;
mod scatter;
mod shuffle;
mod source;
pub mod split;
mod tenx;
mod texts;
mod values;

use std::path::{Path, PathBuf};

use serde_json::json;

pub use filter::{FilterOptions, HvgOptions};
pub use join::{Join, JoinKey};
pub use orthologues::{OneToMany, OrthologueOptions};
pub use split::{SPLIT_COLUMN, SplitOptions};
pub use values::ValuesOption;

pub(crate) use h5ad::{annotated_cells, column_order};
pub(crate) use hdf5::import_error;
use values::Numbers;

use crate::corpus::{Profile, Provenance, SourceFile, ValueKind, WriterOptions};
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
    /// The sources: `.h5ad` files, 10x HDF5 files, 10x folders. At least one.
    pub inputs: Vec<PathBuf>,
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
    /// The genome to take from 10x files with several.
    pub genome: Option<String>,
    /// Another species whose genes the cells get.
    pub orthologues: Option<OrthologueOptions>,
    /// Which genes of several sources are kept.
    pub join: Join,
    /// By which name the genes of several sources are the same.
    pub gene_key: JoinKey,
    /// The obs column that names the source of each cell; `None` for `source` when there are several
    /// sources, and for no such column otherwise.
    pub source_column: Option<String>,
    /// Parts to deal the cells out to.
    pub split: Option<SplitOptions>,
    /// The obs column that names the part of each cell.
    pub split_column: Option<String>,
    /// The seed of a random order of all cells; `None` for the order of the sources.
    pub shuffle: Option<u64>,
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

/// Imports one or several sources. `progress` is told how many cells are done, and of how many: with a
/// shuffle each cell counts twice. On an error nothing is left behind. A shuffle, matrices that are stored by
/// genes, and filters that depend on all cells need room on the disk beside the output.
///
/// # Errors
/// When the source cannot be used, or the output exists or cannot be written.
pub fn import(options: &ImportOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<ImportReport> {
    if options.inputs.is_empty() {
        return Err(Error::options(
            "there is no input",
            "name at least one with --input",
        ));
    }
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
        return run::run(options, progress);
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
    run::run(&staged, progress)?;
    refine::refine(options, &staged.output)
}

impl ImportOptions {
    /// The first input, for messages about all of them.
    fn first_input(&self) -> &Path {
        self.inputs.first().map_or(Path::new(""), PathBuf::as_path)
    }

    fn provenance(&self, sources: Vec<SourceFile>) -> Result<Provenance> {
        let matrix = match &self.matrix {
            MatrixOption::X => json!("X"),
            MatrixOption::Raw => json!("raw"),
            MatrixOption::Layer(layer) => json!({ "layer": layer }),
        };
        let options = [
            ("matrix", matrix),
            ("values", json!(self.values.name())),
            ("label", json!(self.label)),
            ("batch", json!(self.batch)),
            ("obs", json!(self.obs)),
            ("genome", json!(self.genome)),
            ("split", json!(null)),
            (
                "shuffle",
                json!(self.shuffle.map(|seed| json!({ "seed": seed }))),
            ),
            ("row_group_cells", json!(self.writer.row_group_cells)),
            ("shard_cells", json!(self.writer.shard_cells)),
        ];
        Ok(Provenance {
            tool: "scpeft-data import".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            sources,
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
struct Rows {
    /// Number of the first cell.
    first: usize,
    offsets: Vec<usize>,
    genes: Vec<u32>,
    values: Numbers,
}

impl Rows {
    fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Cuts into blocks of at most so many cells, and of at most so many values where a cell allows.
    fn split(self, most_cells: usize, most_values: usize) -> Vec<Self> {
        let mut cuts = vec![0];
        let mut first = 0;
        for row in 1..self.len() {
            let values = self.offsets[row + 1] - self.offsets[first];
            if row - first == most_cells || values > most_values {
                cuts.push(row);
                first = row;
            }
        }
        if cuts.len() == 1 {
            return vec![self];
        }
        cuts.push(self.len());
        cuts.windows(2)
            .map(|cut| {
                let span = self.offsets[cut[0]]..self.offsets[cut[1]];
                Self {
                    first: self.first + cut[0],
                    offsets: self.offsets[cut[0]..=cut[1]]
                        .iter()
                        .map(|o| o - span.start)
                        .collect(),
                    genes: self.genes[span.clone()].to_vec(),
                    values: self.values.slice(span),
                }
            })
            .collect()
    }

    /// Renumbers the columns that are genes, and drops the others.
    fn keep_genes(&mut self, genes: &[Option<u32>]) {
        let mut places = Vec::with_capacity(self.genes.len());
        let mut from = 0;
        for row in 1..self.offsets.len() {
            let end = self.offsets[row];
            for at in from..end {
                if let Some(gene) = genes[self.genes[at] as usize] {
                    self.genes[places.len()] = gene;
                    places.push(at);
                }
            }
            from = end;
            self.offsets[row] = places.len();
        }
        self.genes.truncate(places.len());
        self.values.pick(&places);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Rows {
        Rows {
            first: 7,
            offsets: vec![0, 2, 2, 5],
            genes: vec![0, 3, 1, 2, 3],
            values: Numbers::U32(vec![1, 2, 3, 4, 5]),
        }
    }

    #[test]
    fn blocks_hold_no_more_than_they_may() {
        let sizes = |cells, values| {
            let blocks = rows().split(cells, values);
            let firsts: Vec<_> = blocks
                .iter()
                .map(|b| (b.first, b.len(), b.genes.len()))
                .collect();
            firsts
        };
        assert_eq!(sizes(10, 10), [(7, 3, 5)]);
        assert_eq!(sizes(2, 10), [(7, 2, 2), (9, 1, 3)]);
        assert_eq!(sizes(10, 3), [(7, 2, 2), (9, 1, 3)]);
        assert_eq!(sizes(1, 1), [(7, 1, 2), (8, 1, 0), (9, 1, 3)]);
        let last = rows().split(1, 1).pop().unwrap();
        assert_eq!((last.offsets, last.genes), (vec![0, 3], vec![1, 2, 3]));
    }

    #[test]
    fn columns_that_are_no_genes_are_dropped() {
        let mut rows = rows();
        rows.keep_genes(&[None, Some(0), None, Some(1)]);
        assert_eq!(rows.offsets, [0, 1, 1, 3]);
        assert_eq!(rows.genes, [1, 0, 1]);
        assert!(matches!(rows.values, Numbers::U32(v) if v == [2, 3, 5]));
    }
}
