//! The contrastive objective (CCE) over a whole global batch.
//!
//! Two passes over the same cells, with their own dropout, are told apart from all other cells of
//! the global batch: every rank needs the embeddings of all ranks. They are computed without a graph
//! first and gathered; the gradient of the loss at each embedding is then known, and the passes with
//! a graph pull each embedding along it (Gao et al. 2021). So the loss is that of the global batch
//! however it is cut into micro-batches and ranks, for one more forward pass of both.

use scpeft_collective::Collective;
use scpeft_data::StepBatches;
use scpeft_model::device;
use scpeft_model::exec::Pass;
use scpeft_model::loss::contrastive_cell_embedding;
use tch::{Device, Kind, Tensor};

use super::Stepper;
use crate::failure::Result;
use crate::task::{Contrast, scalar};

/// Sets the second pass apart from the first.
const SECOND: u64 = 0x5ec0_4d00;

/// The second pass over the cells of `first`.
pub(super) fn second(first: Pass) -> Pass {
    Pass {
        seed: device::mix(first.seed, SECOND),
        ..first
    }
}

/// Gradients of the objective at the embeddings of this rank's micro-batches.
#[derive(Debug)]
pub(super) struct Contrasts {
    gradients: Vec<[Tensor; 2]>,
    own_loss: f64,
}

/// The gradients at the embeddings of one micro-batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pull<'a>(&'a [Tensor; 2]);

impl Pull<'_> {
    /// An objective whose gradient at both embeddings `[B, D]` is that of the global one.
    pub(super) fn objective(self, first: &Tensor, second: &Tensor) -> Result<Tensor> {
        let [at_first, at_second] = self.0;
        let kind = first.f_kind()?;
        Ok(first
            .f_mul(at_first)?
            .f_sum(kind)?
            .f_add(&second.f_mul(at_second)?.f_sum(kind)?)?)
    }
}

impl Contrasts {
    /// `passes` is the largest number of micro-batches of a rank.
    ///
    /// # Collective
    /// Must be called by all ranks.
    pub(super) fn prepare(
        stepper: &Stepper<'_>,
        world: &dyn Collective,
        step: u64,
        batch: &StepBatches,
        passes: usize,
        contrast: Contrast,
    ) -> Result<Self> {
        let device = stepper.params.device();
        let mut own = Vec::with_capacity(batch.micro.len());
        for micro in &batch.micro {
            let inputs = stepper.staging.stage(micro)?.inputs;
            let pass = stepper.pass(step, micro);
            let cells = tch::no_grad(|| -> Result<Tensor> {
                let first = stepper.model.encode(&inputs, pass)?.cell;
                let second = stepper.model.encode(&inputs, second(pass))?.cell;
                let both = Tensor::f_cat(&[first, second], 1)?;
                Ok(both.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)
            })?;
            own.push((micro.index, cells));
        }
        for _ in batch.micro.len()..passes {
            stepper.model.join_forward()?;
            stepper.model.join_forward()?;
        }
        let (all, firsts) = gather(world, &own)?;
        let width = all.size2()?.1 / 2;
        let leaf = |from: i64| -> Result<Tensor> {
            let part = all.f_narrow(1, from, width)?.f_contiguous()?;
            Ok(part.f_set_requires_grad(true)?)
        };
        let (first, second) = (leaf(0)?, leaf(width)?);
        let loss = contrastive_cell_embedding(&first, &second)?.f_mul_scalar(contrast.weight)?;
        loss.f_backward()?;
        let gradients = own
            .iter()
            .zip(firsts)
            .map(|((_, cells), row)| {
                let rows = cells.size2()?.0;
                let cut = |leaf: &Tensor| -> Result<Tensor> {
                    Ok(leaf.f_grad()?.f_narrow(0, row, rows)?.f_to_device(device)?)
                };
                Ok([cut(&first)?, cut(&second)?])
            })
            .collect::<Result<_>>()?;
        // Every rank computed the same loss: one of them reports it.
        let own_loss = if world.topology().is_root() {
            scalar(&loss)?
        } else {
            0.0
        };
        Ok(Self {
            gradients,
            own_loss,
        })
    }

    /// What this rank adds to the reported loss.
    pub(super) fn own_loss(&self) -> f64 {
        self.own_loss
    }

    /// The gradients of this rank's micro-batch at `place`.
    pub(super) fn pull(&self, place: usize) -> Pull<'_> {
        Pull(&self.gradients[place])
    }
}

/// The rows `[B, W]` of all ranks' micro-batches in order of the micro-batches, and the first row
/// of each own one. Ranks write into disjoint rows of zeros, so that a sum is a gathering.
fn gather(world: &dyn Collective, own: &[(usize, Tensor)]) -> Result<(Tensor, Vec<i64>)> {
    let (rows, width) = layout(world, own)?;
    let before = |index: usize| rows[..index].iter().sum::<usize>();
    let total: usize = rows.iter().sum();
    let mut buffer = vec![0.0f32; total * width];
    let mut firsts = Vec::with_capacity(own.len());
    for (index, cells) in own {
        let first = before(*index);
        firsts.push(first as i64);
        let values = Vec::<f32>::try_from(&cells.f_reshape([-1])?)?;
        buffer[first * width..][..values.len()].copy_from_slice(&values);
    }
    world.all_reduce_sum(&mut buffer)?;
    let all = Tensor::f_from_slice(&buffer)?.f_view([total as i64, width as i64])?;
    Ok((all, firsts))
}

/// Rows of every micro-batch of the global batch, by index, and columns.
fn layout(world: &dyn Collective, own: &[(usize, Tensor)]) -> Result<(Vec<usize>, usize)> {
    let mut last = vec![0.0; world.topology().world_size];
    last[world.topology().rank] = own.iter().map(|(i, _)| i + 1).max().unwrap_or(0) as f64;
    world.all_reduce_sum_f64(&mut last)?;
    let micro_batches = last.iter().fold(0.0, |a: f64, &b| a.max(b)) as usize;
    let mut sizes = vec![0.0; 2 * micro_batches];
    for (index, cells) in own {
        let (rows, width) = cells.size2()?;
        sizes[*index] = rows as f64;
        sizes[micro_batches + index] = width as f64;
    }
    world.all_reduce_sum_f64(&mut sizes)?;
    let rows = sizes[..micro_batches].iter().map(|&n| n as usize).collect();
    let width = sizes[micro_batches..]
        .iter()
        .fold(0.0, |a: f64, &b| a.max(b));
    Ok((rows, width as usize))
}
