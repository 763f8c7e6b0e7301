use tch::Tensor;

use crate::Result;
use crate::ops::Linear;
use crate::params::{Params, Role, TensorSpec};

/// Predicted expression per gene token.
#[derive(Debug)]
pub struct Expression {
    /// `[B, S]`, in units of expression bins.
    pub prediction: Tensor,
    /// `[B, S]`: the probability that the expression is *not* zero (the published name, zero
    /// probability, says the opposite of what its loss trains), when the decoder models it.
    pub nonzero_probability: Option<Tensor>,
}

/// Three linear layers with leaky ReLU (slope 0.01) from a token's state to one number.
#[derive(Debug)]
struct Stack([Linear; 3]);

impl Stack {
    fn specs(prefix: &str, d_model: i64) -> Vec<TensorSpec> {
        [(0, d_model), (2, d_model), (4, 1)]
            .iter()
            .flat_map(|&(i, outputs)| {
                Linear::specs(&format!("{prefix}.{i}"), d_model, outputs, true, Role::Head)
            })
            .collect()
    }

    fn bind(params: &Params, prefix: &str) -> Result<Self> {
        let linear = |i: usize| Linear::bind(params, &format!("{prefix}.{i}"), true);
        Ok(Self([linear(0)?, linear(2)?, linear(4)?]))
    }

    /// `x`: `[B, S, D]`; returns `[B, S]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, last] = &self.0;
        let x = first.forward(x)?.f_leaky_relu()?;
        let x = second.forward(&x)?.f_leaky_relu()?;
        Ok(last.forward(&x)?.f_squeeze_dim(-1)?)
    }
}

/// Decoder of masked expression (scGPT's `ExprDecoder`).
#[derive(Debug)]
pub struct ExpressionDecoder {
    value: Stack,
    nonzero: Option<Stack>,
}

impl ExpressionDecoder {
    /// Tensors of the decoder; `explicit_zero` adds the stack that models zero expression.
    pub fn specs(d_model: i64, explicit_zero: bool) -> Vec<TensorSpec> {
        let mut specs = Stack::specs("decoder.fc", d_model);
        if explicit_zero {
            specs.extend(Stack::specs("decoder.zero_logit", d_model));
        }
        specs
    }

    /// Binds to the tensors of [`ExpressionDecoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, explicit_zero: bool) -> Result<Self> {
        Ok(Self {
            value: Stack::bind(params, "decoder.fc")?,
            nonzero: if explicit_zero {
                Some(Stack::bind(params, "decoder.zero_logit")?)
            } else {
                None
            },
        })
    }

    /// # Shapes
    /// `hidden`: `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, hidden: &Tensor) -> Result<Expression> {
        let nonzero_probability = match &self.nonzero {
            Some(stack) => Some(stack.forward(hidden)?.f_sigmoid()?),
            None => None,
        };
        Ok(Expression {
            prediction: self.value.forward(hidden)?,
            nonzero_probability,
        })
    }
}
