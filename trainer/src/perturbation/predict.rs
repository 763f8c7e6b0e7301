//! `scpeft-train predict` of a run that learned responses: mean profiles, changed genes and, on
//! demand, cells of conditions that need not be in any corpus.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, StringArray};
use scpeft_checkpoint::fsx::{self, Existing};
use scpeft_collective::Collective;
use scpeft_config::Config;
use scpeft_evaluation::splits::Condition;
use scpeft_evaluation::study::name_of;
use serde_json::json;

use super::Predictor;
use super::conditions::shortened;
use super::list::{self, Wanted};
use crate::Outcome;
use crate::args::PredictArgs;
use crate::consensus::agree;
use crate::failure::{Failure, Result};
use crate::predict::TABLE;
use crate::responses::{Row, write_rows};
use crate::shard;
use crate::table::{Column, Table};

/// Control cells below which a prediction is reported to rest on few.
const FEW_CELLS: u64 = 5;

/// What is predicted for one condition.
struct Found {
    profile: Vec<f64>,
    cells: Vec<f32>,
}

/// Predicts as `args` say.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// Whatever is wrong with run, corpus, list, table or output directory.
pub(crate) fn predict(
    world: &dyn Collective,
    args: &PredictArgs,
    mut config: Config,
    checkpoint: &Path,
) -> Result<Outcome> {
    if let Some(corpus) = &args.corpus {
        config.data.corpus.clone_from(corpus);
    }
    let gather = shard::gather(world, config.backbone.shard)?;
    let cells = args.cells.unwrap_or_default();
    let asked = Predictor::load(
        config.clone(),
        world.topology(),
        gather,
        &args.run,
        checkpoint,
        args.molecules.as_deref(),
        cells,
    )
    .and_then(|predictor| {
        let conditions = conditions(args, &config, &predictor)?;
        predictor.require_contexts(&conditions)?;
        let vectors = predictor.vectors(&conditions)?;
        Ok((predictor, conditions, vectors))
    });
    let (predictor, conditions, vectors) = agree(world, asked)?;
    let outcome =
        predict_all(world, &predictor, &conditions, &vectors, cells).and_then(
            |found| match found {
                Some(found) => publish(args, &predictor, &conditions, &found, checkpoint),
                None => Ok(()),
            },
        );
    match outcome {
        Err(failure) if world.topology().world_size > 1 => {
            tracing::error!("rank {}: {failure}", world.topology().rank);
            world.abort(failure.code)
        }
        result => result.map(|()| Outcome::Done),
    }
}

/// The listed conditions, or those of a split.
fn conditions(
    args: &PredictArgs,
    config: &Config,
    predictor: &Predictor,
) -> Result<Vec<Condition>> {
    if let Some(path) = &args.conditions {
        let own = &config.perturbation;
        let wanted = Wanted {
            context: own.context.is_some(),
            dose: own.dose.is_some(),
        };
        return list::read(path, wanted);
    }
    let split = args.split.as_ref().unwrap_or(&config.data.test);
    let selection = predictor.assembly().feed.split(config, split)?;
    let known = &predictor.responses().conditions;
    let found: Vec<Condition> = (known.among(&selection).into_iter())
        .map(|c| known.list[c].clone())
        .collect();
    if found.is_empty() {
        return Err(Failure::data(format!(
            "split `{split}` has no treated cells of a condition that can be used\n\
             help: list what to predict with `--conditions FILE`"
        )));
    }
    Ok(found)
}

/// All conditions, on rank 0: each rank predicts every N-th.
fn predict_all(
    world: &dyn Collective,
    predictor: &Predictor,
    conditions: &[Condition],
    vectors: &[Vec<f32>],
    cells: usize,
) -> Result<Option<Vec<Found>>> {
    let (rank, ranks) = (world.topology().rank, world.topology().world_size);
    let mut own = Vec::new();
    // Blocks that ranks share are gathered by all of them together, for as many passes.
    let everyone = predictor.assembly().model.is_sharded();
    for (place, (condition, vector)) in conditions.iter().zip(vectors).enumerate() {
        let mine = place % ranks == rank;
        if !mine && !everyone {
            continue;
        }
        let (profile, cells) = predictor.predict(condition, vector, cells)?;
        if mine {
            own.extend((profile.len() as u64).to_le_bytes());
            own.extend(profile.iter().flat_map(|x| x.to_le_bytes()));
            own.extend((cells.len() as u64).to_le_bytes());
            own.extend(cells.iter().flat_map(|x| x.to_le_bytes()));
        }
    }
    let Some(parts) = world.gather(&own)? else {
        return Ok(None);
    };
    let mut parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let found = (0..conditions.len()).map(|place| decode(&mut parts[place % ranks]));
    found
        .collect::<Option<Vec<Found>>>()
        .map(Some)
        .ok_or_else(|| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                "a rank sent malformed predictions",
            )
        })
}

/// Takes one condition from what a rank sent.
fn decode(bytes: &mut &[u8]) -> Option<Found> {
    let length = |bytes: &mut &[u8]| -> Option<usize> {
        let (n, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        usize::try_from(u64::from_le_bytes(*n)).ok()
    };
    let n = length(bytes)?.checked_mul(8)?;
    let (profile, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    let n = length(bytes)?.checked_mul(4)?;
    let (cells, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    let (profile, cells) = (profile.as_chunks::<8>().0, cells.as_chunks::<4>().0);
    Some(Found {
        profile: profile.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        cells: cells.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    })
}

fn publish(
    args: &PredictArgs,
    predictor: &Predictor,
    conditions: &[Condition],
    found: &[Found],
    checkpoint: &Path,
) -> Result<()> {
    let existing = if args.overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let name = args.run.file_name().unwrap_or_default().to_string_lossy();
    let rows: Vec<Row<'_>> = (conditions.iter().zip(found))
        .map(|(condition, found)| (name.as_ref(), condition, &found.profile))
        .collect();
    fsx::publish_dir(&args.output, existing, |dir| {
        write_rows(&dir.join(TABLE), &rows, predictor.genes())?;
        let top = top_genes(predictor, conditions, found, args.top_genes);
        fsx::write_atomic(&dir.join("top_genes.csv"), top.as_bytes())?;
        let said = describe(predictor, conditions, args, checkpoint);
        fsx::write_atomic(&dir.join("conditions.json"), said.as_bytes())?;
        match args.cells {
            Some(_) => write_cells(&dir.join("cells.parquet"), predictor, conditions, found),
            None => Ok(()),
        }
    })?;
    let few: Vec<String> = (conditions.iter())
        .filter(|c| predictor.control_cells(&c.context) < FEW_CELLS)
        .map(|c| format!("`{}`", name_of(c)))
        .collect();
    if !few.is_empty() {
        tracing::warn!(
            "{} condition(s) are predicted from fewer than {FEW_CELLS} control cells: {}",
            few.len(),
            shortened(&few)
        );
    }
    tracing::info!(
        "{} conditions predicted, {} of {} genes by the model, the others keep the control mean; results in `{}`",
        conditions.len(),
        predictor.modelled(),
        predictor.genes().len(),
        args.output.display()
    );
    Ok(())
}

/// The genes of largest predicted change of each condition.
fn top_genes(
    predictor: &Predictor,
    conditions: &[Condition],
    found: &[Found],
    most: usize,
) -> String {
    let quoted = |text: &str| {
        if text.contains(['"', ',', '\n']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let genes = predictor.genes();
    let mut text = "perturbation,context,dose,rank,gene,control,predicted,change\n".to_owned();
    for (condition, found) in conditions.iter().zip(found) {
        let control = predictor.control(&condition.context);
        let change = |g: usize| found.profile[g] - control[g];
        let mut order: Vec<usize> = (0..genes.len()).collect();
        order.sort_by(|&a, &b| change(b).abs().total_cmp(&change(a).abs()));
        for (rank, &gene) in order.iter().take(most).enumerate() {
            let _ = writeln!(
                text,
                "{},{},{},{},{},{:.6},{:.6},{:.6}",
                quoted(&condition.perturbation),
                quoted(&condition.context),
                quoted(condition.dose.as_deref().unwrap_or_default()),
                rank + 1,
                quoted(&genes[gene]),
                control[gene],
                found.profile[gene],
                change(gene)
            );
        }
    }
    text
}

/// What was predicted, and from what.
fn describe(
    predictor: &Predictor,
    conditions: &[Condition],
    args: &PredictArgs,
    checkpoint: &Path,
) -> String {
    let list: Vec<_> = (conditions.iter())
        .map(|condition| {
            json!({
                "perturbation": condition.perturbation,
                "context": condition.context,
                "dose": condition.dose,
                "control_cells": predictor.control_cells(&condition.context),
            })
        })
        .collect();
    let said = json!({
        "run": args.run,
        "checkpoint": checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()),
        "genes": predictor.genes().len(),
        "modelled_genes": predictor.modelled(),
        "conditions": list,
    });
    serde_json::to_string_pretty(&said).unwrap_or_default() + "\n"
}

/// Predicted cells: a row a cell, a column a modelled gene.
fn write_cells(
    path: &Path,
    predictor: &Predictor,
    conditions: &[Condition],
    found: &[Found],
) -> Result<()> {
    let panel = &predictor.responses().panel;
    let width = panel.len();
    let mut owners = Vec::new();
    for (condition, found) in conditions.iter().zip(found) {
        owners.extend(std::iter::repeat_n(
            condition,
            found.cells.len() / width.max(1),
        ));
    }
    let text = |of: fn(&Condition) -> Option<String>| -> ArrayRef {
        Arc::new(owners.iter().map(|&c| of(c)).collect::<StringArray>())
    };
    let mut columns: Vec<Column> = vec![
        (
            "perturbation".into(),
            text(|c| Some(c.perturbation.clone())),
            false,
        ),
        ("context".into(), text(|c| Some(c.context.clone())), false),
        ("dose".into(), text(|c| c.dose.clone()), true),
    ];
    for (column, &gene) in panel.genes().iter().enumerate() {
        let own = found.iter().flat_map(|f| f.cells.chunks_exact(width));
        let values = own.map(|row| row[column]).collect::<Vec<f32>>();
        let name = predictor.genes()[gene as usize].clone();
        columns.push((name, Arc::new(Float32Array::from(values)), false));
    }
    let mut table = Table::new(path.to_owned());
    table.append(columns)?;
    table.close()
}
