use tch::{Kind, Tensor};

use super::{Expression, ExpressionDecoder};
use crate::Result;
use crate::params::{Params, TensorSpec};

/// Applied to coefficient and bias alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AffineActivation {
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, else `exp(x) - 1`.
    Elu,
    /// `x` where positive, else `0.01 x`.
    LeakyRelu,
    /// `ln(1 + exp(x))`.
    Softplus,
}

/// Settings of the affine decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AffineOptions {
    /// Applied to coefficient and bias; published default none.
    pub activation: Option<AffineActivation>,
    /// Multiply the bias by the mean of the cell's non-zero input values.
    pub adaptive_bias: bool,
    /// The coefficient decoder also models the probability of zero expression.
    pub explicit_zero: bool,
}

/// Expression after a perturbation as an affine function of the control expression:
/// `coefficient(state) * value + bias(state)` (scGPT's `AffineExprDecoder`).
#[derive(Debug)]
pub struct AffineDecoder {
    coefficient: ExpressionDecoder,
    bias: ExpressionDecoder,
    options: AffineOptions,
}

impl AffineDecoder {
    /// Tensors of the decoder.
    pub fn specs(prefix: &str, d_model: i64, options: AffineOptions) -> Vec<TensorSpec> {
        ["coeff_decoder", "bias_decoder"]
            .iter()
            .flat_map(|part| {
                let prefix = format!("{prefix}.{part}");
                ExpressionDecoder::specs(&prefix, d_model, options.explicit_zero, false)
            })
            .collect()
    }

    /// Binds to the tensors of [`AffineDecoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, prefix: &str, options: AffineOptions) -> Result<Self> {
        let part = |name: &str| {
            ExpressionDecoder::bind(params, &format!("{prefix}.{name}"), options.explicit_zero)
        };
        Ok(Self {
            coefficient: part("coeff_decoder")?,
            bias: part("bias_decoder")?,
            options,
        })
    }

    /// # Shapes
    /// `hidden`: `[B, S, D]`; `values`: control expression, f32 `[B, S]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, hidden: &Tensor, values: &Tensor) -> Result<Expression> {
        let coefficient = self.coefficient.forward(hidden, None)?;
        let mut bias = self.activate(&self.bias.forward(hidden, None)?.prediction)?;
        if self.options.adaptive_bias {
            bias = bias.f_mul(&mean_of_expressed(values)?)?;
        }
        let prediction = self
            .activate(&coefficient.prediction)?
            .f_mul(values)?
            .f_add(&bias)?;
        Ok(Expression {
            prediction,
            nonzero_probability: coefficient.nonzero_probability,
        })
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.options.activation {
            None => x.shallow_clone(),
            Some(AffineActivation::Relu) => x.f_relu()?,
            Some(AffineActivation::Elu) => x.f_elu()?,
            Some(AffineActivation::LeakyRelu) => x.f_leaky_relu()?,
            Some(AffineActivation::Softplus) => x.f_softplus()?,
        })
    }
}

/// Mean of a cell's non-zero values `[B, 1]`; 0 for a cell without any.
fn mean_of_expressed(values: &Tensor) -> Result<Tensor> {
    let expressed = values.f_ne(0.0)?.f_sum_dim_intlist(1, true, Kind::Float)?;
    Ok(values
        .f_sum_dim_intlist(1, true, None::<Kind>)?
        .f_div(&expressed.f_clamp_min(1.0)?)?)
}
