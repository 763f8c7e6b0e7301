use tch::Tensor;

use super::Expression;
use crate::Result;
use crate::ops::Linear;
use crate::params::{Params, Role, TensorSpec};

const PREFIX: &str = "mvc_decoder";

/// Masked value prediction from the cell embedding (GEPC), inner-product style: with gene
/// embeddings g and cell embedding c, `prediction[b, s] = <W sigmoid(gene2query(g[b, s])), c[b]>`.
#[derive(Debug)]
pub struct MvcDecoder {
    gene2query: Linear,
    value: Linear,
    nonzero: Option<Linear>,
}

impl MvcDecoder {
    /// Tensors of the decoder; `explicit_zero` adds the projection that models zero expression.
    pub fn specs(d_model: i64, explicit_zero: bool) -> Vec<TensorSpec> {
        let linear = |name: &str, bias| {
            Linear::specs(
                &format!("{PREFIX}.{name}"),
                d_model,
                d_model,
                bias,
                Role::Head,
            )
        };
        let mut specs = linear("gene2query", true);
        specs.extend(linear("W", false));
        if explicit_zero {
            specs.extend(linear("W_zero_logit", true));
        }
        specs
    }

    /// Binds to the tensors of [`MvcDecoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, explicit_zero: bool) -> Result<Self> {
        let linear = |name: &str, bias| Linear::bind(params, &format!("{PREFIX}.{name}"), bias);
        Ok(Self {
            gene2query: linear("gene2query", true)?,
            value: linear("W", false)?,
            nonzero: if explicit_zero {
                Some(linear("W_zero_logit", true)?)
            } else {
                None
            },
        })
    }

    /// # Shapes
    /// `cell`: `[B, D]`; `genes`: gene embeddings `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, cell: &Tensor, genes: &Tensor) -> Result<Expression> {
        let query = self.gene2query.forward(genes)?.f_sigmoid()?;
        let cell = cell.f_unsqueeze(2)?; // [B, D, 1]
        let project = |w: &Linear| -> Result<Tensor> {
            Ok(w.forward(&query)?.f_bmm(&cell)?.f_squeeze_dim(2)?)
        };
        let nonzero_probability = match &self.nonzero {
            Some(w) => Some(project(w)?.f_sigmoid()?),
            None => None,
        };
        Ok(Expression {
            prediction: project(&self.value)?,
            nonzero_probability,
        })
    }
}
