//! `scpeft-data verify`.

use std::path::PathBuf;

use anyhow::bail;
use scpeft_data::Corpus;
use scpeft_data::parallel::default_threads;
use scpeft_data::verify::{VerifyOptions, VerifyReport, verify};

use super::progress::{self, Unit};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
    /// Stop after so many faults
    #[arg(long, value_name = "N", default_value_t = 20)]
    max_faults: usize,
    /// Threads to use
    #[arg(long, value_name = "N", default_value_t = default_threads())]
    threads: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let options = VerifyOptions {
        max_faults: args.max_faults,
        threads: args.threads,
    };
    let bar = progress::bar("verifying", Unit::Bytes);
    let report = verify(&corpus, options, &progress::moves(&bar));
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if report.faults.is_empty() {
        println!(
            "{}: sound ({} cells, {} of them empty, {} values, {} files)",
            args.corpus.display(),
            report.cells,
            report.empty_cells,
            report.nonzeros,
            report.files
        );
    }
    if report.faults.is_empty() {
        return Ok(());
    }
    if !args.json {
        for fault in &report.faults {
            eprintln!("fault: {fault}");
        }
    }
    bail!(faulty(args, &report))
}

fn faulty(args: &Args, report: &VerifyReport) -> scpeft_data::Error {
    scpeft_data::Error::Corpus {
        path: args.corpus.clone(),
        place: "verification".into(),
        problem: format!(
            "{} fault{} found{}",
            report.faults.len(),
            if report.faults.len() == 1 { "" } else { "s" },
            if report.ended_early {
                ", then the check ended: there may be more, see --max-faults"
            } else {
                ""
            }
        ),
    }
}
