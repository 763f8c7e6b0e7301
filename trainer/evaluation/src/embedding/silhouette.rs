//! Silhouettes of cells (Rousseeuw 1987) with Euclidean distances, as scikit-learn and scib compute
//! them.

use super::pairs::{Found, groups_of};
use crate::{Score, Undefined};

/// Silhouettes of labels, and of batches within labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Silhouettes {
    /// Of each cell against the other labels; 0 for a cell alone in its label.
    pub labels: Result<Vec<f64>, Undefined>,
    /// scib's batch ASW of each label: mean over its cells of one minus the absolute silhouette of
    /// the batches within the label.
    pub batches: Vec<Score>,
}

impl Silhouettes {
    pub(super) fn new(found: &Found, labels: &[usize], batches: &[usize]) -> Self {
        Self {
            labels: of_labels(found, labels),
            batches: (0..groups_of(labels))
                .map(|label| of_batches(found, label, labels, batches))
                .collect(),
        }
    }

    /// Mean silhouette of the labels over all cells, from -1 to 1.
    ///
    /// # Errors
    /// One label only, or every cell has a label of its own.
    pub fn mean(&self) -> Score {
        self.labels
            .as_ref()
            .map(|s| crate::stats::mean(s))
            .map_err(Clone::clone)
    }

    /// scib's label ASW, `(mean + 1) / 2`.
    ///
    /// # Errors
    /// See [`Silhouettes::mean`].
    pub fn asw_label(&self) -> Score {
        self.mean().map(|s| f64::midpoint(s, 1.0))
    }

    /// scib's batch ASW, the mean over labels for which it is defined; 1 when batches are mixed.
    ///
    /// # Errors
    /// No label has one.
    pub fn asw_batch(&self) -> Score {
        mean_of_defined("labels in two batches or more", &self.batches)
    }
}

/// Mean of the scores that are defined.
pub(super) fn mean_of_defined(what: &'static str, scores: &[Score]) -> Score {
    let found: Vec<f64> = scores
        .iter()
        .filter_map(|s| s.as_ref().ok())
        .copied()
        .collect();
    crate::stats::enough(what, found.len(), 1)?;
    Ok(crate::stats::mean(&found))
}

/// Cells of each group among some.
fn sizes(groups: impl Iterator<Item = usize>, count: usize) -> Vec<f64> {
    let mut sizes = vec![0.0; count];
    groups.for_each(|group| sizes[group] += 1.0);
    sizes
}

/// A silhouette needs two groups, and two cells in one of them.
fn possible(what: [&'static str; 2], sizes: &[f64]) -> Result<(), Undefined> {
    let present = sizes.iter().filter(|n| **n > 0.0).count();
    crate::stats::enough(what[0], present, 2)?;
    if sizes.iter().all(|n| *n < 2.0) {
        return Err(Undefined::TooFew {
            what: what[1],
            found: 1,
            needed: 2,
        });
    }
    Ok(())
}

/// One cell's silhouette from its sums of distances to groups.
fn silhouette(sums: &[f64], sizes: &[f64], own: usize) -> f64 {
    if sizes[own] < 2.0 {
        return 0.0;
    }
    let inside = sums[own] / (sizes[own] - 1.0);
    let outside = (0..sums.len())
        .filter(|&g| g != own && sizes[g] > 0.0)
        .map(|g| sums[g] / sizes[g])
        .fold(f64::INFINITY, f64::min);
    let most = inside.max(outside);
    if most > 0.0 {
        (outside - inside) / most
    } else {
        0.0
    }
}

fn of_labels(found: &Found, labels: &[usize]) -> Result<Vec<f64>, Undefined> {
    let count = groups_of(labels);
    let sizes = sizes(labels.iter().copied(), count);
    possible(["labels", "cells in the largest label"], &sizes)?;
    let rows = found.to_labels.chunks_exact(count);
    Ok(rows
        .zip(labels)
        .map(|(sums, &own)| silhouette(sums, &sizes, own))
        .collect())
}

fn of_batches(found: &Found, label: usize, labels: &[usize], batches: &[usize]) -> Score {
    let count = groups_of(batches);
    let cells: Vec<usize> = (0..labels.len())
        .filter(|&cell| labels[cell] == label)
        .collect();
    let sizes = sizes(cells.iter().map(|&cell| batches[cell]), count);
    possible(
        ["batches of the label", "cells of the label in one batch"],
        &sizes,
    )?;
    let mixed = |&cell: &usize| {
        let sums = &found.to_batches[cell * count..(cell + 1) * count];
        1.0 - silhouette(sums, &sizes, batches[cell]).abs()
    };
    Ok(cells.iter().map(mixed).sum::<f64>() / cells.len() as f64)
}
