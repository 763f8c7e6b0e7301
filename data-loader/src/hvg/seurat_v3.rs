//! Flavor `seurat_v3`: variance of clipped counts against a curve of variance on mean (Stuart et al.
//! 2019, "Comprehensive integration of single-cell data", as scanpy 1.11 computes it).

use super::loess::{LoessError, loess};
use super::moments::Moments;
use super::{Batches, Cells, HvgTable, descending, median};
use crate::{Error, Result};

/// Share of the genes that the curve looks at in each place.
const SPAN: f64 = 0.3;

pub(super) fn highly_variable(
    cells: &dyn Cells,
    batches: &Batches,
    n_top: usize,
) -> Result<HvgTable> {
    let moments = Moments::of(cells, batches, |count| f64::from(count) * f64::from(count))?;
    let mut curves = Vec::with_capacity(moments.len());
    for (number, batch) in moments.iter().enumerate() {
        curves.push(Curve::fit(batch, batches.name(number))?);
    }
    let clipped = clipped_sums(cells, batches, &curves)?;
    let normalised: Vec<Vec<f64>> = (moments.iter().zip(&curves).zip(&clipped))
        .map(|((batch, curve), sums)| curve.normalised(batch, sums))
        .collect();
    let ranks: Vec<Vec<usize>> = normalised.iter().map(|n| ranks(n)).collect();

    let genes = cells.genes();
    let below = |gene: usize| {
        let of_gene = ranks.iter().map(move |batch| batch[gene]);
        of_gene.filter(|&rank| rank < n_top).map(|rank| rank as f64)
    };
    let n_batches: Vec<u32> = (0..genes).map(|g| below(g).count() as u32).collect();
    let rank: Vec<f64> = (0..genes).map(|g| median(below(g).collect())).collect();
    let mut order: Vec<usize> = (0..genes).collect();
    // Not a number, the rank of a gene that is on top in no batch, comes last.
    order.sort_by(|&a, &b| {
        rank[a]
            .total_cmp(&rank[b])
            .then(n_batches[b].cmp(&n_batches[a]))
    });
    let mut selected = vec![false; genes];
    for &gene in order.iter().take(n_top) {
        selected[gene] = true;
    }
    let total = Moments::total(&moments);
    let mean_over_batches = |gene: usize| {
        normalised.iter().map(|batch| batch[gene]).sum::<f64>() / normalised.len() as f64
    };
    Ok(HvgTable {
        means: total.means(),
        spread: total.variances(),
        normalised: (0..genes).map(mean_over_batches).collect(),
        rank,
        n_batches,
        selected,
    })
}

/// What a batch's genes are measured by.
struct Curve {
    means: Vec<f64>,
    /// The standard deviation that the curve gives each gene; 1 for genes that do not vary.
    expected: Vec<f64>,
    /// Values above this are cut down to it.
    limits: Vec<f64>,
}

/// Sums of cut values.
struct Clipped {
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Curve {
    fn fit(batch: &Moments, name: &str) -> Result<Self> {
        let (means, variances) = (batch.means(), batch.variances());
        let varying: Vec<usize> = (0..means.len()).filter(|&g| variances[g] > 0.0).collect();
        let x: Vec<f64> = varying.iter().map(|&g| means[g].log10()).collect();
        let y: Vec<f64> = varying.iter().map(|&g| variances[g].log10()).collect();
        let curve = loess(&x, &y, SPAN).map_err(|e| refusal(e, name))?;
        if curve.singular > 0 {
            tracing::warn!(
                batch = name,
                places = curve.singular,
                "many genes have the same mean, so that the curve of variance on mean is not unique there: drop rare genes with --min-counts"
            );
        }
        let mut expected = vec![1.0; means.len()];
        for (&gene, log_variance) in varying.iter().zip(curve.fitted) {
            expected[gene] = 10_f64.powf(log_variance).sqrt();
        }
        let root = (batch.cells as f64).sqrt();
        let limits = (means.iter().zip(&expected))
            .map(|(mean, deviation)| deviation * root + mean)
            .collect();
        Ok(Self {
            means,
            expected,
            limits,
        })
    }

    /// Variance of the cut values around the mean of the uncut ones, in units of the curve.
    fn normalised(&self, batch: &Moments, clipped: &Clipped) -> Vec<f64> {
        let n = batch.cells as f64;
        let of_gene = |gene: usize| {
            let (mean, deviation) = (self.means[gene], self.expected[gene]);
            let squares = n * mean * mean + clipped.squares[gene] - 2.0 * clipped.sums[gene] * mean;
            squares / ((n - 1.0) * deviation * deviation)
        };
        (0..self.means.len()).map(of_gene).collect()
    }
}

fn clipped_sums(cells: &dyn Cells, batches: &Batches, curves: &[Curve]) -> Result<Vec<Clipped>> {
    let empty = || Clipped {
        sums: vec![0.0; cells.genes()],
        squares: vec![0.0; cells.genes()],
    };
    let mut all: Vec<Clipped> = curves.iter().map(|_| empty()).collect();
    let mut number = 0;
    cells.visit(&mut |genes, values| {
        let batch = batches.of(number);
        let (limits, clipped) = (&curves[batch].limits, &mut all[batch]);
        number += 1;
        for (&gene, &value) in genes.iter().zip(values) {
            let gene = gene as usize;
            let value = f64::from(value).min(limits[gene]);
            clipped.sums[gene] += value;
            clipped.squares[gene] += value * value;
        }
    })?;
    Ok(all)
}

/// The place of each gene when they are sorted by falling value; equal ones stay in order.
fn ranks(values: &[f64]) -> Vec<usize> {
    let mut ranks = vec![0; values.len()];
    for (rank, gene) in descending(values).into_iter().enumerate() {
        ranks[gene] = rank;
    }
    ranks
}

fn refusal(error: LoessError, batch: &str) -> Error {
    let whose = if batch.is_empty() {
        String::new()
    } else {
        format!("batch `{batch}`: ")
    };
    match error {
        LoessError::TooFewPoints { points, needed } => Error::hvg(
            format!(
                "{whose}{points} genes vary, but a curve of variance on mean needs at least {needed}"
            ),
            "drop fewer genes with --vocab and --min-counts, or leave --hvg out",
        ),
        LoessError::ZeroWidth { at, neighbours } => Error::hvg(
            format!(
                "{whose}{neighbours} genes or more have the same mean, {:.3e}: no curve of variance on mean can be fitted there",
                10_f64.powf(at)
            ),
            "drop rare genes with --min-counts, or take --hvg-flavor cell_ranger",
        ),
    }
}
