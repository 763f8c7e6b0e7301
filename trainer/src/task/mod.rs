//! Tasks: one file each, with its inputs, heads, losses and metrics.
//!
//! Adding a task adds a file here, its name to the configuration's `task.kind`, and a line in
//! [`build`].

mod identification;
mod masked_expression;

pub use identification::{Identification, IdentificationOptions};
pub use masked_expression::MaskedExpression;

use scpeft_config::{Config, Select, TaskKind};
use scpeft_data::MicroBatch;
use scpeft_model::backbone::scgpt::{Encoded, Heads, Inputs, Scgpt};
use scpeft_model::exec::Dropout;
use tch::{Device, Kind, Tensor};

use crate::failure::{Failure, Result};
use crate::scores::Confusion;

/// A micro-batch with its tensors on the device.
#[derive(Debug)]
pub struct DeviceBatch<'a> {
    /// The cells, labels and counts on the host.
    pub host: &'a MicroBatch,
    /// Input of the encoder.
    pub inputs: Inputs,
    device: Device,
}

impl<'a> DeviceBatch<'a> {
    /// Copies a micro-batch to `device`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn new(host: &'a MicroBatch, pad_id: i32, device: Device) -> Result<Self> {
        let shape = [host.rows as i64, host.len as i64];
        let gene_ids = Tensor::f_from_slice(&host.gene_ids)?
            .f_view(shape)?
            .f_to_device(device)?;
        let values = Tensor::f_from_slice(&host.values)?
            .f_view(shape)?
            .f_to_device(device)?;
        let padding = if host.tokens < host.rows * host.len {
            Some(gene_ids.f_eq(i64::from(pad_id))?)
        } else {
            None
        };
        Ok(Self {
            host,
            inputs: Inputs {
                gene_ids,
                values,
                padding,
            },
            device,
        })
    }

    /// Unmasked expression bins, f32 `[B, S]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn targets(&self) -> Result<Tensor> {
        let shape = [self.host.rows as i64, self.host.len as i64];
        Ok(Tensor::f_from_slice(&self.host.targets)?
            .f_view(shape)?
            .f_to_device(self.device)?)
    }
}

/// What a micro-batch adds to the objective of its global batch.
#[derive(Debug)]
pub struct LossSums {
    /// Sum of the objective over the micro-batch; backward starts here.
    pub objective: Tensor,
    /// What the sums are divided by, over the whole global batch.
    pub divisor: f64,
    /// Named parts of the objective, for the log, in the order of [`Task::loss_names`].
    pub parts: Vec<Tensor>,
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

    /// Whether a head tensor trains (backbone and adapter tensors are the freeze rule's).
    fn trains_head(&self, tensor: &str) -> bool;

    /// Names of [`LossSums::parts`].
    fn loss_names(&self) -> &'static [&'static str];

    /// The loss of a micro-batch.
    ///
    /// # Errors
    /// When libtorch fails or a cell lacks what the task needs.
    fn loss(&self, model: &Scgpt, batch: &DeviceBatch<'_>, dropout: Dropout) -> Result<LossSums>;

    /// Length of the sums that [`Task::evaluate`] adds to.
    fn evaluation_len(&self) -> usize;

    /// Adds a micro-batch's share to the sums of an evaluation; no dropout, no gradient.
    ///
    /// # Errors
    /// When libtorch fails or a cell lacks what the task needs.
    fn evaluate(&self, model: &Scgpt, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()>;

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
}

/// The registry of tasks.
///
/// # Errors
/// When the configuration, or the labels of the corpus, do not suit the task.
pub fn build(
    config: &Config,
    labels: &LabelInfo,
    classifier_layers: usize,
    mask_value: f32,
) -> Result<Box<dyn Task>> {
    let select = config.train.select;
    match config.task.kind {
        TaskKind::Identification => {
            let options = IdentificationOptions {
                label: config.data.label.clone().unwrap_or_default(),
                class_weights: config.task.class_weights,
                classifier_layers,
                select,
            };
            Ok(Box::new(Identification::for_training(options, labels)?))
        }
        TaskKind::MaskedExpression => {
            if !matches!(select, Select::Auto | Select::Loss) {
                return Err(Failure::config(
                    "`train.select`: the task `masked-expression` has no classes to score\nhelp: use `loss`",
                ));
            }
            Ok(Box::new(MaskedExpression::new(
                config.task.mvc,
                classifier_layers,
                mask_value,
            )))
        }
    }
}

/// A scalar on the host.
fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_to_kind(Kind::Double)?.f_double_value(&[])?)
}

/// Runs the encoder of `model` on a batch.
fn encode(model: &Scgpt, batch: &DeviceBatch<'_>, dropout: Dropout) -> Result<Encoded> {
    Ok(model.encode(&batch.inputs, dropout)?)
}
