use tch::Tensor;

use crate::Result;
use crate::ops::{Linear, cast, full};
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
    fn specs(prefix: &str, inputs: i64, d_model: i64) -> Vec<TensorSpec> {
        [(0, inputs, d_model), (2, d_model, d_model), (4, d_model, 1)]
            .iter()
            .flat_map(|&(i, inputs, outputs)| {
                Linear::specs(&format!("{prefix}.{i}"), inputs, outputs, true, Role::Head)
            })
            .collect()
    }

    fn bind(params: &Params, prefix: &str) -> Result<Self> {
        let linear = |i: usize| Linear::bind(params, &format!("{prefix}.{i}"), true);
        Ok(Self([linear(0)?, linear(2)?, linear(4)?]))
    }

    /// `x`: `[B, S, D]`; `batch`: `[B, D]` for a stack over states and batch embeddings; returns
    /// `[B, S]` in full precision.
    fn forward(&self, x: &Tensor, batch: Option<&Tensor>) -> Result<Tensor> {
        let [first, second, last] = &self.0;
        let x = match batch {
            None => first.forward(x)?,
            Some(batch) => concatenated(first, x, batch)?,
        };
        let x = second.forward(&x.f_leaky_relu()?)?.f_leaky_relu()?;
        full(&last.forward(&x)?.f_squeeze_dim(-1)?)
    }
}

/// `layer` on [x, batch repeated over S], computed in two parts so that the repeated embedding is
/// never laid out in memory.
fn concatenated(layer: &Linear, x: &Tensor, batch: &Tensor) -> Result<Tensor> {
    let (kind, d_model) = (x.f_kind()?, batch.size2()?.1);
    let weight = cast(&layer.weight, kind)?;
    let inputs = weight.size2()?.1;
    let of_tokens = weight.f_narrow(1, 0, inputs - d_model)?;
    let of_batch = weight.f_narrow(1, inputs - d_model, d_model)?;
    let bias = match &layer.bias {
        Some(bias) => Some(cast(bias, kind)?),
        None => None,
    };
    let shift = cast(batch, kind)?.f_linear(&of_batch, bias.as_ref())?; // [B, D]
    Ok(x.f_linear(&of_tokens, None::<&Tensor>)?
        .f_add(&shift.f_unsqueeze(1)?)?)
}

/// Decoder of masked expression (scGPT's `ExprDecoder`).
#[derive(Debug)]
pub struct ExpressionDecoder {
    value: Stack,
    nonzero: Option<Stack>,
}

impl ExpressionDecoder {
    /// Tensors of the decoder `prefix`; `explicit_zero` adds the stack that models zero expression,
    /// `batch_labels` doubles the input by the batch embedding.
    pub fn specs(
        prefix: &str,
        d_model: i64,
        explicit_zero: bool,
        batch_labels: bool,
    ) -> Vec<TensorSpec> {
        let inputs = if batch_labels { 2 * d_model } else { d_model };
        let mut specs = Stack::specs(&format!("{prefix}.fc"), inputs, d_model);
        if explicit_zero {
            specs.extend(Stack::specs(
                &format!("{prefix}.zero_logit"),
                inputs,
                d_model,
            ));
        }
        specs
    }

    /// Binds to the tensors of [`ExpressionDecoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, prefix: &str, explicit_zero: bool) -> Result<Self> {
        Ok(Self {
            value: Stack::bind(params, &format!("{prefix}.fc"))?,
            nonzero: if explicit_zero {
                Some(Stack::bind(params, &format!("{prefix}.zero_logit"))?)
            } else {
                None
            },
        })
    }

    /// # Shapes
    /// `hidden`: `[B, S, D]`; `batch`: batch embeddings `[B, D]` when the decoder was built for
    /// them.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, hidden: &Tensor, batch: Option<&Tensor>) -> Result<Expression> {
        let nonzero_probability = match &self.nonzero {
            Some(stack) => Some(stack.forward(hidden, batch)?.f_sigmoid()?),
            None => None,
        };
        Ok(Expression {
            prediction: self.value.forward(hidden, batch)?,
            nonzero_probability,
        })
    }
}
