//! Whether the neighbourhoods of cells hold batches and labels as the whole does: LISI (Korsunsky
//! and others 2019) and kBET (Büttner and others 2019).

use super::neighbors::{Neighbors, exact};
use super::pairs::groups_of;
use crate::cells::Cells;
use crate::stats::enough;
use crate::{Score, Undefined, parallel};

/// Bisections for the width of a cell's neighbourhood, and how near the logarithm of its perplexity
/// must come, as in LISI's own program.
const BISECTIONS: usize = 50;
const TOLERANCE: f64 = 1e-5;
/// Neighbourhoods of kBET: a quarter of the mean batch, within these bounds (scib).
const KBET_CELLS: (usize, usize) = (10, 70);
/// Level at which kBET rejects a neighbourhood.
const KBET_ALPHA: f64 = 0.05;

/// Local inverse Simpson's index of each cell: how many groups its neighbourhood holds, in effect.
/// Neighbours are weighted by a Gaussian whose perplexity is a third of their number, the cell
/// itself counted; this is the LISI of the embedding, not scib's variant on paths of the graph.
///
/// # Panics
/// When there is not one group for each cell.
#[must_use]
pub fn lisi(neighbors: &Neighbors, groups: &[usize]) -> Vec<f64> {
    assert_eq!(neighbors.len(), groups.len(), "one group for each cell");
    let count = groups_of(groups);
    let perplexity = ((neighbors.k() + 1) / 3).max(1) as f64;
    let of_cell = |cell: usize| {
        let weights = gaussian(neighbors.distances(cell), perplexity);
        let mut shares = vec![0.0; count];
        for (&other, weight) in neighbors.of(cell).iter().zip(weights) {
            shares[groups[other as usize]] += weight;
        }
        1.0 / shares.iter().map(|s| s * s).sum::<f64>()
    };
    parallel::map(neighbors.len(), parallel::cores(), of_cell)
}

/// Weights `exp(-beta distance)` that sum to 1 and have the wanted perplexity.
fn gaussian(distances: &[f32], perplexity: f64) -> Vec<f64> {
    let nearest = f64::from(distances[0]);
    let beyond: Vec<f64> = distances.iter().map(|&d| f64::from(d) - nearest).collect();
    let (mut low, mut high, mut beta) = (f64::NEG_INFINITY, f64::INFINITY, 1.0f64);
    let mut weights = Vec::new();
    for _ in 0..=BISECTIONS {
        // Relative to the nearest one, which changes no weight and lets none of them vanish.
        weights = beyond
            .iter()
            .map(|d| (-d * beta).exp())
            .collect::<Vec<f64>>();
        let sum: f64 = weights.iter().sum();
        let mean: f64 = weights.iter().zip(&beyond).map(|(w, d)| w * d).sum::<f64>() / sum;
        for weight in &mut weights {
            *weight /= sum;
        }
        let excess = sum.ln() + beta * mean - perplexity.ln();
        if excess.abs() < TOLERANCE {
            break;
        }
        if excess > 0.0 {
            low = beta;
            beta = if high.is_infinite() {
                beta * 2.0
            } else {
                f64::midpoint(beta, high)
            };
        } else {
            high = beta;
            beta = if low.is_infinite() {
                beta / 2.0
            } else {
                f64::midpoint(beta, low)
            };
        }
    }
    weights
}

/// scib's iLISI: `(median - 1) / (batches - 1)`; 1 when neighbourhoods hold all batches alike.
///
/// # Errors
/// One batch only.
///
/// # Panics
/// See [`lisi`].
pub fn ilisi(neighbors: &Neighbors, batches: &[usize]) -> Score {
    let groups = present(batches);
    enough("batches", groups, 2)?;
    Ok((median(lisi(neighbors, batches)) - 1.0) / (groups as f64 - 1.0))
}

/// scib's cLISI: `(labels - median) / (labels - 1)`; 1 when neighbourhoods hold one label.
///
/// # Errors
/// One label only.
///
/// # Panics
/// See [`lisi`].
pub fn clisi(neighbors: &Neighbors, labels: &[usize]) -> Score {
    let groups = present(labels);
    enough("labels", groups, 2)?;
    Ok((groups as f64 - median(lisi(neighbors, labels))) / (groups as f64 - 1.0))
}

/// kBET of each label: share of its cells whose neighbourhood, of cells of the label, the cell
/// itself counted, holds its batches as the label does, by a chi-squared test at 5%. scib looks for
/// these neighbours by diffusion on the graph; here they are those of the embedding.
///
/// # Panics
/// When there is not one label and one batch for each cell.
#[must_use]
pub fn kbet(embedding: Cells<'_>, labels: &[usize], batches: &[usize]) -> Vec<Score> {
    assert_eq!(
        (labels.len(), batches.len()),
        (embedding.len(), embedding.len()),
        "groups"
    );
    (0..groups_of(labels))
        .map(|label| {
            let cells: Vec<usize> = (0..labels.len()).filter(|&c| labels[c] == label).collect();
            let own: Vec<usize> = cells.iter().map(|&c| batches[c]).collect();
            let (found, least) = (present(&own), KBET_CELLS.0);
            enough("cells of the label", cells.len(), least)?;
            enough("batches of the label", found, 2)?;
            let size = (cells.len() / found / 4).clamp(KBET_CELLS.0, KBET_CELLS.1);
            let values = embedding.select(&cells);
            let rows = Cells::new("the label", &values, embedding.genes());
            let rows = rows.map_err(|_| Undefined::TooFew {
                what: "cells of the label",
                found: cells.len(),
                needed: least,
            })?;
            let near = exact(rows, size - 1)?;
            Ok(accepted(&near, &own))
        })
        .collect()
}

/// Share of neighbourhoods, the cell itself counted, that the test of kBET accepts.
fn accepted(neighbors: &Neighbors, batches: &[usize]) -> f64 {
    let mut shares = vec![0.0; groups_of(batches)];
    for &batch in batches {
        shares[batch] += 1.0 / batches.len() as f64;
    }
    let size = (neighbors.k() + 1) as f64;
    let freedom = present(batches) as f64 - 1.0;
    let accepts = |cell: &usize| {
        let mut counts = vec![0.0; shares.len()];
        counts[batches[*cell]] += 1.0;
        for &other in neighbors.of(*cell) {
            counts[batches[other as usize]] += 1.0;
        }
        let term = |(count, share): (&f64, &f64)| match *share {
            0.0 => 0.0,
            share => (count - share * size).powi(2) / (share * size),
        };
        let statistic: f64 = counts.iter().zip(&shares).map(term).sum();
        chi_squared_above(statistic, freedom) >= KBET_ALPHA
    };
    let found = (0..batches.len()).filter(accepts).count();
    found as f64 / batches.len() as f64
}

/// Probability that a chi-squared variable exceeds `x`: the regularised upper incomplete gamma
/// function, by its series below the mean and its continued fraction above (Press and others, 6.2).
fn chi_squared_above(x: f64, freedom: f64) -> f64 {
    /// Terms; far fewer are needed for the sizes here.
    const TERMS: usize = 1000;
    let (a, x) = (freedom / 2.0, x / 2.0);
    if x <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() - x - libm::lgamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..TERMS {
            term *= x / (a + n as f64);
            sum += term;
            if term < sum * f64::EPSILON {
                break;
            }
        }
        return 1.0 - front * sum;
    }
    // Lentz's method.
    let tiny = f64::MIN_POSITIVE / f64::EPSILON;
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1.0 / tiny, 1.0 / b);
    let mut fraction = d;
    for n in 1..TERMS {
        let factor = n as f64 * (a - n as f64);
        b += 2.0;
        d = 1.0 / (factor * d + b).abs().max(tiny).copysign(factor * d + b);
        c = (b + factor / c).abs().max(tiny).copysign(b + factor / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    front * fraction
}

/// Groups that occur.
pub(super) fn present(groups: &[usize]) -> usize {
    let mut seen = vec![false; groups_of(groups)];
    for &group in groups {
        seen[group] = true;
    }
    seen.iter().filter(|s| **s).count()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[half - 1], values[half])
    } else {
        values[half]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of scipy's `chi2.sf`.
    #[test]
    fn chi_squared_tails_are_scipys() {
        for (x, freedom, expected) in [
            (3.841_458_820_694_124, 1.0, 0.05),
            (0.5, 1.0, 0.479_500_122_186_953_4),
            (9.0, 4.0, 0.061_099_480_960_332_69),
            (40.0, 10.0, 1.694_474_302_023_683_4e-5),
        ] {
            let found = chi_squared_above(x, freedom);
            assert!(
                (found - expected).abs() < 1e-9 * expected.max(1e-3),
                "{found} {expected}"
            );
        }
    }

    #[test]
    fn neighbourhoods_of_one_batch_and_of_both_score_the_ends() {
        // Two far places; batches lie apart (first) or alternate (second).
        let values: Vec<f32> = (0..80)
            .map(|i| (i / 40 * 1000) as f32 + (i % 40) as f32)
            .collect();
        let cells = Cells::new("cells", &values, 1).unwrap();
        let near = exact(cells, 29).unwrap();
        let apart: Vec<usize> = (0..80).map(|i| i / 40).collect();
        let mixed: Vec<usize> = (0..80).map(|i| i % 2).collect();
        assert!(ilisi(&near, &apart).unwrap().abs() < 1e-9);
        assert!(ilisi(&near, &mixed).unwrap() > 0.8);
        assert!((clisi(&near, &apart).unwrap() - 1.0).abs() < 1e-9);
        let one = vec![0; 80];
        assert_eq!(kbet(cells, &one, &apart), [Ok(0.0)]);
        assert_eq!(kbet(cells, &one, &mixed), [Ok(1.0)]);
        assert_eq!(
            ilisi(&near, &one).unwrap_err().to_string(),
            "1 batches, at least 2 are needed"
        );
        assert!(kbet(cells, &apart, &apart).iter().all(Result::is_err));
    }
}
