//! Backbones: one module each, with the architecture, the names of its tensors and its heads.
//!
//! A backbone is an [`Architecture`], which lists its tensors and says which of them train, and a
//! [`Model`], which is bound to them. Whoever trains, evaluates or predicts knows these two traits
//! alone. What a task asks for ([`Heads`]) and what a micro-batch holds ([`Inputs`]) is the same
//! for all backbones; a model that has no such head says so.

pub mod geneformer;
pub mod performer;
mod post_norm;
pub mod scbert;
pub mod scfoundation;
pub mod scgpt;

use tch::Tensor;

use crate::exec::{ExecutorKind, Pass, Tape};
use crate::head::Expression;
use crate::norm::{EmbeddingNorm, NormStyle, Observed};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Result};

pub use post_norm::Activation;
pub use scgpt::{BatchLabels, Classifier, Heads, Mvc};

/// Dimensions of a transformer encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Vocabulary size V, special tokens included.
    pub vocab: i64,
    /// Width D.
    pub d_model: i64,
    /// Attention heads H.
    pub n_heads: i64,
    /// Width of the feed-forward half.
    pub d_hid: i64,
    /// Blocks L.
    pub n_layers: usize,
    /// Id of `<pad>`: its embedding row never trains.
    pub pad_id: i64,
}

impl Shape {
    /// Checks that the dimensions fit together.
    ///
    /// # Errors
    /// Naming the setting that does not fit.
    pub fn validate(&self) -> Result<()> {
        let Self {
            vocab,
            d_model,
            n_heads,
            n_layers,
            pad_id,
            ..
        } = *self;
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
            return Ok(());
        };
        Err(Error::Setting { setting, problem })
    }
}

/// What a model is trained for, as far as the freeze rule goes (scPEFT): adapters always train, and
/// with them what [`Architecture::trains_beside`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Cell-type identification, within and across species.
    Identification,
    /// Batch correction.
    BatchCorrection,
    /// Masked expression without labels, for the discovery of cell populations.
    Population,
    /// Response to perturbations.
    Perturbation,
    /// Response to treatments that the drug adapter is told of: nothing but adapters (scDCA).
    Treatment,
}

/// A micro-batch on the device.
#[derive(Debug)]
pub struct Inputs {
    /// Gene token ids: i32 or i64 `[B, S]`.
    pub gene_ids: Tensor,
    /// Expression bins, mask and pad values included: f32 `[B, S]`. Backbones that read the order
    /// of genes alone do not look at them.
    pub values: Tensor,
    /// True where the token is padding: bool `[B, S]`; `None` when nothing is padded.
    pub padding: Option<Tensor>,
    /// Batch of each cell: i64 `[B]`, for models that are told of it.
    pub batch_labels: Option<Tensor>,
    /// Domain of all cells, for the domain-specific batch norm.
    pub domain: Option<usize>,
    /// Perturbation flag of each gene: i64 `[B, S]`, for the generator.
    pub perturbation: Option<Tensor>,
    /// What each cell was treated with: f32 `[B, W]`, for the drug adapter.
    pub treatment: Option<Tensor>,
}

impl Inputs {
    /// Genes and values without anything else.
    pub fn new(gene_ids: Tensor, values: Tensor, padding: Option<Tensor>) -> Self {
        Self {
            gene_ids,
            values,
            padding,
            batch_labels: None,
            domain: None,
            perturbation: None,
            treatment: None,
        }
    }
}

/// The encoder's output.
#[derive(Debug)]
pub struct Encoded {
    /// Token states `[B, S, D]`.
    pub hidden: Tensor,
    /// Gene embeddings `[B, S, D]`, input of the MVC head.
    pub genes: Tensor,
    /// The cell embedding `[B, D]`, in full precision.
    pub cell: Tensor,
    /// What the backward pass needs beyond autograd: whoever calls backward on a loss of this
    /// output calls [`Tape::backward`] afterwards.
    pub tape: Option<Tape>,
    /// What a batch norm saw in a training pass.
    pub observed: Option<Observed>,
}

/// What the random features of an attention weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomFeatures {
    /// Random features of a token, of all heads.
    pub per_token: i64,
    /// Width of queries, keys and values each.
    pub d_attention: i64,
    /// Tokens that are worked on at a time.
    pub part: i64,
}

/// A model before its tensors exist.
pub trait Architecture: std::fmt::Debug {
    /// Dimensions of the encoder.
    fn shape(&self) -> Shape;

    /// Every tensor of the model: encoder, heads, adapters.
    ///
    /// # Errors
    /// Settings that do not fit together.
    fn specs(&self) -> Result<Vec<TensorSpec>>;

    /// Names of the backbone tensors that the adapters train along.
    ///
    /// # Errors
    /// Settings that do not fit together.
    fn unfreezes(&self) -> Result<Vec<String>>;

    /// Whether the tensor called `name` trains for a purpose beside the adapters.
    fn trains_beside(&self, purpose: Purpose, name: &str) -> bool;

    /// The first block that takes part in a backward pass when `trains` says what trains; the
    /// number of blocks when there is none.
    ///
    /// # Errors
    /// Settings that do not fit together.
    fn first_in_backward(&self, trains: &dyn Fn(&TensorSpec) -> bool) -> Result<usize>;

    /// The random features of its attention, where it has such.
    fn random_features(&self) -> Option<RandomFeatures> {
        None
    }

    /// The batch norm of the embedding.
    fn norm(&self) -> NormStyle {
        NormStyle::None
    }

    /// The model on tensors that were built from [`Architecture::specs`].
    ///
    /// # Errors
    /// When a tensor is missing, or `params` is sharded and `executor` keeps what it needs of
    /// blocks.
    fn bind_model(&self, params: &Params, executor: ExecutorKind) -> Result<Box<dyn Model>>;

    /// The freeze rule of adapter training; `unfrozen` are the names from
    /// [`Architecture::unfreezes`].
    fn adapts(&self, purpose: Purpose, spec: &TensorSpec, unfrozen: &[String]) -> bool {
        match spec.role {
            Role::Buffer | Role::Constant => false,
            Role::Adapter => true,
            Role::Backbone | Role::Head => {
                self.trains_beside(purpose, &spec.name) || unfrozen.contains(&spec.name)
            }
        }
    }
}

/// A model bound to its tensors.
pub trait Model: std::fmt::Debug {
    /// Runs the encoder.
    ///
    /// # Shapes
    /// See [`Inputs`] and [`Encoded`].
    ///
    /// # Errors
    /// When `inputs` lacks what the model needs, or libtorch fails.
    fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded>;

    /// Logits of the cell types `[B, classes]`; `pass` is the one that `encoded` comes from.
    ///
    /// # Errors
    /// The model has no such head, or libtorch fails.
    fn classify(&self, encoded: &Encoded, pass: Pass) -> Result<Tensor>;

    /// Expression from token states, `[B, S]`.
    ///
    /// # Errors
    /// The model has no such head, `inputs` lacks what it needs, or libtorch fails.
    fn expression(&self, _encoded: &Encoded, _inputs: &Inputs) -> Result<Expression> {
        Err(absent("expression"))
    }

    /// Expression from the cell embedding, `[B, S]`.
    ///
    /// # Errors
    /// The model has no such head, `inputs` lacks what it needs, or libtorch fails.
    fn mvc(&self, _encoded: &Encoded, _inputs: &Inputs) -> Result<Expression> {
        Err(absent("MVC"))
    }

    /// Logits of the batches `[B, batches]`, behind a gradient reversal.
    ///
    /// # Errors
    /// The model has no such head, or libtorch fails.
    fn discriminate(&self, _encoded: &Encoded) -> Result<Tensor> {
        Err(absent("batch discriminator"))
    }

    /// Attention ranks of `<cls>` at a block, one value per token but `<cls>`: f32 `[B, S - 1]`.
    ///
    /// # Errors
    /// The model has no such statistic, there is no such block, or libtorch fails.
    fn attention_ranks(&self, _inputs: &Inputs, _layer: usize) -> Result<Tensor> {
        Err(Error::Setting {
            setting: "backbone.architecture",
            problem: "only scGPT has the statistic of attention that marker genes are found by"
                .into(),
        })
    }

    /// The norm between embedding and blocks, whose running statistics the trainer updates.
    fn norm(&self) -> Option<&EmbeddingNorm> {
        None
    }

    /// Moves adapters to the nearest allowed values; after loading and after each update.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn constrain(&self) -> Result<()>;

    /// Replaces what a model draws at random and does not train, such as the directions of random
    /// features; the new ones depend on `seed` and on `draw`, which counts, alone.
    ///
    /// # Errors
    /// Only if libtorch fails.
    fn redraw(&self, _seed: u64, _draw: u64) -> Result<()> {
        Ok(())
    }

    /// Whether blocks are sharded over ranks. Then every rank must run the same passes; one with
    /// fewer micro-batches calls [`Model::join_forward`] and [`Model::join_backward`] instead.
    fn is_sharded(&self) -> bool;

    /// Gathers what [`Model::encode`] gathers, and computes nothing.
    ///
    /// # Errors
    /// When gathering fails.
    fn join_forward(&self) -> Result<()>;

    /// Gathers what [`Tape::backward`] of a training pass gathers, and computes nothing.
    ///
    /// # Errors
    /// When gathering fails.
    fn join_backward(&self) -> Result<()>;
}

/// The error of a model that was asked for a head that it has not.
pub(crate) fn absent(head: &str) -> Error {
    Error::Internal(format!("the model was built without its {head} head"))
}
