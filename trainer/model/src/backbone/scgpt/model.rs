use std::rc::Rc;

use tch::{Kind, Tensor};

use super::values::ValueEncoder;
use super::{BLOCKS, Blueprint, CellStyle, Encoded, HeadSet, InputOptions, Inputs, Pooled, Shape};
use crate::backbone::Model;
use crate::backbone::post_norm::{Blocks, block_context, strip_prefix};
use crate::exec::{
    BlockContext, Dropout, Executor, ExecutorKind, Pass, Stack, join_backward, join_forward,
};
use crate::head::Expression;
use crate::norm::{EmbeddingNorm, Observed};
use crate::ops::{LayerNorm, cast, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result, loss, ranks};

const PERTURBATION: &str = "pert_encoder.weight";
/// Flags of a gene: untouched, perturbed, and the third that the published table has.
const FLAGS: i64 = 3;

/// The embedding of perturbation flags. The row of flag `pad` starts, and stays, at zero; the
/// published checkpoints hold no such tensor, so it belongs to the heads.
pub(super) fn perturbation_spec(d_model: i64, pad: i64) -> TensorSpec {
    let init = Init::NormalButRow {
        row: pad as usize,
        width: d_model as usize,
    };
    TensorSpec::new(PERTURBATION.into(), &[FLAGS, d_model], init, Role::Head).in_full_precision()
}

/// The bound model.
#[derive(Debug)]
pub struct Scgpt {
    shape: Shape,
    inputs: InputOptions,
    embedding: Tensor,
    gene_norm: LayerNorm,
    values: ValueEncoder,
    perturbation: Option<Tensor>,
    norm: Option<EmbeddingNorm>,
    compute: Kind,
    blocks: Rc<Blocks>,
    executor: Box<dyn Executor>,
    /// The heads.
    pub heads: HeadSet,
}

impl Scgpt {
    /// Binds a model to its tensors.
    ///
    /// # Errors
    /// When `params` was not built from the blueprint's specs, or is sharded and `executor` keeps
    /// what it needs of blocks.
    pub fn bind(blueprint: &Blueprint, params: &Params, executor: ExecutorKind) -> Result<Self> {
        executor.require_recompute(params)?;
        let Blueprint {
            shape,
            inputs,
            heads,
            ..
        } = *blueprint;
        let mut adapters = blueprint.block_adapters()?;
        adapters.bind(params)?;
        adapters.constrain()?;
        Ok(Self {
            shape,
            inputs,
            embedding: params.get("encoder.embedding.weight")?,
            gene_norm: LayerNorm::bind(params, "encoder.enc_norm")?,
            values: ValueEncoder::bind(params, inputs.values)?,
            perturbation: match inputs.perturbation_pad {
                Some(_) => Some(params.get(PERTURBATION)?),
                None => None,
            },
            norm: EmbeddingNorm::bind(params, inputs.norm)?,
            compute: params.precision().compute(),
            blocks: Rc::new(Blocks::bind(params, shape, BLOCKS, adapters)?),
            executor: executor.build(),
            heads: HeadSet::bind(params, heads)?,
        })
    }

    /// Moves adapters to the nearest allowed values; after loading and after each update.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn constrain(&self) -> Result<()> {
        self.blocks.adapters.constrain()
    }

    /// The norm between embedding and blocks, whose running statistics the trainer updates.
    pub fn norm(&self) -> Option<&EmbeddingNorm> {
        self.norm.as_ref()
    }

    /// Runs the encoder.
    ///
    /// # Shapes
    /// See [`Inputs`] and [`Encoded`]; position 0 of every cell is `<cls>`.
    ///
    /// # Errors
    /// When `inputs` lacks what the model needs, or libtorch fails.
    pub fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded> {
        let (embedded, genes, observed) = self.embed(inputs, pass)?;
        let context = self.context(inputs, pass)?;
        let stack: Rc<dyn Stack> = Rc::clone(&self.blocks) as Rc<dyn Stack>;
        let mut run = self.executor.run(&stack, embedded, context)?;
        let genes = match &mut run.tape {
            Some(tape) => tape.hold(genes)?,
            None => genes,
        };
        let hidden = match self.blocks.adapters.prefix() {
            Some((_, length)) => strip_prefix(&run.hidden, 1, length)?,
            None => run.hidden,
        };
        let cell = self.cell(&hidden, inputs)?;
        Ok(Encoded {
            hidden,
            genes,
            cell,
            tape: run.tape,
            observed,
        })
    }

    /// Whether blocks are sharded over ranks. Then every rank must run the same passes; one with
    /// fewer micro-batches calls [`Scgpt::join_forward`] and [`Scgpt::join_backward`] instead.
    pub fn is_sharded(&self) -> bool {
        self.blocks.is_sharded()
    }

    /// Gathers what [`Scgpt::encode`] gathers, and computes nothing.
    ///
    /// # Errors
    /// When gathering fails.
    pub fn join_forward(&self) -> Result<()> {
        join_forward(self.blocks.as_ref())
    }

    /// Gathers what [`crate::exec::Tape::backward`] of a training pass gathers, and computes nothing.
    ///
    /// # Errors
    /// When gathering fails.
    pub fn join_backward(&self) -> Result<()> {
        join_backward(self.blocks.as_ref(), self.embedding_trains()?)
    }

    /// Whether the embedding wants a gradient: asked of the very code, on two tokens of padding.
    fn embedding_trains(&self) -> Result<bool> {
        let device = self.embedding.device();
        let genes = Tensor::f_full([1, 2], self.shape.pad_id, (Kind::Int64, device))?;
        let mut probe = Inputs::new(genes, Tensor::f_zeros([1, 2], (Kind::Float, device))?, None);
        probe.domain = Some(0);
        if let Some(width) = self.blocks.adapters.treatment_width() {
            probe.treatment = Some(Tensor::f_zeros([1, width], (Kind::Float, device))?);
        }
        if self.perturbation.is_some() {
            probe.perturbation = Some(Tensor::f_zeros([1, 2], (Kind::Int64, device))?);
        }
        let (embedded, ..) = self.embed(&probe, Pass::training(Dropout::OFF, 0))?;
        Ok(embedded.requires_grad())
    }

    /// Embedded tokens, gene embeddings, and what the norm saw.
    fn embed(&self, inputs: &Inputs, pass: Pass) -> Result<(Tensor, Tensor, Option<Observed>)> {
        let pad = self.shape.pad_id;
        let genes = Tensor::f_embedding(&self.embedding, &inputs.gene_ids, pad, false, false)?;
        let genes = cast(&self.gene_norm.forward(&genes)?, self.compute)?;
        let adapters = &self.blocks.adapters;
        let mut x = self
            .values
            .combine(&genes, &inputs.values, adapters, pass)?;
        if let (Some(table), Some(pad)) = (&self.perturbation, self.inputs.perturbation_pad) {
            let flags = inputs.perturbation.as_ref().ok_or(Error::MissingInput {
                what: "perturbation flags",
            })?;
            let flags = Tensor::f_embedding(table, flags, pad, false, false)?;
            x = x.f_add(&cast(&flags, x.f_kind()?)?)?;
        }
        x = adapters.embedding(x, inputs.treatment.as_ref())?;
        let Some(norm) = &self.norm else {
            return Ok((x, genes, None));
        };
        let (x, observed) = norm.forward(&x, inputs.domain, pass)?;
        Ok((x, genes, observed))
    }

    fn context(&self, inputs: &Inputs, pass: Pass) -> Result<BlockContext> {
        block_context(inputs, self.blocks.adapters.prefix(), pass)
    }

    fn cell(&self, hidden: &Tensor, inputs: &Inputs) -> Result<Tensor> {
        // [B, S]: how much each position counts.
        let (weights, pooled) = match self.inputs.cell {
            CellStyle::Cls => return full(&hidden.f_select(1, 0)?),
            CellStyle::AveragePool(pooled) => (inputs.values.f_ones_like()?, pooled),
            CellStyle::WeightedPool(pooled) => (inputs.values.shallow_clone(), pooled),
        };
        let hidden = full(hidden)?;
        let mut weights = cast(&weights, hidden.f_kind()?)?;
        if let (Pooled::Tokens, Some(padding)) = (pooled, &inputs.padding) {
            weights = weights.f_masked_fill(padding, 0.0)?;
        }
        let sum = weights.f_unsqueeze(1)?.f_bmm(&hidden)?.f_squeeze_dim(1)?; // [B, D]
        match self.inputs.cell {
            CellStyle::WeightedPool(_) => loss::normalize(&sum),
            CellStyle::Cls | CellStyle::AveragePool(_) => {
                Ok(sum.f_div(&weights.f_sum_dim_intlist(1, true, None::<Kind>)?)?)
            }
        }
    }

    /// Attention ranks of `<cls>` at block `layer`, a marker-gene statistic (scPEFT): products of
    /// queries and keys, ranked along each row and these ranks along each column, as shares; mean
    /// over heads of the row of `<cls>`. Computed in full precision, cell by cell.
    ///
    /// # Shapes
    /// Returns f32 `[B, S - 1]`, one value per token but `<cls>`.
    ///
    /// # Errors
    /// When there is no such block, or libtorch fails.
    pub fn attention_ranks(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        let raw = self.raw_scores(inputs, layer)?;
        ranks::cls_ranks(&raw)
    }

    /// Products of queries and keys of block `layer`: `[B, H, S, S]`, the positions of a prefix
    /// left out; evaluation mode, no gradient.
    ///
    /// # Errors
    /// When there is no such block, or libtorch fails.
    pub fn raw_scores(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        if layer >= self.shape.n_layers {
            return Err(Error::Setting {
                setting: "layer",
                problem: format!(
                    "block {layer} is asked for, the backbone has blocks 0 to {}",
                    self.shape.n_layers - 1
                ),
            });
        }
        tch::no_grad(|| {
            let hidden = self.before_block(inputs, layer)?;
            let raw = self.blocks.raw_scores(layer, &hidden)?;
            match self.blocks.adapters.prefix() {
                Some((first, length)) if first <= layer => {
                    let rows = strip_prefix(&raw, 2, length)?;
                    strip_prefix(&rows, 3, length)
                }
                _ => Ok(raw),
            }
        })
    }

    /// Hidden states that enter block `layer`.
    fn before_block(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        let (embedded, _, _) = self.embed(inputs, Pass::EVALUATION)?;
        let context = self.context(inputs, Pass::EVALUATION)?;
        (0..layer).try_fold(embedded, |hidden, layer| {
            self.blocks.need(layer, Some(layer + 1))?;
            self.blocks.block(layer, &hidden, &context)
        })
    }
}

impl Model for Scgpt {
    fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded> {
        Self::encode(self, inputs, pass)
    }

    fn classify(&self, encoded: &Encoded, _pass: Pass) -> Result<Tensor> {
        self.heads.classify(encoded)
    }

    fn expression(&self, encoded: &Encoded, inputs: &Inputs) -> Result<Expression> {
        self.heads.expression(encoded, inputs)
    }

    fn mvc(&self, encoded: &Encoded, inputs: &Inputs) -> Result<Expression> {
        self.heads.mvc(encoded, inputs)
    }

    fn discriminate(&self, encoded: &Encoded) -> Result<Tensor> {
        self.heads.discriminate(encoded)
    }

    fn attention_ranks(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        Self::attention_ranks(self, inputs, layer)
    }

    fn norm(&self) -> Option<&EmbeddingNorm> {
        Self::norm(self)
    }

    fn constrain(&self) -> Result<()> {
        Self::constrain(self)
    }

    fn is_sharded(&self) -> bool {
        Self::is_sharded(self)
    }

    fn join_forward(&self) -> Result<()> {
        Self::join_forward(self)
    }

    fn join_backward(&self) -> Result<()> {
        Self::join_backward(self)
    }
}
