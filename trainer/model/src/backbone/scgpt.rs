//! The scGPT transformer (Cui et al. 2024): gene and continuous value embeddings, post-norm
//! blocks, `<cls>` cell embedding, with the heads of its objectives.

use tch::{Kind, Tensor};

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape};
use crate::attention::SelfAttention;
use crate::exec::{Block, BlockContext, Dropout, Executor, Plain};
use crate::head::{ClassificationHead, ExpressionDecoder, MvcDecoder};
use crate::ops::{LayerNorm, Linear};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Values above this are cut before they are embedded.
const VALUE_MAX: f64 = 512.0;

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

/// Which heads the model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heads {
    /// Number of cell types; `None` for no classifier.
    pub classes: Option<i64>,
    /// Layers of the classifier, output included (`n_layers_cls`).
    pub classifier_layers: usize,
    /// Masked value prediction from the cell embedding.
    pub mvc: bool,
    /// Decoders also model the probability of zero expression.
    pub explicit_zero: bool,
}

/// A model before its tensors exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Dimensions of the encoder.
    pub shape: Shape,
    /// Heads.
    pub heads: Heads,
    /// Adapters, applied in order.
    pub adapters: Vec<AdapterOptions>,
}

/// A micro-batch on the device.
#[derive(Debug)]
pub struct Inputs {
    /// Gene token ids: i32 or i64 `[B, S]`.
    pub gene_ids: Tensor,
    /// Expression bins, mask and pad values included: f32 `[B, S]`.
    pub values: Tensor,
    /// True where the token is padding: bool `[B, S]`; `None` when nothing is padded.
    pub padding: Option<Tensor>,
}

/// The encoder's output.
#[derive(Debug)]
pub struct Encoded {
    /// Token states `[B, S, D]`.
    pub hidden: Tensor,
    /// Normalised gene embeddings `[B, S, D]`, input of the MVC head.
    pub genes: Tensor,
    /// State of `<cls>`, the cell embedding `[B, D]`.
    pub cell: Tensor,
}

impl Blueprint {
    /// Checks that the dimensions fit together.
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
        if n_heads < 1 || d_model % n_heads != 0 {
            return Err(Error::Setting {
                setting: "backbone.shape.n_heads",
                problem: format!("{n_heads} heads do not divide d_model {d_model}"),
            });
        }
        if n_layers == 0 {
            return Err(Error::Setting {
                setting: "backbone.shape.n_layers",
                problem: "must be at least 1, got 0".into(),
            });
        }
        if !(0..vocab).contains(&pad_id) {
            return Err(Error::Setting {
                setting: "backbone.vocab",
                problem: format!(
                    "the id of `<pad>` is {pad_id}, the vocabulary has {vocab} tokens"
                ),
            });
        }
        Ok(())
    }

    fn block_shape(&self) -> BlockShape {
        BlockShape {
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
        }
    }

    /// Every tensor of the model: encoder, heads, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let mut specs = self.encoder_specs();
        specs.extend(ExpressionDecoder::specs(
            self.shape.d_model,
            self.heads.explicit_zero,
        ));
        if let Some(classes) = self.heads.classes {
            specs.extend(ClassificationHead::specs(
                self.shape.d_model,
                self.heads.classifier_layers,
                classes,
            ));
        }
        if self.heads.mvc {
            specs.extend(MvcDecoder::specs(
                self.shape.d_model,
                self.heads.explicit_zero,
            ));
        }
        specs.extend(
            AdapterSet::build(&self.adapters, self.block_shape())?.specs(self.block_shape()),
        );
        Ok(specs)
    }

    fn encoder_specs(&self) -> Vec<TensorSpec> {
        let Shape {
            vocab,
            d_model,
            d_hid,
            n_layers,
            ..
        } = self.shape;
        let role = Role::Backbone;
        let mut specs = vec![TensorSpec::new(
            "encoder.embedding.weight".into(),
            &[vocab, d_model],
            Init::Uniform { bound: 0.1 },
            role,
        )];
        specs.extend(LayerNorm::specs("encoder.enc_norm", d_model, role));
        specs.extend(Linear::specs(
            "value_encoder.linear1",
            1,
            d_model,
            true,
            role,
        ));
        specs.extend(Linear::specs(
            "value_encoder.linear2",
            d_model,
            d_model,
            true,
            role,
        ));
        specs.extend(LayerNorm::specs("value_encoder.norm", d_model, role));
        for layer in 0..n_layers {
            let prefix = format!("transformer_encoder.layers.{layer}");
            specs.extend(SelfAttention::specs(
                &format!("{prefix}.self_attn"),
                d_model,
            ));
            specs.extend(Linear::specs(
                &format!("{prefix}.linear1"),
                d_model,
                d_hid,
                true,
                role,
            ));
            specs.extend(Linear::specs(
                &format!("{prefix}.linear2"),
                d_hid,
                d_model,
                true,
                role,
            ));
            specs.extend(LayerNorm::specs(&format!("{prefix}.norm1"), d_model, role));
            specs.extend(LayerNorm::specs(&format!("{prefix}.norm2"), d_model, role));
        }
        specs
    }

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn unfreezes(&self) -> Result<Vec<String>> {
        Ok(AdapterSet::build(&self.adapters, self.block_shape())?.unfreezes())
    }
}

/// A post-norm block: `h = LN1(x + attention(x))`, `y = LN2(h + FF(h))`, ReLU inside FF.
#[derive(Debug)]
struct PostNormBlock {
    layer: usize,
    attention: SelfAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
}

impl PostNormBlock {
    fn bind(params: &Params, layer: usize, n_heads: i64) -> Result<Self> {
        let prefix = format!("transformer_encoder.layers.{layer}");
        Ok(Self {
            layer,
            attention: SelfAttention::bind(params, &format!("{prefix}.self_attn"), n_heads)?,
            linear1: Linear::bind(params, &format!("{prefix}.linear1"), true)?,
            linear2: Linear::bind(params, &format!("{prefix}.linear2"), true)?,
            norm1: LayerNorm::bind(params, &format!("{prefix}.norm1"))?,
            norm2: LayerNorm::bind(params, &format!("{prefix}.norm2"))?,
        })
    }
}

/// A block with the adapters attached to it.
struct Adapted<'a> {
    block: &'a PostNormBlock,
    adapters: &'a AdapterSet,
}

impl Block for Adapted<'_> {
    fn forward(&self, hidden: &Tensor, context: &BlockContext<'_>) -> Result<Tensor> {
        let Self { block, adapters } = self;
        let dropout = context.dropout;
        let attended = block.attention.forward(
            block.layer,
            hidden,
            context.keep,
            adapters,
            dropout.attention,
        )?;
        let h = block
            .norm1
            .forward(&hidden.f_add(&dropout.apply(attended)?)?)?;
        let h = adapters.after_attention_norm(block.layer, h)?;
        let inner = dropout.apply(block.linear1.forward(&h)?.f_relu()?)?;
        let fed = dropout.apply(block.linear2.forward(&inner)?)?;
        block.norm2.forward(&h.f_add(&fed)?)
    }
}

/// The bound model.
#[derive(Debug)]
pub struct Scgpt {
    shape: Shape,
    embedding: Tensor,
    gene_norm: LayerNorm,
    value_linear1: Linear,
    value_linear2: Linear,
    value_norm: LayerNorm,
    blocks: Vec<PostNormBlock>,
    adapters: AdapterSet,
    executor: Box<dyn Executor>,
    /// Masked expression from token states; always present, as in the published models.
    pub expression: ExpressionDecoder,
    /// Cell types from the cell embedding.
    pub classifier: Option<ClassificationHead>,
    /// Masked expression from the cell embedding.
    pub mvc: Option<MvcDecoder>,
}

impl Scgpt {
    /// Binds a model to its tensors.
    ///
    /// # Errors
    /// When `params` was not built from the blueprint's specs.
    pub fn bind(blueprint: &Blueprint, params: &Params) -> Result<Self> {
        let Blueprint { shape, heads, .. } = *blueprint;
        let mut adapters = AdapterSet::build(&blueprint.adapters, blueprint.block_shape())?;
        adapters.bind(params)?;
        Ok(Self {
            shape,
            embedding: params.get("encoder.embedding.weight")?,
            gene_norm: LayerNorm::bind(params, "encoder.enc_norm")?,
            value_linear1: Linear::bind(params, "value_encoder.linear1", true)?,
            value_linear2: Linear::bind(params, "value_encoder.linear2", true)?,
            value_norm: LayerNorm::bind(params, "value_encoder.norm")?,
            blocks: (0..shape.n_layers)
                .map(|layer| PostNormBlock::bind(params, layer, shape.n_heads))
                .collect::<Result<_>>()?,
            adapters,
            executor: Box::new(Plain),
            expression: ExpressionDecoder::bind(params, heads.explicit_zero)?,
            classifier: match heads.classes {
                Some(_) => Some(ClassificationHead::bind(params, heads.classifier_layers)?),
                None => None,
            },
            mvc: if heads.mvc {
                Some(MvcDecoder::bind(params, heads.explicit_zero)?)
            } else {
                None
            },
        })
    }

    /// Runs the encoder.
    ///
    /// # Shapes
    /// See [`Inputs`] and [`Encoded`]; position 0 of every cell is `<cls>`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn encode(&self, inputs: &Inputs, dropout: Dropout) -> Result<Encoded> {
        let genes = Tensor::f_embedding(
            &self.embedding,
            &inputs.gene_ids,
            self.shape.pad_id,
            false,
            false,
        )?;
        let genes = self.gene_norm.forward(&genes)?;
        let embedded = genes.f_add(&self.embed_values(&inputs.values, dropout)?)?;
        let keep = match &inputs.padding {
            Some(padding) => Some(padding.f_logical_not()?.f_unsqueeze(1)?.f_unsqueeze(1)?),
            None => None,
        };
        let context = BlockContext {
            keep: keep.as_ref(),
            dropout,
        };
        let adapted: Vec<Adapted<'_>> = self
            .blocks
            .iter()
            .map(|block| Adapted {
                block,
                adapters: &self.adapters,
            })
            .collect();
        let blocks: Vec<&dyn Block> = adapted.iter().map(|b| b as &dyn Block).collect();
        let hidden = self.executor.run(&blocks, embedded, &context)?;
        let cell = hidden.f_select(1, 0)?;
        Ok(Encoded {
            hidden,
            genes,
            cell,
        })
    }

    /// Continuous value encoder: `[B, S]` to `[B, S, D]`.
    fn embed_values(&self, values: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let v = values
            .f_to_kind(Kind::Float)?
            .f_clamp_max(VALUE_MAX)?
            .f_unsqueeze(-1)?;
        let v = self
            .value_linear2
            .forward(&self.value_linear1.forward(&v)?.f_relu()?)?;
        dropout.apply(self.value_norm.forward(&v)?)
    }
}
