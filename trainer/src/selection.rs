//! Choosing the best model and stopping early: pure decisions on reduced metrics, so that every
//! rank takes the same one.

use serde::{Deserialize, Serialize};

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Value of the selecting metric.
    pub value: f64,
    /// Step of the checkpoint.
    pub step: u64,
}

/// Follows the selecting metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSelection {
    larger_is_better: bool,
    patience: u64,
    /// The best so far.
    pub best: Option<Best>,
    /// Evaluations since the best.
    pub stale: u64,
}

impl ModelSelection {
    /// Nothing seen yet; a patience of 0 never stops early.
    pub fn new(larger_is_better: bool, patience: u64) -> Self {
        Self {
            larger_is_better,
            patience,
            best: None,
            stale: 0,
        }
    }

    /// Goes on from what `earlier` saw, under the settings of this one: patience may change on
    /// resumption.
    pub fn resume(&mut self, earlier: &Self) {
        self.best = earlier.best;
        self.stale = earlier.stale;
    }

    /// Takes in an evaluation; true when it is the best so far. A value that is not finite never
    /// is.
    pub fn observe(&mut self, value: f64, step: u64) -> bool {
        let better = value.is_finite()
            && self.best.is_none_or(|best| {
                if self.larger_is_better {
                    value > best.value
                } else {
                    value < best.value
                }
            });
        if better {
            self.best = Some(Best { value, step });
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        better
    }

    /// Whether as many evaluations as the patience brought nothing better.
    pub fn exhausted(&self) -> bool {
        self.patience > 0 && self.stale >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_best_and_patience_counts_evaluations_since() {
        let mut selection = ModelSelection::new(true, 2);
        let seen: Vec<bool> = [0.5, f64::NAN, 0.7, 0.7, 0.6]
            .iter()
            .enumerate()
            .map(|(step, &v)| {
                assert!(!selection.exhausted());
                selection.observe(v, step as u64)
            })
            .collect();
        assert_eq!(seen, [true, false, true, false, false]);
        assert_eq!(
            selection.best,
            Some(Best {
                value: 0.7,
                step: 2
            })
        );
        assert!(selection.exhausted());
    }

    #[test]
    fn smaller_losses_are_better_and_zero_patience_never_stops() {
        let mut selection = ModelSelection::new(false, 0);
        assert!(
            selection.observe(1.0, 1) && !selection.observe(2.0, 2) && selection.observe(0.5, 3)
        );
        for step in 4..100 {
            selection.observe(9.0, step);
        }
        assert!(!selection.exhausted());
    }
}
