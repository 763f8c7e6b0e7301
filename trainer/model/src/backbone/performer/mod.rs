//! Pre-norm blocks with FAVOR+ attention, for the backbones that are made of such blocks, with the
//! names of `performer-pytorch`.
//!
//! `h = x + out(attention(LN(x)))`, `y = h + w2 GELU(w1 LN(h))`. But for the summary of keys and
//! values, all of it happens to each token on its own, so a block is run in parts of the sequence,
//! and so is its backward pass: what has a number for each token and random feature never exists as
//! a whole, unless autograd keeps it (the plain executor).

mod favor;
mod stages;

use std::rc::Rc;

use tch::Tensor;

use crate::adapter::{AdapterSet, Names};
use crate::exec::{BlockContext, Site, Stack};
use crate::ops::{LayerNorm, Linear, cast};
use crate::params::{Params, Role, TensorSpec};
use crate::shard::BlockStore;
use crate::{Error, Init, Result};

pub use crate::init::orthogonal_rows;
pub use favor::{Favor, KeyMax, Summary};

/// Tokens of all cells of a micro-batch that are worked on at a time: the features of 2,048 tokens
/// in 10 heads are 22 MB.
pub const PART: i64 = 2048;

/// Modules of a block.
const NORM1: &str = "0.norm";
const NORM2: &str = "1.norm";
const OUT: &str = "0.fn.to_out";
const LINEAR1: &str = "1.fn.fn.w1";
const LINEAR2: &str = "1.fn.fn.w2";
const PROJECTION: &str = "0.fn.fast_attention.projection_matrix";

/// [`Names::attention`] of such blocks.
pub const ATTENTION: &str = "0.fn";
/// [`Names::projections`] of such blocks.
pub const PROJECTIONS: [&str; 3] = ["to_q", "to_k", "to_v"];

/// Dimensions and style of a stack of such blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerformerShape {
    /// Names of blocks; [`ATTENTION`] and [`PROJECTIONS`] within.
    pub names: Names,
    /// Blocks L.
    pub n_layers: usize,
    /// Width D.
    pub d_model: i64,
    /// Attention heads H.
    pub n_heads: i64,
    /// Width of a head, E/H.
    pub d_head: i64,
    /// Width of the feed-forward half.
    pub d_hid: i64,
    /// Random features m.
    pub features: i64,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The keys that share their maximum.
    pub key_max: KeyMax,
    /// Tokens that are worked on at a time; [`PART`] unless memory says otherwise.
    pub part: i64,
}

impl PerformerShape {
    /// Random features of a head of width `d_head`, as the reference chooses their number.
    pub fn default_features(d_head: i64) -> i64 {
        (d_head as f64 * (d_head as f64).ln()) as i64
    }

    fn d_attention(&self) -> i64 {
        self.n_heads * self.d_head
    }
}

#[derive(Debug)]
struct PerformerBlock {
    norm1: LayerNorm,
    qkv: [Linear; 3],
    favor: Favor,
    out: Linear,
    norm2: LayerNorm,
    linear1: Linear,
    linear2: Linear,
}

/// The blocks with the adapters attached to them.
#[derive(Debug)]
pub struct PerformerBlocks {
    layers: Vec<PerformerBlock>,
    shape: PerformerShape,
    store: Option<Rc<BlockStore>>,
    pub(super) adapters: AdapterSet,
}

impl PerformerBlocks {
    /// Tensors of the blocks. Directions of random features are whole on every rank.
    pub fn specs(shape: &PerformerShape) -> Vec<TensorSpec> {
        let role = Role::Backbone;
        let (d, e) = (shape.d_model, shape.d_attention());
        let mut specs = Vec::new();
        for layer in 0..shape.n_layers {
            let name = |part: &str| shape.names.in_block(layer, part);
            let linear = |part: &str, inputs, outputs, bias| {
                Linear::specs(&name(part), inputs, outputs, bias, role)
            };
            let mut block = LayerNorm::specs(&name(NORM1), d, role);
            for part in PROJECTIONS {
                let prefix = shape.names.in_attention(layer, part);
                block.extend(Linear::specs(&prefix, d, e, shape.qkv_bias, role));
            }
            block.extend(linear(OUT, e, d, true));
            block.extend(LayerNorm::specs(&name(NORM2), d, role));
            block.extend(linear(LINEAR1, d, shape.d_hid, true));
            block.extend(linear(LINEAR2, shape.d_hid, d, true));
            specs.extend(block.into_iter().map(|spec| spec.in_block(layer)));
            specs.push(TensorSpec::new(
                name(PROJECTION),
                &[shape.features, shape.d_head],
                Init::OrthogonalRows {
                    width: shape.d_head as usize,
                },
                Role::Constant,
            ));
        }
        specs
    }

    /// Binds to the tensors of [`PerformerBlocks::specs`] and to `adapters`, which are bound.
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, shape: PerformerShape, adapters: AdapterSet) -> Result<Self> {
        let store = params.store().map(Rc::clone);
        if let Some(store) = store.as_ref().filter(|s| s.n_blocks() != shape.n_layers) {
            return Err(Error::Internal(format!(
                "{} of {} blocks are sharded",
                store.n_blocks(),
                shape.n_layers
            )));
        }
        let blocks = Self::bind_whole(params, shape, adapters)?;
        Ok(Self { store, ..blocks })
    }

    /// As [`PerformerBlocks::bind`], of blocks that are whole on every rank beside others that may be
    /// shared: their specs are in no block.
    pub(super) fn bind_whole(
        params: &Params,
        shape: PerformerShape,
        adapters: AdapterSet,
    ) -> Result<Self> {
        let block = |layer| {
            let name = |part: &str| shape.names.in_block(layer, part);
            let projection = |part: &str| {
                let prefix = shape.names.in_attention(layer, part);
                Linear::bind(params, &prefix, shape.qkv_bias)
            };
            let [q, k, v] = PROJECTIONS;
            Ok(PerformerBlock {
                norm1: LayerNorm::bind(params, &name(NORM1))?,
                qkv: [projection(q)?, projection(k)?, projection(v)?],
                favor: Favor::new(params.get(&name(PROJECTION))?, shape.key_max, shape.part),
                out: Linear::bind(params, &name(OUT), true)?,
                norm2: LayerNorm::bind(params, &name(NORM2))?,
                linear1: Linear::bind(params, &name(LINEAR1), true)?,
                linear2: Linear::bind(params, &name(LINEAR2), true)?,
            })
        };
        Ok(Self {
            layers: (0..shape.n_layers).map(block).collect::<Result<_>>()?,
            shape,
            store: None,
            adapters,
        })
    }

    /// Replaces the directions of random features by new ones, which depend on `seed` and `draw` alone.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn redraw(&self, seed: u64, draw: u64) -> Result<()> {
        let width = self.shape.d_head as usize;
        let seed = crate::device::mix(seed, draw);
        for (layer, block) in self.layers.iter().enumerate() {
            let name = self.shape.names.in_block(layer, PROJECTION);
            let numel = self.shape.features as usize * width;
            block
                .favor
                .redraw(&Init::OrthogonalRows { width }.values(seed, &name, numel))?;
        }
        Ok(())
    }

    /// Queries, keys and values of tokens side by side: `[B, S, D]` to `[B, S, 3E]`.
    fn qkv(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let block = &self.layers[layer];
        let x = block.norm1.forward(x)?;
        let kind = x.f_kind()?;
        let weights = block.qkv.each_ref().map(|part| &part.weight);
        let weight = self
            .adapters
            .qkv_weight(layer, &Tensor::f_cat(&weights, 0)?)?;
        let biases: Vec<&Tensor> = block.qkv.iter().filter_map(|p| p.bias.as_ref()).collect();
        let bias = match biases.as_slice() {
            [] => None,
            biases => Some(cast(&Tensor::f_cat(biases, 0)?, kind)?),
        };
        let qkv = x.f_linear(&cast(&weight, kind)?, bias.as_ref())?;
        self.adapters.qkv(layer, &x, qkv)
    }

    /// `[B, S, 3E]` as queries, keys and values, `[B, H, S, E/H]` each: views of it.
    fn heads(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let (batch, seq, _) = qkv.size3()?;
        let heads = qkv
            .f_view([batch, seq, 3, self.shape.n_heads, self.shape.d_head])?
            .f_permute([2, 0, 3, 1, 4])?;
        Ok([
            heads.f_select(0, 0)?,
            heads.f_select(0, 1)?,
            heads.f_select(0, 2)?,
        ])
    }

    /// What follows the summary of keys and values, for the tokens from place `start` on.
    ///
    /// # Shapes
    /// `x`: `[B, S, D]`; `q`: `[B, H, S, E/H]`; `sums`: `[B, H, m, E/H + 1]`; returns `[B, S, D]`.
    fn after_summary(
        &self,
        layer: usize,
        start: i64,
        [x, q, sums]: [&Tensor; 3],
        context: &BlockContext,
    ) -> Result<Tensor> {
        let (block, adapters) = (&self.layers[layer], &self.adapters);
        let treatment = context.treatment.as_ref();
        let (batch, seq, _) = x.size3()?;
        let mixed = block.favor.mix(q, sums)?.f_transpose(1, 2)?;
        let mixed = mixed.f_reshape([batch, seq, self.shape.d_attention()])?;
        let mixed = adapters.attention_context(layer, mixed)?;
        let attended = adapters.attention_output(layer, block.out.forward(&mixed)?, treatment)?;
        let attended = context.drop_part(layer, Site::Attention, start, attended)?;
        let h = x.f_add(&attended)?;
        let inner = block.linear1.forward(&block.norm2.forward(&h)?)?;
        let inner = context.drop_part(layer, Site::Activation, start, inner.f_gelu("none")?)?;
        let fed = adapters.feed_forward_output(layer, block.linear2.forward(&inner)?, treatment)?;
        let fed = context.drop_part(layer, Site::FeedForward, start, fed)?;
        Ok(adapters.feed_forward_residual(layer, h)?.f_add(&fed)?)
    }
}

impl Stack for PerformerBlocks {
    fn n_blocks(&self) -> usize {
        self.layers.len()
    }

    fn trains(&self, layer: usize) -> bool {
        let block = &self.layers[layer];
        self.adapters.attached(layer)
            || block.qkv.iter().any(Linear::trains)
            || block.out.trains()
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
        context.seed_block(layer);
        let x = self.adapters.before_block(layer, hidden.shallow_clone())?;
        let [q, k, v] = self.heads(&self.qkv(layer, &x)?)?;
        let favor = &self.layers[layer].favor;
        let sums = favor.summary(&k, &v)?.sums;
        let (batch, seq, _) = x.size3()?;
        let parts = favor.parts(batch, seq);
        let parts = parts.into_iter().map(|(at, length)| {
            let own = [
                &x.f_narrow(1, at, length)?,
                &q.f_narrow(2, at, length)?,
                &sums,
            ];
            self.after_summary(layer, at, own, context)
        });
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 1)?)
    }

    fn backward(
        &self,
        layer: usize,
        hidden: Tensor,
        gradient: &Tensor,
        wanted: bool,
        context: &BlockContext,
    ) -> Result<Option<Tensor>> {
        stages::backward(self, layer, &hidden, gradient, wanted, context)
    }
}
