//! `scpeft-data split`.

use std::path::PathBuf;

use scpeft_data::Corpus;
use scpeft_data::doses::Unit;
use scpeft_data::molecules::{DrugColumns, Drugs};
use scpeft_data::perturbation::{self, Columns, Held, Preset, SplitRequest};

const EXAMPLES: &str = "\
Examples:
  A tenth of the drugs of sciplex3, whole scaffolds:
    scpeft-data split corpus --preset sciplex3 --hold-out scaffolds --share 0.1 --drugs drugs.csv
  A cell line of which five drugs train:
    scpeft-data split corpus --perturbation drug --control DMSO --context line \\
        --hold-out context --name A549 --shots 5";

/// Holds perturbations out by a rule, checks that nothing leaks, and adds the parts train, valid and test
/// to a corpus as an obs column. Shards stay as they are; the corpus gets another fingerprint.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
    /// Columns of a published data set; others may be named beside it
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Categorical obs column that says what was done; genes of a combination are joined by `+`
    #[arg(long, value_name = "COLUMN", required_unless_present = "preset")]
    perturbation: Option<String>,
    /// Its value for control cells
    #[arg(long, value_name = "VALUE", required_unless_present = "preset")]
    control: Option<String>,
    /// Categorical obs column of contexts, for instance cell lines
    #[arg(long, value_name = "COLUMN")]
    context: Option<String>,
    /// Obs column of doses: their units are checked; all doses of a drug go with it
    #[arg(long, value_name = "COLUMN")]
    dose: Option<String>,
    /// Unit of doses that are numbers: M, mM, uM, nM or pM [default: that of the preset, or the obs column
    /// COLUMN_unit]
    #[arg(long, value_name = "UNIT", value_parser = Unit::parse)]
    dose_unit: Option<Unit>,
    /// What is held out
    #[arg(long, value_enum, default_value_t = Held::Drugs)]
    hold_out: Held,
    /// Share that is held out at random
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    share: f64,
    /// Share of the rest that is held out for validation; 0 for none
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    valid_share: f64,
    /// A perturbation or the context to hold out; may be repeated
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Perturbations of the held-out context that train; 0 is zero-shot
    #[arg(long, default_value_t = 0, value_name = "N")]
    shots: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Table of drugs with their SMILES: for scaffolds, and to find one molecule under two names
    #[arg(long, value_name = "TABLE")]
    drugs: Option<PathBuf>,
    /// Name of the obs column
    #[arg(long, default_value = "split", value_name = "NAME")]
    column: String,
    /// Replace an earlier split of this name
    #[arg(long)]
    overwrite: bool,
}

impl Args {
    fn columns(&self, corpus: &Corpus) -> Columns {
        let mut columns = self.preset.map_or_else(
            || Columns {
                perturbation: String::new(),
                control: String::new(),
                context: None,
                dose: None,
                dose_unit: None,
                batch: None,
                smiles: None,
            },
            Preset::columns,
        );
        if let Some(name) = &self.perturbation {
            columns.perturbation.clone_from(name);
        }
        if let Some(value) = &self.control {
            columns.control.clone_from(value);
        }
        if self.context.is_some() {
            columns.context.clone_from(&self.context);
        }
        if self.dose.is_some() {
            columns.dose.clone_from(&self.dose);
            columns.dose_unit = None;
        } else if let Some(dose) = columns.dose.take() {
            // Those of Tahoe-100M come from a table that need not have been there.
            let there = corpus.manifest().obs.iter().any(|c| c.name == dose);
            columns.dose = there.then_some(dose);
        }
        columns.dose_unit = self.dose_unit.or(columns.dose_unit);
        columns
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let drugs = args.drugs.as_ref();
    let drugs = drugs.map(|path| Drugs::read(path, &DrugColumns::default()));
    let drugs = drugs.transpose()?;
    let report = perturbation::split(
        &corpus,
        &SplitRequest {
            columns: args.columns(&corpus),
            held: args.hold_out,
            share: args.share,
            valid_share: args.valid_share,
            names: args.name.clone(),
            shots: args.shots,
            seed: args.seed,
            drugs: drugs.as_ref(),
            column: args.column.clone(),
            overwrite: args.overwrite,
        },
    )?;
    println!(
        "{}, seed {}, obs column `{}`; {} control cells train",
        report.rule, args.seed, args.column, report.controls
    );
    for part in &report.parts {
        println!(
            "{:<6} {:>6} conditions of {:>5} perturbations, {:>9} cells",
            part.name, part.conditions, part.perturbations, part.cells
        );
    }
    if !report.doses.is_empty() {
        println!("doses: {}", report.doses.join(", "));
    }
    for names in &report.aliases {
        println!("kept together, one molecule: {names}");
    }
    Ok(())
}
