//! scFoundation (Hao et al. 2024), `mae_autobin`: an encoder over the genes that a cell expresses and
//! a decoder over all genes. A token is a gene with its normalised expression; two more tokens may
//! say how deep the cell was sequenced and how deep it should have been.
//!
//! The encoder is a stack of post-norm blocks with a norm behind it; numbers become embeddings by
//! auto-discretisation ([`Values`]). Adapters attach to the encoder. They act in evaluation as they do
//! in training: that the reference leaves some of them out there is a defect of its.

mod decoder;
mod head;
mod model;
mod pool;
mod values;

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape, Names};
use crate::backbone::post_norm::{Activation, BlockStyle, Blocks, Parts};
use crate::backbone::{Architecture, Model, Purpose, Shape};
use crate::exec::ExecutorKind;
use crate::ops::{LAYER_NORM_EPS, LayerNorm};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

pub use decoder::{Decoded, DecoderShape};
pub use model::Scfoundation;
pub use pool::{Pool, PoolStyle};

/// Names in the published checkpoints, without the `model.` in front.
pub const NAMES: Names = Names {
    blocks: "encoder.transformer_encoder",
    attention: "self_attn",
    projections: None,
    token: Some("encoder"),
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

/// Embeddings of genes: a row for each, one for each read depth, one for padding.
const POSITIONS: &str = "pos_emb.weight";
/// The norm behind the blocks.
const NORM: &str = "encoder.norm";

/// How numbers become embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    /// Bins N (`bin_num`).
    pub bins: i64,
    /// Weight of a bin's own activation in its share (`bin_alpha`).
    pub bin_alpha: f64,
    /// The number that stands for padding (`pad_token_id`).
    pub pad_value: f64,
    /// The number that stands for a hidden value (`mask_token_id`).
    pub mask_value: f64,
}

/// The classifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Number of classes.
    pub classes: i64,
    /// Dropout inside, in training; 0.5 in the reference.
    pub dropout: f64,
}

/// A model before its tensors exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Dimensions of the encoder. Its vocabulary are the genes, T, S, and padding, in this order.
    pub shape: Shape,
    /// How numbers become embeddings.
    pub values: Values,
    /// The cell embedding.
    pub pool: Pool,
    /// The row of the embeddings of genes that padding has: [`Shape::pad_id`], or that of a gene, as
    /// the reference's classifier has it. Seen only by a pool that counts padding.
    pub pad_position: i64,
    /// The classifier, if there is one.
    pub head: Option<Head>,
    /// The decoder, if there is one.
    pub decoder: Option<DecoderShape>,
    /// Adapters, applied in order.
    pub adapters: Vec<AdapterOptions>,
}

impl Blueprint {
    fn block_shape(&self) -> BlockShape {
        BlockShape {
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
            d_attention: self.shape.d_model,
            pre_norm: false,
            names: NAMES,
        }
    }

    fn block_adapters(&self) -> Result<AdapterSet> {
        AdapterSet::build(&self.adapters, self.block_shape())
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Naming the setting that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.shape.validate()?;
        if self.values.bins < 1 {
            return Err(Error::Setting {
                setting: "backbone.shape.n_bins",
                problem: format!("must be at least 1, got {}", self.values.bins),
            });
        }
        if !(0..self.shape.vocab).contains(&self.pad_position) {
            return Err(Error::Setting {
                setting: "backbone.path",
                problem: format!(
                    "padding is at place {}, there are {} places",
                    self.pad_position, self.shape.vocab
                ),
            });
        }
        self.block_adapters().map(drop)
    }

    fn encoder_specs(&self) -> Vec<TensorSpec> {
        let Shape { vocab, d_model, .. } = self.shape;
        let role = Role::Backbone;
        let mut specs = values::specs(self.values, d_model);
        let start = Init::standard_normal();
        specs.push(TensorSpec::new(
            POSITIONS.to_owned(),
            &[vocab, d_model],
            start,
            role,
        ));
        specs.extend(Blocks::specs(self.shape, BLOCKS));
        specs.extend(LayerNorm::specs(NORM, d_model, role));
        specs
    }

    /// Every tensor of the model: encoder, head, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let mut specs = self.encoder_specs();
        if let Some(decoder) = self.decoder {
            specs.extend(decoder::specs(decoder, self.shape.d_model));
        }
        if let Some(head) = self.head {
            specs.extend(head::specs(self.pool, self.shape.d_model, head.classes));
        }
        specs.extend(self.block_adapters()?.specs(self.block_shape()));
        Ok(specs)
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
        Ok(self.block_adapters()?.unfreezes())
    }

    fn trains_beside(&self, _purpose: Purpose, name: &str) -> bool {
        let rest = name.strip_prefix(head::MODULE);
        rest.is_some_and(|rest| rest.starts_with('.'))
    }

    fn first_in_backward(&self, trains: &dyn Fn(&TensorSpec) -> bool) -> Result<usize> {
        let adapters = self.block_adapters()?;
        let mut encoder = self.encoder_specs();
        // Behind the blocks: nothing goes back through them for its sake.
        encoder.retain(|spec| !spec.name.starts_with(NORM));
        Ok(adapters.first_in_backward(&encoder, self.block_shape(), trains))
    }

    fn bind_model(&self, params: &Params, executor: ExecutorKind) -> Result<Box<dyn Model>> {
        Ok(Box::new(Scfoundation::bind(self, params, executor)?))
    }
}
