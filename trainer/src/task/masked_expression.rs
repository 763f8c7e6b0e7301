//! Masked expression: predict the expression bins that were masked, from the token's state (GEP)
//! and, with the MVC head, from the cell embedding (GEPC). Needs no labels; it is how a backbone
//! is pretrained.

use scpeft_model::backbone::scgpt::{Heads, Scgpt};
use scpeft_model::exec::Dropout;
use scpeft_model::loss::masked_squared_error_sum;
use tch::{Kind, Tensor};

use super::{DeviceBatch, Evaluation, LossSums, Task, encode, scalar};
use crate::failure::{Failure, Result};

/// The task.
#[derive(Debug)]
pub struct MaskedExpression {
    mvc: bool,
    classifier_layers: usize,
    mask_value: f32,
}

impl MaskedExpression {
    /// `mvc` adds the prediction from the cell embedding, with the same weight.
    pub fn new(mvc: bool, classifier_layers: usize, mask_value: f32) -> Self {
        Self {
            mvc,
            classifier_layers,
            mask_value,
        }
    }

    /// GEP and GEPC sums of squared errors, and the number of masked positions.
    fn sums(
        &self,
        model: &Scgpt,
        batch: &DeviceBatch<'_>,
        dropout: Dropout,
    ) -> Result<(Vec<Tensor>, f64)> {
        let encoded = encode(model, batch, dropout)?;
        let mask = batch
            .inputs
            .values
            .f_eq(f64::from(self.mask_value))?
            .f_to_kind(Kind::Float)?;
        let targets = batch.targets()?;
        let from_tokens = model.expression.forward(&encoded.hidden)?.prediction;
        let mut parts = vec![masked_squared_error_sum(&from_tokens, &targets, &mask)?];
        if let Some(head) = &model.mvc {
            let from_cell = head.forward(&encoded.cell, &encoded.genes)?.prediction;
            parts.push(masked_squared_error_sum(&from_cell, &targets, &mask)?);
        }
        let masked = batch
            .host
            .values
            .iter()
            .filter(|v| (**v - self.mask_value).abs() < f32::EPSILON)
            .count();
        Ok((parts, masked as f64))
    }
}

impl Task for MaskedExpression {
    fn heads(&self) -> Heads {
        Heads {
            classes: None,
            classifier_layers: self.classifier_layers,
            mvc: self.mvc,
            explicit_zero: false,
        }
    }

    fn trains_head(&self, _tensor: &str) -> bool {
        true
    }

    fn loss_names(&self) -> &'static [&'static str] {
        if self.mvc { &["gep", "gepc"] } else { &["gep"] }
    }

    fn loss(&self, model: &Scgpt, batch: &DeviceBatch<'_>, dropout: Dropout) -> Result<LossSums> {
        let (parts, divisor) = self.sums(model, batch, dropout)?;
        let mut objective = parts[0].shallow_clone();
        for part in &parts[1..] {
            objective = objective.f_add(part)?;
        }
        Ok(LossSums {
            objective,
            divisor,
            parts,
        })
    }

    fn evaluation_len(&self) -> usize {
        self.loss_names().len() + 1
    }

    fn evaluate(&self, model: &Scgpt, batch: &DeviceBatch<'_>, sums: &mut [f64]) -> Result<()> {
        let (parts, masked) = self.sums(model, batch, Dropout::OFF)?;
        let (count, values) = sums.split_last_mut().expect("evaluation_len is at least 2");
        *count += masked;
        for (sum, part) in values.iter_mut().zip(&parts) {
            *sum += scalar(part)?;
        }
        Ok(())
    }

    fn finish(&self, sums: &[f64]) -> Result<Evaluation> {
        let (count, values) = sums.split_last().expect("evaluation_len is at least 2");
        if *count <= 0.0 {
            return Err(Failure::data(
                "no value of the evaluated cells was masked\nhelp: raise `data.mask_ratio`, or check that the split is not empty",
            ));
        }
        let mut metrics = vec![("loss", values.iter().sum::<f64>() / count)];
        let names: &[&str] = &["gep_mse", "gepc_mse"];
        metrics.extend(
            names
                .iter()
                .zip(values)
                .map(|(name, sum)| (*name, sum / count)),
        );
        Ok(Evaluation {
            metrics,
            confusion: None,
        })
    }

    fn selection(&self) -> (&'static str, bool) {
        ("loss", false)
    }
}
