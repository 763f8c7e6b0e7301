//! The scGPT transformer (Cui et al. 2024): gene and value embeddings, post-norm blocks, a cell
//! embedding, and the heads of its objectives.
//!
//! The generator of perturbed expression is the same encoder with perturbation flags added to the
//! embedding and an affine decoder: see [`Heads::affine`].

mod block;
mod freeze;
mod heads;
mod model;
mod values;

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape};
use crate::norm::{EmbeddingNorm, NormStyle};
use crate::ops::LayerNorm;
use crate::params::{Role, TensorSpec};
use crate::{Error, Init, Result};

pub use freeze::Purpose;
pub use heads::{BatchLabels, Classifier, HeadSet, Heads, Mvc};
pub use model::{Encoded, Inputs, Scgpt};
pub use values::{ValueEncoder, ValueStyle};

/// Dimensions of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Vocabulary size V, special tokens included.
    pub vocab: i64,
    /// Width D (`embsize`).
    pub d_model: i64,
    /// Attention heads H (`nheads`).
    pub n_heads: i64,
    /// Width of the feed-forward half (`d_hid`).
    pub d_hid: i64,
    /// Blocks L (`nlayers`).
    pub n_layers: usize,
    /// Id of `<pad>`: its embedding row never trains.
    pub pad_id: i64,
}

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
        let Shape {
            d_model,
            n_heads,
            n_layers,
            pad_id,
            vocab,
            ..
        } = self.shape;
        let (setting, problem) = if n_heads < 1 || d_model % n_heads != 0 {
            (
                "backbone.shape.n_heads",
                format!("{n_heads} heads do not divide d_model {d_model}"),
            )
        } else if n_layers == 0 {
            (
                "backbone.shape.n_layers",
                "must be at least 1, got 0".into(),
            )
        } else if !(0..vocab).contains(&pad_id) {
            (
                "backbone.vocab",
                format!("the id of `<pad>` is {pad_id}, the vocabulary has {vocab} tokens"),
            )
        } else {
            self.block_adapters()?;
            return self.heads.validate();
        };
        Err(Error::Setting { setting, problem })
    }

    fn block_shape(&self) -> BlockShape {
        BlockShape {
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
            continuous_values: self.inputs.values == ValueStyle::Continuous,
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
        specs.extend(block::Blocks::specs(self.shape));
        specs
    }

    /// The first block that takes part in a backward pass when `trains` says what trains; the
    /// number of blocks when there is none.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn first_in_backward(&self, trains: impl Fn(&TensorSpec) -> bool) -> Result<usize> {
        let adapters = self.block_adapters()?;
        let on_embedding = adapters.embedding_specs(self.block_shape());
        let encoder = self.encoder_specs();
        let before = encoder.iter().filter(|s| s.block.is_none());
        if before.chain(&on_embedding).any(&trains) {
            return Ok(0);
        }
        let trained: Vec<usize> = (encoder.iter().filter(|s| trains(s)))
            .filter_map(|s| s.block)
            .collect();
        let mut layers = 0..self.shape.n_layers;
        let first = layers.find(|layer| adapters.attached(*layer) || trained.contains(layer));
        Ok(first.unwrap_or(self.shape.n_layers))
    }

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn unfreezes(&self) -> Result<Vec<String>> {
        Ok(self.block_adapters()?.unfreezes())
    }
}
