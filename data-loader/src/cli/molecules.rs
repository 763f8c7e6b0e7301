//! `scpeft-data molecules`.

use std::path::PathBuf;

use clap::Subcommand;
use scpeft_data::molecules::{self, ACYCLIC, BITS, Drug, DrugColumns, Drugs};

const EXAMPLES: &str = "\
Examples:
  A table with a header:
    scpeft-data molecules fingerprints drugs.csv --output fingerprints.parquet
  A table without one, name and SMILES first:
    scpeft-data molecules fingerprints drugs.csv --no-header --name 1 --smiles 2 --output fingerprints.parquet";

/// Reads tables of drugs and makes features of their molecules.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a table of drugs: SMILES that cannot be read, names with two molecules, molecules with
    /// several names.
    Check(TableArgs),
    /// Write the Morgan fingerprints (radius 2, 2048 bits) of a table of drugs, with canonical SMILES and
    /// scaffolds.
    #[command(after_help = EXAMPLES)]
    Fingerprints(FingerprintArgs),
}

/// A table of drugs.
#[derive(clap::Args)]
pub(crate) struct TableArgs {
    /// The table: .csv, .tsv, .txt (tabs) or .parquet
    #[arg(value_name = "TABLE")]
    table: PathBuf,
    /// Column of names [default: name, drug, product_name, perturbation or condition]
    #[arg(long, value_name = "COLUMN")]
    name: Option<String>,
    /// Column of SMILES [default: smiles, SMILES or canonical_smiles]
    #[arg(long, value_name = "COLUMN")]
    smiles: Option<String>,
    /// Column of InChIKeys [default: inchikey, InChIKey or inchi_key, where there is one]
    #[arg(long, value_name = "COLUMN")]
    inchikey: Option<String>,
    /// The first line is no header: columns are numbers, from 1
    #[arg(long)]
    no_header: bool,
}

#[derive(clap::Args)]
struct FingerprintArgs {
    #[command(flatten)]
    table: TableArgs,
    /// The Parquet file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Check(table) => {
            describe(&read(table)?);
        }
        Command::Fingerprints(args) => {
            let drugs = read(&args.table)?;
            let rows: Vec<(&Drug, Vec<f32>)> = drugs
                .iter()
                .map(|drug| (drug, drug.structure.fingerprint()))
                .collect();
            let made_by = format!("Morgan fingerprint of radius 2 in {BITS} bits (chematic)");
            molecules::write(&args.output, &rows, &made_by, args.overwrite)?;
            describe(&drugs);
            println!("{BITS} bits each in `{}`", args.output.display());
        }
    }
    Ok(())
}

fn read(args: &TableArgs) -> scpeft_data::Result<Drugs> {
    let columns = DrugColumns {
        name: args.name.clone(),
        smiles: args.smiles.clone(),
        inchikey: args.inchikey.clone(),
        no_header: args.no_header,
    };
    Drugs::read(&args.table, &columns)
}

fn describe(drugs: &Drugs) {
    let scaffolds: std::collections::BTreeSet<&str> = drugs
        .iter()
        .map(|d| d.structure.scaffold.as_str())
        .collect();
    let acyclic = drugs.iter().filter(|d| d.structure.scaffold == ACYCLIC);
    println!(
        "{} drugs, {} scaffolds, {} drugs without a ring, {} rows without a name",
        drugs.iter().len(),
        scaffolds.iter().filter(|s| **s != ACYCLIC).count(),
        acyclic.count(),
        drugs.unnamed()
    );
    for names in drugs.aliases() {
        println!("one molecule: {}", names.join(" = "));
    }
}
