//! Sums over the cells of each batch, one gene at a time.

use super::{Batches, Cells};
use crate::Result;

/// Sums of each gene's values over the cells of one batch. Zeros count as values.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) cells: u64,
    pub(super) sums: Vec<f64>,
    pub(super) squares: Vec<f64>,
    /// Cells that express each gene.
    pub(super) expressed: Vec<u32>,
}

impl Moments {
    fn new(genes: usize) -> Self {
        Self {
            cells: 0,
            sums: vec![0.0; genes],
            squares: vec![0.0; genes],
            expressed: vec![0; genes],
        }
    }

    /// The moments of each batch. `square` says in which precision values are squared.
    pub(super) fn of(
        cells: &dyn Cells,
        batches: &Batches,
        square: fn(f32) -> f64,
    ) -> Result<Vec<Self>> {
        let mut all = vec![Self::new(cells.genes()); batches.len()];
        let mut number = 0;
        cells.visit(&mut |genes, values| {
            let batch = &mut all[batches.of(number)];
            number += 1;
            batch.cells += 1;
            for (&gene, &value) in genes.iter().zip(values) {
                let gene = gene as usize;
                batch.sums[gene] += f64::from(value);
                batch.squares[gene] += square(value);
                batch.expressed[gene] += 1;
            }
        })?;
        Ok(all)
    }

    /// Of all batches together.
    pub(super) fn total(batches: &[Self]) -> Self {
        let mut total = Self::new(batches.first().map_or(0, |b| b.sums.len()));
        for batch in batches {
            total.cells += batch.cells;
            for gene in 0..total.sums.len() {
                total.sums[gene] += batch.sums[gene];
                total.squares[gene] += batch.squares[gene];
                total.expressed[gene] += batch.expressed[gene];
            }
        }
        total
    }

    pub(super) fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.cells as f64).collect()
    }

    /// With the divisor n - 1. Sums of counts are exact below 2^53, so that a gene with the same count
    /// in all cells has variance zero exactly.
    pub(super) fn variances(&self) -> Vec<f64> {
        let n = self.cells as f64;
        let unbiased = n / (n - 1.0);
        let pairs = self.sums.iter().zip(&self.squares);
        pairs
            .map(|(sum, squares)| {
                let mean = sum / n;
                ((squares / n - mean * mean) * unbiased).max(0.0)
            })
            .collect()
    }
}
