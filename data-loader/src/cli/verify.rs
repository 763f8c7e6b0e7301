//! `scpeft-data verify`.

use std::path::PathBuf;

use scpeft_data::Corpus;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let report = scpeft_data::verify::verify(&corpus)?;
    println!(
        "{}: sound ({} cells, {} values, {} files)",
        args.corpus.display(),
        report.cells,
        report.nonzeros,
        report.files
    );
    Ok(())
}
