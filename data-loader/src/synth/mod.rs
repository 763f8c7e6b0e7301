//! Synthetic corpora: cells that look like those of a large perturbation atlas, from a seed.
//!
//! Any cell can be made without the others, so shards are written in parallel and do not depend on the
//! number of threads. Cell lines have log-normal expression profiles, cells log-normal sizes; counts are
//! the molecules that a cell draws from the profile of its line. The same cells can be written as a
//! corpus, in the layout of the published Parquet files of Tahoe-100M, and as `.h5ad`.

mod cells;
mod corpus;
mod h5ad;
mod names;
mod tahoe;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::corpus::{CellBatch, Profile, WriterOptions};
use crate::parallel::default_threads;
use crate::{Error, Result};
use cells::{Cells, Generator};

/// Cells made at a time.
const CHUNK: u64 = 1024;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthLayout {
    /// A corpus.
    Corpus(Profile),
    /// Parquet files with side tables, as Tahoe-100M is published.
    Tahoe,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct SynthOptions {
    /// Number of cells.
    pub cells: u64,
    /// Number of genes, 65,535 at most.
    pub genes: usize,
    /// Expressed genes per cell, on average.
    pub nonzeros: u32,
    /// The seed that everything follows from.
    pub seed: u64,
    /// What is written.
    pub layout: SynthLayout,
    /// The folder to make.
    pub output: PathBuf,
    /// Where to write the same cells as `.h5ad` too.
    pub h5ad: Option<PathBuf>,
    /// Cells in a row group; that of a corpus' default, or 1,000 in Tahoe's layout.
    pub row_group_cells: Option<usize>,
    /// Cells in a file.
    pub shard_cells: usize,
    /// Whether existing output is replaced.
    pub overwrite: bool,
    /// Threads to use.
    pub threads: usize,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            cells: 0,
            genes: 62_710,
            nonzeros: 1500,
            seed: 0,
            layout: SynthLayout::Corpus(Profile::List),
            output: PathBuf::new(),
            h5ad: None,
            row_group_cells: None,
            shard_cells: WriterOptions::default().shard_cells,
            overwrite: false,
            threads: default_threads(),
        }
    }
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthReport {
    /// Cells in each of the outputs.
    pub cells: u64,
    /// Values in them.
    pub nonzeros: u64,
    /// Files of cells in the folder.
    pub shards: usize,
    /// Their size.
    pub bytes: u64,
}

/// How far it is: cells written and to be written, over all outputs.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Makes a corpus, or what stands for one.
///
/// # Errors
/// When the options contradict each other, an output exists, or the disk refuses.
pub fn synthesize(options: &SynthOptions, progress: Progress<'_>) -> Result<SynthReport> {
    check(options)?;
    let generator = Generator::new(options)?;
    let outputs = 1 + u64::from(options.h5ad.is_some());
    let plan = Plan {
        options,
        generator: &generator,
        done: AtomicU64::new(0),
        total: options.cells * outputs,
        progress,
    };
    if let Some(path) = &options.h5ad {
        h5ad::write(&plan, path)?;
    }
    match options.layout {
        SynthLayout::Corpus(profile) => corpus::write(&plan, profile),
        SynthLayout::Tahoe => tahoe::write(&plan),
    }
}

/// What the writers share.
struct Plan<'a> {
    options: &'a SynthOptions,
    generator: &'a Generator,
    done: AtomicU64,
    total: u64,
    progress: Progress<'a>,
}

impl Plan<'_> {
    /// Number of files of cells.
    fn shards(&self) -> usize {
        self.options.cells.div_ceil(self.options.shard_cells as u64) as usize
    }

    /// The cells of a file, in chunks.
    fn chunks(&self, shard: usize) -> impl Iterator<Item = Cells> + '_ {
        let size = self.options.shard_cells as u64;
        let first = shard as u64 * size;
        ranges(first..(first + size).min(self.options.cells), CHUNK)
            .map(|range| self.generator.cells(range))
    }

    fn advance(&self, cells: usize) {
        let before = self.done.fetch_add(cells as u64, Ordering::Relaxed);
        (self.progress)(before + cells as u64, self.total);
    }
}

fn ranges(whole: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let end = whole.end;
    whole
        .step_by(size as usize)
        .map(move |first| first..(first + size).min(end))
}

fn check(options: &SynthOptions) -> Result<()> {
    let bad = |problem: String, help: &str| Err(Error::options(problem, help));
    if options.cells == 0 {
        return bad("`--cells` must be at least 1, got `0`".into(), "");
    }
    let genes = 16..=usize::from(u16::MAX);
    if !genes.contains(&options.genes) {
        return bad(
            format!(
                "`--genes` must lie between {} and {}, got `{}`",
                genes.start(),
                genes.end(),
                options.genes
            ),
            "",
        );
    }
    if options.shard_cells == 0 || options.row_group_cells == Some(0) {
        return bad(
            "row groups and shards need at least one cell".into(),
            "check --row-group-cells and --shard-cells",
        );
    }
    match &options.h5ad {
        Some(path) if path.exists() && !options.overwrite => {
            Err(Error::OutputExists { path: path.clone() })
        }
        _ => Ok(()),
    }
}

impl Cells {
    /// As the corpus writer takes them.
    fn into_batch(self, obs: Vec<arrow::array::ArrayRef>) -> CellBatch {
        CellBatch {
            cell_ids: self.names().collect(),
            offsets: self.offsets,
            genes: self.genes,
            values: crate::corpus::CellValues::Counts(self.counts),
            obs,
        }
    }
}

fn corrupt(path: &Path) -> impl Fn(String) -> Error + '_ {
    move |problem| Error::corpus(path, "writing", problem)
}
