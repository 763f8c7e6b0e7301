//! Principal components of cells, without holding anything of the size of the cells beside them.
//!
//! The covariance of few dimensions (or the products of few cells) is formed and its largest
//! eigenvalues taken; for many of both, a few iterations on the cells themselves (Halko, Martinsson
//! and Tropp 2011) do.

use crate::cells::Cells;
use crate::eigen::largest;
use crate::linalg::{Matrix, dot, orthonormal};
use crate::rng::Rng;
use crate::stats::enough;
use crate::{Undefined, parallel};

/// Dimensions or cells up to which all products are formed.
const DENSE: usize = 2048;
/// Directions beside those that are wanted.
const MORE: usize = 20;
/// Iterations on the cells, as scikit-learn makes for few components.
const PASSES: usize = 7;
/// Cells of one item of work.
const CHUNK: usize = 512;
/// Parts into which the cells are dealt for a covariance.
const PARTS: usize = 8;

/// Principal components.
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    /// Coordinates of the cells, `[cells, components]`.
    pub scores: Vec<f32>,
    /// Variance along each component, with n - 1, largest first.
    pub variance: Vec<f64>,
    /// Sum of the variances of all dimensions.
    pub total_variance: f64,
    /// Directions, `[components, dimensions]`, orthonormal; the entry of largest size is positive.
    pub directions: Vec<f64>,
    /// Mean of each dimension.
    pub mean: Vec<f64>,
}

/// The `components` leading principal components.
///
/// # Errors
/// Fewer cells or dimensions than components, or all cells in one place.
pub fn pca(cells: Cells<'_>, components: usize, seed: u64) -> Result<Pca, Undefined> {
    within(cells, components, seed, DENSE)
}

fn within(cells: Cells<'_>, components: usize, seed: u64, dense: usize) -> Result<Pca, Undefined> {
    enough("components", components, 1)?;
    enough(
        "dimensions for so many components",
        cells.genes(),
        components,
    )?;
    enough("cells for so many components", cells.len(), components + 1)?;
    let mean = cells.mean();
    let total: f64 = cells.variance(1).iter().sum();
    if total <= 0.0 {
        return Err(Undefined::Constant {
            what: "the embedding",
        });
    }
    let work = Work {
        cells,
        mean,
        threads: parallel::cores(),
    };
    let width = (components + MORE).min(cells.genes()).min(cells.len());
    let directions = if cells.genes() <= dense {
        largest(work.covariance(), components).1
    } else if cells.len() <= dense {
        let left = largest(work.products(), components).1;
        orthonormal(work.back(&left))
    } else {
        work.iterate(width, seed)
    };
    Ok(work.finish(&directions, components, total))
}

struct Work<'a> {
    cells: Cells<'a>,
    mean: Vec<f64>,
    threads: usize,
}

fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut rng = Rng::new(seed, "directions");
    let mut matrix = Matrix::zeros(rows, columns);
    for x in &mut matrix.values {
        *x = rng.normal();
    }
    matrix
}

impl Work<'_> {
    fn centered(&self, cell: usize) -> Vec<f64> {
        let row = self.cells.row(cell).iter().zip(&self.mean);
        row.map(|(&x, mean)| f64::from(x) - mean).collect()
    }

    /// Sum of products of dimensions over cells.
    fn covariance(&self) -> Matrix {
        let (n, d) = (self.cells.len(), self.cells.genes());
        let part = |part: usize| {
            let mut sums = Matrix::zeros(d, d);
            for cell in part * n / PARTS..(part + 1) * n / PARTS {
                let row = self.centered(cell);
                for (i, x) in row.iter().enumerate() {
                    let target = &mut sums.values[i * d..][..=i];
                    target.iter_mut().zip(&row).for_each(|(t, y)| *t += x * y);
                }
            }
            sums
        };
        let mut whole = Matrix::zeros(d, d);
        for sums in parallel::map(PARTS, self.threads, part) {
            whole
                .values
                .iter_mut()
                .zip(&sums.values)
                .for_each(|(w, s)| *w += s);
        }
        for i in 0..d {
            for j in 0..i {
                whole.values[j * d + i] = whole.values[i * d + j];
            }
        }
        whole
    }

    /// Products of cells over dimensions.
    fn products(&self) -> Matrix {
        let n = self.cells.len();
        let rows: Vec<Vec<f64>> = (0..n).map(|cell| self.centered(cell)).collect();
        let line = |i: usize| {
            (0..n)
                .map(|j| dot(&rows[i], &rows[j]))
                .collect::<Vec<f64>>()
        };
        let values = parallel::map(n, self.threads, line).concat();
        Matrix {
            rows: n,
            columns: n,
            values,
        }
    }

    /// Coordinates of all cells along `directions`, `[cells, directions]`.
    fn project(&self, directions: &Matrix) -> Matrix {
        let n = self.cells.len();
        let chunk = |chunk: usize| {
            let cells = chunk * CHUNK..((chunk + 1) * CHUNK).min(n);
            let along = |cell: usize| {
                let row = self.centered(cell);
                let dot = |k: usize| dot(directions.row(k), &row);
                (0..directions.rows).map(dot).collect::<Vec<f64>>()
            };
            cells.flat_map(along).collect::<Vec<f64>>()
        };
        let values = parallel::map(n.div_ceil(CHUNK), self.threads, chunk).concat();
        Matrix {
            rows: n,
            columns: directions.rows,
            values,
        }
    }

    /// Sums of cells weighted by the rows of `left`, `[rows, dimensions]`.
    fn back(&self, left: &Matrix) -> Matrix {
        let (n, d) = (self.cells.len(), self.cells.genes());
        let part = |part: usize| {
            let mut sums = Matrix::zeros(left.rows, d);
            for cell in part * n / PARTS..(part + 1) * n / PARTS {
                let row = self.centered(cell);
                for k in 0..left.rows {
                    let weight = left.values[k * n + cell];
                    let target = &mut sums.values[k * d..(k + 1) * d];
                    target
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(t, x)| *t += weight * x);
                }
            }
            sums
        };
        let mut whole = Matrix::zeros(left.rows, d);
        for sums in parallel::map(PARTS, self.threads, part) {
            whole
                .values
                .iter_mut()
                .zip(&sums.values)
                .for_each(|(w, s)| *w += s);
        }
        whole
    }

    /// A subspace that a few passes over the cells leave.
    fn iterate(&self, width: usize, seed: u64) -> Matrix {
        let mut basis = orthonormal(random(width, self.cells.genes(), seed));
        for _ in 0..PASSES {
            let along = self.project(&basis).transposed();
            basis = orthonormal(self.back(&orthonormal(along)));
        }
        basis
    }

    /// Turns the directions to principal axes of the cells, and cuts to the wanted ones.
    fn finish(&self, directions: &Matrix, components: usize, total: f64) -> Pca {
        let n = self.cells.len();
        let along = self.project(directions);
        let (values, axes) = largest(along.transposed().gram(), components);
        let mut found = axes.times(directions);
        for k in 0..components {
            let row = &mut found.values[k * found.columns..(k + 1) * found.columns];
            let peak = row
                .iter()
                .fold(0.0f64, |p, &x| if x.abs() > p.abs() { x } else { p });
            if peak < 0.0 {
                for x in row {
                    *x = -*x;
                }
            }
        }
        let scores = self.project(&found);
        Pca {
            scores: scores.values.iter().map(|&x| x as f32).collect(),
            variance: (0..components)
                .map(|k| values[k].max(0.0) / (n - 1) as f64)
                .collect(),
            total_variance: total,
            directions: found.values,
            mean: self.mean.clone(),
        }
    }
}

impl Pca {
    /// Number of components.
    #[must_use]
    pub fn components(&self) -> usize {
        self.variance.len()
    }

    /// Coordinates of other cells along the same directions.
    ///
    /// # Errors
    /// Another number of dimensions.
    pub fn project(&self, cells: Cells<'_>) -> crate::Result<Vec<f32>> {
        crate::cells::same_genes("the cells", cells.genes(), self.mean.len())?;
        let work = Work {
            cells,
            mean: self.mean.clone(),
            threads: parallel::cores(),
        };
        let directions = Matrix {
            rows: self.components(),
            columns: self.mean.len(),
            values: self.directions.clone(),
        };
        Ok(work
            .project(&directions)
            .values
            .iter()
            .map(|&x| x as f32)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells with decreasing spread along the axes, turned by nothing: the axes come back.
    fn cells(n: usize, d: usize) -> Vec<f32> {
        let mut rng = Rng::new(4, "cells");
        let spread = |j: usize| 20.0 / (j + 1) as f64;
        (0..n * d)
            .map(|i| (rng.normal() * spread(i % d) + 3.0) as f32)
            .collect()
    }

    #[test]
    fn components_explain_what_they_say_whichever_way_they_are_found() {
        // Few dimensions, few cells, and many of both.
        for (n, d, dense) in [(400, 12, 12), (40, 60, 40), (400, 60, 40)] {
            let values = cells(n, d);
            let cells = Cells::new("cells", &values, d).unwrap();
            let found = within(cells, 5, 0, dense).unwrap();
            for k in 0..5 {
                let own: Vec<f64> = found
                    .scores
                    .chunks(5)
                    .map(|row| f64::from(row[k]))
                    .collect();
                let mean = crate::stats::mean(&own);
                let variance = own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
                assert!(mean.abs() < 1e-4, "{mean}");
                assert!(
                    (variance / found.variance[k] - 1.0).abs() < 1e-5,
                    "{n} {d} {k}"
                );
                for l in 0..=k {
                    let row = |k: usize| &found.directions[k * d..(k + 1) * d];
                    let dot = dot(row(k), row(l));
                    assert!((dot - f64::from(u8::from(k == l))).abs() < 1e-9, "{dot}");
                }
            }
            assert!(found.variance.windows(2).all(|w| w[0] >= w[1]));
            assert!(found.directions[0] > 0.9, "the first axis spreads most");
            assert_eq!(found.project(cells).unwrap(), found.scores);
        }
    }

    #[test]
    fn cells_in_one_place_have_no_components() {
        let flat = [1.0f32; 12];
        let cells = Cells::new("cells", &flat, 3).unwrap();
        assert!(matches!(pca(cells, 2, 0), Err(Undefined::Constant { .. })));
        assert!(matches!(pca(cells, 4, 0), Err(Undefined::TooFew { .. })));
    }
}
