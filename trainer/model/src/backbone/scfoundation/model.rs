use std::rc::Rc;

use tch::{Kind, Tensor};

use super::decoder::Decoder;
use super::head::ClassifierHead;
use super::pool::Pool;
use super::values::AutoBins;
use super::{BLOCKS, Blueprint, NORM, POSITIONS};
use crate::Result;
use crate::backbone::post_norm::{Blocks, block_context, strip_prefix};
use crate::backbone::{Encoded, Inputs, Model, Shape, absent};
use crate::exec::{Executor, ExecutorKind, Pass, Stack, join_backward, join_forward, run_in_order};
use crate::ops::{LayerNorm, cast};
use crate::params::Params;

/// The bound model.
#[derive(Debug)]
pub struct Scfoundation {
    shape: Shape,
    pub(super) values: AutoBins,
    pub(super) positions: Tensor,
    pad_position: i64,
    compute: Kind,
    blocks: Rc<Blocks>,
    norm: LayerNorm,
    executor: Box<dyn Executor>,
    pool: Pool,
    head: Option<ClassifierHead>,
    pub(super) decoder: Option<Decoder>,
}

impl Scfoundation {
    /// Binds a model to its tensors.
    ///
    /// # Errors
    /// When `params` was not built from the blueprint's specs, or is sharded and `executor` keeps
    /// what it needs of blocks.
    pub fn bind(blueprint: &Blueprint, params: &Params, executor: ExecutorKind) -> Result<Self> {
        executor.require_recompute(params)?;
        let mut adapters = blueprint.block_adapters()?;
        adapters.bind(params)?;
        adapters.constrain()?;
        let head = match blueprint.head {
            Some(head) => Some(ClassifierHead::bind(params, blueprint.pool, head.dropout)?),
            None => None,
        };
        let decoder = match blueprint.decoder {
            Some(shape) => Some(Decoder::bind(params, shape, executor)?),
            None => None,
        };
        Ok(Self {
            shape: blueprint.shape,
            values: AutoBins::bind(params, blueprint.values)?,
            positions: params.get(POSITIONS)?,
            pad_position: blueprint.pad_position,
            compute: params.precision().compute(),
            blocks: Rc::new(Blocks::bind(params, blueprint.shape, BLOCKS, adapters)?),
            norm: LayerNorm::bind(params, NORM)?,
            executor: executor.build(),
            pool: blueprint.pool,
            head,
            decoder,
        })
    }

    /// The embedding of numbers alone, `[B, S]` to `[B, S, D]` in full precision.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn embed_values(&self, values: &Tensor) -> Result<Tensor> {
        self.values.forward(values)
    }

    /// Embedded tokens `[B, S, D]`: what the blocks get.
    fn embed(&self, inputs: &Inputs) -> Result<Tensor> {
        let places = match &inputs.padding {
            Some(padding) if self.pad_position != self.shape.pad_id => {
                inputs.gene_ids.f_masked_fill(padding, self.pad_position)?
            }
            _ => inputs.gene_ids.shallow_clone(),
        };
        let places = Tensor::f_embedding(&self.positions, &places, -1, false, false)?;
        let x = cast(&self.values.forward(&inputs.values)?, self.compute)?
            .f_add(&cast(&places, self.compute)?)?;
        let adapters = &self.blocks.adapters;
        adapters.embedding(adapters.value_embedding(x)?, inputs.treatment.as_ref())
    }

    /// Without the prefix, and behind the norm.
    fn finish(&self, hidden: Tensor) -> Result<Tensor> {
        let hidden = match self.blocks.adapters.prefix() {
            Some((_, length)) => strip_prefix(&hidden, 1, length)?,
            None => hidden,
        };
        self.norm.forward(&hidden)
    }

    /// Whether the embedding wants a gradient: asked of the very code, on two tokens of padding.
    fn embedding_trains(&self) -> Result<bool> {
        let device = self.positions.device();
        let genes = Tensor::f_full([1, 2], self.shape.pad_id, (Kind::Int64, device))?;
        let values = Tensor::f_zeros([1, 2], (Kind::Float, device))?;
        let mut probe = Inputs::new(genes, values, None);
        if let Some(width) = self.blocks.adapters.treatment_width() {
            probe.treatment = Some(Tensor::f_zeros([1, width], (Kind::Float, device))?);
        }
        Ok(self.embed(&probe)?.requires_grad())
    }
}

impl Model for Scfoundation {
    fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded> {
        let embedded = self.embed(inputs)?;
        let genes = embedded.shallow_clone();
        let context = block_context(inputs, self.blocks.adapters.prefix(), pass)?;
        let (hidden, tape) = if pass.training {
            let stack: Rc<dyn Stack> = Rc::clone(&self.blocks) as Rc<dyn Stack>;
            let run = self.executor.run(&stack, embedded, context)?;
            (run.hidden, run.tape)
        } else {
            let stack: &dyn Stack = self.blocks.as_ref();
            let run = || run_in_order(stack, embedded, &context, |_, _| {});
            // A graph would keep gathered blocks alive.
            let hidden = if stack.is_sharded() {
                tch::no_grad(run)?
            } else {
                run()?
            };
            (hidden, None)
        };
        let hidden = self.finish(hidden)?;
        let cell = self.pool.apply(&hidden, inputs.padding.as_ref())?;
        Ok(Encoded {
            hidden,
            genes,
            cell,
            tape,
            observed: None,
        })
    }

    fn classify(&self, encoded: &Encoded, pass: Pass) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(&encoded.cell, pass),
            None => Err(absent("classification")),
        }
    }

    fn constrain(&self) -> Result<()> {
        self.blocks.adapters.constrain()
    }

    fn is_sharded(&self) -> bool {
        self.blocks.is_sharded()
    }

    fn join_forward(&self) -> Result<()> {
        join_forward(self.blocks.as_ref())
    }

    fn join_backward(&self) -> Result<()> {
        join_backward(self.blocks.as_ref(), self.embedding_trains()?)
    }
}
