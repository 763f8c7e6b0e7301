//! One optimizer step: agree on divisors, micro-batches to flat gradients, one all-reduce, clip,
//! update.

mod contrast;
mod rehearsal;
mod tail;

use std::time::Instant;

use scpeft_collective::Collective;
use scpeft_collective::nccl::{DeviceSlice, Element};
use scpeft_data::{MicroBatch, StepBatches};
use scpeft_model::backbone::Model;
use scpeft_model::exec::{Dropout, Pass};
use scpeft_model::norm::Observed;
use scpeft_model::{Params, device};
use scpeft_protocol::heartbeat::Section;
use tch::{Device, Kind, Tensor};

use crate::failure::{Failure, Result};
use crate::optim::{Adam, Schedule, clip_grad_norm};
use crate::shard;
use crate::task::{LossSums, Staging, Task, scalar};
use crate::watch::Watch;
use crate::watch::trace::Part;

use contrast::Contrasts;
use tail::{NormSums, Tail};

pub use tail::{Asked, tail_len};

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
    /// Means of the task's terms, not weighted.
    pub parts: Vec<f64>,
    /// The contrastive objective, weighted, for tasks that have one.
    pub contrast: Option<f64>,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Cells of the global batch.
    pub cells: u64,
    /// Why all ranks skipped the update, if they did.
    pub skipped: Option<Skip>,
    /// Places of this rank's micro-batches whose loss was not finite.
    pub suspects: Vec<usize>,
    /// What some rank was asked to do after the step.
    pub asked: Asked,
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
    /// Bytes of sharded blocks that this rank got from others.
    pub gathered_bytes: u64,
}

/// Everything a step needs and changes.
#[derive(Debug)]
pub struct Stepper<'a> {
    /// The bound model.
    pub model: &'a dyn Model,
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
    /// How micro-batches become tensors.
    pub staging: &'a Staging,
    /// Told of sections and progress.
    pub watch: &'a Watch,
}

/// What one rank adds up over its micro-batches.
#[derive(Debug)]
struct LocalSums {
    terms: Vec<f64>,
    contrast: f64,
    norms: NormSums,
    cells: u64,
    tokens: u64,
    slots: u64,
    suspects: Vec<usize>,
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
        asked: Asked,
    ) -> Result<StepReport> {
        let start = Instant::now();
        self.watch.enter(Section::Forward);
        self.params.zero_grad()?;
        let counts = self.agree_on_counts(world, batch)?;
        let passes = shard::passes(world, self.model, batch.micro.len())?;
        let gathered_before = self.gathered_bytes();
        let counted = Instant::now();
        let sums = self.gradients(world, step, batch, &counts, passes)?;
        let computed = Instant::now();
        let tail = self.reduce(world, &sums, asked)?;
        let reduced = Instant::now();
        self.watch.enter(Section::Optimizer);
        let updating = self.watch.span(Part::Optimizer);
        let lr = self.schedule.lr(step);
        let empty = counts.iter().all(|&count| count == 0.0);
        let (grad_norm, skipped) = if empty {
            (0.0, Some(Skip::Empty))
        } else if !tail.is_finite() {
            (f64::NAN, Some(Skip::NonFinite))
        } else {
            self.update(lr)?
        };
        if skipped.is_none() {
            tail.update_norms(self.model, self.params.device())?;
        }
        drop(updating);
        let terms = self.task.terms();
        let means = tail
            .terms
            .iter()
            .zip(&counts)
            .map(|(&sum, &n)| mean(sum, n));
        let parts: Vec<f64> = means.collect();
        let weighted = terms
            .iter()
            .zip(&parts)
            .map(|(term, part)| term.weight * part);
        Ok(StepReport {
            loss: weighted.sum::<f64>() + tail.contrast,
            parts,
            contrast: self.task.contrast().map(|_| tail.contrast),
            grad_norm,
            lr,
            cells: tail.cells,
            skipped,
            suspects: sums.suspects,
            asked: tail.asked,
            own_cells: sums.cells,
            own_tokens: sums.tokens,
            own_slots: sums.slots,
            compute_seconds: (computed - counted).as_secs_f64(),
            collective_seconds: ((reduced - computed) + (counted - start)).as_secs_f64(),
            optimizer_seconds: reduced.elapsed().as_secs_f64(),
            gathered_bytes: self.gathered_bytes() - gathered_before,
        })
    }

    /// Adds the gradients of this rank's micro-batches to the buffer, in step with the ranks that have
    /// more of them: `passes` is the most that any has.
    ///
    /// # Collective
    /// Must be called by all ranks.
    fn gradients(
        &self,
        world: &dyn Collective,
        step: u64,
        batch: &StepBatches,
        counts: &[f64],
        passes: usize,
    ) -> Result<LocalSums> {
        let contrasts = match self.task.contrast() {
            Some(contrast) => {
                let _span = self.watch.span(Part::Forward);
                Some(Contrasts::prepare(
                    self, world, step, batch, passes, contrast,
                )?)
            }
            None => None,
        };
        let mut sums = LocalSums {
            terms: vec![0.0; self.task.terms().len()],
            contrast: contrasts.as_ref().map_or(0.0, Contrasts::own_loss),
            norms: NormSums::new(self.model, self.params),
            cells: 0,
            tokens: 0,
            slots: 0,
            suspects: Vec::new(),
        };
        for (place, micro) in batch.micro.iter().enumerate() {
            let pull = contrasts.as_ref().map(|c| c.pull(place));
            if !self.accumulate(step, micro, counts, pull, &mut sums)? {
                sums.suspects.push(place);
            }
            self.watch.beat();
        }
        for _ in batch.micro.len()..passes {
            let _span = self.watch.span(Part::Join);
            self.join(counts)?;
        }
        Ok(sums)
    }

    /// Goes through the gathers of [`Stepper::accumulate`] for a micro-batch of another rank.
    fn join(&self, counts: &[f64]) -> Result<()> {
        let contrast = self.task.contrast().is_some();
        let encoded = if contrast { 2 } else { 1 };
        for _ in 0..encoded {
            self.model.join_forward()?;
        }
        if contrast || counts.iter().any(|&count| count > 0.0) {
            for _ in 0..encoded {
                self.model.join_backward()?;
            }
        }
        Ok(())
    }

    /// Bytes of blocks that came from other ranks so far.
    fn gathered_bytes(&self) -> u64 {
        (self.params.store()).map_or(0, |store| store.usage().received_bytes)
    }

    /// What each term of the objective is divided by: its count over the whole global batch. Known
    /// before anything is computed, so every term has a divisor of its own and one backward pass
    /// and one all-reduce of gradients are enough.
    fn agree_on_counts(&self, world: &dyn Collective, batch: &StepBatches) -> Result<Vec<f64>> {
        let mut counts = vec![0.0; self.task.terms().len()];
        for micro in &batch.micro {
            for (total, count) in counts.iter_mut().zip(self.task.counts(micro)?) {
                *total += count;
            }
        }
        world.all_reduce_sum_f64(&mut counts)?;
        Ok(counts)
    }

    /// The pass of a micro-batch. Its dropout masks depend on its place in the run alone, not on
    /// the rank that computes it or on what was drawn before: resumed and re-scaled runs draw the
    /// same.
    fn pass(&self, step: u64, micro: &MicroBatch) -> Pass {
        let seed = device::mix(device::mix(self.seed, step), micro.index as u64);
        Pass::training(self.dropout, seed)
    }

    /// Adds a micro-batch to the gradients and sums; whether its losses are finite.
    fn accumulate(
        &self,
        step: u64,
        micro: &MicroBatch,
        counts: &[f64],
        pull: Option<contrast::Pull<'_>>,
        sums: &mut LocalSums,
    ) -> Result<bool> {
        let span = self.watch.span(Part::Forward);
        let batch = self.staging.stage(micro)?;
        let pass = self.pass(step, micro);
        let LossSums {
            sums: terms,
            encoded,
        } = self.task.losses(self.model, &batch, pass)?;
        let mut objective: Option<Tensor> = None;
        for ((term, sum), &count) in self.task.terms().iter().zip(&terms).zip(counts) {
            if count > 0.0 {
                add(&mut objective, sum.f_mul_scalar(term.weight / count)?)?;
            }
        }
        let mut passes = Vec::with_capacity(2);
        if let Some(pull) = pull {
            let second = self.model.encode(&batch.inputs, contrast::second(pass))?;
            add(&mut objective, pull.objective(&encoded.cell, &second.cell)?)?;
            passes.push(second);
        }
        passes.push(encoded);
        drop(span);
        let span = self.watch.span(Part::Backward);
        if let Some(objective) = objective {
            objective.f_backward()?;
            for pass in &mut passes {
                if let Some(tape) = pass.tape.take() {
                    tape.backward()?;
                }
            }
        }
        drop(span);
        for Observed {
            domain,
            mean,
            variance,
        } in passes.into_iter().filter_map(|pass| pass.observed)
        {
            sums.norms.add(domain, &mean, &variance)?;
        }
        let mut finite = true;
        for (total, sum) in sums.terms.iter_mut().zip(&terms) {
            let sum = scalar(sum)?;
            finite &= sum.is_finite();
            *total += sum;
        }
        sums.cells += micro.rows as u64;
        sums.tokens += micro.tokens as u64;
        sums.slots += (micro.rows * micro.len) as u64;
        Ok(finite)
    }

    /// Sums the gradient buffer and its tail over ranks; returns the reduced tail.
    fn reduce(&mut self, world: &dyn Collective, sums: &LocalSums, asked: Asked) -> Result<Tail> {
        let n = self.params.trainable_count() as i64;
        let values = Tail {
            terms: sums.terms.clone(),
            contrast: sums.contrast,
            cells: sums.cells,
            asked,
            norms: sums.norms.clone(),
        }
        .to_values();
        let mut own = self.params.grad().f_narrow(0, n, values.len() as i64)?;
        own.f_copy_(&Tensor::f_from_slice(&values)?)?;
        all_reduce(world, self.params.grad())?;
        let reduced =
            Vec::<f64>::try_from(&own.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)?;
        Ok(Tail::from_values(
            &reduced,
            self.task.terms().len(),
            &sums.norms,
        ))
    }

    /// Clips and applies the reduced gradient; all of it identical on every rank.
    fn update(&mut self, lr: f64) -> Result<(f64, Option<Skip>)> {
        let n = self.params.trainable_count() as i64;
        let mut grad = self.params.grad().f_narrow(0, 0, n)?;
        let norm = clip_grad_norm(&mut grad, self.clip_norm)?;
        if !norm.is_finite() {
            return Ok((norm, Some(Skip::NonFinite)));
        }
        let mut flat = self.params.flat().shallow_clone();
        tch::no_grad(|| self.adam.step(&mut flat, &grad, lr))?;
        self.model.constrain()?;
        Ok((norm, None))
    }
}

/// A sum over nothing is zero, and so is its mean.
fn mean(sum: f64, count: f64) -> f64 {
    if count == 0.0 { 0.0 } else { sum / count }
}

fn add(total: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    *total = Some(match total.take() {
        Some(sum) => sum.f_add(&term)?,
        None => term,
    });
    Ok(())
}

/// Sums a flat f32 tensor over ranks, in place: in the memory of the device where the world can, else
/// in that of the host.
fn all_reduce(world: &dyn Collective, buffer: &Tensor) -> Result<()> {
    let devices = world.on_device().filter(|_| buffer.device().is_cuda());
    if devices.is_none() && world.topology().world_size == 1 {
        return Ok(());
    }
    if buffer.kind() != Kind::Float || !buffer.is_contiguous() {
        return Err(Failure::new(
            scpeft_protocol::exit::INTERNAL,
            "the gradient buffer is not flat f32",
        ));
    }
    let numel = buffer.numel();
    if let Some(devices) = devices {
        // SAFETY: a contiguous f32 tensor of `numel` elements on this rank's device, which lives as
        // long as the run; whatever uses it is queued on libtorch's stream.
        let memory = unsafe { DeviceSlice::new(buffer.data_ptr(), numel, Element::F32) };
        return Ok(devices.all_reduce_sum(&memory)?);
    }
    if buffer.device() == Device::Cpu {
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
