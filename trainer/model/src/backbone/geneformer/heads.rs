//! The heads of a BERT encoder: a class of the sequence, a class of each token, the masked token.

use tch::Tensor;

use super::Head;
use crate::backbone::absent;
use crate::backbone::post_norm::Activation;
use crate::exec::Pass;
use crate::ops::{LayerNorm, Linear, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

pub(super) const POOLER: &str = "bert.pooler.dense";
pub(super) const CLASSIFIER: &str = "classifier";
/// Everything of the masked-token head.
pub(super) const PREDICTIONS: &str = "cls.predictions";

/// The bound head.
#[derive(Debug)]
pub(super) enum BoundHead {
    Sequence {
        pooler: Linear,
        classifier: Linear,
    },
    Tokens(Linear),
    Masked {
        transform: Linear,
        norm: LayerNorm,
        activation: Activation,
        bias: Tensor,
    },
}

pub(super) fn specs(head: Head, d_model: i64, vocab: i64) -> Vec<TensorSpec> {
    let role = Role::Head;
    let linear = |prefix: &str, outputs| Linear::specs(prefix, d_model, outputs, true, role);
    match head {
        Head::Sequence { classes } => {
            let mut specs = linear(POOLER, d_model);
            specs.extend(linear(CLASSIFIER, classes));
            specs
        }
        Head::Tokens { classes } => linear(CLASSIFIER, classes),
        Head::MaskedTokens => {
            let mut specs = vec![TensorSpec::new(
                format!("{PREDICTIONS}.bias"),
                &[vocab],
                Init::Zeros,
                role,
            )];
            specs.extend(linear(&format!("{PREDICTIONS}.transform.dense"), d_model));
            let norm = format!("{PREDICTIONS}.transform.LayerNorm");
            specs.extend(LayerNorm::specs(&norm, d_model, role));
            specs
        }
    }
}

impl BoundHead {
    pub(super) fn bind(
        params: &Params,
        head: Head,
        activation: Activation,
        norm_eps: f64,
    ) -> Result<Self> {
        let linear = |prefix: &str| Linear::bind(params, prefix, true);
        Ok(match head {
            Head::Sequence { .. } => Self::Sequence {
                pooler: linear(POOLER)?,
                classifier: linear(CLASSIFIER)?,
            },
            Head::Tokens { .. } => Self::Tokens(linear(CLASSIFIER)?),
            Head::MaskedTokens => {
                let norm = format!("{PREDICTIONS}.transform.LayerNorm");
                Self::Masked {
                    transform: linear(&format!("{PREDICTIONS}.transform.dense"))?,
                    norm: LayerNorm::bind_with(params, &norm, norm_eps)?,
                    activation,
                    bias: params.get(&format!("{PREDICTIONS}.bias"))?,
                }
            }
        })
    }

    /// `hidden`: `[B, S, D]`; the pooled state of position 0, `[B, D]`, in full precision.
    pub(super) fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Sequence { pooler, .. } => {
                Ok(pooler.forward(&full(&hidden.f_select(1, 0)?)?)?.f_tanh()?)
            }
            _ => Err(absent("sequence classification")),
        }
    }

    /// Logits `[B, classes]`.
    pub(super) fn classify(&self, hidden: &Tensor, pass: Pass) -> Result<Tensor> {
        match self {
            Self::Sequence { classifier, .. } => {
                classifier.forward(&pass.drop_head(self.pool(hidden)?)?)
            }
            _ => Err(absent("sequence classification")),
        }
    }

    /// Logits `[B, S, classes]`.
    pub(super) fn classify_tokens(&self, hidden: &Tensor, pass: Pass) -> Result<Tensor> {
        match self {
            Self::Tokens(classifier) => classifier.forward(&pass.drop_head(full(hidden)?)?),
            _ => Err(absent("token classification")),
        }
    }

    /// Logits `[B, S, V]` over the rows of `table`, the embedding of tokens.
    pub(super) fn predict_tokens(&self, hidden: &Tensor, table: &Tensor) -> Result<Tensor> {
        let Self::Masked {
            transform,
            norm,
            activation,
            bias,
        } = self
        else {
            return Err(absent("masked token"));
        };
        let h = activation.apply(&transform.forward(&full(hidden)?)?)?;
        Ok(norm.forward(&h)?.f_linear(&full(table)?, Some(bias))?)
    }
}
