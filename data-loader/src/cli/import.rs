//! `scpeft-data import`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use scpeft_data::corpus::{Profile, WriterOptions};
use scpeft_data::hvg;
use scpeft_data::import::{
    self, FilterOptions, HvgOptions, ImportOptions, ImportReport, MatrixOption, SplitOptions,
    ValuesOption,
};

#[derive(Clone, Copy, clap::ValueEnum)]
enum Values {
    Auto,
    Counts,
    Lognorm,
}

#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Flavor {
    SeuratV3,
    CellRanger,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Profiles {
    List,
    Packed,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The .h5ad file
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The corpus folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Obs column that labels the cells
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Obs column that names the batch
    #[arg(long, value_name = "COLUMN")]
    batch: Option<String>,
    /// Other obs columns to keep [default: all that can be read]
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    obs: Option<Vec<String>>,
    /// Take this layer instead of X
    #[arg(long, value_name = "NAME", conflicts_with = "raw")]
    layer: Option<String>,
    /// Take raw/X, with its own genes, instead of X
    #[arg(long)]
    raw: bool,
    /// What the values are
    #[arg(long, value_enum, default_value = "auto")]
    values: Values,
    /// Deal the cells out to parts, in equal shares of each label, as obs column `split`
    #[arg(long, value_name = "NAME=SHARE,...")]
    split: Option<String>,
    /// Seed of --split
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    split_seed: u64,
    /// How cells are stored: as lists that any Parquet reader understands, or packed, for speed
    #[arg(long, value_enum, default_value_t = Profiles::List)]
    profile: Profiles,
    /// Cells in a row group, the unit of reading
    #[arg(long, value_name = "CELLS", default_value_t = WriterOptions::default().row_group_cells)]
    row_group_cells: usize,
    /// Cells in a shard
    #[arg(long, value_name = "CELLS", default_value_t = WriterOptions::default().shard_cells)]
    shard_cells: usize,
    /// Replace an existing corpus
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Which genes and cells are kept: steps in this order.
#[derive(clap::Args)]
#[command(next_help_heading = "Genes and cells, step by step")]
struct FilterArgs {
    /// Take exactly the genes of this corpus, in its order
    #[arg(long, value_name = "CORPUS", conflicts_with_all = ["vocab", "min_counts", "hvg"])]
    genes_like: Option<PathBuf>,
    /// Count genes of --genes-like that the file lacks as not expressed
    #[arg(long, requires = "genes_like")]
    allow_missing_genes: bool,
    /// Keep genes of this vocab.json (an object from token to id) alone
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// Keep genes with this sum over all cells, or more
    #[arg(long, value_name = "SUM")]
    min_counts: Option<u64>,
    /// Keep cells that express so many of the genes left, or more
    #[arg(long, value_name = "GENES")]
    min_genes: Option<u32>,
    /// Keep the most variable of the genes left
    #[arg(long, value_name = "GENES")]
    hvg: Option<usize>,
    /// How variable genes are found; seurat_v3 needs counts [default: seurat_v3]
    #[arg(long, value_enum, requires = "hvg")]
    hvg_flavor: Option<Flavor>,
    /// Obs column of batches in which genes are ranked separately
    #[arg(long, value_name = "COLUMN", requires = "hvg")]
    hvg_batch: Option<String>,
    /// Keep the genes that this file names too, one symbol or Ensembl id per line
    #[arg(long, value_name = "FILE", requires = "hvg")]
    keep_genes: Option<PathBuf>,
}

impl FilterArgs {
    fn options(&self) -> FilterOptions {
        FilterOptions {
            vocab: self.vocab.clone(),
            genes_like: self.genes_like.clone(),
            allow_missing_genes: self.allow_missing_genes,
            min_counts: self.min_counts,
            min_genes: self.min_genes,
            hvg: self.hvg.map(|n_top| HvgOptions {
                n_top,
                flavor: match self.hvg_flavor {
                    Some(Flavor::CellRanger) => hvg::Flavor::CellRanger,
                    Some(Flavor::SeuratV3) | None => hvg::Flavor::SeuratV3,
                },
                batch: self.hvg_batch.clone(),
            }),
            keep_genes: self.keep_genes.clone(),
        }
    }
}

impl Args {
    fn options(&self) -> scpeft_data::Result<ImportOptions> {
        let split = self.split.as_deref();
        Ok(ImportOptions {
            input: self.input.clone(),
            output: self.output.clone(),
            label: self.label.clone(),
            batch: self.batch.clone(),
            obs: self.obs.clone(),
            matrix: match &self.layer {
                Some(name) => MatrixOption::Layer(name.clone()),
                None if self.raw => MatrixOption::Raw,
                None => MatrixOption::X,
            },
            values: match self.values {
                Values::Auto => ValuesOption::Auto,
                Values::Counts => ValuesOption::Counts,
                Values::Lognorm => ValuesOption::Lognorm,
            },
            split: split
                .map(|text| SplitOptions::parse(text, self.split_seed))
                .transpose()?,
            filter: self.filter.options(),
            writer: WriterOptions {
                profile: match self.profile {
                    Profiles::List => Profile::List,
                    Profiles::Packed => Profile::Packed,
                },
                row_group_cells: self.row_group_cells,
                shard_cells: self.shard_cells,
                overwrite: self.overwrite,
            },
        })
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let options = args.options()?;
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        bar()
    } else {
        ProgressBar::hidden()
    };
    let done = import::import(&options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report(&options, &done?, begun.elapsed().as_secs_f64(), terminal);
    Ok(())
}

fn bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("importing {bar:40} {pos}/{len} cells, {per_sec}, {eta} left");
    ProgressBar::no_length().with_style(style.expect("the template is well formed"))
}

fn report(options: &ImportOptions, done: &ImportReport, seconds: f64, terminal: bool) {
    let rate = done.cells as f64 / seconds.max(1e-9);
    if terminal {
        println!(
            "{}: {} cells, {} genes, {}, {:.1} MB in {seconds:.1} s ({rate:.0} cells/s)",
            options.output.display(),
            done.cells,
            done.genes,
            done.value_kind.name(),
            done.bytes as f64 / 1e6
        );
        return;
    }
    let line = serde_json::json!({
        "event": "imported",
        "output": options.output.display().to_string(),
        "cells": done.cells,
        "genes": done.genes,
        "nonzeros": done.nonzeros,
        "value_kind": done.value_kind,
        "seconds": seconds,
        "cells_per_second": rate,
        "bytes": done.bytes,
    });
    println!("{line}");
}
