//! Masked expression: predict the expression bins that were masked, from the token's state (GEP)
//! and from the cell embedding (GEPC). Needs no labels. It pretrains a backbone, adapts it for the
//! discovery of cell populations and, with batches, an adversarial discriminator and a
//! domain-specific norm, corrects batch effects.

use scpeft_config::Select;
use scpeft_data::MicroBatch;
use scpeft_model::backbone::{BatchLabels, Heads, Model, Mvc, Purpose};
use scpeft_model::exec::Pass;
use scpeft_model::head::Expression;
use scpeft_model::loss::{
    cross_entropy_sum, elastic_cell_similarity, masked_squared_error_sum, nonzero_nll_sum,
};
use tch::{Kind, Tensor};

use super::{Contrast, DeviceBatch, Evaluation, LossSums, Task, Term, scalar};
use crate::failure::{Failure, Result};

/// Elastic cell similarity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ecs {
    /// Weight in the objective; published 10.
    pub weight: f64,
    /// Similarity that pairs are drawn to or away from.
    pub threshold: f64,
}

/// Settings of the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpressionOptions {
    /// Also predict from the cell embedding.
    pub mvc: Option<Mvc>,
    /// Also model the probability of zero expression.
    pub explicit_zero: bool,
    /// Also spread the cell embeddings.
    pub ecs: Option<Ecs>,
    /// Number of batches that the decoders are told of.
    pub batches: Option<i64>,
    /// Weight of the adversarial discriminator of batches; 0 for none.
    pub dab_weight: f64,
    /// Also contrast two passes over the same cells.
    pub contrast: Option<Contrast>,
    /// Value that stands for a masked one.
    pub mask_value: f32,
    /// What selects the best model.
    pub select: Select,
}

/// What a term is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Masked,
    Cell,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    term: Term,
    metric: &'static str,
    per: Per,
}

/// The task.
#[derive(Debug)]
pub struct ExpressionTask {
    options: ExpressionOptions,
    parts: Vec<Part>,
    terms: Vec<Term>,
}

fn parts(options: &ExpressionOptions) -> Vec<Part> {
    let part = |name, metric, weight, per| Part {
        term: Term { name, weight },
        metric,
        per,
    };
    let mut parts = vec![part("gep", "gep_mse", 1.0, Per::Masked)];
    if options.explicit_zero {
        parts.push(part("gep_zero", "gep_zero_nll", 1.0, Per::Masked));
    }
    if options.mvc.is_some() {
        parts.push(part("gepc", "gepc_mse", 1.0, Per::Masked));
        if options.explicit_zero {
            parts.push(part("gepc_zero", "gepc_zero_nll", 1.0, Per::Masked));
        }
    }
    if let Some(ecs) = options.ecs {
        parts.push(part("ecs", "ecs", ecs.weight, Per::Cell));
    }
    if options.dab_weight > 0.0 {
        parts.push(part("dab", "dab", options.dab_weight, Per::Cell));
    }
    parts
}

impl ExpressionTask {
    /// The task with these terms.
    pub fn new(options: ExpressionOptions) -> Self {
        let parts = parts(&options);
        Self {
            options,
            terms: parts.iter().map(|p| p.term).collect(),
            parts,
        }
    }

    fn masked(&self, micro: &MicroBatch) -> f64 {
        let mask = self.options.mask_value;
        let is_masked = |v: &&f32| (**v - mask).abs() < f32::EPSILON;
        micro.values.iter().filter(is_masked).count() as f64
    }
}

/// Squared error and, when modelled, zero likelihood of one decoder.
fn expression_sums(predicted: &Expression, targets: &Tensor, mask: &Tensor) -> Result<Vec<Tensor>> {
    let mut sums = vec![masked_squared_error_sum(
        &predicted.prediction,
        targets,
        mask,
    )?];
    if let Some(probability) = &predicted.nonzero_probability {
        sums.push(nonzero_nll_sum(probability, targets, mask)?);
    }
    Ok(sums)
}

impl Task for ExpressionTask {
    fn heads(&self) -> Heads {
        let batches = self.options.batches.map(|batches| BatchLabels { batches });
        Heads {
            mvc: self.options.mvc,
            explicit_zero: self.options.explicit_zero,
            batch_labels: batches,
            discriminator: batches.filter(|_| self.options.dab_weight > 0.0),
            ..Heads::default()
        }
    }

    fn purpose(&self) -> Purpose {
        if self.options.batches.is_some() {
            Purpose::BatchCorrection
        } else {
            Purpose::Population
        }
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn contrast(&self) -> Option<Contrast> {
        self.options.contrast
    }

    fn counts(&self, micro: &MicroBatch) -> Result<Vec<f64>> {
        let masked = self.masked(micro);
        let count = |part: &Part| match part.per {
            Per::Masked => masked,
            Per::Cell => micro.rows as f64,
        };
        Ok(self.parts.iter().map(count).collect())
    }

    fn losses(&self, model: &dyn Model, batch: &DeviceBatch<'_>, pass: Pass) -> Result<LossSums> {
        let inputs = &batch.inputs;
        let encoded = model.encode(inputs, pass)?;
        let mask = inputs
            .values
            .f_eq(f64::from(self.options.mask_value))?
            .f_to_kind(Kind::Float)?;
        let targets = batch.targets()?;
        let from_tokens = model.expression(&encoded, inputs)?;
        let mut sums = expression_sums(&from_tokens, &targets, &mask)?;
        if self.options.mvc.is_some() {
            let from_cell = model.mvc(&encoded, inputs)?;
            sums.extend(expression_sums(&from_cell, &targets, &mask)?);
        }
        if let Some(ecs) = self.options.ecs {
            // A mean over the pairs of this micro-batch, weighted by its cells.
            let mean = elastic_cell_similarity(&encoded.cell, ecs.threshold)?;
            sums.push(mean.f_mul_scalar(batch.host.rows as f64)?);
        }
        if self.options.dab_weight > 0.0 {
            let labels = inputs.batch_labels.as_ref().ok_or_else(|| {
                Failure::data("the discriminator of batches needs the batch of each cell")
            })?;
            let logits = model.discriminate(&encoded)?;
            sums.push(cross_entropy_sum(&logits, labels, None)?);
        }
        Ok(LossSums { sums, encoded })
    }

    fn evaluation_len(&self) -> usize {
        2 * self.parts.len()
    }

    fn evaluate(&self, model: &dyn Model, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()> {
        let found = self.losses(model, batch, Pass::EVALUATION)?.sums;
        let (totals, counts) = sums.split_at_mut(self.parts.len());
        for (total, sum) in totals.iter_mut().zip(&found) {
            *total += scalar(sum)?;
        }
        for (total, count) in counts.iter_mut().zip(self.counts(batch.host)?) {
            *total += count;
        }
        Ok(())
    }

    fn finish(&self, sums: &[f64]) -> Result<Evaluation> {
        let (totals, counts) = sums.split_at(self.parts.len());
        if counts.iter().any(|&count| count <= 0.0) {
            return Err(Failure::data(
                "no value of the evaluated cells was masked\nhelp: raise `data.mask_ratio`, or check that the split is not empty",
            ));
        }
        let means: Vec<f64> = totals.iter().zip(counts).map(|(sum, n)| sum / n).collect();
        let weighted = self
            .parts
            .iter()
            .zip(&means)
            .map(|(p, m)| p.term.weight * m);
        let mut metrics = vec![("loss", weighted.sum())];
        metrics.extend(self.parts.iter().zip(&means).map(|(p, m)| (p.metric, *m)));
        Ok(Evaluation {
            metrics,
            confusion: None,
        })
    }

    fn selection(&self) -> (&'static str, bool) {
        match self.options.select {
            // A discriminator that succeeds lowers the loss and is no better model.
            Select::Auto if self.options.batches.is_some() => ("gep_mse", false),
            _ => ("loss", false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ExpressionOptions {
        ExpressionOptions {
            mvc: Some(Mvc::default()),
            explicit_zero: true,
            ecs: Some(Ecs {
                weight: 10.0,
                threshold: 0.8,
            }),
            batches: Some(2),
            dab_weight: 0.5,
            contrast: None,
            mask_value: -1.0,
            select: Select::Auto,
        }
    }

    #[test]
    fn each_term_is_divided_by_its_own_count_and_weighted() {
        let task = ExpressionTask::new(options());
        let names: Vec<&str> = task.terms().iter().map(|t| t.name).collect();
        assert_eq!(
            names,
            ["gep", "gep_zero", "gepc", "gepc_zero", "ecs", "dab"]
        );
        let sums = [8.0, 4.0, 2.0, 6.0, 3.0, 5.0, 4.0, 4.0, 4.0, 4.0, 6.0, 10.0];
        let found = task.finish(&sums).unwrap();
        assert_eq!(found.metric("gep_mse"), Some(2.0));
        assert_eq!(found.metric("ecs"), Some(0.5));
        // 2 + 1 + 0.5 + 1.5 + 10 * 0.5 + 0.5 * 0.5
        assert_eq!(found.metric("loss"), Some(10.25));
        let mut empty = sums;
        empty[6] = 0.0;
        assert!(task.finish(&empty).is_err());
    }

    #[test]
    fn batches_make_it_batch_correction() {
        let task = ExpressionTask::new(options());
        assert_eq!(task.purpose(), Purpose::BatchCorrection);
        assert!(task.heads().discriminator.is_some());
        assert_eq!(task.selection(), ("gep_mse", false));
        let plain = ExpressionTask::new(ExpressionOptions {
            batches: None,
            dab_weight: 0.0,
            ..options()
        });
        assert_eq!(plain.purpose(), Purpose::Population);
        assert_eq!(plain.selection(), ("loss", false));
        assert!(plain.heads().batch_labels.is_none());
    }
}
