//! Geneformer (Theodoris et al. 2023): a BERT encoder over the genes of a cell in order of their
//! expression. There are no values: a cell is the sequence of its gene tokens, and where a gene
//! stands says how strongly it is expressed.
//!
//! What it computes is Hugging Face's `modeling_bert`, names of tensors included. One head per
//! model, as there: [`Head`].

mod heads;
mod model;

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape, Names};
use crate::backbone::post_norm::{BlockStyle, Blocks, Parts};
use crate::backbone::{Architecture, Model, Purpose, Shape};
use crate::exec::ExecutorKind;
use crate::ops::LayerNorm;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

pub use crate::backbone::post_norm::Activation;
pub use model::Geneformer;

/// Names in the published checkpoints.
pub const NAMES: Names = Names {
    blocks: "bert.encoder.layer",
    attention: "attention.self",
    projections: Some(["query", "key", "value"]),
    token: Some("bert"),
    prefix: None,
};

const EMBEDDINGS: &str = "bert.embeddings";
/// Standard deviation of matrices that start random (`initializer_range`).
const INIT_STD: f64 = 0.02;

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A class of the cell, from the pooled state of position 0.
    Sequence {
        /// Number of classes.
        classes: i64,
    },
    /// A class of each gene, from its state.
    Tokens {
        /// Number of classes.
        classes: i64,
    },
    /// The token that was masked; its output matrix is the embedding of tokens.
    MaskedTokens,
}

/// What trains beside adapters and classifier (scPEFT's scripts disagree).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreezeRule {
    /// The tutorial's: the pooler too, which starts random, and with LoRA the biases of query, key
    /// and value.
    #[default]
    Tutorial,
    /// The scripts': the pooler stays a random projection, and the bias of the key stays.
    Scripts,
}

/// The states that the cell embedding is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellStyle {
    /// That of position 0: `<cls>` where the vocabulary has one, else the highest-ranked gene.
    First,
    /// The mean over genes.
    Mean,
}

/// The cell embedding, of evaluation passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellEmbedding {
    /// The states it is made of.
    pub style: CellStyle,
    /// Of the input of the last block (published default) instead of its output.
    pub second_to_last: bool,
}

/// A model before its tensors exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Dimensions of the encoder.
    pub shape: Shape,
    /// Longest sequence (`max_position_embeddings`).
    pub positions: i64,
    /// Rows of the table of token types (`type_vocab_size`); row 0 is used.
    pub token_types: i64,
    /// In the feed-forward halves and the masked-token head (`hidden_act`).
    pub activation: Activation,
    /// Epsilon of all norms (`layer_norm_eps`).
    pub norm_eps: f64,
    /// Ids of `<cls>` and `<eos>`, where the vocabulary has them: no genes.
    pub special: Vec<i64>,
    /// The cell embedding.
    pub cell: CellEmbedding,
    /// The head.
    pub head: Head,
    /// What trains.
    pub freeze: FreezeRule,
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

    fn block_style(&self) -> BlockStyle {
        BlockStyle {
            names: NAMES,
            parts: Parts {
                out_proj: "attention.output.dense",
                linear1: "intermediate.dense",
                linear2: "output.dense",
                norm1: "attention.output.LayerNorm",
                norm2: "output.LayerNorm",
            },
            norm_eps: self.norm_eps,
            activation: self.activation,
            activation_dropout: false,
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
        if self.positions < 1 || self.token_types < 1 {
            return Err(Error::Setting {
                setting: "backbone.path",
                problem: format!(
                    "config.json has {} positions and {} token types, at least 1 of each is needed",
                    self.positions, self.token_types
                ),
            });
        }
        self.block_adapters().map(drop)
    }

    fn encoder_specs(&self) -> Vec<TensorSpec> {
        let d_model = self.shape.d_model;
        let role = Role::Backbone;
        let table = |name: &str, rows| {
            let name = format!("{EMBEDDINGS}.{name}.weight");
            TensorSpec::new(name, &[rows, d_model], Init::Zeros, role)
        };
        let mut specs = vec![
            table("word_embeddings", self.shape.vocab),
            table("position_embeddings", self.positions),
            table("token_type_embeddings", self.token_types),
        ];
        let norm = format!("{EMBEDDINGS}.LayerNorm");
        specs.extend(LayerNorm::specs(&norm, d_model, role));
        specs.extend(Blocks::specs(self.shape, self.block_style()));
        specs
    }

    /// Every tensor of the model: encoder, head, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let mut specs = self.encoder_specs();
        specs.extend(heads::specs(
            self.head,
            self.shape.d_model,
            self.shape.vocab,
        ));
        specs.iter_mut().for_each(start_like_bert);
        specs.extend(self.block_adapters()?.specs(self.block_shape()));
        Ok(specs)
    }

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn unfreezes(&self) -> Result<Vec<String>> {
        let mut names = self.block_adapters()?.unfreezes();
        if self.freeze == FreezeRule::Scripts {
            names.retain(|name| !name.ends_with(".key.bias"));
        }
        Ok(names)
    }
}

/// BERT starts matrices normal and biases at zero.
fn start_like_bert(spec: &mut TensorSpec) {
    if spec.shape.len() == 2 {
        spec.init = Init::Normal { std: INIT_STD };
    } else if spec.name.rsplit('.').next() == Some("bias") {
        spec.init = Init::Zeros;
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

    fn trains_beside(&self, _purpose: Purpose, name: &str) -> bool {
        let of = |module: &str| {
            name.strip_prefix(module)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        of(heads::CLASSIFIER)
            || of(heads::PREDICTIONS)
            || (self.freeze == FreezeRule::Tutorial && of(heads::POOLER))
    }

    fn first_in_backward(&self, trains: &dyn Fn(&TensorSpec) -> bool) -> Result<usize> {
        let adapters = self.block_adapters()?;
        Ok(adapters.first_in_backward(&self.encoder_specs(), self.block_shape(), trains))
    }

    fn bind_model(&self, params: &Params, executor: ExecutorKind) -> Result<Box<dyn Model>> {
        Ok(Box::new(Geneformer::bind(self, params, executor)?))
    }
}
