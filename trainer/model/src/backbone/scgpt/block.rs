//! The post-norm transformer block and the stack of them.

use std::rc::Rc;

use tch::Tensor;

use super::Shape;
use crate::adapter::AdapterSet;
use crate::attention::SelfAttention;
use crate::exec::{BlockContext, Site, Stack};
use crate::ops::{LayerNorm, Linear};
use crate::params::{Params, Role, TensorSpec};
use crate::shard::BlockStore;
use crate::{Error, Result};

/// `h = LN1(x + attention(x))`, `y = LN2(h + FF(h))`, ReLU inside FF.
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
    store: Option<Rc<BlockStore>>,
    pub(super) adapters: AdapterSet,
}

fn prefix(layer: usize) -> String {
    format!("transformer_encoder.layers.{layer}")
}

impl Blocks {
    pub(super) fn specs(shape: Shape) -> Vec<TensorSpec> {
        let Shape { d_model, d_hid, .. } = shape;
        let role = Role::Backbone;
        let mut specs = Vec::new();
        for layer in 0..shape.n_layers {
            let prefix = prefix(layer);
            let name = |part: &str| format!("{prefix}.{part}");
            let mut block = SelfAttention::specs(&name("self_attn"), d_model);
            block.extend(Linear::specs(&name("linear1"), d_model, d_hid, true, role));
            block.extend(Linear::specs(&name("linear2"), d_hid, d_model, true, role));
            block.extend(LayerNorm::specs(&name("norm1"), d_model, role));
            block.extend(LayerNorm::specs(&name("norm2"), d_model, role));
            specs.extend(block.into_iter().map(|spec| spec.in_block(layer)));
        }
        specs
    }

    pub(super) fn bind(params: &Params, shape: Shape, adapters: AdapterSet) -> Result<Self> {
        let block = |layer| {
            let prefix = prefix(layer);
            let name = |part: &str| format!("{prefix}.{part}");
            Ok(PostNormBlock {
                attention: SelfAttention::bind(params, &name("self_attn"), shape.n_heads)?,
                linear1: Linear::bind(params, &name("linear1"), true)?,
                linear2: Linear::bind(params, &name("linear2"), true)?,
                norm1: LayerNorm::bind(params, &name("norm1"))?,
                norm2: LayerNorm::bind(params, &name("norm2"))?,
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
        let attended =
            block
                .attention
                .forward(layer, &x, keep, adapters, context.pass.dropout.attention)?;
        let h = context.drop_add(layer, Site::Attention, &x, &attended)?;
        let h = block.norm1.forward(&h)?;
        let h = adapters.after_attention_norm(layer, h)?;
        let inner = block.linear1.forward(&h)?.f_relu()?;
        let inner = context.drop(layer, Site::Activation, inner)?;
        let fed = block.linear2.forward(&inner)?;
        let y = context.drop_add(layer, Site::FeedForward, &h, &fed)?;
        let y = block.norm2.forward(&y)?;
        adapters.after_block(layer, &h, y)
    }
}
