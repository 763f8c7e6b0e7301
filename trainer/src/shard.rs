//! Sharding of frozen blocks over the ranks of a run: who shares with whom, and how ranks with fewer
//! micro-batches keep up with the gathers of the others.

use std::rc::Rc;

use scpeft_collective::{AllGather, Collective, GatherBuffer, Group};
use scpeft_config::Shard;
use scpeft_model::backbone::Model;
use scpeft_model::shard::{Gather, Gathering};
use tch::{Device, Kind, Tensor};

use crate::failure::Result;

/// What gathers blocks in a run; `None` when every rank holds the whole backbone.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// When the transport fails.
pub fn gather(world: &dyn Collective, shard: Shard) -> Result<Option<Rc<dyn Gather>>> {
    let group = match shard {
        Shard::None => return Ok(None),
        Shard::Node => Group::Node,
        Shard::World => Group::World,
    };
    Ok(Some(Rc::new(Ranks(world.all_gather(group)?))))
}

/// How many micro-batches every rank must go through, so that all gather the same blocks: as many
/// as the rank with the most has. Without sharding, this rank's own number.
///
/// # Collective
/// Must be called by all ranks when the model is sharded.
///
/// # Errors
/// When the transport fails.
pub(crate) fn passes(world: &dyn Collective, model: &dyn Model, own: usize) -> Result<usize> {
    if !model.is_sharded() {
        return Ok(own);
    }
    let mut counts = vec![0.0; world.topology().world_size];
    counts[world.topology().rank] = own as f64;
    world.all_reduce_sum_f64(&mut counts)?;
    Ok(counts.iter().fold(0.0f64, |most, &n| most.max(n)) as usize)
}

/// Goes through the passes of an evaluation that other ranks have and this one, with `own`
/// micro-batches, has not.
///
/// # Collective
/// Must be called by all ranks when the model is sharded, after their own micro-batches.
///
/// # Errors
/// When the transport fails.
pub(crate) fn join_evaluation(passes: usize, model: &dyn Model, own: usize) -> Result<()> {
    for _ in own..passes {
        model.join_forward()?;
    }
    Ok(())
}

/// The ranks that share blocks.
#[derive(Debug)]
struct Ranks(Rc<dyn AllGather>);

/// The memory of a gather: two tensors, kept while it is in use.
#[derive(Debug)]
struct Memory {
    part: Tensor,
    whole: Tensor,
}

// SAFETY: the addresses are those of tensor storages, which the handles here keep where they are.
// `Ranks::start` checks that both are contiguous bytes on the CPU and that sizes fit; a store hands
// out a fresh `whole` each time, reads it only after the wait, and never writes to `part`.
unsafe impl GatherBuffer for Memory {
    fn part(&self) -> *const u8 {
        self.part.data_ptr().cast()
    }

    fn whole(&mut self) -> *mut u8 {
        self.whole.data_ptr().cast()
    }

    fn part_bytes(&self) -> usize {
        self.part.numel()
    }
}

impl Gather for Ranks {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn start(&self, part: &Tensor, whole: &Tensor) -> scpeft_model::Result<Box<dyn Gathering>> {
        let is_bytes = |tensor: &Tensor| {
            tensor.kind() == Kind::Uint8 && tensor.device() == Device::Cpu && tensor.is_contiguous()
        };
        if !is_bytes(part) || !is_bytes(whole) || whole.numel() != part.numel() * self.ranks() {
            return Err(scpeft_model::Error::Internal(
                "a block is not gathered into bytes of its size".into(),
            ));
        }
        let memory = Memory {
            part: part.shallow_clone(),
            whole: whole.shallow_clone(),
        };
        let started = self.0.start(Box::new(memory)).map_err(transport)?;
        Ok(Box::new(Started(started)))
    }
}

/// A gather under way.
#[derive(Debug)]
struct Started(Box<dyn scpeft_collective::Gathering>);

impl Gathering for Started {
    fn wait(self: Box<Self>) -> scpeft_model::Result<()> {
        self.0.wait().map_err(transport)
    }
}

fn transport(error: scpeft_collective::Error) -> scpeft_model::Error {
    scpeft_model::Error::Gather(Box::new(error))
}
