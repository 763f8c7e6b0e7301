//! Adapters: small trainable parts attached to frozen blocks.
//!
//! An adapter is one file that implements [`Adapter`]: which tensors it adds and how they start,
//! which frozen tensors it unfreezes, and what it does at each place of a block where it may
//! attach. Adding one adds its file and its line in the registry [`AdapterOptions`]; its settings
//! come from the configuration's `[adapter]` section, its place in the HF PEFT layout from the
//! trainer's checkpointing.

mod bottleneck;
mod drug;
mod encoder;
mod hra;
mod lora;
mod mlp;
mod oft;
mod pre_norm;
mod prefix;
mod token;

use tch::Tensor;

use crate::ops::full;
use crate::params::{Params, TensorSpec};
use crate::{Error, Result};

pub use drug::{
    DrugBias, DrugBottleneck, DrugOptions, DrugReading, DrugSite, Generator, treatment,
};
pub use encoder::{EncoderOptions, Placement};
pub use hra::HraOptions;
pub use lora::{LoraOptions, Projection};
pub use mlp::MlpOptions;
pub use oft::OftOptions;
pub use prefix::PrefixOptions;
pub use token::TokenOptions;

/// What an adapter must know of the backbone it attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// Number of blocks L.
    pub n_layers: usize,
    /// Width D.
    pub d_model: i64,
    /// Width E of queries, keys and values each; D in most backbones.
    pub d_attention: i64,
    /// Whether blocks normalise the input of their halves; bottlenecks then have norms of their own.
    pub pre_norm: bool,
    /// How it names its tensors.
    pub names: Names,
}

/// How a backbone names its tensors; those of adapters are named alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// Block i is `{blocks}.{i}`.
    pub blocks: &'static str,
    /// Its attention is `{blocks}.{i}.{attention}`.
    pub attention: &'static str,
    /// The modules of query, key and value, `{attention}.{module}`, where each has a weight of its
    /// own; `None` where they have one together.
    pub projections: Option<[&'static str; 3]>,
    /// The module whose output TOKEN adapts; `None` where there is none.
    pub token: Option<&'static str>,
    /// The module of the one prefix that all blocks share; `None` where each block has its own.
    pub prefix: Option<&'static str>,
}

impl Names {
    /// A part of block `layer`.
    pub(crate) fn in_block(self, layer: usize, part: &str) -> String {
        format!("{}.{layer}.{part}", self.blocks)
    }

    /// A part of the attention of block `layer`.
    pub(crate) fn in_attention(self, layer: usize, part: &str) -> String {
        self.in_block(layer, &format!("{}.{part}", self.attention))
    }

    /// The module of a part of the projection of block `layer`, where it has one of its own.
    pub(crate) fn projection(self, layer: usize, part: Projection) -> Option<String> {
        let modules = self.projections?;
        Some(self.in_attention(layer, modules[part as usize]))
    }

    /// Prefix of what changes the projection of block `layer` to query, key and value as a whole.
    fn qkv(self, layer: usize) -> String {
        self.in_attention(layer, "Wqkv")
    }
}

/// A trainable part attached to some blocks. Every hook defaults to "not attached here".
pub trait Adapter: std::fmt::Debug + Send {
    /// The adapter's tensors, in a fixed order.
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec>;

    /// The blocks it is attached to; empty when it acts on the embedding alone.
    fn layers(&self) -> &[usize] {
        &[]
    }

    /// Names of backbone tensors that train along with the adapter.
    fn unfreezes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Binds to the tensors of [`Adapter::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    fn bind(&mut self, params: &Params) -> Result<()>;

    /// The first block whose input is longer by a prefix after position 0, and its length T.
    fn prefix(&self) -> Option<(usize, i64)> {
        None
    }

    /// Numbers that describe the treatment of a cell, when the adapter looks at it.
    fn treatment_width(&self) -> Option<i64> {
        None
    }

    /// Adds to the embedding of every token what follows from the treatment of its cell.
    ///
    /// # Shapes
    /// `x`: `[B, S, D]`; `treatment`: f32 `[B, W]`; returns `[B, S, D]`.
    ///
    /// # Errors
    /// A treatment that is missing or of another width, or libtorch fails.
    fn embedding(&self, x: Tensor, _treatment: Option<&Tensor>) -> Result<Tensor> {
        Ok(x)
    }

    /// Keys and values that every token of block `layer` may attend to beside its own cell's.
    ///
    /// # Shapes
    /// `treatment`: f32 `[B, W]`; returns `[B, T, D]` each.
    ///
    /// # Errors
    /// See [`Adapter::embedding`].
    fn keys_and_values(
        &self,
        _layer: usize,
        _treatment: Option<&Tensor>,
    ) -> Result<Option<[Tensor; 2]>> {
        Ok(None)
    }

    /// Transforms the output of the attention of block `layer`, before the residual sum.
    ///
    /// # Shapes
    /// `attended`: `[B, S, D]`; `treatment`: f32 `[B, W]`; returns `[B, S, D]`.
    ///
    /// # Errors
    /// See [`Adapter::embedding`].
    fn attention_output(
        &self,
        _layer: usize,
        attended: Tensor,
        _treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        Ok(attended)
    }

    /// Transforms the output of the feed-forward half of block `layer`, before the residual sum.
    ///
    /// # Shapes
    /// `fed`: `[B, S, D]`; `treatment`: f32 `[B, W]`; returns `[B, S, D]`.
    ///
    /// # Errors
    /// See [`Adapter::embedding`].
    fn feed_forward_output(
        &self,
        _layer: usize,
        fed: Tensor,
        _treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        Ok(fed)
    }

    /// Transforms the embeddings that the backbone's [`Names::token`] says: those of values, before
    /// their dropout, or the whole embedding.
    ///
    /// # Shapes
    /// `v`: `[B, S, D]`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn value_embedding(&self, v: Tensor) -> Result<Tensor> {
        Ok(v)
    }

    /// Transforms the input of block `layer`.
    ///
    /// # Shapes
    /// `hidden`: `[B, S, D]`; returns `[B, S + T, D]` where a prefix begins, else the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn before_block(&self, _layer: usize, hidden: Tensor) -> Result<Tensor> {
        Ok(hidden)
    }

    /// Transforms the packed projection's weight of block `layer`, in full precision.
    ///
    /// # Shapes
    /// `weight`: `[3D, D]`, rows q, k, v; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn qkv_weight(&self, _layer: usize, weight: Tensor) -> Result<Tensor> {
        Ok(weight)
    }

    /// Whether [`Adapter::qkv_weight`] does something at block `layer`.
    fn changes_qkv_weight(&self, _layer: usize) -> bool {
        false
    }

    /// Adds to the packed projection of block `layer`.
    ///
    /// # Shapes
    /// `x`: the projection's input `[B, S, D]`; `qkv`: `[B, S, 3E]`, already `x W^T + b`; returns
    /// the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn qkv(&self, _layer: usize, _x: &Tensor, qkv: Tensor) -> Result<Tensor> {
        Ok(qkv)
    }

    /// Transforms what the heads of block `layer` found, before it is projected.
    ///
    /// # Shapes
    /// `mixed`: `[B, S, D]`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn attention_context(&self, _layer: usize, mixed: Tensor) -> Result<Tensor> {
        Ok(mixed)
    }

    /// Transforms the output of the first norm of block `layer`, before the feed-forward half.
    ///
    /// # Shapes
    /// `h`: `[B, S, D]`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn after_attention_norm(&self, _layer: usize, h: Tensor) -> Result<Tensor> {
        Ok(h)
    }

    /// What the feed-forward half of a pre-norm block is added to.
    ///
    /// # Shapes
    /// `h`: the sum of input and attention, `[B, S, D]`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn feed_forward_residual(&self, _layer: usize, h: Tensor) -> Result<Tensor> {
        Ok(h)
    }

    /// Adds to the output of block `layer`.
    ///
    /// # Shapes
    /// `h`: input of the feed-forward half, `y`: output of the block, both `[B, S, D]`; returns the
    /// same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn after_block(&self, _layer: usize, _h: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }

    /// Moves the adapter's tensors to the nearest allowed values, in place. To be called after
    /// loading and after each update.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn constrain(&self) -> Result<()> {
        Ok(())
    }
}

/// Which blocks carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerSelection {
    /// Blocks 0 to L/2 - 1, the published default.
    FirstHalf,
    /// Every block.
    All,
    /// Exactly these blocks.
    Listed(Vec<usize>),
}

impl LayerSelection {
    /// The selected blocks in ascending order.
    ///
    /// # Errors
    /// An empty selection, or a block that the backbone does not have.
    pub fn resolve(&self, n_layers: usize) -> Result<Vec<usize>> {
        let mut layers = match self {
            Self::FirstHalf => (0..n_layers / 2).collect(),
            Self::All => (0..n_layers).collect(),
            Self::Listed(layers) => layers.clone(),
        };
        layers.sort_unstable();
        layers.dedup();
        let problem = match layers.last() {
            None => format!("no block is selected out of {n_layers}"),
            Some(&last) if last >= n_layers => {
                format!(
                    "block {last} is selected, the backbone has blocks 0 to {}",
                    n_layers - 1
                )
            }
            Some(_) => return Ok(layers),
        };
        Err(Error::Setting {
            setting: "adapter.layers",
            problem,
        })
    }
}

/// The registry: every kind of adapter with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterOptions {
    /// Bottleneck after the first norm of a block.
    Encoder(EncoderOptions),
    /// Bottleneck in parallel with the feed-forward half.
    Mlp(MlpOptions),
    /// Bottleneck on the embedding.
    Token(TokenOptions),
    /// Trainable hidden states after `<cls>`.
    Prefix(PrefixOptions),
    /// Low-rank update of the packed projection.
    Lora(LoraOptions),
    /// Householder reflections of the packed projection.
    Hra(HraOptions),
    /// Block-diagonal rotation of the packed projection.
    Oft(OftOptions),
    /// Bottleneck with biases that the treatment of a cell generates.
    Drug(DrugOptions),
}

impl AdapterOptions {
    /// An unbound adapter for a backbone of the given shape.
    ///
    /// # Errors
    /// Settings that do not fit the backbone.
    pub fn build(&self, shape: BlockShape) -> Result<Box<dyn Adapter>> {
        Ok(match self {
            Self::Encoder(options) if shape.pre_norm => {
                Box::new(pre_norm::PreNorm::encoder(options, shape)?)
            }
            Self::Mlp(options) if shape.pre_norm => {
                Box::new(pre_norm::PreNorm::mlp(options, shape)?)
            }
            Self::Encoder(options) => Box::new(encoder::Encoder::new(options, shape)?),
            Self::Mlp(options) => Box::new(mlp::Mlp::new(options, shape)?),
            Self::Token(options) => Box::new(token::Token::new(options, shape)?),
            Self::Prefix(options) => Box::new(prefix::Prefix::new(options, shape)?),
            Self::Lora(options) => Box::new(lora::Lora::new(options, shape)?),
            Self::Hra(options) => Box::new(hra::Hra::new(options, shape)?),
            Self::Oft(options) => Box::new(oft::Oft::new(options, shape)?),
            Self::Drug(options) => Box::new(drug::Drug::new(options, shape)?),
        })
    }
}

/// The adapters of a model, applied in order.
#[derive(Debug, Default)]
pub struct AdapterSet(Vec<Box<dyn Adapter>>);

impl AdapterSet {
    /// Unbound adapters for `options`.
    ///
    /// # Errors
    /// Settings that do not fit the backbone, or an adapter given twice.
    pub fn build(options: &[AdapterOptions], shape: BlockShape) -> Result<Self> {
        for (i, option) in options.iter().enumerate() {
            let kind = std::mem::discriminant(option);
            if options[..i]
                .iter()
                .any(|o| std::mem::discriminant(o) == kind)
            {
                return Err(Error::Setting {
                    setting: "adapter.kind",
                    problem: "an adapter is named twice".into(),
                });
            }
        }
        options
            .iter()
            .map(|o| o.build(shape))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// All tensors of all adapters.
    pub fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        self.0.iter().flat_map(|a| a.specs(shape)).collect()
    }

    /// The first block that takes part in a backward pass when `trains` says which tensors of the
    /// `encoder` and of adapters train; the number of blocks when there is none.
    pub(crate) fn first_in_backward(
        &self,
        encoder: &[TensorSpec],
        shape: BlockShape,
        trains: &dyn Fn(&TensorSpec) -> bool,
    ) -> usize {
        let on_embedding = self.0.iter().filter(|a| a.layers().is_empty());
        let on_embedding: Vec<TensorSpec> = on_embedding.flat_map(|a| a.specs(shape)).collect();
        let before = encoder.iter().filter(|s| s.block.is_none());
        if before.chain(&on_embedding).any(trains) {
            return 0;
        }
        let trained: Vec<usize> = (encoder.iter().filter(|s| trains(s)))
            .filter_map(|s| s.block)
            .collect();
        let mut layers = 0..shape.n_layers;
        let first = layers.find(|layer| self.attached(*layer) || trained.contains(layer));
        first.unwrap_or(shape.n_layers)
    }

    /// Backbone tensors that train along.
    pub fn unfreezes(&self) -> Vec<String> {
        self.0.iter().flat_map(|a| a.unfreezes()).collect()
    }

    /// Binds every adapter.
    ///
    /// # Errors
    /// When `params` lacks a tensor.
    pub fn bind(&mut self, params: &Params) -> Result<()> {
        self.0.iter_mut().try_for_each(|a| a.bind(params))
    }

    /// See [`Adapter::constrain`].
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn constrain(&self) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|a| tch::no_grad(|| a.constrain()))
    }

    /// Whether an adapter is attached to block `layer`.
    pub(crate) fn attached(&self, layer: usize) -> bool {
        self.0.iter().any(|a| a.layers().contains(&layer))
    }

    /// First block with a prefix, and the prefix's length.
    pub(crate) fn prefix(&self) -> Option<(usize, i64)> {
        self.0.iter().find_map(|a| a.prefix())
    }

    /// Numbers that describe a treatment, when an adapter looks at it.
    pub(crate) fn treatment_width(&self) -> Option<i64> {
        self.0.iter().find_map(|a| a.treatment_width())
    }

    pub(crate) fn embedding(&self, x: Tensor, treatment: Option<&Tensor>) -> Result<Tensor> {
        self.0.iter().try_fold(x, |x, a| a.embedding(x, treatment))
    }

    /// Of the first adapter that has any at block `layer`.
    pub(crate) fn keys_and_values(
        &self,
        layer: usize,
        treatment: Option<&Tensor>,
    ) -> Result<Option<[Tensor; 2]>> {
        for adapter in &self.0 {
            if let Some(own) = adapter.keys_and_values(layer, treatment)? {
                return Ok(Some(own));
            }
        }
        Ok(None)
    }

    pub(crate) fn attention_output(
        &self,
        layer: usize,
        attended: Tensor,
        treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(attended, |x, a| a.attention_output(layer, x, treatment))
    }

    pub(crate) fn feed_forward_output(
        &self,
        layer: usize,
        fed: Tensor,
        treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(fed, |x, a| a.feed_forward_output(layer, x, treatment))
    }

    pub(crate) fn value_embedding(&self, v: Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(v, |v, a| a.value_embedding(v))
    }

    pub(crate) fn before_block(&self, layer: usize, hidden: Tensor) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(hidden, |hidden, a| a.before_block(layer, hidden))
    }

    pub(crate) fn qkv_weight(&self, layer: usize, weight: &Tensor) -> Result<Tensor> {
        if !self.0.iter().any(|a| a.changes_qkv_weight(layer)) {
            return Ok(weight.shallow_clone());
        }
        self.0
            .iter()
            .try_fold(full(weight)?, |weight, a| a.qkv_weight(layer, weight))
    }

    pub(crate) fn qkv(&self, layer: usize, x: &Tensor, qkv: Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(qkv, |qkv, a| a.qkv(layer, x, qkv))
    }

    pub(crate) fn attention_context(&self, layer: usize, mixed: Tensor) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(mixed, |mixed, a| a.attention_context(layer, mixed))
    }

    pub(crate) fn after_attention_norm(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(h, |h, a| a.after_attention_norm(layer, h))
    }

    pub(crate) fn feed_forward_residual(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(h, |h, a| a.feed_forward_residual(layer, h))
    }

    pub(crate) fn after_block(&self, layer: usize, h: &Tensor, y: Tensor) -> Result<Tensor> {
        self.0.iter().try_fold(y, |y, a| a.after_block(layer, h, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_names_existing_blocks_or_is_an_error() {
        assert_eq!(
            LayerSelection::FirstHalf.resolve(12).unwrap(),
            [0, 1, 2, 3, 4, 5]
        );
        assert_eq!(LayerSelection::All.resolve(2).unwrap(), [0, 1]);
        assert_eq!(
            LayerSelection::Listed(vec![2, 0, 2]).resolve(3).unwrap(),
            [0, 2]
        );
        let beyond = LayerSelection::Listed(vec![3])
            .resolve(3)
            .unwrap_err()
            .to_string();
        assert_eq!(
            beyond,
            "adapter.layers: block 3 is selected, the backbone has blocks 0 to 2"
        );
        assert!(LayerSelection::FirstHalf.resolve(1).is_err());
    }
}
