//! The post-norm transformer block and the stack of them, for the backbones that are made of such
//! blocks.

use std::rc::Rc;

use tch::Tensor;

use super::{Inputs, Shape};
use crate::adapter::{AdapterSet, Names};
use crate::attention::{AttentionNames, SelfAttention};
use crate::exec::{BlockContext, Site, Stack};
use crate::ops::{LayerNorm, Linear};
use crate::params::{Params, Role, TensorSpec};
use crate::shard::BlockStore;
use crate::{Error, Result};

/// The nonlinearity inside the feed-forward half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// max(0, x).
    #[default]
    Relu,
    /// The exact GELU, with the error function.
    Gelu,
}

impl Activation {
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Relu => x.f_relu()?,
            Self::Gelu => x.f_gelu("none")?,
        })
    }
}

/// What blocks of one family have in common: their names and what they compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockStyle {
    /// Names of blocks and of their attention.
    pub(super) names: Names,
    /// The output projection of the attention, the feed-forward half and both norms in a block.
    pub(super) parts: Parts,
    /// Epsilon of the norms.
    pub(super) norm_eps: f64,
    /// Inside the feed-forward half.
    pub(super) activation: Activation,
    /// Whether dropout acts on the activation too.
    pub(super) activation_dropout: bool,
}

/// Names of modules within a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) out_proj: &'static str,
    pub(super) linear1: &'static str,
    pub(super) linear2: &'static str,
    pub(super) norm1: &'static str,
    pub(super) norm2: &'static str,
}

impl BlockStyle {
    fn attention(&self, layer: usize) -> AttentionNames {
        AttentionNames {
            prefix: self.names.in_block(layer, self.names.attention),
            out_proj: self.names.in_block(layer, self.parts.out_proj),
            projections: self.names.projections,
        }
    }
}

/// `h = LN1(x + attention(x))`, `y = LN2(h + FF(h))`.
#[derive(Debug)]
struct PostNormBlock {
    attention: SelfAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
}

/// The blocks with the adapters attached to them.
#[derive(Debug)]
pub(super) struct Blocks {
    layers: Vec<PostNormBlock>,
    style: BlockStyle,
    store: Option<Rc<BlockStore>>,
    pub(super) adapters: AdapterSet,
}

impl Blocks {
    pub(super) fn specs(shape: Shape, style: BlockStyle) -> Vec<TensorSpec> {
        let Shape { d_model, d_hid, .. } = shape;
        let role = Role::Backbone;
        let parts = style.parts;
        let mut specs = Vec::new();
        for layer in 0..shape.n_layers {
            let name = |part: &str| style.names.in_block(layer, part);
            let mut block = SelfAttention::specs(&style.attention(layer), d_model);
            let linear =
                |part, inputs, outputs| Linear::specs(&name(part), inputs, outputs, true, role);
            block.extend(linear(parts.linear1, d_model, d_hid));
            block.extend(linear(parts.linear2, d_hid, d_model));
            block.extend(LayerNorm::specs(&name(parts.norm1), d_model, role));
            block.extend(LayerNorm::specs(&name(parts.norm2), d_model, role));
            specs.extend(block.into_iter().map(|spec| spec.in_block(layer)));
        }
        specs
    }

    pub(super) fn bind(
        params: &Params,
        shape: Shape,
        style: BlockStyle,
        adapters: AdapterSet,
    ) -> Result<Self> {
        let parts = style.parts;
        let block = |layer| {
            let name = |part: &str| style.names.in_block(layer, part);
            let norm = |part| LayerNorm::bind_with(params, &name(part), style.norm_eps);
            Ok(PostNormBlock {
                attention: SelfAttention::bind(params, &style.attention(layer), shape.n_heads)?,
                linear1: Linear::bind(params, &name(parts.linear1), true)?,
                linear2: Linear::bind(params, &name(parts.linear2), true)?,
                norm1: norm(parts.norm1)?,
                norm2: norm(parts.norm2)?,
            })
        };
        let store = params.store().map(Rc::clone);
        if let Some(store) = store.as_ref().filter(|s| s.n_blocks() != shape.n_layers) {
            return Err(Error::Internal(format!(
                "{} of {} blocks are sharded",
                store.n_blocks(),
                shape.n_layers
            )));
        }
        Ok(Self {
            store,
            style,
            layers: (0..shape.n_layers).map(block).collect::<Result<_>>()?,
            adapters,
        })
    }

    /// Products of queries and keys of block `layer` on its input: `[B, S, D]` to `[B, H, S, S]`.
    pub(super) fn raw_scores(&self, layer: usize, hidden: &Tensor) -> Result<Tensor> {
        self.need(layer, None)?;
        let hidden = self.adapters.before_block(layer, hidden.shallow_clone())?;
        self.layers[layer]
            .attention
            .raw_scores(layer, &hidden, &self.adapters)
    }
}

impl Stack for Blocks {
    fn n_blocks(&self) -> usize {
        self.layers.len()
    }

    fn trains(&self, layer: usize) -> bool {
        let block = &self.layers[layer];
        self.adapters.attached(layer)
            || block.attention.trains()
            || block.linear1.trains()
            || block.linear2.trains()
            || block.norm1.trains()
            || block.norm2.trains()
    }

    fn need(&self, layer: usize, next: Option<usize>) -> Result<()> {
        match &self.store {
            Some(store) => store.need(layer, next),
            None => Ok(()),
        }
    }

    fn is_sharded(&self) -> bool {
        self.store.is_some()
    }

    fn block(&self, layer: usize, hidden: &Tensor, context: &BlockContext) -> Result<Tensor> {
        let (block, adapters) = (&self.layers[layer], &self.adapters);
        context.seed_block(layer);
        let x = adapters.before_block(layer, hidden.shallow_clone())?;
        let prefixed = adapters.prefix().is_some_and(|(first, _)| layer >= first);
        let keep = if prefixed {
            context.keep_prefixed.as_ref()
        } else {
            context.keep.as_ref()
        };
        let treatment = context.treatment.as_ref();
        let own = adapters.keys_and_values(layer, treatment)?;
        let dropout = context.pass.dropout.attention;
        let attended = block
            .attention
            .forward(layer, &x, keep, own.as_ref(), adapters, dropout)?;
        let attended = adapters.attention_output(layer, attended, treatment)?;
        let h = context.drop_add(layer, Site::Attention, &x, &attended)?;
        let h = block.norm1.forward(&h)?;
        let h = adapters.after_attention_norm(layer, h)?;
        let inner = self.style.activation.apply(&block.linear1.forward(&h)?)?;
        let inner = if self.style.activation_dropout {
            context.drop(layer, Site::Activation, inner)?
        } else {
            inner
        };
        let fed = block.linear2.forward(&inner)?;
        let fed = adapters.feed_forward_output(layer, fed, treatment)?;
        let y = context.drop_add(layer, Site::FeedForward, &h, &fed)?;
        let y = block.norm2.forward(&y)?;
        adapters.after_block(layer, &h, y)
    }
}

/// What the blocks of a pass over a micro-batch share; `prefix` is that of the adapters.
pub(super) fn block_context(
    inputs: &Inputs,
    prefix: Option<(usize, i64)>,
    pass: crate::exec::Pass,
) -> Result<BlockContext> {
    let (batch, seq) = inputs.gene_ids.size2()?;
    let padding = inputs.padding.as_ref();
    let keep = match padding {
        Some(padding) => Some(padding.f_logical_not()?.f_unsqueeze(1)?.f_unsqueeze(1)?),
        None => None,
    };
    let keep_prefixed = match (&keep, prefix) {
        (Some(keep), Some((_, length))) => {
            let own = Tensor::f_ones([batch, 1, 1, length], (tch::Kind::Bool, keep.device()))?;
            let (first, genes) = (keep.f_narrow(3, 0, 1)?, keep.f_narrow(3, 1, seq - 1)?);
            Some(Tensor::f_cat(&[first, own, genes], 3)?)
        }
        _ => None,
    };
    Ok(BlockContext {
        keep,
        keep_prefixed,
        treatment: inputs.treatment.as_ref().map(Tensor::shallow_clone),
        pass,
    })
}

/// `x` without the `length` places of a prefix after place 0 of dimension `dim`.
pub(super) fn strip_prefix(x: &Tensor, dim: i64, length: i64) -> Result<Tensor> {
    let size = x.size()[dim as usize];
    let first = x.f_narrow(dim, 0, 1)?;
    let rest = x.f_narrow(dim, 1 + length, size - 1 - length)?;
    Ok(Tensor::f_cat(&[first, rest], dim)?)
}
