//! A copy in host memory of everything that a checkpoint holds, so that training can go on while it
//! is written.

use scpeft_checkpoint::HostTensor;
use scpeft_model::Params;
use tch::{Kind, Tensor};

use crate::failure::Result;
use crate::optim::{Adam, Ema};

/// Names and shapes of the trainable tensors and running statistics, in the order of the model.
#[derive(Debug, Clone)]
pub(super) struct Shapes {
    /// Trainable ones; their values lie one after the other in the flat buffer.
    trainable: Vec<(String, Vec<usize>)>,
    statistics: Vec<(String, Vec<usize>)>,
}

impl Shapes {
    pub(super) fn of(params: &Params) -> Self {
        let sizes = |shape: &[i64]| shape.iter().map(|&n| n as usize).collect();
        let slots = params.slots().iter();
        Self {
            trainable: slots.map(|s| (s.name.clone(), sizes(&s.shape))).collect(),
            statistics: params
                .buffers()
                .map(|(name, tensor)| (name.to_owned(), sizes(&tensor.size())))
                .collect(),
        }
    }
}

/// The copy. Its memory is used again by the next checkpoint.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Trainable parameters `[n]`.
    pub(super) flat: Vec<f32>,
    /// Moments of the optimizer `[n]` each.
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    /// Moving average of the parameters `[n]`; empty in a run without one.
    pub(super) mean: Vec<f32>,
    /// Running statistics, one after the other.
    statistics: Vec<f32>,
}

impl Snapshot {
    /// Memory for a model of these shapes, with a moving average or without, written to once so that
    /// the system has handed it out before the first checkpoint needs it.
    pub(super) fn reserve(shapes: &Shapes, averaged: bool) -> Self {
        let count = |list: &[(String, Vec<usize>)]| -> usize {
            list.iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum()
        };
        let touched = |n: usize| {
            let mut memory = vec![0.0_f32; n];
            memory.fill(f32::NAN);
            memory
        };
        let n = count(&shapes.trainable);
        Self {
            flat: touched(n),
            first: touched(n),
            second: touched(n),
            mean: touched(if averaged { n } else { 0 }),
            statistics: touched(count(&shapes.statistics)),
        }
    }

    /// Copies the present state of the run.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub(super) fn take(&mut self, params: &Params, adam: &Adam, ema: Option<&Ema>) -> Result<()> {
        let (first, second, _) = adam.state();
        let mean = ema.map(|ema| (ema.state().0, &mut self.mean));
        for (tensor, memory) in [
            (params.flat(), &mut self.flat),
            (first, &mut self.first),
            (second, &mut self.second),
        ]
        .into_iter()
        .chain(mean)
        {
            let n = memory.len();
            tensor.f_copy_data(memory, n)?;
        }
        let mut rest = &mut self.statistics[..];
        for (_, tensor) in params.buffers() {
            let (own, after) = rest.split_at_mut(tensor.numel());
            as_f32(tensor)?.f_copy_data(own, tensor.numel())?;
            rest = after;
        }
        Ok(())
    }

    /// Trainable tensors, or their moving averages, and running statistics by name.
    pub(super) fn tensors(&self, shapes: &Shapes, averaged: bool) -> Vec<(String, HostTensor<'_>)> {
        let trainable = if averaged { &self.mean } else { &self.flat };
        let mut tensors = Vec::with_capacity(shapes.trainable.len() + shapes.statistics.len());
        for (list, values) in [
            (&shapes.trainable, trainable),
            (&shapes.statistics, &self.statistics),
        ] {
            let mut offset = 0;
            for (name, shape) in list {
                let end = offset + shape.iter().product::<usize>();
                let tensor = HostTensor::borrow_f32(shape.clone(), &values[offset..end]);
                tensors.push((name.clone(), tensor));
                offset = end;
            }
        }
        tensors
    }
}

fn as_f32(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_kind(Kind::Float)?)
}
