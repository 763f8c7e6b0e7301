//! `scpeft-data index`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use scpeft_data::import::{SplitOptions, ValuesOption};
use scpeft_data::index::{self, Columns, IndexOptions, IndexReport, SideTable};
use scpeft_data::{Result, StoreOptions};

#[derive(Clone, Copy, clap::ValueEnum)]
enum Values {
    Auto,
    Counts,
    Lognorm,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Preset {
    Tahoe,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Duplicates {
    Sum,
    Refuse,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum UnknownGenes {
    Refuse,
    Drop,
}

const EXAMPLES: &str = "Examples:
  scpeft-data index s3://bucket/tahoe-100m --preset tahoe --output corpus
  scpeft-data index data --genes-column ids --values-column counts --cell-id-column barcode \\
      --gene-table genes.parquet --obs cell_type=cellType,donor --label cell_type --output corpus";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder or URL (s3://, gs://, az://) of the Parquet files, which stay where they are
    #[arg(value_name = "FOLDER-OR-URL")]
    source: PathBuf,
    /// The corpus folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How the files are laid out: `tahoe` is Tahoe-100M
    #[arg(long, value_enum, required_unless_present = "genes_column")]
    preset: Option<Preset>,
    /// Obs columns to keep, `NAME=COLUMN` under another name [default: all of text and numbers]
    #[arg(long, value_name = "NAME[=COLUMN],...", value_delimiter = ',')]
    obs: Option<Vec<String>>,
    /// Obs column that labels the cells
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Obs column that names the batch
    #[arg(long, value_name = "COLUMN")]
    batch: Option<String>,
    /// What the values are; `auto` looks at the first cells
    #[arg(long, value_enum, default_value = "auto")]
    values: Values,
    /// Deal whole groups of cells out to parts, as obs column `split`
    #[arg(long, value_name = "NAME=SHARE,...", requires = "split_by")]
    split: Option<String>,
    /// The obs column of the groups that --split keeps whole
    #[arg(long, value_name = "COLUMN", requires = "split")]
    split_by: Option<String>,
    /// Seed of --split
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    split_seed: u64,
    /// What happens to gene ids that the gene table lacks
    #[arg(long, value_enum, default_value = "refuse")]
    unknown_genes: UnknownGenes,
    /// Replace an existing corpus
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    layout: LayoutArgs,
    #[command(flatten)]
    tables: TableArgs,
}

/// Where things are in files of no preset.
#[derive(clap::Args)]
#[command(next_help_heading = "Files without a preset")]
struct LayoutArgs {
    /// Column of lists of gene ids
    #[arg(
        long,
        value_name = "COLUMN",
        conflicts_with = "preset",
        requires = "values_column"
    )]
    genes_column: Option<String>,
    /// Column of lists of values
    #[arg(long, value_name = "COLUMN", conflicts_with = "preset")]
    values_column: Option<String>,
    /// Column of cell ids [default: cells are named by file and row]
    #[arg(long, value_name = "COLUMN", conflicts_with = "preset")]
    cell_id_column: Option<String>,
    /// Leave out entries with negative values at the head of a cell, which stand for special tokens
    #[arg(long, conflicts_with = "preset")]
    drop_negative_head: bool,
    /// What happens to a gene that a cell lists twice
    #[arg(long, value_enum, default_value = "sum", conflicts_with = "preset")]
    duplicates: Duplicates,
}

/// Tables that belong to the cells.
#[derive(clap::Args)]
#[command(next_help_heading = "Tables (Parquet)")]
struct TableArgs {
    /// Which gene each id stands for [default: metadata/gene_metadata.parquet beside the data]
    #[arg(long, value_name = "FILE-OR-URL")]
    gene_table: Option<PathBuf>,
    /// Column of ids in the gene table [default: token_id, or else row numbers]
    #[arg(long, value_name = "COLUMN")]
    gene_id_column: Option<String>,
    /// Table of samples, with doses [default: metadata/sample_metadata.parquet beside the data]
    #[arg(long, value_name = "FILE-OR-URL", requires = "preset")]
    sample_metadata: Option<PathBuf>,
    /// Table of drugs [default: metadata/drug_metadata.parquet beside the data]
    #[arg(long, value_name = "FILE-OR-URL", requires = "preset")]
    drug_metadata: Option<PathBuf>,
    /// Table of cell lines [default: metadata/cell_line_metadata.parquet beside the data]
    #[arg(long, value_name = "FILE-OR-URL", requires = "preset")]
    cell_line_metadata: Option<PathBuf>,
}

impl Args {
    fn columns(&self) -> Columns {
        let layout = &self.layout;
        let columns = match (&layout.genes_column, &layout.values_column) {
            (Some(genes), Some(values)) => Columns {
                genes: genes.clone(),
                values: values.clone(),
                cell_id: layout.cell_id_column.clone(),
                drop_negative_head: layout.drop_negative_head,
                sum_duplicates: layout.duplicates == Duplicates::Sum,
                drop_unknown: false,
                empty_is_missing: Vec::new(),
                numbers_in_text: Vec::new(),
            },
            _ => Columns::tahoe(),
        };
        Columns {
            drop_unknown: self.unknown_genes == UnknownGenes::Drop,
            ..columns
        }
    }

    fn options(&self) -> Result<IndexOptions> {
        let tables = &self.tables;
        let obs = self.obs.as_ref().map(|names| {
            let pair = |text: &String| {
                let (name, column) = text.split_once('=').unwrap_or((text, text));
                (name.to_owned(), column.to_owned())
            };
            names.iter().map(pair).collect()
        });
        let split = match (&self.split, &self.split_by) {
            (Some(text), Some(by)) => {
                Some((SplitOptions::parse(text, self.split_seed)?, by.clone()))
            }
            _ => None,
        };
        let side_tables = match self.preset {
            None => Vec::new(),
            Some(Preset::Tahoe) => SideTable::tahoe(
                tables.sample_metadata.clone(),
                tables.drug_metadata.clone(),
                tables.cell_line_metadata.clone(),
            ),
        };
        Ok(IndexOptions {
            source: self.source.clone(),
            output: self.output.clone(),
            overwrite: self.overwrite,
            columns: self.columns(),
            gene_table: tables.gene_table.clone(),
            gene_id_column: tables.gene_id_column.clone(),
            obs,
            values: match self.values {
                Values::Auto => ValuesOption::Auto,
                Values::Counts => ValuesOption::Counts,
                Values::Lognorm => ValuesOption::Lognorm,
            },
            label: self.label.clone(),
            batch: self.batch.clone(),
            split,
            side_tables,
            store: StoreOptions::from_env()?,
        })
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let options = args.options()?;
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        let style = ProgressStyle::with_template("indexing {bar:40} {pos}/{len} files, {eta} left");
        ProgressBar::no_length().with_style(style.expect("the template is well formed"))
    } else {
        ProgressBar::hidden()
    };
    let done = index::index(&options, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report(&options, &done?, begun.elapsed().as_secs_f64(), terminal);
    Ok(())
}

fn report(options: &IndexOptions, done: &IndexReport, seconds: f64, terminal: bool) {
    for note in &done.notes {
        eprintln!("note: {note}");
    }
    if terminal {
        println!(
            "{}: {} cells in {} files ({} row groups), {} genes, {}, in {seconds:.1} s",
            options.output.display(),
            done.cells,
            done.shards,
            done.row_groups,
            done.genes,
            done.value_kind.name()
        );
        return;
    }
    let line = serde_json::json!({
        "event": "indexed",
        "output": options.output.display().to_string(),
        "cells": done.cells,
        "genes": done.genes,
        "files": done.shards,
        "row_groups": done.row_groups,
        "value_kind": done.value_kind,
        "notes": done.notes,
        "seconds": seconds,
    });
    println!("{line}");
}
