//! Executors: how a stack of blocks is run, forward and backward.
//!
//! A backbone hands its blocks over as a [`Stack`]. An [`Executor`] runs them and returns what is
//! needed to run them backward: [`Plain`] leaves that to autograd, [`Recompute`] keeps a [`Tape`].
//! Whoever calls backward on a loss calls [`Tape::backward`] after it.

mod plain;
mod recompute;

use std::rc::Rc;

use tch::Tensor;

use crate::params::Params;
use crate::{Error, Result, device, dropout};

pub use plain::Plain;
pub use recompute::{Recompute, Tape};

/// The blocks of a backbone with the adapters attached to them.
pub trait Stack: std::fmt::Debug {
    /// Number of blocks L.
    fn n_blocks(&self) -> usize;

    /// Whether block `layer` has tensors that want a gradient.
    fn trains(&self, layer: usize) -> bool;

    /// Makes the tensors of block `layer` available and announces the block after it. Whoever runs
    /// a block calls this before.
    ///
    /// # Errors
    /// When the block has to be put together and that fails.
    fn need(&self, _layer: usize, _next: Option<usize>) -> Result<()> {
        Ok(())
    }

    /// Whether blocks are available only one at a time. A graph over them must then be gone before
    /// the next is needed, and every rank must need the same blocks in the same order.
    fn is_sharded(&self) -> bool {
        false
    }

    /// Runs block `layer` on hidden states `[B, S, D]`; returns hidden states, longer by the prefix
    /// where a PREFIX adapter begins.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn block(&self, layer: usize, hidden: &Tensor, context: &BlockContext) -> Result<Tensor>;

    /// Runs block `layer` once more, with its graph, and carries `gradient`, that of its output,
    /// through it: into the tensors that train and, when `wanted`, to the input, whose gradient is
    /// returned. A stack that never needs the graph of a whole block at once overrides it.
    ///
    /// # Shapes
    /// `hidden`: `[B, S, D]`, without a graph; `gradient`: like the output of the block; returns
    /// `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn backward(
        &self,
        layer: usize,
        hidden: Tensor,
        gradient: &Tensor,
        wanted: bool,
        context: &BlockContext,
    ) -> Result<Option<Tensor>> {
        let x = hidden.f_set_requires_grad(wanted)?;
        let y = self.block(layer, &x, context)?;
        pull(&y, gradient)?.f_backward()?;
        if !wanted {
            return Ok(None);
        }
        match gradient_of(&x)? {
            Some(gradient) => Ok(Some(gradient)),
            None => Err(Error::Internal(format!(
                "block {layer} passed no gradient to its input"
            ))),
        }
    }
}

/// The gradient that a backward pass left, if one came by.
pub(crate) fn gradient_of(leaf: &Tensor) -> Result<Option<Tensor>> {
    let gradient = leaf.f_grad()?;
    Ok(gradient.defined().then_some(gradient))
}

/// A scalar whose gradient with respect to `y` is exactly `gradient`.
pub(crate) fn pull(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok(y.f_mul(gradient)?.f_sum(y.f_kind()?)?)
}

/// What every block of one forward pass shares.
#[derive(Debug)]
pub struct BlockContext {
    /// Bool `[B, 1, 1, S]`, true where the key is no padding; `None` when nothing is padded.
    pub keep: Option<Tensor>,
    /// The same with the columns of a prefix after position 0.
    pub keep_prefixed: Option<Tensor>,
    /// What each cell was treated with: f32 `[B, W]`.
    pub treatment: Option<Tensor>,
    /// The pass.
    pub pass: Pass,
}

/// Places inside a block where residual dropout acts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Site {
    /// The attention branch.
    Attention,
    /// The feed-forward activation.
    Activation,
    /// The feed-forward branch.
    FeedForward,
}

impl BlockContext {
    /// Seeds libtorch's generator for block `layer` where something draws from it (the fused
    /// attention, and everything on CUDA), so that a block run twice draws the same masks.
    pub(crate) fn seed_block(&self, layer: usize) {
        if self.pass.dropout != Dropout::OFF {
            device::seed_dropout(self.seed(layer, 0));
        }
    }

    fn seed(&self, layer: usize, place: u64) -> u64 {
        device::mix(device::mix(self.pass.seed, layer as u64 + 1), place)
    }

    /// `x` after residual dropout at a site of block `layer`.
    pub(crate) fn drop(&self, layer: usize, site: Site, x: Tensor) -> Result<Tensor> {
        match self.pass.dropout.residual {
            0.0 => Ok(x),
            rate => dropout::apply(&x, rate, self.seed(layer, 1 + site as u64)),
        }
    }

    /// `x`, the part of the tokens from place `start` on, after residual dropout at a site of block
    /// `layer`.
    pub(crate) fn drop_part(
        &self,
        layer: usize,
        site: Site,
        start: i64,
        x: Tensor,
    ) -> Result<Tensor> {
        match self.pass.dropout.residual {
            0.0 => Ok(x),
            rate => {
                let seed = self.seed(layer, 1 + site as u64);
                dropout::apply(&x, rate, device::mix(seed, start as u64))
            }
        }
    }

    /// `residual + dropout(x)`.
    pub(crate) fn drop_add(
        &self,
        layer: usize,
        site: Site,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor> {
        match self.pass.dropout.residual {
            0.0 => Ok(residual.f_add(x)?),
            rate => dropout::add(residual, x, rate, self.seed(layer, 1 + site as u64)),
        }
    }

    fn shallow_clone(&self) -> Self {
        let clone = |x: &Option<Tensor>| x.as_ref().map(Tensor::shallow_clone);
        Self {
            keep: clone(&self.keep),
            keep_prefixed: clone(&self.keep_prefixed),
            treatment: clone(&self.treatment),
            pass: self.pass,
        }
    }
}

/// One pass through a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Batch norms use the statistics of the batch, and a backward pass may follow.
    pub training: bool,
    /// Dropout rates.
    pub dropout: Dropout,
    /// Seed of the dropout masks.
    pub seed: u64,
}

impl Pass {
    /// Evaluation: no dropout, running statistics, no backward pass.
    pub const EVALUATION: Self = Self {
        training: false,
        dropout: Dropout::OFF,
        seed: 0,
    };

    /// A training pass.
    pub fn training(dropout: Dropout, seed: u64) -> Self {
        Self {
            training: true,
            dropout,
            seed,
        }
    }

    /// `x`, a part of the embedding, after residual dropout.
    pub(crate) fn drop_embedding(self, x: Tensor) -> Result<Tensor> {
        self.drop_at(x, 0)
    }

    /// `x`, the input of a head, after residual dropout.
    pub(crate) fn drop_head(self, x: Tensor) -> Result<Tensor> {
        // Blocks have the places in between.
        self.drop_at(x, u64::MAX)
    }

    /// `x` at place number `place` of a head, after dropout at a rate of the head's own in training.
    pub(crate) fn drop_in_head(self, x: Tensor, rate: f64, place: u64) -> Result<Tensor> {
        let rate = if self.training { rate } else { 0.0 };
        self.drop_with(x, rate, u64::MAX - 1 - place)
    }

    fn drop_at(self, x: Tensor, place: u64) -> Result<Tensor> {
        self.drop_with(x, self.dropout.residual, place)
    }

    fn drop_with(self, x: Tensor, rate: f64, place: u64) -> Result<Tensor> {
        match rate {
            0.0 => Ok(x),
            rate => {
                let seed = device::mix(self.seed, place);
                device::seed_dropout(seed);
                dropout::apply(&x, rate, seed)
            }
        }
    }
}

/// Dropout rates of one pass; both zero in evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// On residual branches, feed-forward activations and value embeddings.
    pub residual: f64,
    /// On attention probabilities.
    pub attention: f64,
}

impl Dropout {
    /// No dropout: evaluation.
    pub const OFF: Self = Self {
        residual: 0.0,
        attention: 0.0,
    };
}

/// What a stack made of its input.
#[derive(Debug)]
pub struct Run {
    /// Hidden states after the last block.
    pub hidden: Tensor,
    /// What the backward pass needs beyond autograd.
    pub tape: Option<Tape>,
}

/// The first block that takes part in a backward pass, `n_blocks` when none does; `input_trains`
/// says whether the input of the stack wants a gradient.
fn first_in_backward(stack: &dyn Stack, input_trains: bool) -> usize {
    if input_trains {
        return 0;
    }
    let n_blocks = stack.n_blocks();
    (0..n_blocks)
        .find(|&layer| stack.trains(layer))
        .unwrap_or(n_blocks)
}

/// Needs the blocks that a forward pass needs, in its order.
///
/// # Errors
/// See [`Stack::need`].
pub fn join_forward(stack: &dyn Stack) -> Result<()> {
    (0..stack.n_blocks()).try_for_each(|layer| need_upwards(stack, layer))
}

/// Needs the blocks that the backward pass of a training pass needs, in its order.
///
/// # Errors
/// See [`Stack::need`].
pub fn join_backward(stack: &dyn Stack, input_trains: bool) -> Result<()> {
    join_backward_to(stack, first_in_backward(stack, input_trains))
}

fn join_backward_to(stack: &dyn Stack, first: usize) -> Result<()> {
    let blocks = (first..stack.n_blocks()).rev();
    blocks
        .into_iter()
        .try_for_each(|layer| need_downwards(stack, layer, first))
}

fn need_upwards(stack: &dyn Stack, layer: usize) -> Result<()> {
    stack.need(
        layer,
        Some(layer + 1).filter(|&next| next < stack.n_blocks()),
    )
}

fn need_downwards(stack: &dyn Stack, layer: usize, first: usize) -> Result<()> {
    stack.need(layer, (layer > first).then(|| layer - 1))
}

/// Runs the blocks in order on `hidden` `[B, S, D]`; `visit` sees the input of each.
///
/// # Errors
/// Only if libtorch fails, or a block cannot be put together.
pub(crate) fn run_in_order(
    stack: &dyn Stack,
    hidden: Tensor,
    context: &BlockContext,
    mut visit: impl FnMut(usize, &Tensor),
) -> Result<Tensor> {
    (0..stack.n_blocks()).try_fold(hidden, |hidden, layer| {
        need_upwards(stack, layer)?;
        visit(layer, &hidden);
        stack.block(layer, &hidden, context)
    })
}

/// Runs a stack of blocks.
pub trait Executor: std::fmt::Debug {
    /// Runs the blocks in order on `hidden` `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn run(&self, stack: &Rc<dyn Stack>, hidden: Tensor, context: BlockContext) -> Result<Run>;
}

/// The kinds of executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecutorKind {
    /// Autograd keeps what the backward pass needs.
    #[default]
    Plain,
    /// Blocks that need a backward pass are run a second time for it.
    Recompute,
}

impl ExecutorKind {
    /// Refuses an executor that keeps what it needs of sharded blocks.
    ///
    /// # Errors
    /// When `params` is sharded and blocks are not recomputed.
    pub(crate) fn require_recompute(self, params: &Params) -> Result<()> {
        if params.store().is_some() && self != Self::Recompute {
            return Err(Error::Setting {
                setting: "backbone.shard",
                problem: "sharded blocks must be recomputed in the backward pass".into(),
            });
        }
        Ok(())
    }

    /// The executor.
    pub fn build(self) -> Box<dyn Executor> {
        match self {
            Self::Plain => Box::new(Plain),
            Self::Recompute => Box::new(Recompute),
        }
    }
}
