//! `scpeft-data`: makes, shows and checks corpora of cells.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use scpeft_protocol::exit;

/// Makes, shows and checks corpora of cells.
#[derive(Parser)]
#[command(name = "scpeft-data", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a corpus from an .h5ad file.
    Import(Box<cli::import::Args>),
    /// Make a corpus of Parquet files that stay where they are.
    Index(Box<cli::index::Args>),
    /// Put predictions and embeddings into a copy of the .h5ad file that the cells came from.
    Export(cli::export::Args),
    /// Show what a corpus holds.
    Inspect(cli::inspect::Args),
    /// Count what a corpus holds: cells, genes, values, lengths of sequences.
    Stats(cli::stats::Args),
    /// Check the hashes and every cell of a corpus.
    Verify(cli::verify::Args),
    /// Measure how well shuffling mixes the categories of a column.
    Quality(cli::quality::Args),
    /// Hold perturbations out by a rule, checked for leaks.
    Split(cli::split::Args),
    /// Check tables of drugs, and make fingerprints of their molecules.
    Molecules(cli::molecules::Args),
    /// Make synthetic cells that look like those of a large atlas.
    Synth(cli::synth::Args),
}

fn main() -> ExitCode {
    // As every Unix filter does: `scpeft-data inspect DIR | head` ends quietly.
    // SAFETY: called before any thread exists, with a signal and a disposition that are valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("SCPEFT_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    let done = match Cli::parse().command {
        Command::Import(args) => cli::import::run(&args),
        Command::Index(args) => cli::index::run(&args),
        Command::Export(args) => cli::export::run(&args),
        Command::Inspect(args) => cli::inspect::run(&args),
        Command::Stats(args) => cli::stats::run(&args),
        Command::Verify(args) => cli::verify::run(&args),
        Command::Quality(args) => cli::quality::run(&args),
        Command::Split(args) => cli::split::run(&args),
        Command::Molecules(args) => cli::molecules::run(&args),
        Command::Synth(args) => cli::synth::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let code = error
                .downcast_ref::<scpeft_data::Error>()
                .map_or(exit::INTERNAL, scpeft_data::Error::exit_code);
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
    }
}
