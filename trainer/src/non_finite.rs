//! Which cells are behind a gradient that is not finite: `non_finite.jsonl` in the run directory.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use scpeft_collective::Collective;
use scpeft_data::{Corpus, MicroBatch, StepBatches};
use scpeft_model::backbone::Model;
use scpeft_model::exec::Pass;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::{Result, io};
use crate::task::{Staging, Task, scalar};
use crate::watch::Watch;

/// The list in a run directory: one JSON object a line, for each rank with such cells in a step.
pub(crate) const FILE: &str = "non_finite.jsonl";
/// Cells that are named of one rank and step.
const NAMED: usize = 64;

/// Why cells are suspected, the weakest reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cause {
    /// Every loss is finite, the gradient of the whole step is not: these are its cells.
    Gradient,
    /// The loss of a micro-batch with these cells is not finite.
    MicroBatch,
    /// The loss of each of these cells alone is not finite.
    Cell,
}

/// What a rank found in its part of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    cause: Cause,
    /// How many cells there are.
    cells: usize,
    /// The first ones, by name.
    cell_ids: Vec<String>,
}

/// What it takes to look.
pub(crate) struct Search<'a> {
    pub(crate) model: &'a dyn Model,
    pub(crate) task: &'a dyn Task,
    pub(crate) staging: &'a Staging,
    pub(crate) corpus: &'a Corpus,
    pub(crate) watch: &'a Watch,
}

impl Search<'_> {
    /// Looks for the cells of a step (counted from 1) behind its gradient, and has rank 0 add them to the
    /// list. `places` are those of this rank's micro-batches whose loss was not finite. Returns what to
    /// tell the user, on every rank, when the list is written.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport or libtorch fails.
    pub(crate) fn list(
        &self,
        world: &dyn Collective,
        run_dir: &Path,
        step: u64,
        batch: &StepBatches,
        places: &[usize],
    ) -> Result<String> {
        let (cause, cells) = self.suspects(batch, places)?;
        let named = &cells[..cells.len().min(NAMED)];
        let finding = Finding {
            cause,
            cells: cells.len(),
            // A name that cannot be read is no reason to stop: the number finds the cell too.
            cell_ids: self.corpus.cell_ids(named).unwrap_or_else(|_| {
                let number = |cell: &u64| format!("cell number {cell}");
                named.iter().map(number).collect()
            }),
        };
        let own = serde_json::to_vec(&finding).unwrap_or_default();
        let said = world.gather(&own)?.map(|all| publish(&all, run_dir, step));
        // The others wait for the list: one that leaves first would bring rank 0 down.
        let said = world.broadcast(said.unwrap_or_default().into_bytes())?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// This rank's cells that may be behind it.
    fn suspects(&self, batch: &StepBatches, places: &[usize]) -> Result<(Cause, Vec<u64>)> {
        let of = |micro: &MicroBatch| micro.cells.clone();
        if places.is_empty() {
            let all = batch.micro.iter().flat_map(of).collect();
            return Ok((Cause::Gradient, all));
        }
        let whole = places.iter().map(|&place| &batch.micro[place]);
        let whole: Vec<&MicroBatch> = whole.collect();
        let mut alone = Vec::new();
        // Blocks that ranks share are gathered by all of them together: no rank may look alone.
        if !self.model.is_sharded() {
            for micro in &whole {
                for (row, &cell) in micro.cells.iter().enumerate() {
                    self.watch.beat();
                    if !self.is_finite(&micro.single(row, self.staging.pad_id))? {
                        alone.push(cell);
                    }
                }
            }
        }
        // The losses depend on each other, or dropout made the difference.
        if alone.is_empty() {
            return Ok((Cause::MicroBatch, whole.into_iter().flat_map(of).collect()));
        }
        Ok((Cause::Cell, alone))
    }

    /// Whether all losses of a micro-batch are finite.
    fn is_finite(&self, micro: &MicroBatch) -> Result<bool> {
        let batch = self.staging.stage(micro)?;
        let losses = tch::no_grad(|| self.task.losses(self.model, &batch, Pass::EVALUATION))?;
        for sum in &losses.sums {
            if !scalar(sum)?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The findings of the ranks, by rank, with the strongest cause that any of them has: a rank whose losses
/// are finite is not suspected beside one whose are not.
fn strongest(found: Vec<Option<Finding>>) -> Vec<(usize, Finding)> {
    let found: Vec<(usize, Finding)> = found
        .into_iter()
        .enumerate()
        .filter_map(|(rank, finding)| Some((rank, finding?)))
        .filter(|(_, finding)| finding.cells > 0)
        .collect();
    let by_loss = found.iter().any(|(_, f)| f.cause > Cause::Gradient);
    found
        .into_iter()
        .filter(|(_, f)| !by_loss || f.cause > Cause::Gradient)
        .collect()
}

/// Writes the findings of all ranks, and says what they are.
fn publish(all: &[Vec<u8>], run_dir: &Path, step: u64) -> String {
    let found = all.iter().map(|bytes| serde_json::from_slice(bytes).ok());
    let found = strongest(found.collect());
    let path = run_dir.join(FILE);
    let total: usize = found.iter().map(|(_, finding)| finding.cells).sum();
    let listed = match append(&path, step, &found) {
        Ok(()) => format!("see `{}`", path.display()),
        Err(failure) => format!("which could not be listed: {failure}"),
    };
    let first = found.first().and_then(|(_, f)| f.cell_ids.first());
    let first = first.map_or(String::new(), |id| format!(" (`{id}`, …)"));
    format!("{total} cell(s){first}, {listed}")
}

fn append(path: &Path, step: u64, found: &[(usize, Finding)]) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io(path))?;
    for (rank, finding) in found {
        let line = json!({
            "step": step,
            "rank": rank,
            "cause": finding.cause,
            "cells": finding.cells,
            "cell_ids": finding.cell_ids,
        });
        writeln!(file, "{line}").map_err(io(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(cause: Cause, cells: usize) -> Finding {
        Finding {
            cause,
            cells,
            cell_ids: vec!["a".into(); cells.min(NAMED)],
        }
    }

    #[test]
    fn ranks_with_finite_losses_are_not_suspected_beside_one_without() {
        use Cause::{Cell, Gradient, MicroBatch};
        let ranks = |found: Vec<Option<Finding>>| -> Vec<usize> {
            strongest(found).into_iter().map(|(rank, _)| rank).collect()
        };
        assert_eq!(
            ranks(vec![
                Some(finding(Gradient, 4)),
                Some(finding(Cell, 1)),
                None
            ]),
            [1]
        );
        assert_eq!(
            ranks(vec![Some(finding(MicroBatch, 4)), Some(finding(Cell, 1))]),
            [0, 1]
        );
        assert_eq!(
            ranks(vec![Some(finding(Gradient, 4)), Some(finding(Gradient, 0))]),
            [0]
        );
    }

    #[test]
    fn steps_are_added_to_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let one = |cells| vec![(2, finding(Cause::Cell, cells))];
        append(&path, 7, &one(1)).unwrap();
        append(&path, 8, &one(1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            r#"{"step":7,"rank":2,"cause":"cell","cells":1,"cell_ids":["a"]}"#
        );
        assert_eq!(text.lines().count(), 2);
    }
}
