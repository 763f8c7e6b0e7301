//! How often each cell comes in an epoch.

use std::sync::Arc;

use crate::rng::{Purpose, Rng};
use crate::{Error, Result};

/// Which cells an epoch draws from the selection.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Sampler {
    /// Every cell once.
    #[default]
    Uniform,
    /// As many draws as there are cells, with replacement, such that every class of the label column
    /// is drawn equally often on average.
    ClassBalanced,
    /// As many draws as there are cells, with replacement, in proportion to these weights: one for each
    /// selected cell, in corpus order.
    Weighted(Vec<f64>),
    /// Every cell once, such that each batch has the codes of a column in the proportions of its window, as
    /// nearly as whole cells allow: one code for each selected cell, in corpus order.
    Stratified(Arc<[i32]>),
}

/// The probability that a draw takes each cell when every class that there is comes equally often: one
/// over its class's cells and over the number of classes, given the class codes of all cells.
///
/// # Errors
/// When a code is negative: that cell has no class. The error says which in the list.
pub fn class_balanced_weights(codes: &[i32]) -> Result<Vec<f64>, usize> {
    let mut counts: Vec<u64> = Vec::new();
    for (place, &code) in codes.iter().enumerate() {
        let code = usize::try_from(code).map_err(|_| place)?;
        if code >= counts.len() {
            counts.resize(code + 1, 0);
        }
        counts[code] += 1;
    }
    let classes = counts.iter().filter(|&&count| count > 0).count() as f64;
    Ok(codes
        .iter()
        .map(|&code| 1.0 / counts[code as usize] as f64 / classes)
        .collect())
}

/// Weights prepared for drawing.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightTable {
    /// Sums of the weights up to and with each cell.
    sums: Vec<f64>,
}

impl WeightTable {
    /// Prepares one weight per cell.
    ///
    /// # Errors
    /// When there is not one for each of `cells`, one is negative or not finite, or all are zero.
    pub fn new(weights: &[f64], cells: u64) -> Result<Self> {
        if weights.len() as u64 != cells {
            return Err(Error::options(
                format!(
                    "{} sampling weights for {cells} selected cells, expected one for each",
                    weights.len()
                ),
                "",
            ));
        }
        let mut sum = 0.0;
        let mut sums = Vec::with_capacity(weights.len());
        for (place, &weight) in weights.iter().enumerate() {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(Error::options(
                    format!(
                        "sampling weight {place} is `{weight}`, expected a finite number from 0"
                    ),
                    "",
                ));
            }
            sum += weight;
            sums.push(sum);
        }
        if !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::options(
                format!("the sampling weights sum to `{sum}`, expected a positive number"),
                "",
            ));
        }
        Ok(Self { sums })
    }

    /// How often each cell is drawn in an epoch; the counts sum to the number of cells.
    pub fn draw(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut times = vec![0; self.sums.len()];
        let Some(&total) = self.sums.last() else {
            return times;
        };
        // A product that rounds up to the total would point behind the last cell.
        let most = total.next_down();
        let mut rng = Rng::new(seed, Purpose::Sampling, epoch, 0);
        for _ in 0..self.sums.len() {
            let at = (rng.uniform() * total).min(most);
            times[self.sums.partition_point(|&sum| sum <= at)] += 1;
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_drawn_alike_and_the_total_is_exact() {
        // 900, 90 and 10 cells.
        let codes: Vec<i32> = (0..1000)
            .map(|c| if c < 900 { 0 } else { i32::from(c >= 990) + 1 })
            .collect();
        let table = WeightTable::new(&class_balanced_weights(&codes).unwrap(), 1000).unwrap();
        let mut of_class = [0_u32; 3];
        for epoch in 0..30 {
            let times = table.draw(7, epoch);
            assert_eq!(times.iter().sum::<u32>(), 1000);
            assert_eq!(times, table.draw(7, epoch));
            assert_ne!(times, table.draw(8, epoch));
            for (&code, times) in codes.iter().zip(times) {
                of_class[code as usize] += times;
            }
        }
        // 30 000 draws, a third each: five standard deviations are 408.
        assert!(
            of_class.iter().all(|n| n.abs_diff(10_000) < 408),
            "{of_class:?}"
        );
    }

    #[test]
    fn a_weight_of_zero_is_never_drawn() {
        let table = WeightTable::new(&[0.0, 1.0, 0.0, 3.0, 0.0], 5).unwrap();
        let mut sums = [0_u32; 5];
        for epoch in 0..4000 {
            for (sum, times) in sums.iter_mut().zip(table.draw(1, epoch)) {
                *sum += times;
            }
        }
        assert_eq!((sums[0], sums[2], sums[4]), (0, 0, 0));
        // 20 000 draws, a quarter expected: five standard deviations are 307.
        assert!(sums[1].abs_diff(5000) < 307, "{sums:?}");
    }

    #[test]
    fn weights_that_cannot_work_are_refused() {
        for weights in [&[1.0][..], &[0.0, 0.0], &[1.0, -1.0], &[1.0, f64::NAN]] {
            assert!(WeightTable::new(weights, 2).is_err(), "{weights:?}");
        }
        assert_eq!(class_balanced_weights(&[0, 2, -1]), Err(2));
        // There is no class 1.
        assert_eq!(
            class_balanced_weights(&[2, 0, 2]).unwrap(),
            [0.25, 0.5, 0.25]
        );
    }
}
