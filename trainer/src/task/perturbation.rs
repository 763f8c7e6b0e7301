//! Responses: predict the profile of treated cells from that of control cells and what the model is
//! told of the treatment.

use std::collections::BTreeMap;
use std::sync::Arc;

use scpeft_config::{AdapterKind, Config, ResponseHead, ResponseLoss, ResponseOutput, Select};
use scpeft_data::MicroBatch;
use scpeft_evaluation::profile::Profiles;
use scpeft_model::backbone::{Encoded, Heads, Inputs, Model, Purpose};
use scpeft_model::exec::Pass;
use scpeft_model::head::AffineOptions;
use scpeft_model::loss::{
    MMD_GAMMAS, adaptive_squared_error_sum, energy_distance, masked_squared_error_sum, mmd_rbf,
};
use tch::{Kind, Tensor};

use super::{DeviceBatch, Evaluation, LossSums, NamedValue, Task, Term, scalar};
use crate::failure::{Failure, Result};
use crate::perturbation::Responses;
use crate::trained::host_values;

/// Settings of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    loss: ResponseLoss,
    output: ResponseOutput,
    head: ResponseHead,
    train_head: bool,
    told_of_molecules: bool,
    select: Select,
}

/// The task.
#[derive(Debug)]
pub struct PerturbationTask {
    options: Options,
    responses: Arc<Responses>,
    terms: Vec<Term>,
    /// Place of each validation condition in the sums of an evaluation.
    places: BTreeMap<usize, usize>,
}

impl PerturbationTask {
    /// The task of a configuration on these responses.
    pub fn new(config: &Config, responses: &Arc<Responses>) -> Self {
        let own = &config.perturbation;
        Self {
            options: Options {
                loss: own.loss,
                output: own.output,
                head: own.head,
                train_head: own.train_head,
                told_of_molecules: config.adapter.kind.has(AdapterKind::Drug),
                select: config.train.select,
            },
            terms: vec![Term {
                name: own.loss.as_str(),
                weight: 1.0,
            }],
            places: responses.used[1].iter().copied().zip(0..).collect(),
            responses: responses.clone(),
        }
    }

    fn respond(
        &self,
        model: &dyn Model,
        batch: &DeviceBatch<'_>,
        pass: Pass,
    ) -> Result<(Tensor, Encoded)> {
        let reference = batch.reference.as_ref();
        respond(self.options.output, model, &batch.inputs, reference, pass)
    }

    /// Mean and standard deviation of the control cells of each row's context, f32 `[B, S]` each.
    fn control_scale(&self, batch: &DeviceBatch<'_>) -> Result<[Tensor; 2]> {
        let controls = &self.responses.controls;
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for &cell in &batch.host.cells {
            let condition = self.responses.condition(cell)?;
            let context = self.responses.conditions.context_of[condition];
            mean.extend(controls.mean[context].iter().map(|&x| x as f32));
            std.extend(controls.variance[context].iter().map(|&x| x.sqrt() as f32));
        }
        let shape = [batch.host.rows as i64, batch.host.len as i64];
        let device = batch.inputs.values.device();
        let tensor = |flat: &[f32]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(flat)?
                .f_view(shape)?
                .f_to_device(device)?)
        };
        Ok([tensor(&mean)?, tensor(&std)?])
    }

    fn loss(&self, predicted: &Tensor, batch: &DeviceBatch<'_>) -> Result<Tensor> {
        let target = batch.targets()?;
        let rows = batch.host.rows as f64;
        Ok(match self.options.loss {
            ResponseLoss::Mse => {
                let all = target.f_ones_like()?;
                masked_squared_error_sum(predicted, &target, &all)?
            }
            ResponseLoss::MaskedMse => {
                let expressed = target.f_gt(0.0)?.f_to_kind(Kind::Float)?;
                masked_squared_error_sum(predicted, &target, &expressed)?
            }
            // Distances between the sets of this micro-batch, weighted by its cells.
            ResponseLoss::Mmd => mmd_rbf(predicted, &target, &MMD_GAMMAS)?
                .f_mul_scalar(rows)?
                .f_to_kind(Kind::Float)?,
            ResponseLoss::Energy => energy_distance(predicted, &target)?
                .f_mul_scalar(rows)?
                .f_to_kind(Kind::Float)?,
            ResponseLoss::Adaptive => {
                let [mean, std] = self.control_scale(batch)?;
                adaptive_squared_error_sum(predicted, &target, &mean, &std)?
            }
        })
    }

    /// Elements of a condition in the sums of an evaluation: rows, predicted and true profile.
    fn stride(&self) -> usize {
        1 + 2 * self.responses.panel.len()
    }

    /// Scores of mean profiles, averaged over the conditions for which they are defined.
    fn scores(&self, sums: &[f64]) -> Result<Vec<NamedValue>> {
        let (genes, stride) = (self.responses.panel.len(), self.stride());
        let names = ["mse", "r2_delta", "pearson_delta"];
        let mut found: [Vec<f64>; 3] = Default::default();
        for (&condition, &place) in &self.places {
            let own = &sums[place * stride..(place + 1) * stride];
            if own[0] <= 0.0 {
                continue;
            }
            let mean = |part: &[f64]| part.iter().map(|x| x / own[0]).collect::<Vec<f64>>();
            let (predicted, real) = (mean(&own[1..=genes]), mean(&own[1 + genes..]));
            let context = self.responses.conditions.context_of[condition];
            let control = &self.responses.controls.mean[context];
            let profiles = Profiles::new(control, &real, &predicted)?;
            found[0].push(profiles.mse());
            found[1].extend(profiles.r2_delta().ok());
            found[2].extend(profiles.pearson_delta().ok());
        }
        let means = names.into_iter().zip(found).filter(|(_, v)| !v.is_empty());
        Ok(means
            .map(|(name, v)| (name, v.iter().sum::<f64>() / v.len() as f64))
            .collect())
    }
}

/// What the decoder makes of inputs, without a graph: the frozen side of a change, f32 `[B, S]`.
///
/// # Errors
/// When libtorch fails or the inputs lack what the model needs.
pub(crate) fn frozen(reference: &dyn Model, inputs: &Inputs) -> Result<Tensor> {
    tch::no_grad(|| {
        let encoded = reference.encode(inputs, Pass::EVALUATION)?;
        Ok(reference.expression(&encoded, inputs)?.prediction)
    })
}

/// Predicted profiles, f32 `[B, S]`, and the pass that they come from; `reference` is what
/// [`frozen`] says, for changes.
///
/// # Errors
/// When libtorch fails or the inputs lack what the model needs.
pub(crate) fn respond(
    output: ResponseOutput,
    model: &dyn Model,
    inputs: &Inputs,
    reference: Option<&Tensor>,
    pass: Pass,
) -> Result<(Tensor, Encoded)> {
    let encoded = model.encode(inputs, pass)?;
    let decoded = model.expression(&encoded, inputs)?.prediction;
    let control = &inputs.values;
    let predicted = match (output, reference) {
        (ResponseOutput::Decoder, _) => decoded,
        (ResponseOutput::Residual, _) => decoded.f_add(control)?,
        (ResponseOutput::Change, Some(frozen)) => decoded.f_sub(frozen)?.f_add(control)?,
        (ResponseOutput::Change, None) => {
            return Err(Failure::new(
                scpeft_protocol::exit::INTERNAL,
                "a change has nothing to compare with; please report it",
            ));
        }
    };
    Ok((predicted, encoded))
}

impl Task for PerturbationTask {
    fn heads(&self) -> Heads {
        Heads {
            affine: match self.options.head {
                ResponseHead::Affine => Some(AffineOptions::default()),
                ResponseHead::Expression => None,
            },
            ..Heads::default()
        }
    }

    fn purpose(&self) -> Purpose {
        match (self.options.told_of_molecules, self.options.train_head) {
            (true, false) => Purpose::Treatment,
            (true, true) => Purpose::TreatmentWithDecoder,
            (false, _) => Purpose::Perturbation,
        }
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn counts(&self, micro: &MicroBatch) -> Result<Vec<f64>> {
        Ok(vec![match self.options.loss {
            ResponseLoss::Mse | ResponseLoss::Adaptive => (micro.rows * micro.len) as f64,
            ResponseLoss::MaskedMse => micro.targets.iter().filter(|x| **x > 0.0).count() as f64,
            ResponseLoss::Mmd | ResponseLoss::Energy => micro.rows as f64,
        }])
    }

    fn losses(&self, model: &dyn Model, batch: &DeviceBatch<'_>, pass: Pass) -> Result<LossSums> {
        let (predicted, encoded) = self.respond(model, batch, pass)?;
        Ok(LossSums {
            sums: vec![self.loss(&predicted, batch)?],
            encoded,
        })
    }

    fn evaluation_len(&self) -> usize {
        2 + self.places.len() * self.stride()
    }

    fn evaluate(&self, model: &dyn Model, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()> {
        let (predicted, _) = self.respond(model, batch, Pass::EVALUATION)?;
        sums[0] += scalar(&self.loss(&predicted, batch)?)?;
        sums[1] += self.counts(batch.host)?[0];
        let (genes, stride) = (self.responses.panel.len(), self.stride());
        let predicted = host_values(&predicted)?;
        for (row, &cell) in batch.host.cells.iter().enumerate() {
            let condition = self.responses.condition(cell)?;
            let Some(&place) = self.places.get(&condition) else {
                continue;
            };
            let own = &mut sums[2 + place * stride..2 + (place + 1) * stride];
            own[0] += 1.0;
            let range = row * genes..(row + 1) * genes;
            let values = predicted[range.clone()]
                .iter()
                .chain(&batch.host.targets[range]);
            for (sum, &value) in own[1..].iter_mut().zip(values) {
                *sum += f64::from(value);
            }
        }
        Ok(())
    }

    fn finish(&self, sums: &[f64]) -> Result<Evaluation> {
        if sums[1] <= 0.0 {
            return Err(Failure::data(
                "there was nothing to evaluate: no validation row has a value to compare\n\
                 help: check that the validation split holds treated cells",
            ));
        }
        let mut metrics = vec![("loss", sums[0] / sums[1])];
        metrics.extend(self.scores(&sums[2..])?);
        Ok(Evaluation {
            metrics,
            confusion: None,
        })
    }

    fn selection(&self) -> (&'static str, bool) {
        match self.options.select {
            Select::PearsonDelta => ("pearson_delta", true),
            _ => ("loss", false),
        }
    }
}
