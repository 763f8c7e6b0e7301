//! `scpeft-train evaluate`: responses to perturbations in a corpus, scored by `scpeft-evaluation`.

mod cells;
mod profiles;
mod trained;

use std::collections::BTreeMap;
use std::path::Path;

use scpeft_checkpoint::fsx::{self, Existing};
use scpeft_data::Corpus;
use scpeft_data::molecules::Molecules;
use scpeft_evaluation::evaluate::Options;
use scpeft_evaluation::page;
use scpeft_evaluation::splits::{CHEMCPA_OOD, Rule};
use scpeft_evaluation::study::{self, Labelled, Plan, Predicted, Report, Role, Study};
use serde_json::json;

use crate::args::{EvaluateArgs, HoldOut};
use crate::failure::{Failure, Result};
use trained::Trained;

pub(crate) use profiles::{Row, write_rows};

const REPORT: &str = "report.json";

/// Scores models and baselines; returns a line for the user.
///
/// # Errors
/// Columns, labels or names that the corpus does not have, cells that cannot be read, predictions
/// that do not fit, a split that leaks or leaves a part empty.
pub fn evaluate(args: &EvaluateArgs) -> Result<String> {
    let existing = existing(args)?;
    let trained = args.run.as_deref().map(Trained::open).transpose()?;
    let args = &match &trained {
        Some(trained) => trained.complete(args),
        None => args.clone(),
    };
    require_named(args)?;
    let corpus = Corpus::open(&args.corpus)?;
    let mut labelled = cells::read(&corpus, args)?;
    if let Some(path) = &args.molecules {
        labelled.features = Some(features(path, &labelled)?);
    }
    let mut models: Vec<Predicted> = Vec::new();
    let rule = match (&trained, &args.run) {
        (Some(trained), Some(run)) => {
            let (own, rule) = trained.predict(run, args, &mut labelled)?;
            models = own;
            rule
        }
        _ => rule(&corpus, args)?,
    };
    for path in &args.predictions {
        models.push(profiles::read(path, &labelled, args)?);
    }
    let plan = Plan {
        rule,
        seed: args.seed,
        baselines: study::default_baselines(args.fingerprints),
        options: Options::default(),
    };
    let study = study::run(&labelled, &plan, &models)?;
    fsx::publish_dir(&args.output, existing, |dir| {
        write(dir, &study, &labelled.genes, args)
    })?;
    Ok(format!(
        "{}\nresults in `{}`",
        summary(&study.report),
        args.output.display()
    ))
}

/// What a run would have said.
fn require_named(args: &EvaluateArgs) -> Result<()> {
    for (name, missing) in [
        ("--corpus", args.corpus.as_os_str().is_empty()),
        ("--perturbation", args.perturbation.is_empty()),
        ("--control", args.control.is_empty()),
    ] {
        if missing {
            return Err(Failure::config(format!(
                "`{name}` is missing\nhelp: name it, or a trained run with `--run`, which knows its own"
            )));
        }
    }
    Ok(())
}

fn existing(args: &EvaluateArgs) -> Result<Existing> {
    let output = args.output.display();
    let occupied = fsx::refuse_existing(&args.output).is_err();
    if occupied && !args.overwrite {
        return Err(Failure::config(format!(
            "`{output}` exists\nhelp: choose another `--output`; `--overwrite` replaces an earlier evaluation"
        )));
    }
    if occupied && !args.output.join(REPORT).is_file() {
        return Err(Failure::config(format!(
            "`{output}` holds no evaluation, so `--overwrite` does not replace it\nhelp: choose another `--output`"
        )));
    }
    Ok(if args.overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    })
}

/// The embeddings of all perturbations, by their names.
fn features(path: &Path, labelled: &Labelled) -> Result<BTreeMap<String, Vec<f64>>> {
    let table = Molecules::read(path)?;
    let mut names: Vec<&String> = labelled.treated.keys().map(|c| &c.perturbation).collect();
    names.sort_unstable();
    names.dedup();
    let keys: Vec<Vec<&String>> = names.iter().map(|&name| vec![name]).collect();
    let rows = table.embeddings(&keys)?;
    let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
    let entries = names.into_iter().zip(rows);
    Ok(entries
        .map(|(name, row)| (name.clone(), wide(row)))
        .collect())
}

fn rule(corpus: &Corpus, args: &EvaluateArgs) -> Result<Rule> {
    let share = args.share;
    Ok(match args.hold_out {
        HoldOut::Drugs => Rule::UnseenDrug { share },
        HoldOut::Pairs => Rule::UnseenPair { share },
        HoldOut::Groups => {
            let column = args.groups.as_ref().ok_or_else(|| {
                Failure::config(
                    "`--hold-out groups` needs the column of groups\nhelp: name it with `--groups`",
                )
            })?;
            Rule::UnseenGroup {
                share,
                groups: cells::groups(corpus, args, column)?,
            }
        }
        HoldOut::Listed => Rule::ListedDrugs {
            drugs: args.name.clone(),
        },
        HoldOut::Chemcpa => Rule::ListedDrugs {
            drugs: CHEMCPA_OOD.map(String::from).into(),
        },
        HoldOut::Context => match &args.name[..] {
            [context] => Rule::UnseenContext {
                context: context.clone(),
                drugs: args.shots,
            },
            found => {
                return Err(Failure::config(format!(
                    "`--hold-out context` needs one context, got {}\nhelp: name it with `--name`",
                    found.len()
                )));
            }
        },
        HoldOut::Simulation => Rule::Simulation {
            genes: 0.75,
            combinations: 0.75,
        },
    })
}

fn write(dir: &Path, study: &Study, genes: &[String], args: &EvaluateArgs) -> Result<()> {
    let pretty =
        |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    fsx::write_atomic(&dir.join(REPORT), pretty(&json!(study.report)).as_bytes())?;
    fsx::write_atomic(
        &dir.join("report.html"),
        page::html(&study.report).as_bytes(),
    )?;
    let parts: Vec<_> = (study.split.parts.iter())
        .map(|(condition, part)| {
            json!({
                "perturbation": condition.perturbation,
                "context": condition.context,
                "dose": condition.dose,
                "part": part,
                "subgroup": study.split.subgroups.get(condition),
            })
        })
        .collect();
    let split = json!({
        "rule": study.split.rule,
        "seed": study.split.seed,
        "corpus": args.corpus,
        "conditions": parts,
    });
    fsx::write_atomic(&dir.join("split.json"), pretty(&split).as_bytes())?;
    profiles::write(&dir.join("predictions.parquet"), study, genes)
}

/// A line for each model: where it stands.
fn summary(report: &Report) -> String {
    let mut lines = vec![format!(
        "{} conditions held out ({}, seed {}), {} in training, {} genes; {} left out",
        report.test,
        report.rule,
        report.seed,
        report.train,
        report.genes,
        report.left_out.len()
    )];
    for model in &report.models {
        let metric = |name: &str| {
            let mean = model.metrics.get(name).and_then(|summary| summary.mean);
            mean.map_or("not defined".to_owned(), |mean| format!("{mean:.3}"))
        };
        let role = match model.role {
            Role::Model => "model",
            Role::Baseline => "baseline",
            Role::Ceiling => "ceiling",
        };
        lines.push(format!(
            "{role} {}: R2 of changes {}, Pearson of changes {}, discrimination {}",
            model.model,
            metric("r2_delta_all"),
            metric("pearson_delta_all"),
            metric("discrimination_score_l1")
        ));
    }
    lines.join("\n")
}
