//! The model without its adapters, which changes are counted from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use scpeft_data::MicroBatch;
use scpeft_model::backbone::{Inputs, Model};
use tch::Tensor;

use super::perturbation::frozen;
use crate::failure::Result;
use crate::perturbation::Responses;

/// The frozen model, and what it made of the contexts' mean profiles.
#[derive(Debug)]
pub struct Reference {
    model: Box<dyn Model>,
    /// Outputs `[S]` by context, where rows of a context all have the same input: each is computed
    /// once in a run, which saves a forward pass in every step.
    known: Option<RefCell<BTreeMap<usize, Tensor>>>,
}

impl Reference {
    /// `by_context`: every row of a context has the same input.
    pub(crate) fn new(model: Box<dyn Model>, by_context: bool) -> Self {
        Self {
            model,
            known: by_context.then(RefCell::default),
        }
    }

    /// What the frozen model makes of inputs, f32 `[B, S]`, without a graph.
    ///
    /// # Errors
    /// When libtorch fails or the inputs lack what the model needs.
    pub(crate) fn of(&self, inputs: &Inputs) -> Result<Tensor> {
        frozen(self.model.as_ref(), inputs)
    }

    /// The same of a micro-batch.
    pub(super) fn of_batch(
        &self,
        responses: &Responses,
        host: &MicroBatch,
        inputs: &Inputs,
    ) -> Result<Tensor> {
        let Some(known) = &self.known else {
            return self.of(inputs);
        };
        let mut rows = Vec::with_capacity(host.rows);
        for (row, &cell) in host.cells.iter().enumerate() {
            let condition = responses.condition(cell)?;
            let context = responses.conditions.context_of[condition];
            let found = known.borrow().get(&context).map(Tensor::shallow_clone);
            rows.push(match found {
                Some(found) => found,
                None => {
                    let one = |x: &Tensor| x.f_narrow(0, row as i64, 1);
                    let alone = Inputs::new(one(&inputs.gene_ids)?, one(&inputs.values)?, None);
                    let output = self.of(&alone)?.f_squeeze_dim(0)?;
                    known.borrow_mut().insert(context, output.shallow_clone());
                    output
                }
            });
        }
        Ok(Tensor::f_stack(&rows, 0)?)
    }
}
