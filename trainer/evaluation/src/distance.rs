//! Distances between clouds of cells: energy distance, maximum mean discrepancy, Wasserstein-1 per
//! gene.

use crate::cells::{Cells, same_genes};
use crate::stats::{enough, mean};
use crate::{Result, Score};

/// Widths of the Gaussian kernels, `exp(-gamma |x - y|^2)`.
pub const GAMMAS: [f64; 6] = [2.0, 1.0, 0.5, 0.1, 0.01, 0.005];
/// Cells of the two sides whose distances are taken at a time: as many sums as registers hold.
const ROWS: usize = 4;
const COLUMNS: usize = 2;

/// Means over pairs of cells, one from each side (or both from one side).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairMeans {
    /// Of the Euclidean distance.
    pub euclid: f64,
    /// Of its square.
    pub square: f64,
    /// Of the Gaussian kernel, averaged over [`GAMMAS`]; 0 when not asked for.
    pub kernel: f64,
}

/// Whether kernels are wanted; they cost as much as the distances of few genes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Distances alone.
    No,
    /// Distances and kernels.
    Yes,
}

impl PairMeans {
    /// All pairs of a cell of `x` and a cell of `y`.
    ///
    /// # Errors
    /// Different numbers of genes.
    pub fn between(x: Cells<'_>, y: Cells<'_>, kernels: Kernels) -> Result<Self> {
        same_genes("the other cells", y.genes(), x.genes())?;
        let mut sums = Self::default();
        for i in (0..x.len()).step_by(ROWS) {
            for j in (0..y.len()).step_by(COLUMNS) {
                sums.add_tile(x, y, (i, j), kernels, |_, _| 1.0);
            }
        }
        Ok(sums.over((x.len() * y.len()) as f64))
    }

    /// All ordered pairs of cells of `x`, each cell with itself included.
    #[must_use]
    pub fn within(x: Cells<'_>, kernels: Kernels) -> Self {
        let mut sums = Self::default();
        // A pair counts twice, a cell with itself once; the lower triangle is skipped.
        let times = |a: usize, b: usize| match a.cmp(&b) {
            std::cmp::Ordering::Less => 2.0,
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.0,
        };
        for i in (0..x.len()).step_by(ROWS) {
            for j in (i..x.len()).step_by(COLUMNS) {
                sums.add_tile(x, x, (i, j), kernels, times);
            }
        }
        sums.over((x.len() * x.len()) as f64)
    }

    fn add_tile(
        &mut self,
        x: Cells<'_>,
        y: Cells<'_>,
        (i, j): (usize, usize),
        kernels: Kernels,
        times: impl Fn(usize, usize) -> f64,
    ) {
        let squares = tile(x, y, i, j);
        for (a, squares) in squares.iter().enumerate().take(x.len() - i) {
            for (b, &square) in squares.iter().enumerate().take(y.len() - j) {
                let times = times(i + a, j + b);
                if times == 0.0 {
                    continue;
                }
                self.euclid += times * square.sqrt();
                self.square += times * square;
                if kernels == Kernels::Yes {
                    self.kernel += times * kernel(square);
                }
            }
        }
    }

    fn over(self, pairs: f64) -> Self {
        Self {
            euclid: self.euclid / pairs,
            square: self.square / pairs,
            kernel: self.kernel / pairs,
        }
    }
}

fn kernel(square: f64) -> f64 {
    let sum: f64 = GAMMAS.iter().map(|gamma| (-gamma * square).exp()).sum();
    sum / GAMMAS.len() as f64
}

/// Squared distances of up to `ROWS` cells from `i` and `COLUMNS` from `j`, each value loaded once
/// for all of them. Cells beyond the last repeat it.
fn tile(x: Cells<'_>, y: Cells<'_>, i: usize, j: usize) -> [[f64; COLUMNS]; ROWS] {
    let row = |cells: Cells<'_>, at: usize| at.min(cells.len() - 1);
    let genes = x.genes();
    let a: [&[f32]; ROWS] = std::array::from_fn(|k| &x.row(row(x, i + k))[..genes]);
    let b: [&[f32]; COLUMNS] = std::array::from_fn(|k| &y.row(row(y, j + k))[..genes]);
    // Sums of even and of odd genes, so that two fit a vector register.
    let mut sums = [[[0.0f64; 2]; COLUMNS]; ROWS];
    let pairs = genes / 2 * 2;
    for g in (0..pairs).step_by(2) {
        let mut q = [[0.0f64; 2]; COLUMNS];
        for (q, b) in q.iter_mut().zip(&b) {
            *q = [f64::from(b[g]), f64::from(b[g + 1])];
        }
        for (sums, a) in sums.iter_mut().zip(&a) {
            let p = [f64::from(a[g]), f64::from(a[g + 1])];
            for (sum, q) in sums.iter_mut().zip(&q) {
                let d = [p[0] - q[0], p[1] - q[1]];
                sum[0] += d[0] * d[0];
                sum[1] += d[1] * d[1];
            }
        }
    }
    let last = |a: &[f32], b: &[f32]| match genes - pairs {
        0 => 0.0,
        _ => (f64::from(a[pairs]) - f64::from(b[pairs])).powi(2),
    };
    std::array::from_fn(|k| {
        std::array::from_fn(|l| sums[k][l][0] + sums[k][l][1] + last(a[k], b[l]))
    })
}

/// `2 E|x - y| - E|x - x'| - E|y - y'|` with Euclidean distances, all pairs (cell-eval).
#[must_use]
pub fn energy(xy: PairMeans, xx: PairMeans, yy: PairMeans) -> f64 {
    2.0 * xy.euclid - xx.euclid - yy.euclid
}

/// The same with squared distances, all pairs.
#[must_use]
pub fn energy_squared(xy: PairMeans, xx: PairMeans, yy: PairMeans) -> f64 {
    2.0 * xy.square - xx.square - yy.square
}

/// The same with squared distances, the inner means over distinct pairs (scPerturb).
///
/// # Errors
/// A side with fewer than two cells.
pub fn energy_squared_unbiased(
    xy: PairMeans,
    (xx, n): (PairMeans, usize),
    (yy, m): (PairMeans, usize),
) -> Score {
    enough("cells", n.min(m), 2)?;
    let distinct = |mean: f64, n: usize| mean * n as f64 / (n as f64 - 1.0);
    Ok(2.0 * xy.square - distinct(xx.square, n) - distinct(yy.square, m))
}

/// Squared maximum mean discrepancy with Gaussian kernels, all pairs, averaged over [`GAMMAS`].
#[must_use]
pub fn mmd(xy: PairMeans, xx: PairMeans, yy: PairMeans) -> f64 {
    xx.kernel + yy.kernel - 2.0 * xy.kernel
}

/// Wasserstein-1 distance of each gene's values, averaged over genes.
///
/// # Errors
/// Different numbers of genes.
pub fn wasserstein_per_gene(x: Cells<'_>, y: Cells<'_>) -> Result<f64> {
    same_genes("the other cells", y.genes(), x.genes())?;
    let n = y.len();
    let mut sorted = Vec::with_capacity(n * y.genes());
    y.sorted_columns(|_, column| sorted.extend_from_slice(column));
    let mut distances = Vec::with_capacity(x.genes());
    x.sorted_columns(|gene, column| {
        distances.push(wasserstein(column, &sorted[gene * n..(gene + 1) * n]));
    });
    Ok(mean(&distances))
}

/// Area between the distribution functions of two ascending samples.
fn wasserstein(x: &[f32], y: &[f32]) -> f64 {
    let (n, m) = (x.len(), y.len());
    let (mut i, mut j, mut area) = (0, 0, 0.0);
    let mut at = f64::from(x[0].min(y[0]));
    while i < n || j < m {
        let next = match (x.get(i), y.get(j)) {
            (Some(&a), Some(&b)) => a.min(b),
            (Some(&a), None) => a,
            (None, Some(&b)) => b,
            (None, None) => break,
        };
        let gap = (i as f64 / n as f64 - j as f64 / m as f64).abs();
        area += gap * (f64::from(next) - at);
        at = f64::from(next);
        i += x[i..].iter().take_while(|&&v| v <= next).count();
        j += y[j..].iter().take_while(|&&v| v <= next).count();
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles at the edge and odd numbers of genes give what the definition gives.
    #[test]
    fn tiles_are_the_definition() {
        let values: Vec<f32> = (0..11 * 7).map(|i| ((i * 31) % 17) as f32 / 4.0).collect();
        let (x, y) = values.split_at(5 * 7);
        let (x, y) = (
            Cells::new("x", x, 7).unwrap(),
            Cells::new("y", y, 7).unwrap(),
        );
        let naive = |x: Cells<'_>, y: Cells<'_>| {
            let mut sum = PairMeans::default();
            for a in x.rows() {
                for b in y.rows() {
                    let square: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                    sum.euclid += square.sqrt();
                    sum.square += square;
                    sum.kernel += kernel(square);
                }
            }
            sum.over((x.len() * y.len()) as f64)
        };
        for (found, expected) in [
            (PairMeans::between(x, y, Kernels::Yes).unwrap(), naive(x, y)),
            (PairMeans::within(x, Kernels::Yes), naive(x, x)),
            (PairMeans::within(y, Kernels::Yes), naive(y, y)),
        ] {
            for (a, b) in [
                (found.euclid, expected.euclid),
                (found.square, expected.square),
                (found.kernel, expected.kernel),
            ] {
                assert!((a - b).abs() < 1e-12 * b, "{a} {b}");
            }
        }
    }

    #[test]
    fn samples_of_unlike_sizes_have_the_distance_of_their_distributions() {
        // Mass 1/2 moves from 0 to 3, 1/2 from 1 to 3.
        assert_eq!(wasserstein(&[0.0, 1.0], &[3.0, 3.0, 3.0]), 2.5);
        assert_eq!(wasserstein(&[1.0, 1.0, 2.0], &[1.0, 1.0, 2.0]), 0.0);
        assert!((wasserstein(&[0.0, 0.0, 3.0], &[0.0]) - 1.0).abs() < 1e-12);
    }
}
