//! scBERT (Yang et al. 2022): a Performer over all genes of a fixed panel, expressed or not. A gene is
//! its place in the panel, with a frozen vector of gene2vec; its token says in which bin its
//! expression lies.
//!
//! What it computes is `performer_pytorch`'s language model as the published code has it, names of
//! tensors included. One head per model, as there: [`Head`].

mod heads;
mod model;

use crate::adapter::{AdapterOptions, AdapterSet, BlockShape, Names};
use crate::backbone::performer::{
    ATTENTION, KeyMax, PART, PROJECTIONS, PerformerBlocks, PerformerShape,
};
use crate::backbone::{Architecture, Model, Purpose, RandomFeatures, Shape};
use crate::exec::ExecutorKind;
use crate::ops::LayerNorm;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

pub use model::Scbert;

/// Names in the published checkpoints.
pub const NAMES: Names = Names {
    blocks: "performer.net.layers",
    attention: ATTENTION,
    projections: Some(PROJECTIONS),
    token: Some("token_emb"),
    prefix: Some("performer.net.prompt_embeddings"),
};

/// The embedding of bins.
pub const TOKENS: &str = "token_emb.weight";
/// The frozen vectors of the panel's genes, in double precision.
pub const POSITIONS: &str = "pos_emb.emb.weight";
const NORM: &str = "norm";

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A class of the cell.
    Cell {
        /// Number of classes.
        classes: i64,
        /// Widths of the two hidden layers; published 512 and 128.
        hidden: [i64; 2],
    },
    /// The bin that was masked, of each gene.
    MaskedTokens,
}

/// What trains beside adapters and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreezeRule {
    /// Nothing but, with LoRA, the biases that it brings along.
    #[default]
    Adapters,
    /// As the published script: with LoRA also the whole weights of the projections that it updates.
    Published,
}

/// A model before its tensors exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Dimensions: as many tokens as bins, mask and padding included.
    pub shape: Shape,
    /// Width of a head.
    pub d_head: i64,
    /// Random features of a head.
    pub features: i64,
    /// Places N: genes of the panel and one more.
    pub positions: i64,
    /// The keys that share their maximum.
    pub key_max: KeyMax,
    /// Whether the directions of random features are drawn anew while training: then they are saved
    /// with the adapters.
    pub redrawn: bool,
    /// Whether the projections to queries, keys and values have biases, which LoRA of the published
    /// code brings along and the published weights lack.
    pub qkv_bias: bool,
    /// The head.
    pub head: Head,
    /// What trains.
    pub freeze: FreezeRule,
    /// Adapters, applied in order.
    pub adapters: Vec<AdapterOptions>,
}

impl Blueprint {
    fn performer(&self) -> PerformerShape {
        PerformerShape {
            names: NAMES,
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
            n_heads: self.shape.n_heads,
            d_head: self.d_head,
            d_hid: self.shape.d_hid,
            features: self.features,
            qkv_bias: self.qkv_bias,
            key_max: self.key_max,
            part: PART,
        }
    }

    fn block_shape(&self) -> BlockShape {
        BlockShape {
            n_layers: self.shape.n_layers,
            d_model: self.shape.d_model,
            d_attention: self.shape.n_heads * self.d_head,
            pre_norm: true,
            names: NAMES,
        }
    }

    fn block_adapters(&self) -> Result<AdapterSet> {
        AdapterSet::build(&self.adapters, self.block_shape())
    }

    /// Places behind the last block: a prefix is kept.
    fn places(&self, adapters: &AdapterSet) -> i64 {
        self.positions + adapters.prefix().map_or(0, |(_, length)| length)
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Naming the setting that does not fit.
    pub fn validate(&self) -> Result<()> {
        let Shape {
            vocab,
            n_heads,
            n_layers,
            ..
        } = self.shape;
        let sizes = [
            ("backbone.shape.n_heads", n_heads),
            ("backbone.shape.n_layers", n_layers as i64),
            ("backbone.shape.d_head", self.d_head),
            ("backbone.shape.n_features", self.features),
            ("backbone.vocab", self.positions - 1),
            ("backbone.shape.n_bins", vocab - 2),
        ];
        for (setting, size) in sizes {
            if size < 1 {
                let problem = format!("must be at least 1, got {size}");
                return Err(Error::Setting { setting, problem });
            }
        }
        self.block_adapters().map(drop)
    }

    fn encoder_specs(&self) -> Vec<TensorSpec> {
        let d = self.shape.d_model;
        let table = |name: &str, rows| {
            let init = Init::standard_normal();
            TensorSpec::new(name.to_owned(), &[rows, d], init, Role::Backbone)
        };
        let mut specs = vec![
            table(TOKENS, self.shape.vocab),
            table(POSITIONS, self.positions).in_double_precision(),
        ];
        specs.extend(PerformerBlocks::specs(&self.performer()));
        specs.extend(LayerNorm::specs(NORM, d, Role::Backbone));
        specs
    }

    /// Every tensor of the model: encoder, head, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn specs(&self) -> Result<Vec<TensorSpec>> {
        self.validate()?;
        let adapters = self.block_adapters()?;
        let mut specs = self.encoder_specs();
        for spec in &mut specs {
            // The published weights lack them: they start so that LoRA starts at the backbone.
            let of_projection = PROJECTIONS.iter().any(|part| spec.name.contains(part));
            if of_projection && spec.name.rsplit('.').next() == Some("bias") {
                spec.init = Init::Zeros;
                spec.role = Role::Adapter;
            }
            if self.redrawn && spec.role == Role::Constant {
                spec.role = Role::Buffer;
            }
        }
        let shape = self.shape;
        specs.extend(heads::specs(
            self.head,
            shape.d_model,
            shape.vocab,
            self.places(&adapters),
        ));
        specs.extend(adapters.specs(self.block_shape()));
        Ok(specs)
    }

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    pub fn unfreezes(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for adapter in &self.adapters {
            let AdapterOptions::Lora(lora) = adapter else {
                continue;
            };
            if self.freeze != FreezeRule::Published {
                continue;
            }
            for layer in lora.layers.resolve(self.shape.n_layers)? {
                let modules = lora.targets.iter().map(|&part| PROJECTIONS[part as usize]);
                names.extend(modules.map(|m| NAMES.in_attention(layer, &format!("{m}.weight"))));
            }
        }
        Ok(names)
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

    fn adapts(&self, purpose: Purpose, spec: &TensorSpec, unfrozen: &[String]) -> bool {
        // The key has a bias beside the two that LoRA updates, and it stays.
        match spec.role {
            Role::Adapter => !spec.name.ends_with("to_k.bias"),
            Role::Buffer | Role::Constant => false,
            Role::Backbone | Role::Head => {
                self.trains_beside(purpose, &spec.name) || unfrozen.contains(&spec.name)
            }
        }
    }

    fn trains_beside(&self, _purpose: Purpose, name: &str) -> bool {
        name.starts_with("to_out.")
    }

    fn first_in_backward(&self, trains: &dyn Fn(&TensorSpec) -> bool) -> Result<usize> {
        let adapters = self.block_adapters()?;
        let mut encoder = self.encoder_specs();
        // The last norm comes after the blocks.
        encoder.retain(|spec| !spec.name.starts_with("norm."));
        Ok(adapters.first_in_backward(&encoder, self.block_shape(), trains))
    }

    fn random_features(&self) -> Option<RandomFeatures> {
        Some(RandomFeatures {
            per_token: self.shape.n_heads * self.features,
            d_attention: self.shape.n_heads * self.d_head,
            part: PART,
        })
    }

    fn bind_model(&self, params: &Params, executor: ExecutorKind) -> Result<Box<dyn Model>> {
        Ok(Box::new(Scbert::bind(self, params, executor)?))
    }
}
