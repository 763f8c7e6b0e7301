//! Combinations of genes as the sum of their parts.

use std::collections::HashMap;

use crate::Undefined;

/// Deltas of single perturbations that training has, by context and gene.
#[derive(Debug, Clone, Default)]
pub struct Singles(HashMap<(usize, String), Vec<f64>>);

impl Singles {
    /// No singles yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The delta of perturbing `gene` alone in `context`.
    pub fn insert(&mut self, context: usize, gene: &str, delta: Vec<f64>) {
        self.0.insert((context, gene.to_owned()), delta);
    }

    /// `additive`: the sum of the deltas of `genes` in `context`.
    ///
    /// # Errors
    /// A gene whose single perturbation training does not have: the additive model then predicts
    /// nothing.
    pub fn sum<S: AsRef<str>>(
        &self,
        context: usize,
        genes: &[S],
    ) -> std::result::Result<Vec<f64>, Undefined> {
        let parts: Vec<&Vec<f64>> = genes
            .iter()
            .filter_map(|g| self.0.get(&(context, g.as_ref().to_owned())))
            .collect();
        if parts.len() < genes.len() || parts.is_empty() {
            return Err(Undefined::TooFew {
                what: "of the combined genes were perturbed alone in training",
                found: parts.len(),
                needed: genes.len().max(1),
            });
        }
        let mut sum = vec![0.0; parts[0].len()];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(s, x)| *s += x);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_combination_is_the_sum_of_its_singles_or_not_defined() {
        let mut singles = Singles::new();
        singles.insert(0, "A", vec![1.0, 2.0]);
        singles.insert(0, "B", vec![0.5, -2.0]);
        assert_eq!(singles.sum(0, &["A", "B"]).unwrap(), [1.5, 0.0]);
        let missing = singles.sum(0, &["A", "C"]).unwrap_err().to_string();
        assert_eq!(
            missing,
            "1 of the combined genes were perturbed alone in training, at least 2 are needed"
        );
        assert!(singles.sum(1, &["A"]).is_err());
    }
}
