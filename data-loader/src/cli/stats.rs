//! `scpeft-data stats`.

use std::path::PathBuf;

use scpeft_data::Corpus;
use scpeft_data::parallel::default_threads;
use scpeft_data::stats::{self, Distribution, LengthOptions, Stats, StatsOptions};

use super::progress::{self, Unit};

/// Categories shown of each column in the text form.
const SHOWN: usize = 30;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
    /// Count cells by this categorical obs column too; may be repeated
    #[arg(long, value_name = "COLUMN")]
    by: Vec<String>,
    /// How many of the most expressed genes to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    top_genes: usize,
    /// Longest sequences to work padding out for, in tokens
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_values_t = [512, 1200, 2048, 4096])]
    max_len: Vec<usize>,
    /// Cells in a batch that is padded
    #[arg(long, value_name = "CELLS", default_value_t = 64)]
    batch_cells: usize,
    /// Row groups that are shuffled with each other
    #[arg(long, value_name = "K", default_value_t = 8)]
    window_row_groups: usize,
    /// Seed of the shuffle
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Threads to use
    #[arg(long, value_name = "N", default_value_t = default_threads())]
    threads: usize,
    /// Draw histograms and bars into this SVG file
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let options = StatsOptions {
        by: args.by.clone(),
        top_genes: args.top_genes,
        lengths: LengthOptions {
            max_lens: args.max_len.clone(),
            batch_cells: args.batch_cells,
            window_row_groups: args.window_row_groups,
            seed: args.seed,
        },
        threads: args.threads,
    };
    let bar = progress::bar("counting", Unit::Cells);
    let found = stats::stats(&corpus, &options, &progress::moves(&bar));
    bar.finish_and_clear();
    let found = found?;
    if let Some(path) = &args.picture {
        stats::draw(&found, path)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found, args);
    }
    Ok(())
}

fn print(found: &Stats, args: &Args) {
    println!("cells            {}", found.cells);
    println!(
        "genes            {} ({} expressed by some cell)",
        found.genes, found.expressed_genes
    );
    println!(
        "values           {} ({}, {:.1} % are 1, the largest is {})",
        found.nonzeros,
        found.value_kind.name(),
        100.0 * found.ones,
        found.largest_value
    );
    println!("zeros            {:.2} %", 100.0 * found.zeros);
    println!("empty cells      {}", found.empty_cells);
    print_distribution("genes per cell", &found.genes_per_cell);
    print_distribution("sum per cell", &found.sum_per_cell);
    println!("most expressed genes");
    for gene in &found.top_genes {
        println!(
            "  {:>6.3} % of the sum, in {:>5.1} % of the cells  {}",
            100.0 * gene.share,
            100.0 * gene.cells,
            gene.symbol
        );
    }
    println!(
        "sequences with a class token, in batches of {} cells, windows of {} row groups",
        args.batch_cells, args.window_row_groups
    );
    println!("  max len  cells cut  genes cut  padding  padding in length buckets");
    for row in &found.padding {
        println!(
            "  {:>7}  {:>7.1} %  {:>7.1} %  {:>5.1} %  {:>5.1} %",
            row.max_len,
            100.0 * row.cut_cells,
            100.0 * row.cut_genes,
            100.0 * row.waste,
            100.0 * row.bucketed_waste
        );
    }
    for (column, counts) in &found.by {
        let role = counts.role.map(|r| format!(", {r}")).unwrap_or_default();
        println!(
            "cells by {column} ({} categories{role})",
            counts.counts.len()
        );
        let sizes = counts.by_size();
        for (name, n) in sizes.iter().take(SHOWN) {
            println!("  {n:>9}  {name}");
        }
        if sizes.len() > SHOWN {
            println!("  ... and {} more categories", sizes.len() - SHOWN);
        }
        if counts.missing > 0 {
            println!("  {:>9}  (missing)", counts.missing);
        }
    }
}

fn print_distribution(name: &str, found: &Distribution) {
    let quantiles: Vec<String> = found
        .quantiles
        .iter()
        .map(|(share, value)| format!("{share} %: {value:.0}"))
        .collect();
    println!(
        "{name:<16} mean {:.1}, from {:.0} to {:.0} ({})",
        found.mean,
        found.min,
        found.max,
        quantiles.join(", ")
    );
}
