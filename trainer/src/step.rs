//! One optimizer step: micro-batches to flat gradients, one all-reduce, clip, update.

use std::time::Instant;

use scpeft_collective::Collective;
use scpeft_data::{MicroBatch, StepBatches};
use scpeft_model::backbone::scgpt::Scgpt;
use scpeft_model::exec::Dropout;
use scpeft_model::{Params, device};
use tch::{Device, Kind, Tensor};

use crate::failure::{Failure, Result};
use crate::optim::{Adam, Schedule, clip_grad_norm};
use crate::task::{DeviceBatch, Task};

/// What rides in the tail of the gradient buffer, before the task's loss parts.
#[derive(Debug, Clone, Copy)]
enum Tail {
    /// What the gradient and loss sums are divided by.
    Divisor,
    /// Sum of the objective.
    Objective,
    /// Cells of this rank.
    Cells,
    /// 1 when this rank was asked to stop.
    Stop,
}

const TAIL_FIXED: usize = 4;

/// Elements that the gradient buffer of a task has beyond the gradients.
pub fn tail_len(task: &dyn Task) -> usize {
    TAIL_FIXED + task.loss_names().len()
}

/// Why a step updated nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The gradient was not finite.
    NonFinite,
    /// No cell of the global batch had anything to learn from: no value was masked.
    Empty,
}

impl Skip {
    /// The reason as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonFinite => "non_finite",
            Self::Empty => "empty",
        }
    }

    /// The reason in words.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::NonFinite => "the gradient is not finite",
            Self::Empty => {
                "the batch has nothing to learn from (raise `data.mask_ratio` or `train.batch_cells`)"
            }
        }
    }
}

/// What a step did, the same on every rank but for the times and this rank's counts.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Mean objective over the global batch, before the update.
    pub loss: f64,
    /// Means of the task's loss parts.
    pub parts: Vec<f64>,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Cells of the global batch.
    pub cells: u64,
    /// Why all ranks skipped the update, if they did.
    pub skipped: Option<Skip>,
    /// Some rank was asked to stop.
    pub stop: bool,
    /// Cells of this rank.
    pub own_cells: u64,
    /// Tokens of this rank, without padding.
    pub own_tokens: u64,
    /// Tokens of this rank, with padding.
    pub own_slots: u64,
    /// Seconds in forward and backward.
    pub compute_seconds: f64,
    /// Seconds in the all-reduce, waiting for slower ranks included.
    pub collective_seconds: f64,
    /// Seconds in clipping and update.
    pub optimizer_seconds: f64,
    /// Bytes that this rank handed to the all-reduce.
    pub collective_bytes: u64,
}

/// Everything a step needs and changes.
#[derive(Debug)]
pub struct Stepper<'a> {
    /// The bound model.
    pub model: &'a Scgpt,
    /// Its tensors.
    pub params: &'a mut Params,
    /// What it is trained for.
    pub task: &'a dyn Task,
    /// The optimizer.
    pub adam: &'a mut Adam,
    /// Learning rates.
    pub schedule: Schedule,
    /// Dropout rates.
    pub dropout: Dropout,
    /// Norm that gradients are clipped to; 0 for no clipping.
    pub clip_norm: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Id of `<pad>`.
    pub pad_id: i32,
}

#[derive(Debug, Default)]
struct LocalSums {
    divisor: f64,
    objective: f64,
    parts: Vec<f64>,
    cells: u64,
    tokens: u64,
    slots: u64,
}

impl Stepper<'_> {
    /// Runs step number `step` (from 0) on this rank's share of a global batch.
    ///
    /// # Collective
    /// Must be called by all ranks, with the same step and their shares of the same global batch.
    ///
    /// # Errors
    /// When libtorch fails or a cell lacks what the task needs.
    pub fn step(
        &mut self,
        world: &dyn Collective,
        step: u64,
        batch: &StepBatches,
        stop: bool,
    ) -> Result<StepReport> {
        let start = Instant::now();
        self.params.zero_grad()?;
        let mut sums = LocalSums {
            parts: vec![0.0; self.task.loss_names().len()],
            ..LocalSums::default()
        };
        for micro in &batch.micro {
            self.accumulate(step, micro, &mut sums)?;
        }
        let computed = Instant::now();
        let tail = self.reduce(world, &sums, stop)?;
        let reduced = Instant::now();
        let divisor = tail[Tail::Divisor as usize];
        let lr = self.schedule.lr(step);
        let (grad_norm, skipped) = self.update(divisor, lr)?;
        // Sums over nothing are zero, and so are their means.
        let mean = |sum: f64| if divisor == 0.0 { 0.0 } else { sum / divisor };
        let n = self.params.trainable_count();
        Ok(StepReport {
            loss: mean(tail[Tail::Objective as usize]),
            parts: tail[TAIL_FIXED..].iter().map(|&sum| mean(sum)).collect(),
            grad_norm,
            lr,
            cells: tail[Tail::Cells as usize] as u64,
            skipped,
            stop: tail[Tail::Stop as usize] > 0.0,
            own_cells: sums.cells,
            own_tokens: sums.tokens,
            own_slots: sums.slots,
            compute_seconds: (computed - start).as_secs_f64(),
            collective_seconds: (reduced - computed).as_secs_f64(),
            optimizer_seconds: reduced.elapsed().as_secs_f64(),
            collective_bytes: ((n + tail.len()) * size_of::<f32>()) as u64,
        })
    }

    fn accumulate(&self, step: u64, micro: &MicroBatch, sums: &mut LocalSums) -> Result<()> {
        // The dropout masks of a micro-batch depend on its place in the run alone, not on the rank
        // that computes it or on what was drawn before: resumed and re-scaled runs draw the same.
        device::seed_dropout(mix(self.seed, step, micro.index as u64));
        let batch = DeviceBatch::new(micro, self.pad_id, self.params.device())?;
        let loss = self.task.loss(self.model, &batch, self.dropout)?;
        loss.objective.f_backward()?;
        sums.divisor += loss.divisor;
        sums.objective += scalar(&loss.objective)?;
        for (sum, part) in sums.parts.iter_mut().zip(&loss.parts) {
            *sum += scalar(part)?;
        }
        sums.cells += micro.rows as u64;
        sums.tokens += micro.tokens as u64;
        sums.slots += (micro.rows * micro.len) as u64;
        Ok(())
    }

    /// Sums the gradient buffer and its tail over ranks; returns the reduced tail.
    fn reduce(&mut self, world: &dyn Collective, sums: &LocalSums, stop: bool) -> Result<Vec<f64>> {
        let n = self.params.trainable_count();
        let mut tail = vec![0.0f32; TAIL_FIXED];
        tail[Tail::Divisor as usize] = sums.divisor as f32;
        tail[Tail::Objective as usize] = sums.objective as f32;
        tail[Tail::Cells as usize] = sums.cells as f32;
        tail[Tail::Stop as usize] = if stop { 1.0 } else { 0.0 };
        tail.extend(sums.parts.iter().map(|&p| p as f32));
        let mut own = self
            .params
            .grad()
            .f_narrow(0, n as i64, tail.len() as i64)?;
        own.f_copy_(&Tensor::f_from_slice(&tail)?)?;
        all_reduce(world, self.params.grad())?;
        Ok(Vec::<f64>::try_from(
            &own.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?,
        )?)
    }

    /// Divides, clips and applies the reduced gradient; all of it identical on every rank.
    fn update(&mut self, divisor: f64, lr: f64) -> Result<(f64, Option<Skip>)> {
        if divisor == 0.0 {
            return Ok((0.0, Some(Skip::Empty)));
        }
        let n = self.params.trainable_count() as i64;
        let mut grad = self.params.grad().f_narrow(0, 0, n)?;
        let _ = grad.f_mul_scalar_(1.0 / divisor)?;
        let norm = clip_grad_norm(&mut grad, self.clip_norm)?;
        if !norm.is_finite() {
            return Ok((norm, Some(Skip::NonFinite)));
        }
        let mut flat = self.params.flat().shallow_clone();
        tch::no_grad(|| self.adam.step(&mut flat, &grad, lr))?;
        Ok((norm, None))
    }
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor
        .f_detach()?
        .f_to_kind(Kind::Double)?
        .f_double_value(&[])?)
}

/// Sums a flat f32 tensor over ranks, in place.
fn all_reduce(world: &dyn Collective, buffer: &Tensor) -> Result<()> {
    if world.topology().world_size == 1 {
        return Ok(());
    }
    let numel = buffer.numel();
    if buffer.device() == Device::Cpu {
        if buffer.kind() != Kind::Float || !buffer.is_contiguous() {
            return Err(Failure::new(
                scpeft_protocol::exit::INTERNAL,
                "the gradient buffer is not flat f32",
            ));
        }
        // SAFETY: a contiguous f32 CPU tensor of `numel` elements, alive for the call, and no other
        // thread touches it between backward and update.
        let slice =
            unsafe { std::slice::from_raw_parts_mut(buffer.data_ptr().cast::<f32>(), numel) };
        return Ok(world.all_reduce_sum(slice)?);
    }
    let mut host = Vec::<f32>::try_from(&buffer.f_to_device(Device::Cpu)?)?;
    world.all_reduce_sum(&mut host)?;
    buffer
        .shallow_clone()
        .f_copy_(&Tensor::f_from_slice(&host)?.f_to_device(buffer.device())?)?;
    Ok(())
}

/// A seed for one micro-batch: the words are mixed so that neighbours share nothing.
fn mix(seed: u64, step: u64, micro: u64) -> u64 {
    [seed, step, micro]
        .into_iter()
        .fold(0x9e37_79b9_7f4a_7c15, |state: u64, word| {
            let mut z = state.wrapping_add(word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z ^= z >> 29;
            z = z.wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 32)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_seeds_of_neighbouring_micro_batches_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4 {
            for step in 0..32 {
                for micro in 0..8 {
                    assert!(seen.insert(mix(seed, step, micro)));
                }
            }
        }
    }
}
