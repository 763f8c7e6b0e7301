use std::rc::Rc;

use tch::Tensor;

use super::{BlockContext, Executor, Run, Stack, run_in_order};
use crate::Result;

/// Plain autograd. Blocks below the first trainable tensor have inputs and weights without
/// gradients, so libtorch records no graph for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Executor for Plain {
    fn run(&self, stack: &Rc<dyn Stack>, hidden: Tensor, context: BlockContext) -> Result<Run> {
        let hidden = run_in_order(stack.as_ref(), hidden, &context, |_, _| {})?;
        Ok(Run { hidden, tape: None })
    }
}
