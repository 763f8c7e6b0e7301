//! Scores in relation to a baseline, as cell-eval and the Virtual Cell Challenge 2025 make them.

use crate::{Error, Result};

/// The best value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Best {
    /// 1, as for correlations.
    One,
    /// 0, as for errors.
    Zero,
}

/// How much of the way from the baseline to the best value is gone: `(score - baseline) / (1 -
/// baseline)`, or `1 - score / baseline` for errors, and never below 0. A baseline that is perfect
/// already leaves no way: 0.
#[must_use]
pub fn scaled(best: Best, score: f64, baseline: f64) -> f64 {
    let share = match best {
        Best::One => (score - baseline) / (1.0 - baseline),
        Best::Zero => 1.0 - score / baseline,
    };
    if share.is_finite() {
        share.max(0.0)
    } else {
        0.0
    }
}

/// The three scores of the challenge, of a model or a baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Challenge {
    /// DES, `overlap_at_N`.
    pub differential_expression: f64,
    /// PDS, `discrimination_score_l1`.
    pub discrimination: f64,
    /// MAE of the mean profiles.
    pub mae: f64,
}

impl Challenge {
    /// DES, PDS and MAE scaled by a baseline's, and their mean (the challenge shows it times 100).
    ///
    /// # Errors
    /// A score that is not finite.
    pub fn against(&self, baseline: &Self) -> Result<([f64; 3], f64)> {
        let parts = |c: &Self| [c.differential_expression, c.discrimination, c.mae];
        let (own, base) = (parts(self), parts(baseline));
        if let Some(bad) = own.iter().chain(&base).find(|x| !x.is_finite()) {
            return Err(Error::Setting {
                setting: "a score of the challenge",
                found: bad.to_string(),
                expected: "a finite number",
            });
        }
        let best = [Best::One, Best::One, Best::Zero];
        let scaled: [f64; 3] = std::array::from_fn(|i| scaled(best[i], own[i], base[i]));
        Ok((scaled, scaled.iter().sum::<f64>() / 3.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_baseline_is_zero_and_a_perfect_baseline_leaves_nothing() {
        assert_eq!(scaled(Best::One, 0.1, 0.5), 0.0);
        assert_eq!(scaled(Best::One, 0.75, 0.5), 0.5);
        assert_eq!(scaled(Best::Zero, 0.25, 0.5), 0.5);
        assert_eq!(scaled(Best::One, 1.0, 1.0), 0.0);
        assert_eq!(scaled(Best::Zero, 0.1, 0.0), 0.0);
    }
}
