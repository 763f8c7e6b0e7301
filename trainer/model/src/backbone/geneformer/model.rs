use std::rc::Rc;

use tch::{Kind, Tensor};

use super::heads::BoundHead;
use super::{Blueprint, CellEmbedding, CellStyle, EMBEDDINGS};
use crate::backbone::post_norm::{Blocks, block_context, strip_prefix};
use crate::backbone::{Encoded, Inputs, Model, Shape};
use crate::exec::{
    Dropout, Executor, ExecutorKind, Pass, Stack, join_backward, join_forward, run_in_order,
};
use crate::ops::{LayerNorm, cast, full};
use crate::params::Params;
use crate::{Error, Result};

/// The bound model.
#[derive(Debug)]
pub struct Geneformer {
    shape: Shape,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: LayerNorm,
    special: Vec<i64>,
    cell: CellEmbedding,
    compute: Kind,
    blocks: Rc<Blocks>,
    executor: Box<dyn Executor>,
    head: BoundHead,
}

impl Geneformer {
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
        let table = |name: &str| params.get(&format!("{EMBEDDINGS}.{name}.weight"));
        let norm = format!("{EMBEDDINGS}.LayerNorm");
        let (eps, style) = (blueprint.norm_eps, blueprint.block_style());
        Ok(Self {
            shape: blueprint.shape,
            words: table("word_embeddings")?,
            positions: table("position_embeddings")?,
            types: table("token_type_embeddings")?,
            norm: LayerNorm::bind_with(params, &norm, eps)?,
            special: blueprint.special.clone(),
            cell: blueprint.cell,
            compute: params.precision().compute(),
            blocks: Rc::new(Blocks::bind(params, blueprint.shape, style, adapters)?),
            executor: executor.build(),
            head: BoundHead::bind(params, blueprint.head, blueprint.activation, eps)?,
        })
    }

    /// The pooled state of position 0, before the classifier: `[B, D]`.
    ///
    /// # Errors
    /// The model has another head, or libtorch fails.
    pub fn pooled(&self, encoded: &Encoded) -> Result<Tensor> {
        self.head.pool(&encoded.hidden)
    }

    /// Logits of each token's class, `[B, S, classes]`.
    ///
    /// # Errors
    /// The model has another head, or libtorch fails.
    pub fn classify_tokens(&self, encoded: &Encoded, pass: Pass) -> Result<Tensor> {
        self.head.classify_tokens(&encoded.hidden, pass)
    }

    /// Logits of the token at each place, `[B, S, V]`.
    ///
    /// # Errors
    /// The model has another head, or libtorch fails.
    pub fn predict_tokens(&self, encoded: &Encoded) -> Result<Tensor> {
        self.head.predict_tokens(&encoded.hidden, &self.words)
    }

    /// States after the embedding and after each block, in evaluation mode; those after a block with
    /// a prefix hold its places too: L + 1 times `[B, S (+ T), D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn hidden_states(&self, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let embedded = self.embed(inputs, Pass::EVALUATION)?;
        let context = self.context(inputs, Pass::EVALUATION)?;
        let mut states = Vec::with_capacity(self.shape.n_layers + 1);
        let stack: &dyn Stack = self.blocks.as_ref();
        let last = run_in_order(stack, embedded, &context, |_, hidden| {
            states.push(hidden.shallow_clone());
        })?;
        states.push(last);
        Ok(states)
    }

    /// Products of queries and keys of block `layer`, `[B, H, S (+ T), S (+ T)]`; evaluation mode.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn raw_scores(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        let states = self.hidden_states(inputs)?;
        self.blocks.raw_scores(layer, &states[layer])
    }

    /// Embedded tokens `[B, S, D]`.
    fn embed(&self, inputs: &Inputs, pass: Pass) -> Result<Tensor> {
        let (_, seq) = inputs.gene_ids.size2()?;
        let most = self.positions.size()[0];
        if seq > most {
            return Err(Error::Setting {
                setting: "data.max_len",
                problem: format!(
                    "a cell has {seq} tokens, the backbone has {most} positions\nhelp: set \
                     `data.max_len` to {most} or less"
                ),
            });
        }
        let pad = self.shape.pad_id;
        let words = Tensor::f_embedding(&self.words, &inputs.gene_ids, pad, false, false)?;
        let x = cast(&words, self.compute)?
            .f_add(&cast(&self.types.f_narrow(0, 0, 1)?, self.compute)?)?
            .f_add(&cast(&self.positions.f_narrow(0, 0, seq)?, self.compute)?)?;
        let x = pass.drop_embedding(self.norm.forward(&x)?)?;
        let adapters = &self.blocks.adapters;
        adapters.embedding(adapters.value_embedding(x)?, inputs.treatment.as_ref())
    }

    fn context(&self, inputs: &Inputs, pass: Pass) -> Result<crate::exec::BlockContext> {
        block_context(inputs, self.blocks.adapters.prefix(), pass)
    }

    /// States without the prefix, of the output of block `layer`.
    fn without_prefix(&self, layer: usize, hidden: Tensor) -> Result<Tensor> {
        match self.blocks.adapters.prefix() {
            Some((first, length)) if first <= layer => strip_prefix(&hidden, 1, length),
            _ => Ok(hidden),
        }
    }

    /// All blocks in evaluation mode: their output, and the input of the last.
    fn evaluate(&self, embedded: &Tensor, inputs: &Inputs, pass: Pass) -> Result<[Tensor; 2]> {
        let context = self.context(inputs, pass)?;
        let stack: &dyn Stack = self.blocks.as_ref();
        let last = self.shape.n_layers - 1;
        let mut before = embedded.shallow_clone();
        let mut run = || {
            run_in_order(
                stack,
                embedded.shallow_clone(),
                &context,
                |layer, hidden| {
                    if layer == last {
                        before = hidden.shallow_clone();
                    }
                },
            )
        };
        // A graph would keep gathered blocks alive.
        let hidden = if stack.is_sharded() {
            tch::no_grad(run)?
        } else {
            run()?
        };
        let before = match last.checked_sub(1) {
            Some(layer) => self.without_prefix(layer, before)?,
            None => before,
        };
        Ok([self.without_prefix(last, hidden)?, before])
    }

    /// The cell embedding `[B, D]` of states `[B, S, D]`, in full precision.
    fn embed_cell(&self, states: &Tensor, inputs: &Inputs) -> Result<Tensor> {
        if self.cell.style == CellStyle::First {
            return full(&states.f_select(1, 0)?);
        }
        let states = full(states)?;
        let mut skipped = match &inputs.padding {
            Some(padding) => padding.shallow_clone(),
            None => inputs.gene_ids.f_zeros_like()?.f_to_kind(Kind::Bool)?,
        };
        for &id in &self.special {
            skipped = skipped.f_logical_or(&inputs.gene_ids.f_eq(id)?)?;
        }
        let weights = cast(&skipped.f_logical_not()?, states.f_kind()?)?; // [B, S]
        let sum = weights.f_unsqueeze(1)?.f_bmm(&states)?.f_squeeze_dim(1)?;
        let count = weights.f_sum_dim_intlist(1, true, None::<Kind>)?;
        Ok(sum.f_div(&count.f_clamp_min(1.0)?)?)
    }

    /// Whether the embedding wants a gradient: asked of the very code, on two tokens of padding.
    fn embedding_trains(&self) -> Result<bool> {
        let device = self.words.device();
        let genes = Tensor::f_full([1, 2], self.shape.pad_id, (Kind::Int64, device))?;
        let values = Tensor::f_zeros([1, 2], (Kind::Float, device))?;
        let mut probe = Inputs::new(genes, values, None);
        if let Some(width) = self.blocks.adapters.treatment_width() {
            probe.treatment = Some(Tensor::f_zeros([1, width], (Kind::Float, device))?);
        }
        let embedded = self.embed(&probe, Pass::training(Dropout::OFF, 0))?;
        Ok(embedded.requires_grad())
    }
}

impl Model for Geneformer {
    fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded> {
        let embedded = self.embed(inputs, pass)?;
        let genes = embedded.shallow_clone();
        let (hidden, cell, tape) = if pass.training {
            let context = self.context(inputs, pass)?;
            let stack: Rc<dyn Stack> = Rc::clone(&self.blocks) as Rc<dyn Stack>;
            let run = self.executor.run(&stack, embedded, context)?;
            let hidden = self.without_prefix(self.shape.n_layers - 1, run.hidden)?;
            // No loss is taken of it: the last block's will do.
            let cell = tch::no_grad(|| self.embed_cell(&hidden, inputs))?;
            (hidden, cell, run.tape)
        } else {
            let [hidden, before] = self.evaluate(&embedded, inputs, pass)?;
            let states = if self.cell.second_to_last {
                &before
            } else {
                &hidden
            };
            let cell = self.embed_cell(states, inputs)?;
            (hidden, cell, None)
        };
        Ok(Encoded {
            hidden,
            genes,
            cell,
            tape,
            observed: None,
        })
    }

    fn classify(&self, encoded: &Encoded, pass: Pass) -> Result<Tensor> {
        self.head.classify(&encoded.hidden, pass)
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
