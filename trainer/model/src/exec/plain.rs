use std::rc::Rc;

use tch::Tensor;

use super::{BlockContext, Executor, Run, Stack, need_upwards};
use crate::Result;

/// Plain autograd. Blocks below the first trainable tensor have inputs and weights without
/// gradients, so libtorch records no graph for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Executor for Plain {
    fn run(&self, stack: &Rc<dyn Stack>, hidden: Tensor, context: BlockContext) -> Result<Run> {
        let hidden = (0..stack.n_blocks()).try_fold(hidden, |hidden, layer| {
            need_upwards(stack.as_ref(), layer)?;
            stack.block(layer, &hidden, &context)
        })?;
        Ok(Run { hidden, tape: None })
    }
}
