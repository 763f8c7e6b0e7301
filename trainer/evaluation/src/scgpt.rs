//! Correlation of predicted and true responses to perturbations, as scGPT and scPEFT report it.

use crate::stats::{pearson, pick};

/// The cells of one perturbation.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a> {
    /// Mean true expression per gene.
    pub truth: &'a [f64],
    /// Mean predicted expression per gene.
    pub prediction: &'a [f64],
    /// Its most differentially expressed genes.
    pub de_genes: &'a [usize],
}

/// Pearson correlations over genes, averaged over conditions. `None` when no condition has one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ResponseScores {
    /// Of expression, over all genes.
    pub pearson: Option<f64>,
    /// Of expression, over the genes that the condition expresses.
    pub pearson_nonzero: Option<f64>,
    /// Of expression, over the differentially expressed genes.
    pub pearson_de: Option<f64>,
    /// Of the change against control, over all genes.
    pub pearson_delta: Option<f64>,
    /// Of the change against control, over the genes that the condition expresses.
    pub pearson_delta_nonzero: Option<f64>,
    /// Of the change against control, over the differentially expressed genes.
    pub pearson_de_delta: Option<f64>,
}

/// Scores conditions against `control`, the mean expression of control cells. A condition whose
/// truth (or change) is zero for every gene has no correlation and is left out.
///
/// # Panics
/// When the profiles have different numbers of genes.
pub fn response_scores(conditions: &[Condition<'_>], control: &[f64]) -> ResponseScores {
    let delta =
        |profile: &[f64]| -> Vec<f64> { profile.iter().zip(control).map(|(x, c)| x - c).collect() };
    let over = |genes: &dyn Fn(&Condition<'_>) -> Vec<usize>, change: bool| {
        let found: Vec<f64> = conditions
            .iter()
            .filter_map(|condition| {
                assert_eq!(condition.truth.len(), control.len(), "genes");
                let (truth, prediction) = if change {
                    (delta(condition.truth), delta(condition.prediction))
                } else {
                    (condition.truth.to_vec(), condition.prediction.to_vec())
                };
                let genes = genes(condition);
                pearson(&pick(&truth, &genes), &pick(&prediction, &genes)).ok()
            })
            .collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    };
    let all = |condition: &Condition<'_>| (0..condition.truth.len()).collect();
    let expressed = |condition: &Condition<'_>| {
        let genes = condition.truth.iter().enumerate();
        genes.filter(|(_, x)| **x != 0.0).map(|(g, _)| g).collect()
    };
    let de = |condition: &Condition<'_>| condition.de_genes.to_vec();
    ResponseScores {
        pearson: over(&all, false),
        pearson_nonzero: over(&expressed, false),
        pearson_de: over(&de, false),
        pearson_delta: over(&all, true),
        pearson_delta_nonzero: over(&expressed, true),
        pearson_de_delta: over(&de, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_a_change_is_left_out() {
        let control = [1.0, 2.0, 3.0];
        let same = Condition {
            truth: &control,
            prediction: &[1.0, 2.0, 4.0],
            de_genes: &[0, 1],
        };
        let scores = response_scores(&[same], &control);
        assert_eq!(scores.pearson_delta, None);
        assert!(scores.pearson.is_some_and(|r| r > 0.9));
    }
}
