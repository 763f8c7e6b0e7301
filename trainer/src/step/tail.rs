//! What rides behind the gradients in their all-reduce, and how it is laid out.

use scpeft_model::Params;
use scpeft_model::backbone::Model;
use scpeft_model::norm::NormStyle;
use tch::{Device, Tensor};

use crate::failure::Result;
use crate::task::Task;

/// Values before the terms: contrastive loss, cells, stop flag, save flag.
const FIXED: usize = 4;

/// Elements that the gradient buffer of a task has beyond the gradients.
pub fn tail_len(task: &dyn Task, norm: NormStyle, d_model: usize) -> usize {
    FIXED + task.terms().len() + norm_len(norm, d_model)
}

/// Per domain: observations, sum of means, sum of variances.
fn norm_len(style: NormStyle, d_model: usize) -> usize {
    style.domains() * (1 + 2 * d_model)
}

/// Sums of what the batch norm saw, per domain.
#[derive(Debug, Clone, Default)]
pub(super) struct NormSums {
    domains: usize,
    width: usize,
    values: Vec<f32>,
}

impl NormSums {
    /// Zero sums for the norm of `model`.
    pub(super) fn new(model: &dyn Model, params: &Params) -> Self {
        let Some(norm) = model.norm() else {
            return Self::default();
        };
        let width = match params.buffers().next() {
            Some((_, mean)) => mean.numel(),
            None => 0,
        };
        Self {
            domains: norm.domains(),
            width,
            values: vec![0.0; norm.domains() * (1 + 2 * width)],
        }
    }

    /// Adds one observation.
    pub(super) fn add(&mut self, domain: usize, mean: &Tensor, variance: &Tensor) -> Result<()> {
        let at = domain * (1 + 2 * self.width);
        self.values[at] += 1.0;
        let seen = Tensor::f_cat(&[mean, variance], 0)?.f_to_device(Device::Cpu)?;
        let seen = Vec::<f32>::try_from(&seen.f_to_kind(tch::Kind::Float)?)?;
        for (sum, value) in self.values[at + 1..].iter_mut().zip(seen) {
            *sum += value;
        }
        Ok(())
    }
}

/// What a rank was asked to do after a step; after the sum over ranks, what any of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// Save and leave.
    pub stop: bool,
    /// Save and go on.
    pub save: bool,
}

/// The tail, before or after the sum over ranks.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    pub(super) terms: Vec<f64>,
    pub(super) contrast: f64,
    pub(super) cells: u64,
    pub(super) asked: Asked,
    pub(super) norms: NormSums,
}

impl Tail {
    pub(super) fn to_values(&self) -> Vec<f32> {
        let flag = |is_set| if is_set { 1.0 } else { 0.0 };
        let (stop, save) = (flag(self.asked.stop), flag(self.asked.save));
        let mut values = vec![self.contrast as f32, self.cells as f32, stop, save];
        values.extend(self.terms.iter().map(|&t| t as f32));
        values.extend(&self.norms.values);
        values
    }

    pub(super) fn from_values(values: &[f64], terms: usize, like: &NormSums) -> Self {
        Self {
            contrast: values[0],
            cells: values[1] as u64,
            asked: Asked {
                stop: values[2] > 0.0,
                save: values[3] > 0.0,
            },
            terms: values[FIXED..FIXED + terms].to_vec(),
            norms: NormSums {
                values: values[FIXED + terms..].iter().map(|&v| v as f32).collect(),
                ..like.clone()
            },
        }
    }

    /// Whether every sum is a number to go on with.
    pub(super) fn is_finite(&self) -> bool {
        self.contrast.is_finite()
            && self.terms.iter().all(|t| t.is_finite())
            && self.norms.values.iter().all(|v| v.is_finite())
    }

    /// Moves running statistics by what all ranks saw.
    pub(super) fn update_norms(&self, model: &dyn Model, device: Device) -> Result<()> {
        let Some(norm) = model.norm() else {
            return Ok(());
        };
        let NormSums {
            domains,
            width,
            ref values,
        } = self.norms;
        for domain in 0..domains {
            let sums = &values[domain * (1 + 2 * width)..][..=2 * width];
            let tensor = |part: &[f32]| -> Result<Tensor> {
                Ok(Tensor::f_from_slice(part)?.f_to_device(device)?)
            };
            let (mean, variance) = (tensor(&sums[1..=width])?, tensor(&sums[1 + width..])?);
            tch::no_grad(|| norm.update(domain, sums[0] as u64, &mean, &variance))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_read_back_as_written() {
        let norms = NormSums {
            domains: 2,
            width: 1,
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let tail = Tail {
            terms: vec![0.5, 0.25],
            contrast: 7.0,
            cells: 12,
            asked: Asked {
                stop: false,
                save: true,
            },
            norms: norms.clone(),
        };
        let values: Vec<f64> = tail.to_values().iter().map(|&v| f64::from(v)).collect();
        assert_eq!(values.len(), FIXED + 2 + 6);
        let back = Tail::from_values(&values, 2, &norms);
        assert_eq!(back.terms, tail.terms);
        assert_eq!((back.cells, back.asked), (12, tail.asked));
        assert_eq!(back.norms.values, norms.values);
    }
}
