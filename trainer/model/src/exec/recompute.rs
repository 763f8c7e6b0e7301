use std::rc::Rc;

use tch::Tensor;

use super::{BlockContext, Executor, Run, Stack};
use super::{first_in_backward, gradient_of, join_backward_to, need_downwards, need_upwards, pull};
use crate::Result;

/// Activation recomputation per block (Chen et al. 2016): forward keeps the input of each block
/// only; backward runs a block again, with its graph, when its turn comes. One more forward pass of
/// the trained blocks buys the memory of all but one block's activations. Gradients are bitwise
/// those of [`super::Plain`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Recompute;

impl Executor for Recompute {
    fn run(&self, stack: &Rc<dyn Stack>, hidden: Tensor, context: BlockContext) -> Result<Run> {
        let n_blocks = stack.n_blocks();
        let first = first_in_backward(stack.as_ref(), hidden.requires_grad());
        // Without a backward pass ahead there is nothing to keep.
        if !context.pass.training || first == n_blocks {
            if stack.is_sharded() {
                return tch::no_grad(|| super::Plain.run(stack, hidden, context));
            }
            return super::Plain.run(stack, hidden, context);
        }
        let mut inputs = Vec::with_capacity(n_blocks - first);
        let mut x = hidden.f_detach()?;
        for layer in 0..n_blocks {
            need_upwards(stack.as_ref(), layer)?;
            let y = tch::no_grad(|| stack.block(layer, &x, &context))?;
            if layer >= first {
                inputs.push(x);
            }
            x = y;
        }
        let output = x.f_detach()?.f_set_requires_grad(true)?;
        Ok(Run {
            hidden: output.shallow_clone(),
            tape: Some(Tape {
                stack: Rc::clone(stack),
                context: context.shallow_clone(),
                first,
                inputs,
                embedded: hidden,
                output,
                held: Vec::new(),
            }),
        })
    }
}

/// The inputs of the blocks of one pass, for its backward pass.
#[derive(Debug)]
pub struct Tape {
    stack: Rc<dyn Stack>,
    context: BlockContext,
    first: usize,
    inputs: Vec<Tensor>,
    embedded: Tensor,
    output: Tensor,
    held: Vec<(Tensor, Tensor)>,
}

impl Tape {
    /// A stand-in for `x`, a tensor that shares its graph with the embeddings and that the loss
    /// uses directly. Its gradient joins that of the embeddings, so that their common graph is run
    /// backward once.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn hold(&mut self, x: Tensor) -> Result<Tensor> {
        if !x.requires_grad() {
            return Ok(x);
        }
        let leaf = x.f_detach()?.f_set_requires_grad(true)?;
        self.held.push((x, leaf.shallow_clone()));
        Ok(leaf)
    }

    /// Carries the gradient that a loss left on the hidden states through the blocks, last to
    /// first, and on into the embeddings where these train. Call it once, after the backward pass
    /// of the loss.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn backward(mut self) -> Result<()> {
        let mut objective: Option<Tensor> = None;
        let held = std::mem::take(&mut self.held);
        for (x, leaf) in &held {
            if let Some(gradient) = gradient_of(leaf)? {
                objective = Some(plus(objective, pull(x, &gradient)?)?);
            }
        }
        let embedded = self.embedded.shallow_clone();
        match gradient_of(&self.output)? {
            Some(gradient) => {
                if let Some(gradient) = self.through_blocks(gradient)? {
                    objective = Some(plus(objective, pull(&embedded, &gradient)?)?);
                }
            }
            // Other ranks may have one: they must not wait for this one.
            None => join_backward_to(self.stack.as_ref(), self.first)?,
        }
        match objective {
            Some(objective) => Ok(objective.f_backward()?),
            None => Ok(()),
        }
    }

    /// The gradient at the embeddings, where these want one.
    fn through_blocks(self, mut gradient: Tensor) -> Result<Option<Tensor>> {
        for (i, input) in self.inputs.into_iter().enumerate().rev() {
            let layer = self.first + i;
            let wants_gradient = i > 0 || self.embedded.requires_grad();
            need_downwards(self.stack.as_ref(), layer, self.first)?;
            let stack = self.stack.as_ref();
            let carried = stack.backward(layer, input, &gradient, wants_gradient, &self.context)?;
            match carried {
                Some(carried) => gradient = carried,
                None => return Ok(None),
            }
        }
        Ok(Some(gradient))
    }
}

fn plus(sum: Option<Tensor>, term: Tensor) -> Result<Tensor> {
    Ok(match sum {
        Some(sum) => sum.f_add(&term)?,
        None => term,
    })
}
