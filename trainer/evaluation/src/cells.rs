//! Cells of one condition, as rows of expression values.

use crate::{Error, Result};

/// Genes that are brought from rows into columns at a time: one cache line of f32.
const COLUMNS: usize = 16;

/// Expression of some cells, row by row, all finite.
#[derive(Debug, Clone, Copy)]
pub struct Cells<'a> {
    values: &'a [f32],
    genes: usize,
}

impl<'a> Cells<'a> {
    /// Cells of `genes` values each; `whom` names them in errors.
    ///
    /// # Errors
    /// No cells, no genes, a row cut short, or a value that is not finite.
    pub fn new(whom: &str, values: &'a [f32], genes: usize) -> Result<Self> {
        let whom = || whom.to_owned();
        if genes == 0 {
            return Err(Error::Empty {
                whom: whom(),
                what: "genes",
            });
        }
        if values.is_empty() {
            return Err(Error::Empty {
                whom: whom(),
                what: "cells",
            });
        }
        if !values.len().is_multiple_of(genes) {
            return Err(Error::Length {
                what: format!("values in the last cell of {}", whom()),
                found: values.len() % genes,
                expected: genes,
            });
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                whom: whom(),
                cell: at / genes,
                gene: at % genes,
                value: values[at],
            });
        }
        Ok(Self { values, genes })
    }

    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.genes
    }

    /// Never: cells without rows are refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values of a cell.
    #[must_use]
    pub fn genes(&self) -> usize {
        self.genes
    }

    /// One cell.
    #[must_use]
    pub fn row(&self, cell: usize) -> &'a [f32] {
        &self.values[cell * self.genes..(cell + 1) * self.genes]
    }

    /// All cells in order.
    #[must_use]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.genes)
    }

    /// The first cells, at most `most`.
    #[must_use]
    pub fn first(&self, most: usize) -> Self {
        let rows = self.len().min(most.max(1));
        Self {
            values: &self.values[..rows * self.genes],
            genes: self.genes,
        }
    }

    /// The cells at `rows`, as values of their own.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&r| self.row(r)).copied().collect()
    }

    /// These cells with `delta` added to each, never below 0: control cells as a predicted mean
    /// change would leave them.
    ///
    /// # Errors
    /// Another number of genes.
    pub fn shifted(&self, delta: &[f64]) -> Result<Vec<f32>> {
        same_genes("the shift", delta.len(), self.genes)?;
        let shift = |row: &'a [f32]| {
            row.iter()
                .zip(delta)
                .map(|(&x, d)| (f64::from(x) + d).max(0.0) as f32)
        };
        Ok(self.rows().flat_map(shift).collect())
    }

    /// Mean of each gene.
    #[must_use]
    pub fn mean(&self) -> Vec<f64> {
        self.moments(&vec![0.0; self.genes], |x, _| x)
    }

    /// Variance of each gene with divisor n - `ddof`; 0 where that divisor is not positive.
    #[must_use]
    pub fn variance(&self, ddof: usize) -> Vec<f64> {
        let n = self.len();
        let mean = self.mean();
        let mut variance = self.moments(&mean, |x, mean| (x - mean).powi(2));
        let scale = match n.saturating_sub(ddof) {
            0 => 0.0,
            divisor => n as f64 / divisor as f64,
        };
        for v in &mut variance {
            *v *= scale;
        }
        variance
    }

    /// Mean of `exp(x) - 1` of each gene: arithmetic means of what log1p was taken of.
    #[must_use]
    pub fn mean_of_expm1(&self) -> Vec<f64> {
        self.moments(&vec![0.0; self.genes], |x, _| x.exp_m1())
    }

    fn moments(&self, center: &[f64], of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.genes];
        for row in self.rows() {
            for ((sum, &x), &center) in sums.iter_mut().zip(row).zip(center) {
                *sum += of(f64::from(x), center);
            }
        }
        let n = self.len() as f64;
        for s in &mut sums {
            *s /= n;
        }
        sums
    }

    /// Calls `each` with every gene and its values in ascending order.
    pub(crate) fn sorted_columns(&self, mut each: impl FnMut(usize, &[f32])) {
        let n = self.len();
        let mut columns = vec![0i32; n * COLUMNS];
        let mut column = vec![0f32; n];
        for first in (0..self.genes).step_by(COLUMNS) {
            let width = COLUMNS.min(self.genes - first);
            for (cell, row) in self.rows().enumerate() {
                for (i, &x) in row[first..first + width].iter().enumerate() {
                    columns[i * n + cell] = key(x);
                }
            }
            for i in 0..width {
                let keys = &mut columns[i * n..(i + 1) * n];
                keys.sort_unstable();
                for (x, &key) in column.iter_mut().zip(keys.iter()) {
                    *x = value(key);
                }
                each(first + i, &column);
            }
        }
    }
}

/// An integer in the order of the numbers; both zeros are one.
fn key(x: f32) -> i32 {
    let bits = (x + 0.0).to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn value(key: i32) -> f32 {
    f32::from_bits((key ^ (((key >> 31) as u32) >> 1) as i32) as u32)
}

pub(crate) fn same_genes(whom: &str, found: usize, expected: usize) -> Result<()> {
    if found != expected {
        return Err(Error::Length {
            what: format!("genes of {whom}"),
            found,
            expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_sorted_and_whole_whatever_their_number() {
        let genes = 2 * COLUMNS + 3;
        let values: Vec<f32> = (0..5 * genes)
            .map(|i| ((i * 7919) % 101) as f32 - 50.0)
            .collect();
        let cells = Cells::new("c", &values, genes).unwrap();
        let mut seen = 0;
        cells.sorted_columns(|gene, column| {
            assert_eq!(gene, seen);
            let mut expected: Vec<f32> = cells.rows().map(|row| row[gene]).collect();
            expected.sort_by(f32::total_cmp);
            assert_eq!(column, expected);
            seen += 1;
        });
        assert_eq!(seen, genes);
    }

    #[test]
    fn bad_cells_are_named() {
        let nan = Cells::new("drug A", &[1.0, 2.0, f32::NAN, 4.0], 2).unwrap_err();
        assert_eq!(
            nan.to_string(),
            "drug A: value 0 of cell 1 is NaN, expected a finite number"
        );
        assert!(Cells::new("a", &[1.0; 3], 2).is_err());
        assert!(Cells::new("a", &[], 2).is_err());
    }

    #[test]
    fn a_shift_never_goes_below_zero() {
        let cells = Cells::new("c", &[1.0, 0.5], 2).unwrap();
        assert_eq!(cells.shifted(&[0.25, -1.0]).unwrap(), [1.25, 0.0]);
        assert!(cells.shifted(&[1.0]).is_err());
    }
}
