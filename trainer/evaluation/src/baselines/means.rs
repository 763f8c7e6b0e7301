//! Baselines that are means of training deltas.

use std::collections::HashMap;

use super::{Predict, Training};

/// The same for every condition.
#[derive(Debug)]
pub(super) struct Fixed(Vec<f64>);

impl Fixed {
    pub(super) fn zero(genes: usize) -> Self {
        Self(vec![0.0; genes])
    }

    pub(super) fn mean(training: &Training) -> Self {
        Self(training.grand_mean())
    }
}

impl Predict for Fixed {
    fn delta(&self, _: usize, _: usize) -> Vec<f64> {
        self.0.clone()
    }
}

/// A mean per context or per perturbation, and the mean of all for others.
#[derive(Debug)]
pub(super) struct ByKey {
    means: HashMap<usize, Vec<f64>>,
    rest: Vec<f64>,
    of_drugs: bool,
}

impl ByKey {
    pub(super) fn drugs(training: &Training) -> Self {
        Self {
            means: training.means_by(|(_, p)| p),
            rest: training.grand_mean(),
            of_drugs: true,
        }
    }

    pub(super) fn contexts(training: &Training) -> Self {
        Self {
            means: training.means_by(|(c, _)| c),
            rest: training.grand_mean(),
            of_drugs: false,
        }
    }
}

impl Predict for ByKey {
    fn delta(&self, context: usize, perturbation: usize) -> Vec<f64> {
        let key = if self.of_drugs { perturbation } else { context };
        self.means.get(&key).unwrap_or(&self.rest).clone()
    }
}

/// Drug mean plus context mean minus the mean of all.
#[derive(Debug)]
pub(super) struct TwoWay {
    drugs: ByKey,
    contexts: ByKey,
}

impl TwoWay {
    pub(super) fn new(training: &Training) -> Self {
        Self {
            drugs: ByKey::drugs(training),
            contexts: ByKey::contexts(training),
        }
    }
}

impl Predict for TwoWay {
    fn delta(&self, context: usize, perturbation: usize) -> Vec<f64> {
        let of_drug = self.drugs.delta(context, perturbation);
        let of_context = self.contexts.delta(context, perturbation);
        let sum = of_drug.iter().zip(&of_context).zip(&self.drugs.rest);
        sum.map(|((d, c), all)| d + c - all).collect()
    }
}
