//! The scGPT transformer (Cui et al. 2024): gene and value embeddings, post-norm blocks, a cell
//! embedding, and the heads of its objectives.
//!
//! The generator of perturbed expression is the same encoder with perturbation flags added to the
//! embedding and an affine decoder: see [`Heads::affine`].

mod freeze;
mod heads;
mod model;
mod values;

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape, Names};
use crate::backbone::post_norm::{Activation, BlockStyle, Blocks, Parts};
use crate::backbone::{Architecture, Model};
use crate::exec::ExecutorKind;
use crate::norm::{EmbeddingNorm, NormStyle};
use crate::ops::{LAYER_NORM_EPS, LayerNorm};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

pub use super::{Encoded, Inputs, Purpose, Shape};
pub use heads::{BatchLabels, Classifier, HeadSet, Heads, Mvc};
pub use model::Scgpt;
pub use values::{ValueEncoder, ValueStyle};

/// Names in the published checkpoints.
pub const NAMES: Names = Names {
    blocks: "transformer_encoder.layers",
    attention: "self_attn",
    projections: None,
    token: Some("value_encoder"),
    prefix: None,
};

const BLOCKS: BlockStyle = BlockStyle {
    names: NAMES,
    parts: Parts {
        out_proj: "self_attn.out_proj",
        linear1: "linear1",
        linear2: "linear2",
        norm1: "norm1",
        norm2: "norm2",
    },
    norm_eps: LAYER_NORM_EPS,
    activation: Activation::Relu,
    activation_dropout: true,
};

/// The cell embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CellStyle {
    /// State of `<cls>`.
    #[default]
    Cls,
    /// Mean of the states.
    AveragePool(Pooled),
    /// Sum of the states weighted by the input values, then L2-normalised.
    WeightedPool(Pooled),
}

/// The positions that a pooled cell embedding is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooled {
    /// Those of genes and `<cls>`.
    Tokens,
    /// All, padding included (weighted by its pad value), as the reference has it. The embedding
    /// then depends on the longest cell of the micro-batch.
    Everything,
}

/// What goes into the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputOptions {
    /// What a value becomes.
    pub values: ValueStyle,
    /// The norm between embedding and blocks.
    pub norm: NormStyle,
    /// Perturbation flags (0, 1, 2) are embedded too; the row of this flag is padding, which never
    /// trains.
    pub perturbation_pad: Option<i64>,
    /// The cell embedding.
    pub cell: CellStyle,
}

/// A model before its tensors exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Dimensions of the encoder.
    pub shape: Shape,
    /// Inputs and cell embedding.
    pub inputs: InputOptions,
    /// Heads.
    pub heads: Heads,
    /// Adapters, applied in order.
    pub adapters: Vec<AdapterOptions>,
}

impl Blueprint {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Naming the setting that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.shape.validate()?;
        self.block_adapters()?;
        self.heads.validate()
    }

    fn block_shape(&self) -> BlockShape {
        BlockShape {
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
            d_attention: self.shape.d_model,
            pre_norm: false,
            names: Names {
                token: (self.inputs.values == ValueStyle::Continuous).then_some("value_encoder"),
                ..NAMES
            },
        }
    }

    fn block_adapters(&self) -> Result<AdapterSet> {
        AdapterSet::build(&self.adapters, self.block_shape())
    }

    /// Every tensor of the model: encoder, heads, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let mut specs = self.encoder_specs();
        specs.extend(self.heads.specs(self.shape.d_model));
        specs.extend(self.block_adapters()?.specs(self.block_shape()));
        Ok(specs)
    }

    fn encoder_specs(&self) -> Vec<TensorSpec> {
        let d_model = self.shape.d_model;
        let role = Role::Backbone;
        let mut specs = vec![TensorSpec::new(
            "encoder.embedding.weight".into(),
            &[self.shape.vocab, d_model],
            Init::Uniform { bound: 0.1 },
            role,
        )];
        specs.extend(LayerNorm::specs("encoder.enc_norm", d_model, role));
        specs.extend(ValueEncoder::specs(self.inputs.values, d_model));
        if let Some(pad) = self.inputs.perturbation_pad {
            specs.push(model::perturbation_spec(d_model, pad));
        }
        specs.extend(EmbeddingNorm::specs(self.inputs.norm, d_model));
        specs.extend(Blocks::specs(self.shape, BLOCKS));
        specs
    }

    /// The first block that takes part in a backward pass when `trains` says what trains; the
    /// number of blocks when there is none.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn first_in_backward(&self, trains: impl Fn(&TensorSpec) -> bool) -> Result<usize> {
        let adapters = self.block_adapters()?;
        Ok(adapters.first_in_backward(&self.encoder_specs(), self.block_shape(), &trains))
    }

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn unfreezes(&self) -> Result<Vec<String>> {
        Ok(self.block_adapters()?.unfreezes())
    }
}

impl Architecture for Blueprint {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn specs(&self) -> Result<Vec<TensorSpec>> {
        Self::specs(self)
    }

    fn unfreezes(&self) -> Result<Vec<String>> {
        Self::unfreezes(self)
    }

    fn trains_beside(&self, purpose: Purpose, name: &str) -> bool {
        let trained = freeze::trained(purpose);
        trained.iter().any(|start| name.starts_with(start))
    }

    fn first_in_backward(&self, trains: &dyn Fn(&TensorSpec) -> bool) -> Result<usize> {
        Self::first_in_backward(self, trains)
    }

    fn norm(&self) -> NormStyle {
        self.inputs.norm
    }

    fn bind_model(&self, params: &Params, executor: ExecutorKind) -> Result<Box<dyn Model>> {
        Ok(Box::new(Scgpt::bind(self, params, executor)?))
    }
}
