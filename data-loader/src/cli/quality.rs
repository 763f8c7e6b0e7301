//! `scpeft-data quality`.

use std::path::PathBuf;

use scpeft_data::Corpus;
use scpeft_data::quality::{Quality, QualityOptions, of_corpus};

/// Compares how well the orders of a training epoch mix the categories of a column.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
    /// The categorical obs column
    #[arg(long, value_name = "COLUMN")]
    column: String,
    /// Cells in a batch
    #[arg(long, value_name = "CELLS", default_value_t = 64)]
    batch_cells: usize,
    /// Seed of the orders
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// The epoch
    #[arg(long, value_name = "EPOCH", default_value_t = 0)]
    epoch: u64,
    /// Row groups that are mixed with each other
    #[arg(long, value_name = "K", default_value_t = 8)]
    window_row_groups: usize,
    /// True random orders to compare with
    #[arg(long, value_name = "N", default_value_t = 5)]
    permutations: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let found = of_corpus(
        &corpus,
        &QualityOptions {
            column: args.column.clone(),
            batch_cells: args.batch_cells,
            seed: args.seed,
            epoch: args.epoch,
            window_row_groups: args.window_row_groups,
            permutations: args.permutations,
        },
    )?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(args, &found);
    }
    Ok(())
}

fn print(args: &Args, found: &Quality) {
    println!(
        "entropy of `{}` in batches of {} cells, {} cells, {} categories, windows of {} row groups",
        args.column, args.batch_cells, found.cells, found.categories, args.window_row_groups
    );
    println!("{:<16} {:>8} {:>9}", "order", "bits", "of random");
    println!("{:<16} {:>8.4}", "whole corpus", found.corpus_entropy);
    println!(
        "{:<16} {:>8.4} {:>9.4}  (deviation {:.5} over {} orders)",
        "true random", found.random_entropy, 1.0, found.random_deviation, args.permutations
    );
    for order in &found.orders {
        println!(
            "{:<16} {:>8.4} {:>9.4}",
            order.order, order.entropy, order.ratio
        );
    }
}
