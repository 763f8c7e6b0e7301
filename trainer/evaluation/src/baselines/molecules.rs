//! Baselines that look at molecules.

use std::collections::HashMap;

use super::{Predict, Training};
use crate::linalg::{Matrix, left_singular, solve};
use crate::stats::descending;
use crate::{Error, Result};

/// How alike two molecules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Similarity {
    /// Cosine of embeddings; negative ones count as 0.
    Cosine,
    /// Sum of the smaller over sum of the larger features: for bits, shared over all that are set.
    Tanimoto,
}

impl Similarity {
    fn of(self, x: &[f64], y: &[f64]) -> f64 {
        match self {
            Self::Cosine => crate::stats::cosine(x, y).unwrap_or(0.0).max(0.0),
            Self::Tanimoto => {
                let sum = |f: fn(f64, f64) -> f64| -> f64 {
                    x.iter().zip(y).map(|(x, y)| f(*x, *y)).sum()
                };
                let all = sum(f64::max);
                if all > 0.0 { sum(f64::min) / all } else { 0.0 }
            }
        }
    }
}

/// Drug means of the nearest training perturbations.
#[derive(Debug)]
pub(super) struct Knn {
    k: usize,
    similarity: Similarity,
    features: Vec<Vec<f64>>,
    /// Training perturbations in ascending order, and their means.
    known: Vec<usize>,
    means: HashMap<usize, Vec<f64>>,
    rest: Vec<f64>,
}

impl Knn {
    pub(super) fn new(training: &Training, k: usize, similarity: Similarity) -> Result<Self> {
        let features = training.features()?.to_vec();
        if k == 0 {
            return Err(Error::Setting {
                setting: "k",
                found: k.to_string(),
                expected: "at least 1",
            });
        }
        let negative = features.iter().flatten().find(|x| **x < 0.0);
        if let (Similarity::Tanimoto, Some(x)) = (similarity, negative) {
            return Err(Error::Setting {
                setting: "a feature for Tanimoto similarity",
                found: x.to_string(),
                expected: "0 or more, as in fingerprints",
            });
        }
        let means = training.means_by(|(_, p)| p);
        let mut known: Vec<usize> = means.keys().copied().collect();
        known.sort_unstable();
        Ok(Self {
            k,
            similarity,
            features,
            known,
            means,
            rest: training.grand_mean(),
        })
    }
}

impl Predict for Knn {
    fn delta(&self, _: usize, perturbation: usize) -> Vec<f64> {
        let Some(own) = self.features.get(perturbation) else {
            return self.rest.clone();
        };
        let alike: Vec<f64> = self
            .known
            .iter()
            .map(|&p| self.similarity.of(own, &self.features[p]))
            .collect();
        let nearest: Vec<usize> = descending(&alike).into_iter().take(self.k).collect();
        let total: f64 = nearest.iter().map(|&i| alike[i]).sum();
        if total <= 0.0 {
            return self.rest.clone();
        }
        let mut delta = vec![0.0; self.rest.len()];
        for i in nearest {
            let mean = &self.means[&self.known[i]];
            let weight = alike[i] / total;
            delta
                .iter_mut()
                .zip(mean)
                .for_each(|(d, m)| *d += weight * m);
        }
        delta
    }
}

/// `center + (p - origin) C` with p the features of a perturbation.
#[derive(Debug)]
pub(super) struct Linear {
    features: Vec<Vec<f64>>,
    origin: Vec<f64>,
    center: Vec<f64>,
    coefficients: Matrix, // [features, genes]
}

impl Linear {
    pub(super) fn ridge(training: &Training, lambda: f64) -> Result<Self> {
        let (x, y) = matrices(training)?;
        let (origin, center) = (x.column_means(), y.column_means());
        let (x, y) = (x.centered(&origin), y.centered(&center));
        Ok(Self {
            features: training.features()?.to_vec(),
            coefficients: penalized("ridge", &x, &y, lambda)?,
            origin,
            center,
        })
    }

    /// Directions are those of the deltas less their mean. Written with rows as conditions: with
    /// X the features, Y the deltas and G the directions, `C = (X^T X + l)^-1 X^T Y G (G^T G +
    /// l)^-1 G^T`.
    pub(super) fn bilinear(training: &Training, directions: usize, lambda: f64) -> Result<Self> {
        let (x, y) = matrices(training)?;
        let most = y.rows.min(y.columns);
        if directions == 0 || directions > most {
            return Err(Error::Setting {
                setting: "directions",
                found: directions.to_string(),
                expected: "at least 1, and no more than training conditions or genes",
            });
        }
        let center = y.column_means();
        let y = y.centered(&center);
        let g = left_singular("bilinear", &y.transposed(), directions)?; // [genes, directions]
        let gt = g.transposed();
        // (G^T G + l)^-1 G^T: [directions, genes]
        let inner = solve("bilinear", gt.gram().plus_diagonal(lambda), gt)?;
        // Y inner^T: [conditions, directions]
        let reduced = y.times(&inner.transposed());
        let weights = penalized("bilinear", &x, &reduced, lambda)?; // [features, directions]
        Ok(Self {
            features: training.features()?.to_vec(),
            origin: vec![0.0; x.columns],
            center,
            coefficients: weights.times(&g.transposed()),
        })
    }
}

impl Predict for Linear {
    fn delta(&self, _: usize, perturbation: usize) -> Vec<f64> {
        let Some(own) = self.features.get(perturbation) else {
            return self.center.clone();
        };
        let off = Matrix::from_rows([own.as_slice()]).centered(&self.origin);
        let mut delta = off.times(&self.coefficients).values;
        delta
            .iter_mut()
            .zip(&self.center)
            .for_each(|(d, c)| *d += c);
        delta
    }
}

/// Features and deltas of the training conditions, a row each.
fn matrices(training: &Training) -> Result<(Matrix, Matrix)> {
    let features = training.features()?;
    let x = training.pairs.iter().map(|(_, p)| features[*p].as_slice());
    let y = training.deltas.iter().map(Vec::as_slice);
    Ok((Matrix::from_rows(x), Matrix::from_rows(y)))
}

/// `(X^T X + l)^-1 X^T Y`, solved on the smaller side: that is `X^T (X X^T + l)^-1 Y` too.
fn penalized(what: &'static str, x: &Matrix, y: &Matrix, lambda: f64) -> Result<Matrix> {
    let xt = x.transposed();
    if x.columns <= x.rows {
        return solve(what, xt.gram().plus_diagonal(lambda), xt.times(y));
    }
    Ok(xt.times(&solve(what, x.gram().plus_diagonal(lambda), y.clone())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More features than conditions and the other way round have one formula.
    #[test]
    fn both_sides_of_the_penalized_system_agree() {
        let x = Matrix::from_rows([[1.0, 2.0, 0.5].as_slice(), &[0.0, -1.0, 3.0]]);
        let y = Matrix::from_rows([[1.0].as_slice(), &[2.0]]);
        let dual = penalized("t", &x, &y, 0.3).unwrap();
        let xt = x.transposed();
        let primal = solve("t", xt.gram().plus_diagonal(0.3), xt.times(&y)).unwrap();
        for (a, b) in dual.values.iter().zip(&primal.values) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
    }

    #[test]
    fn tanimoto_of_bits_is_shared_over_set() {
        let alike = Similarity::Tanimoto.of(&[1.0, 1.0, 0.0, 1.0], &[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(alike, 0.5);
        assert_eq!(Similarity::Tanimoto.of(&[0.0], &[0.0]), 0.0);
        assert_eq!(Similarity::Cosine.of(&[1.0], &[-1.0]), 0.0);
    }
}
