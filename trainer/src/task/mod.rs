//! Tasks: one file each, with its inputs, heads, losses and metrics.
//!
//! Adding a task adds a file here, its name to the configuration's `task.kind`, and a line in
//! [`build`].

mod batch;
mod expression;
mod identification;
mod perturbation;
mod reference;

pub use batch::{Batches, DeviceBatch, Staging};
pub use expression::{Ecs, ExpressionOptions, ExpressionTask};
pub use identification::{Identification, IdentificationOptions, class_weights};
pub use perturbation::PerturbationTask;
pub(crate) use perturbation::respond;
pub use reference::Reference;

use std::sync::Arc;

use scpeft_config::{Config, TaskKind};
use scpeft_data::MicroBatch;
use scpeft_evaluation::identification::Confusion;
use scpeft_model::backbone::{Encoded, Heads, Model, Purpose};
use scpeft_model::exec::Pass;
use tch::{Kind, Tensor};

use crate::failure::{Failure, Result};
use crate::perturbation::Responses;
use crate::settings;

/// A part of an objective: a sum over cells or tokens, divided by how many of them the whole
/// global batch has, times a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Name in logs.
    pub name: &'static str,
    /// Weight in the objective.
    pub weight: f64,
}

/// What a micro-batch adds to the terms of its global batch.
#[derive(Debug)]
pub struct LossSums {
    /// One sum per term, in the order of [`Task::terms`].
    pub sums: Vec<Tensor>,
    /// The pass that they come from.
    pub encoded: Encoded,
}

/// The contrastive objective, which needs the cell embeddings of a whole global batch at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// Weight in the objective.
    pub weight: f64,
}

/// A metric and its value.
pub type NamedValue = (&'static str, f64);

/// What the ranks summed over an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Metrics; the first one is always `loss`.
    pub metrics: Vec<NamedValue>,
    /// True against predicted classes, where the task has classes.
    pub confusion: Option<Confusion>,
}

impl Evaluation {
    /// The value of a metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| *v)
    }
}

/// One thing to train a model for.
pub trait Task: std::fmt::Debug {
    /// The heads that the model needs.
    fn heads(&self) -> Heads;

    /// What trains beside the adapters.
    fn purpose(&self) -> Purpose;

    /// The terms of the objective.
    fn terms(&self) -> &[Term];

    /// The contrastive objective, if it is one of the task's.
    fn contrast(&self) -> Option<Contrast> {
        None
    }

    /// How many cells, tokens or class weights of a micro-batch each term is a sum over. Known
    /// before anything is computed, so that ranks can agree on the divisors of a global batch.
    ///
    /// # Errors
    /// When a cell lacks what the task needs.
    fn counts(&self, micro: &MicroBatch) -> Result<Vec<f64>>;

    /// The terms' sums over a micro-batch.
    ///
    /// # Errors
    /// When libtorch fails or a cell lacks what the task needs.
    fn losses(&self, model: &dyn Model, batch: &DeviceBatch<'_>, pass: Pass) -> Result<LossSums>;

    /// Length of the sums that [`Task::evaluate`] adds to.
    fn evaluation_len(&self) -> usize;

    /// Adds a micro-batch's share to the sums of an evaluation; no dropout, no gradient.
    ///
    /// # Errors
    /// When libtorch fails or a cell lacks what the task needs.
    fn evaluate(&self, model: &dyn Model, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()>;

    /// Metrics from the sums over all ranks.
    ///
    /// # Errors
    /// When there was nothing to evaluate.
    fn finish(&self, sums: &[f64]) -> Result<Evaluation>;

    /// The metric that selects the best model, and whether larger is better.
    fn selection(&self) -> (&'static str, bool);

    /// Names of the classes, in order of the classifier's outputs; empty without a classifier.
    fn classes(&self) -> &[String] {
        &[]
    }
}

/// What a task is told of the corpus it trains on.
#[derive(Debug, Clone, Default)]
pub struct LabelInfo {
    /// Categories of the label column, in the order of their codes.
    pub categories: Vec<String>,
    /// Cells of the training split per category.
    pub train_counts: Vec<u64>,
    /// Cells of the validation split per category.
    pub valid_counts: Vec<u64>,
    /// Cells of the corpus per category.
    pub all_counts: Vec<u64>,
}

/// The registry of tasks.
///
/// # Errors
/// When the configuration, or the labels of the corpus, do not suit the task.
pub fn build(
    config: &Config,
    labels: &LabelInfo,
    batches: Option<&Batches>,
    responses: Option<&Arc<Responses>>,
    classifier_layers: usize,
    mask_value: f32,
) -> Result<Box<dyn Task>> {
    let task = &config.task;
    let correction = task.kind == TaskKind::BatchCorrection;
    match task.kind {
        TaskKind::Identification => {
            let options = IdentificationOptions {
                label: config.data.label.clone().unwrap_or_default(),
                class_weights: task.class_weights,
                classifier_layers,
                select: config.train.select,
            };
            Ok(Box::new(Identification::for_training(options, labels)?))
        }
        TaskKind::MaskedExpression | TaskKind::BatchCorrection => {
            let told = batches.filter(|_| correction);
            let options = ExpressionOptions {
                mvc: settings::mvc(config),
                explicit_zero: task.explicit_zero,
                ecs: (task.ecs_weight > 0.0).then_some(Ecs {
                    weight: task.ecs_weight,
                    threshold: task.ecs_threshold,
                }),
                batches: told.map(|b| b.names().len() as i64),
                dab_weight: if correction { task.dab_weight } else { 0.0 },
                contrast: (task.cce_weight > 0.0).then_some(Contrast {
                    weight: task.cce_weight,
                }),
                mask_value,
                select: config.train.select,
            };
            if let Some(batches) = told.filter(|b| b.names().len() < 2) {
                return Err(Failure::data(format!(
                    "`task.kind = \"batch-correction\"`: the training cells come from {} batch(es), at least 2 are needed",
                    batches.names().len()
                )));
            }
            Ok(Box::new(ExpressionTask::new(options)))
        }
        TaskKind::Perturbation => match responses {
            Some(responses) => Ok(Box::new(PerturbationTask::new(config, responses))),
            None => Err(Failure::new(
                scpeft_protocol::exit::INTERNAL,
                "a task of responses was made without any; please report it",
            )),
        },
    }
}

/// A scalar on the host.
pub(crate) fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor
        .f_detach()?
        .f_to_kind(Kind::Double)?
        .f_double_value(&[])?)
}
