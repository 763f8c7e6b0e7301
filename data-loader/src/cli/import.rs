//! `scpeft-data import`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use scpeft_data::corpus::{Profile, WriterOptions};
use scpeft_data::hvg;
use scpeft_data::import::{
    self, FilterOptions, HvgOptions, ImportOptions, ImportReport, Join, JoinKey, MatrixOption,
    OneToMany, OrthologueOptions, SplitOptions, ValuesOption,
};

const EXAMPLES: &str = "\
Examples:
  One file, cells dealt out at random:
    scpeft-data import --input cells.h5ad --label cell_type --split train=.8,val=.1,test=.1 --output corpus
  Whole donors held out, cells written in random order:
    scpeft-data import --input cells.h5ad --split train=.8,test=.2 --split-by donor --shuffle 0 --output corpus
  Three 10x samples, with the genes that all have:
    scpeft-data import --input s1.h5 --input s2.h5 --input s3/filtered_feature_bc_matrix \\
        --join intersection --output corpus
  Parts that the file names itself, counts from a layer:
    scpeft-data import --input cells.h5ad --layer counts --split-column fold --output corpus";

#[derive(Clone, Copy, clap::ValueEnum)]
enum Joins {
    Union,
    Intersection,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Keys {
    Auto,
    Symbol,
    Ensembl,
}

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
enum Rules {
    Sum,
    Best,
    Drop,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Profiles {
    List,
    Packed,
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An .h5ad file, a 10x .h5 file or a 10x folder (matrix.mtx, features.tsv, barcodes.tsv, also with
    /// .gz); what it is is found out from what it holds. Repeat it to put several into one corpus
    #[arg(long, value_name = "PATH", required = true)]
    input: Vec<PathBuf>,
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
    /// Take this genome of a 10x input that has several
    #[arg(long, value_name = "NAME")]
    genome: Option<String>,
    #[command(flatten)]
    orthologues: OrthologueArgs,
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    split: SplitArgs,
    /// Write the cells in a random order that this seed decides
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
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

/// Cells of one species as if they were of another, before any other choice of genes.
#[derive(clap::Args)]
#[command(next_help_heading = "Another species")]
struct OrthologueArgs {
    /// Table of orthologues: homologene's, or two columns of gene names, with tabs or commas; a header
    /// may name the species. Genes without an orthologue are left out
    #[arg(long, value_name = "FILE", requires = "from", requires = "to")]
    orthologues: Option<PathBuf>,
    /// Species of the cells: mouse, rat, macaque, zebrafish, fly, worm, ..., or a number of NCBI's taxonomy
    #[arg(long, value_name = "SPECIES", requires = "orthologues")]
    from: Option<String>,
    /// Species of the backbone
    #[arg(long, value_name = "SPECIES", requires = "orthologues")]
    to: Option<String>,
    /// Genes with several orthologues. sum: a gene gets the sum of all genes that it is an orthologue of,
    /// and a gene with several goes to the best; best: it gets the best alone; drop: such genes are left
    /// out. The best has the same name but for upper and lower case, else it comes first in the table
    #[arg(long, value_enum, default_value_t = Rules::Sum, requires = "orthologues")]
    one_to_many: Rules,
}

impl OrthologueArgs {
    fn options(&self) -> Option<OrthologueOptions> {
        Some(OrthologueOptions {
            path: self.orthologues.clone()?,
            from: self.from.clone()?,
            to: self.to.clone()?,
            one_to_many: match self.one_to_many {
                Rules::Sum => OneToMany::Sum,
                Rules::Best => OneToMany::Best,
                Rules::Drop => OneToMany::Drop,
            },
        })
    }
}

/// Several inputs. Cell ids that occur in two of them get the name of their input. Obs columns are united;
/// numbers that meet texts in a column become texts.
#[derive(clap::Args)]
#[command(next_help_heading = "Several inputs")]
struct JoinArgs {
    /// Keep the genes of any input, or those that all inputs have
    #[arg(long, value_enum, default_value = "union")]
    join: Joins,
    /// Name by which genes are the same; auto: the Ensembl id when every gene has one, else the symbol
    #[arg(long, value_enum, default_value = "auto")]
    gene_key: Keys,
    /// Obs column that names the input of each cell [default: source, when there are several]
    #[arg(long, value_name = "NAME")]
    source_column: Option<String>,
}

/// Parts, always written as obs column `split`.
#[derive(clap::Args)]
#[command(next_help_heading = "Parts, written as obs column `split`")]
struct SplitArgs {
    /// Deal the cells out to parts, in equal shares of each label
    #[arg(long, value_name = "NAME=SHARE,...")]
    split: Option<String>,
    /// Seed of --split
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    split_seed: u64,
    /// Obs column whose groups (donors, batches, perturbations) go to one part each, as a whole; shares
    /// are then met as nearly as the groups allow
    #[arg(long, value_name = "COLUMN", requires = "split")]
    split_by: Option<String>,
    /// Obs column that names the part of each cell
    #[arg(long, value_name = "COLUMN", conflicts_with = "split")]
    split_column: Option<String>,
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
        let split = self.split.split.as_deref();
        let split = split.map(|text| SplitOptions::parse(text, self.split.split_seed));
        let split = split.transpose()?.map(|split| SplitOptions {
            by: self.split.split_by.clone(),
            ..split
        });
        Ok(ImportOptions {
            inputs: self.input.clone(),
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
            genome: self.genome.clone(),
            orthologues: self.orthologues.options(),
            join: match self.join.join {
                Joins::Union => Join::Union,
                Joins::Intersection => Join::Intersection,
            },
            gene_key: match self.join.gene_key {
                Keys::Auto => JoinKey::Auto,
                Keys::Symbol => JoinKey::Symbol,
                Keys::Ensembl => JoinKey::Ensembl,
            },
            source_column: self.join.source_column.clone(),
            split,
            split_column: self.split.split_column.clone(),
            shuffle: self.shuffle,
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
        bar(options.shuffle.is_some())
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

fn bar(shuffle: bool) -> ProgressBar {
    let template = if shuffle {
        "importing {bar:40} {pos}/{len} cells (each twice: dealt out, then written), {per_sec}, {eta} left"
    } else {
        "importing {bar:40} {pos}/{len} cells, {per_sec}, {eta} left"
    };
    let style = ProgressStyle::with_template(template);
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
