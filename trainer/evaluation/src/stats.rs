//! Correlations, ranks and explained variance of two sequences.

use crate::{Score, Undefined};

/// Arithmetic mean; 0 of nothing.
#[must_use]
pub fn mean(x: &[f64]) -> f64 {
    if x.is_empty() {
        return 0.0;
    }
    x.iter().sum::<f64>() / x.len() as f64
}

/// Standard error of the mean, with n - 1; `None` below two values.
#[must_use]
pub fn standard_error(x: &[f64]) -> Option<f64> {
    let n = x.len() as f64;
    let mean = mean(x);
    let sum: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
    (x.len() > 1).then(|| (sum / (n - 1.0) / n).sqrt())
}

/// Coefficient of determination `1 - SS_res / SS_tot` of `predicted` for `real`, as in
/// scikit-learn's `r2_score`; not the squared correlation.
///
/// # Errors
/// Fewer than two values, or `real` does not vary.
pub fn r2(real: &[f64], predicted: &[f64]) -> Score {
    enough("genes", real.len(), 2)?;
    let mean = mean(real);
    let total: f64 = real.iter().map(|r| (r - mean).powi(2)).sum();
    let residual: f64 = real
        .iter()
        .zip(predicted)
        .map(|(r, p)| (r - p).powi(2))
        .sum();
    if constant(real) || total <= 0.0 {
        return Err(Undefined::Constant {
            what: "the real profile",
        });
    }
    Ok(1.0 - residual / total)
}

/// Pearson correlation.
///
/// # Errors
/// Fewer than two values, or one side does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> Score {
    enough("values", x.len(), 2)?;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (a, b) = (x - mean_x, y - mean_y);
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    // Means of equal values may be off by a rounding: what does not vary is asked of the values.
    for (values, sum, what) in [(x, xx, "the first side"), (y, yy, "the second side")] {
        if constant(values) || sum <= 0.0 {
            return Err(Undefined::Constant { what });
        }
    }
    Ok((xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

/// Spearman correlation: Pearson of average ranks.
///
/// # Errors
/// See [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> Score {
    pearson(&average_ranks(x), &average_ranks(y))
}

/// Cosine of the angle between two vectors.
///
/// # Errors
/// One of them is zero.
pub fn cosine(x: &[f64], y: &[f64]) -> Score {
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    if xx <= 0.0 || yy <= 0.0 {
        return Err(Undefined::Constant {
            what: "a vector of zeros",
        });
    }
    Ok((xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

/// Ranks from 1; equal values share the mean of their ranks.
#[must_use]
pub fn average_ranks(x: &[f64]) -> Vec<f64> {
    let order = ascending(x);
    let mut ranks = vec![0.0; x.len()];
    let mut start = 0;
    while start < order.len() {
        let value = x[order[start]];
        let mut end = start + 1;
        while end < order.len() && x[order[end]] == value {
            end += 1;
        }
        let rank = (start + 1 + end) as f64 / 2.0;
        for &i in &order[start..end] {
            ranks[i] = rank;
        }
        start = end;
    }
    ranks
}

/// Places in ascending order of their values; equal values keep their order.
#[must_use]
pub fn ascending(x: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    order
}

/// Places in descending order of their values; equal values keep their order.
#[must_use]
pub fn descending(x: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    order
}

/// The values at `places`.
#[must_use]
pub fn pick(x: &[f64], places: &[usize]) -> Vec<f64> {
    places.iter().map(|&i| x[i]).collect()
}

fn constant(x: &[f64]) -> bool {
    x.windows(2).all(|pair| pair[0] == pair[1])
}

pub(crate) fn enough(
    what: &'static str,
    found: usize,
    needed: usize,
) -> std::result::Result<(), Undefined> {
    if found < needed {
        return Err(Undefined::TooFew {
            what,
            found,
            needed,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_vary_has_no_correlation_and_no_r2() {
        // The mean of three times 0.1 is not 0.1 in binary.
        let flat = [0.1, 0.1, 0.1];
        let some = [1.0, 2.0, 4.0];
        for score in [
            pearson(&flat, &some),
            pearson(&some, &flat),
            spearman(&flat, &some),
            r2(&flat, &some),
            cosine(&[0.0; 3], &some),
        ] {
            assert!(
                matches!(score, Err(Undefined::Constant { .. })),
                "{score:?}"
            );
        }
        assert!(matches!(r2(&[1.0], &[1.0]), Err(Undefined::TooFew { .. })));
    }

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(
            average_ranks(&[3.0, 1.0, 3.0, 0.5, 3.0]),
            [4.0, 2.0, 4.0, 1.0, 4.0]
        );
        assert_eq!(descending(&[1.0, 3.0, 3.0]), [1, 2, 0]);
    }
}
