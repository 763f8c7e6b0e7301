//! Executors: how a stack of blocks is run.

use tch::Tensor;

use crate::Result;

/// One block of a backbone.
pub trait Block {
    /// Runs the block on hidden states `[B, S, D]`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn forward(&self, hidden: &Tensor, context: &BlockContext<'_>) -> Result<Tensor>;
}

/// What every block of one forward pass shares.
#[derive(Debug, Clone, Copy)]
pub struct BlockContext<'a> {
    /// Bool `[B, 1, 1, S]`, true where the key is no padding; `None` when nothing is padded.
    pub keep: Option<&'a Tensor>,
    /// Dropout rates of this pass.
    pub dropout: Dropout,
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

    /// `x` after residual dropout.
    pub(crate) fn apply(self, x: Tensor) -> Result<Tensor> {
        if self.residual == 0.0 {
            return Ok(x);
        }
        Ok(x.f_dropout(self.residual, true)?)
    }
}

/// Runs a stack of blocks.
pub trait Executor: std::fmt::Debug + Send {
    /// Runs `blocks` in order on `hidden` `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn run(
        &self,
        blocks: &[&dyn Block],
        hidden: Tensor,
        context: &BlockContext<'_>,
    ) -> Result<Tensor>;
}

/// Plain autograd. Blocks below the first trainable tensor have inputs and weights without
/// gradients, so libtorch records no graph for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Executor for Plain {
    fn run(
        &self,
        blocks: &[&dyn Block],
        hidden: Tensor,
        context: &BlockContext<'_>,
    ) -> Result<Tensor> {
        blocks
            .iter()
            .try_fold(hidden, |hidden, block| block.forward(&hidden, context))
    }
}
