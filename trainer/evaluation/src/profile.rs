//! Scores of mean profiles: what was predicted for a condition against what was measured.

use crate::cells::{Cells, same_genes};
use crate::stats::{ascending, cosine, descending, enough, mean, pearson, pick, r2, spearman};
use crate::{Result, Score, Undefined};

/// Added to means before logarithms of ratios, as chemCPA does.
const LOG_EPS: f64 = 1e-5;

/// Mean profiles of one condition.
#[derive(Debug, Clone)]
pub struct Profiles<'a> {
    control: &'a [f64],
    real: &'a [f64],
    predicted: &'a [f64],
    real_delta: Vec<f64>,
    predicted_delta: Vec<f64>,
}

/// Genes that a condition is scored on apart, the strongest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopGenes(Vec<usize>);

impl TopGenes {
    /// The `n` genes with the largest absolute difference of real and control mean.
    #[must_use]
    pub fn by_delta(profiles: &Profiles<'_>, n: usize) -> Self {
        let size: Vec<f64> = profiles.real_delta.iter().map(|d| d.abs()).collect();
        Self::of_order(&descending(&size), n)
    }

    /// The first `n` of an order of genes made elsewhere.
    #[must_use]
    pub fn of_order(order: &[usize], n: usize) -> Self {
        Self(order.iter().take(n).copied().collect())
    }

    /// The genes.
    #[must_use]
    pub fn genes(&self) -> &[usize] {
        &self.0
    }
}

impl<'a> Profiles<'a> {
    /// Profiles over the same genes.
    ///
    /// # Errors
    /// Different numbers of genes.
    pub fn new(control: &'a [f64], real: &'a [f64], predicted: &'a [f64]) -> Result<Self> {
        same_genes("the real profile", real.len(), control.len())?;
        same_genes("the predicted profile", predicted.len(), control.len())?;
        let minus = |x: &[f64]| x.iter().zip(control).map(|(x, c)| x - c).collect();
        Ok(Self {
            control,
            real,
            predicted,
            real_delta: minus(real),
            predicted_delta: minus(predicted),
        })
    }

    /// Real mean minus control mean.
    #[must_use]
    pub fn real_delta(&self) -> &[f64] {
        &self.real_delta
    }

    /// Predicted mean minus control mean.
    #[must_use]
    pub fn predicted_delta(&self) -> &[f64] {
        &self.predicted_delta
    }

    /// R2 of the predicted for the real profile over all genes.
    ///
    /// # Errors
    /// See [`r2`].
    pub fn r2_mean(&self) -> Score {
        r2(self.real, self.predicted)
    }

    /// R2 of the predicted for the real profile over some genes.
    ///
    /// # Errors
    /// See [`r2`].
    pub fn r2_mean_of(&self, genes: &TopGenes) -> Score {
        r2(&pick(self.real, &genes.0), &pick(self.predicted, &genes.0))
    }

    /// R2 of the deltas.
    ///
    /// # Errors
    /// See [`r2`].
    pub fn r2_delta(&self) -> Score {
        r2(&self.real_delta, &self.predicted_delta)
    }

    /// Pearson correlation of the profiles.
    ///
    /// # Errors
    /// See [`pearson`].
    pub fn pearson(&self) -> Score {
        pearson(self.real, self.predicted)
    }

    /// Pearson correlation of the profiles over some genes.
    ///
    /// # Errors
    /// See [`pearson`].
    pub fn pearson_of(&self, genes: &TopGenes) -> Score {
        pearson(&pick(self.real, &genes.0), &pick(self.predicted, &genes.0))
    }

    /// Pearson correlation of the deltas (`pearson_delta` of cell-eval).
    ///
    /// # Errors
    /// See [`pearson`].
    pub fn pearson_delta(&self) -> Score {
        pearson(&self.real_delta, &self.predicted_delta)
    }

    /// Pearson correlation of the deltas over some genes.
    ///
    /// # Errors
    /// See [`pearson`].
    pub fn pearson_delta_of(&self, genes: &TopGenes) -> Score {
        let [real, predicted] = self.deltas_of(genes);
        pearson(&real, &predicted)
    }

    /// Pearson correlation of the differences to `center`, the mean of the real profiles over
    /// conditions: what all conditions have in common earns nothing.
    ///
    /// # Errors
    /// See [`pearson`].
    pub fn pearson_delta_against(&self, center: &[f64]) -> Score {
        let minus = |x: &[f64]| -> Vec<f64> { x.iter().zip(center).map(|(x, c)| x - c).collect() };
        pearson(&minus(self.real), &minus(self.predicted))
    }

    /// Spearman correlation of the deltas.
    ///
    /// # Errors
    /// See [`spearman`].
    pub fn spearman_delta(&self) -> Score {
        spearman(&self.real_delta, &self.predicted_delta)
    }

    /// Cosine of the deltas.
    ///
    /// # Errors
    /// A delta of zeros.
    pub fn cosine_delta(&self) -> Score {
        cosine(&self.real_delta, &self.predicted_delta)
    }

    /// Mean squared error of the profiles; the same of the deltas.
    #[must_use]
    pub fn mse(&self) -> f64 {
        mean(&self.errors().map(|e| e * e).collect::<Vec<_>>())
    }

    /// Mean squared error over some genes.
    ///
    /// # Errors
    /// No genes.
    pub fn mse_of(&self, genes: &TopGenes) -> Score {
        enough("genes", genes.0.len(), 1)?;
        let square = |&g: &usize| (self.real[g] - self.predicted[g]).powi(2);
        Ok(mean(&genes.0.iter().map(square).collect::<Vec<_>>()))
    }

    /// Mean absolute error of the profiles; the same of the deltas.
    pub fn mae(&self) -> f64 {
        mean(&self.errors().map(f64::abs).collect::<Vec<_>>())
    }

    /// Euclidean distance of the profiles.
    #[must_use]
    pub fn l2(&self) -> f64 {
        self.errors().map(|e| e * e).sum::<f64>().sqrt()
    }

    /// Share of `genes` whose predicted change has the sign of the real one.
    ///
    /// # Errors
    /// No genes.
    pub fn sign_agreement(&self, genes: &TopGenes) -> Score {
        enough("genes", genes.0.len(), 1)?;
        let [real, predicted] = self.deltas_of(genes);
        let same = real.iter().zip(&predicted);
        let same = same.filter(|(r, p)| sign(**r) == sign(**p)).count();
        Ok(same as f64 / real.len() as f64)
    }

    /// R2 of `log2((mean + 1e-5) / (control mean + 1e-5))` over some genes, as chemCPA reports it.
    ///
    /// # Errors
    /// See [`r2`]; or a mean below -1e-5, which has no logarithm.
    pub fn logfold_r2_of(&self, genes: &TopGenes) -> Score {
        let ratio = |x: &[f64]| -> Vec<f64> {
            let of = |&g: &usize| ((x[g] + LOG_EPS) / (self.control[g] + LOG_EPS)).log2();
            genes.0.iter().map(of).collect()
        };
        let (real, predicted) = (ratio(self.real), ratio(self.predicted));
        if real.iter().chain(&predicted).any(|x| !x.is_finite()) {
            return Err(Undefined::Negative);
        }
        r2(&real, &predicted)
    }

    /// Share of the `k` genes of largest real change that are among the `k` of largest predicted
    /// change.
    ///
    /// # Errors
    /// Fewer than `k` genes.
    pub fn top_recall(&self, k: usize) -> Score {
        enough("genes", self.control.len(), k.max(1))?;
        let top = |delta: &[f64]| -> Vec<usize> {
            let size: Vec<f64> = delta.iter().map(|d| d.abs()).collect();
            descending(&size).into_iter().take(k).collect()
        };
        let predicted = top(&self.predicted_delta);
        let found = top(&self.real_delta);
        let found = found.iter().filter(|g| predicted.contains(g)).count();
        Ok(found as f64 / k as f64)
    }

    /// Squared error weighted by `weights`, which sum to 1; see [`welch_weights`].
    #[must_use]
    pub fn weighted_mse(&self, weights: &[f64]) -> f64 {
        self.errors().zip(weights).map(|(e, w)| w * e * e).sum()
    }

    fn errors(&self) -> impl Iterator<Item = f64> {
        self.real.iter().zip(self.predicted).map(|(r, p)| r - p)
    }

    fn deltas_of(&self, genes: &TopGenes) -> [Vec<f64>; 2] {
        [
            pick(&self.real_delta, &genes.0),
            pick(&self.predicted_delta, &genes.0),
        ]
    }
}

/// Sign as -1, 0 or 1, zero having none.
pub(crate) fn sign(x: f64) -> i8 {
    i8::from(x > 0.0) - i8::from(x < 0.0)
}

/// Welch's t of each gene, treated against control; 0 where neither side varies.
///
/// # Errors
/// Different numbers of genes.
pub fn welch_t(treated: Cells<'_>, control: Cells<'_>) -> Result<Vec<f64>> {
    same_genes("the control cells", control.genes(), treated.genes())?;
    let side = |cells: Cells<'_>| (cells.mean(), cells.variance(1), cells.len() as f64);
    let (mean_t, var_t, n_t) = side(treated);
    let (mean_c, var_c, n_c) = side(control);
    let t = |g: usize| {
        let error = (var_t[g] / n_t + var_c[g] / n_c).sqrt();
        if error > 0.0 {
            (mean_t[g] - mean_c[g]) / error
        } else {
            0.0
        }
    };
    Ok((0..treated.genes()).map(t).collect())
}

/// Weights of the genes for [`Profiles::weighted_mse`]: |t| scaled to 0..1 over genes, squared,
/// with sum 1.
///
/// # Errors
/// All |t| are equal.
pub fn welch_weights(t: &[f64]) -> std::result::Result<Vec<f64>, Undefined> {
    let size: Vec<f64> = t.iter().map(|t| t.abs()).collect();
    let order = ascending(&size);
    let (Some(&low), Some(&high)) = (order.first(), order.last()) else {
        return Err(Undefined::TooFew {
            what: "genes",
            found: 0,
            needed: 1,
        });
    };
    let (low, high) = (size[low], size[high]);
    if high <= low {
        return Err(Undefined::Constant {
            what: "the strength of the genes' change",
        });
    }
    let mut weights: Vec<f64> = size
        .iter()
        .map(|s| ((s - low) / (high - low)).powi(2))
        .collect();
    let sum: f64 = weights.iter().sum();
    for w in &mut weights {
        *w /= sum;
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_change_predicted_has_no_delta_correlation() {
        let (control, real) = ([1.0, 2.0, 3.0], [2.0, 2.0, 5.0]);
        let profiles = Profiles::new(&control, &real, &control).unwrap();
        assert!(matches!(
            profiles.pearson_delta(),
            Err(Undefined::Constant { .. })
        ));
        assert!(profiles.r2_mean().unwrap() > 0.0);
        // A predicted change of exactly zero has no sign, so it agrees with none but zero.
        let all = TopGenes::of_order(&[0, 1, 2], 3);
        assert_eq!(profiles.sign_agreement(&all), Ok(1.0 / 3.0));
    }

    #[test]
    fn a_negative_mean_has_no_fold_change() {
        let (control, real) = ([1.0, 2.0], [2.0, 2.0]);
        let profiles = Profiles::new(&control, &real, &[-1.0, 2.0]).unwrap();
        let genes = TopGenes::of_order(&[0, 1], 2);
        assert_eq!(profiles.logfold_r2_of(&genes), Err(Undefined::Negative));
        assert!(Profiles::new(&control, &real, &[1.0]).is_err());
    }

    #[test]
    fn weights_of_equal_strength_are_not_defined() {
        assert!(welch_weights(&[2.0, -2.0]).is_err());
        assert_eq!(welch_weights(&[0.0, -2.0, 1.0]).unwrap(), [0.0, 0.8, 0.2]);
    }
}
