//! Adapters: small trainable parts attached to frozen blocks.
//!
//! An adapter is one file that implements [`Adapter`]: which tensors it adds and how they start,
//! which frozen tensors it unfreezes, and what it does at each place of a block where it may
//! attach. Adding one adds its file and its line in the registry [`AdapterOptions`]; its settings
//! come from the configuration's `[adapter]` section, its place in the HF PEFT layout from the
//! trainer's checkpointing.

mod encoder;
mod lora;

use tch::Tensor;

use crate::params::{Params, TensorSpec};
use crate::{Error, Result};

pub use encoder::EncoderOptions;
pub use lora::{LoraOptions, Projection};

/// What an adapter must know of the backbone it attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// Number of blocks L.
    pub n_layers: usize,
    /// Width D.
    pub d_model: i64,
}

/// The packed query, key and value projection of one block.
#[derive(Debug, Clone, Copy)]
pub struct QkvProjection<'a> {
    /// Input of the projection `[B, S, D]`.
    pub x: &'a Tensor,
    /// Packed weight `[3D, D]`, rows q, k, v.
    pub weight: &'a Tensor,
    /// Packed bias `[3D]`.
    pub bias: &'a Tensor,
}

/// A trainable part attached to some blocks. Every hook defaults to "not attached here".
pub trait Adapter: std::fmt::Debug + Send {
    /// The adapter's tensors, in a fixed order.
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec>;

    /// Names of backbone tensors that train along with the adapter.
    fn unfreezes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Binds to the tensors of [`Adapter::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    fn bind(&mut self, params: &Params) -> Result<()>;

    /// Adds to the packed projection of block `layer`.
    ///
    /// # Shapes
    /// `qkv`: `[B, S, 3D]`, already `x W^T + b`; returns the same shape.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn qkv(&self, _layer: usize, _projection: QkvProjection<'_>, qkv: Tensor) -> Result<Tensor> {
        Ok(qkv)
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
    /// Low-rank update of the packed projection.
    Lora(LoraOptions),
}

impl AdapterOptions {
    /// An unbound adapter for a backbone of the given shape.
    ///
    /// # Errors
    /// Settings that do not fit the backbone.
    pub fn build(&self, shape: BlockShape) -> Result<Box<dyn Adapter>> {
        Ok(match self {
            Self::Encoder(options) => Box::new(encoder::Encoder::new(options, shape)?),
            Self::Lora(options) => Box::new(lora::Lora::new(options, shape)?),
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
    /// Settings that do not fit the backbone.
    pub fn build(options: &[AdapterOptions], shape: BlockShape) -> Result<Self> {
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

    pub(crate) fn qkv(
        &self,
        layer: usize,
        projection: QkvProjection<'_>,
        qkv: Tensor,
    ) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(qkv, |qkv, a| a.qkv(layer, projection, qkv))
    }

    pub(crate) fn after_attention_norm(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        self.0
            .iter()
            .try_fold(h, |h, a| a.after_attention_norm(layer, h))
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
