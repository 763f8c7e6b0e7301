//! `scpeft-data synth`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use scpeft_data::corpus::Profile;
use scpeft_data::synth::{SynthLayout, SynthOptions, synthesize};

use super::progress::{self, Unit};

#[derive(Clone, Copy, clap::ValueEnum)]
enum Layout {
    /// A corpus of lists
    List,
    /// A corpus of packed bytes
    Packed,
    /// Parquet files and side tables as Tahoe-100M is published
    Tahoe,
}

const EXAMPLES: &str = "Examples:
  scpeft-data synth --cells 200000 --output corpus
  scpeft-data synth --cells 60000 --layout tahoe --output tahoe --h5ad cells.h5ad
  scpeft-data synth --cells 2000 --genes 800 --nonzeros 60 --output small";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Number of cells
    #[arg(long, value_name = "N")]
    cells: u64,
    /// Number of genes
    #[arg(long, value_name = "G", default_value_t = SynthOptions::default().genes)]
    genes: usize,
    /// Expressed genes per cell, on average
    #[arg(long, value_name = "N", default_value_t = SynthOptions::default().nonzeros)]
    nonzeros: u32,
    /// Seed of everything
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Layout::List)]
    layout: Layout,
    /// Write the same cells to this .h5ad file too
    #[arg(long, value_name = "FILE")]
    h5ad: Option<PathBuf>,
    /// Cells in a row group [default: 4096, with tahoe 1000]
    #[arg(long, value_name = "CELLS")]
    row_group_cells: Option<usize>,
    /// Cells in a file
    #[arg(long, value_name = "CELLS", default_value_t = SynthOptions::default().shard_cells)]
    shard_cells: usize,
    /// Threads to use; what is written does not depend on them
    #[arg(long, value_name = "N", default_value_t = SynthOptions::default().threads)]
    threads: usize,
    /// Replace existing output
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let options = SynthOptions {
        cells: args.cells,
        genes: args.genes,
        nonzeros: args.nonzeros,
        seed: args.seed,
        layout: match args.layout {
            Layout::List => SynthLayout::Corpus(Profile::List),
            Layout::Packed => SynthLayout::Corpus(Profile::Packed),
            Layout::Tahoe => SynthLayout::Tahoe,
        },
        output: args.output.clone(),
        h5ad: args.h5ad.clone(),
        row_group_cells: args.row_group_cells,
        shard_cells: args.shard_cells,
        overwrite: args.overwrite,
        threads: args.threads,
    };
    let bar = progress::bar("making", Unit::Cells);
    let made = synthesize(&options, &progress::moves(&bar));
    bar.finish_and_clear();
    let made = made?;
    let seconds = begun.elapsed().as_secs_f64();
    let rate = made.cells as f64 / seconds.max(1e-9);
    if std::io::stderr().is_terminal() {
        println!(
            "{}: {} cells, {} values, {} files, {:.1} MB in {seconds:.1} s ({rate:.0} cells/s)",
            options.output.display(),
            made.cells,
            made.nonzeros,
            made.shards,
            made.bytes as f64 / 1e6
        );
        return Ok(());
    }
    let line = serde_json::json!({
        "event": "synthesized",
        "output": options.output.display().to_string(),
        "cells": made.cells,
        "nonzeros": made.nonzeros,
        "shards": made.shards,
        "bytes": made.bytes,
        "seconds": seconds,
        "cells_per_second": rate,
    });
    println!("{line}");
    Ok(())
}
