use tch::Tensor;

use crate::Result;
use crate::ops::{LayerNorm, Linear, full};
use crate::params::{Params, Role, TensorSpec};

/// What stands between the linear layer and the norm of a [`ClassifierStack`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Activation {
    Relu,
    LeakyRelu,
}

/// `n_layers - 1` times [Linear(D, D), activation, LayerNorm], then Linear(D, classes): the shape of
/// the cell-type classifier and of the batch discriminator.
#[derive(Debug)]
pub(super) struct ClassifierStack {
    hidden: Vec<(Linear, LayerNorm)>,
    out: Linear,
    activation: Activation,
}

impl ClassifierStack {
    pub(super) fn specs(
        prefix: &str,
        d_model: i64,
        n_layers: usize,
        classes: i64,
    ) -> Vec<TensorSpec> {
        let role = Role::Head;
        let mut specs = Vec::new();
        for i in 0..n_layers.saturating_sub(1) {
            // The published module list holds Linear, activation and LayerNorm in turn.
            let linear = format!("{prefix}._decoder.{}", 3 * i);
            let norm = format!("{prefix}._decoder.{}", 3 * i + 2);
            specs.extend(Linear::specs(&linear, d_model, d_model, true, role));
            specs.extend(LayerNorm::specs(&norm, d_model, role));
        }
        let out = format!("{prefix}.out_layer");
        specs.extend(Linear::specs(&out, d_model, classes, true, role));
        specs
    }

    pub(super) fn bind(
        params: &Params,
        prefix: &str,
        n_layers: usize,
        activation: Activation,
    ) -> Result<Self> {
        let hidden = (0..n_layers.saturating_sub(1))
            .map(|i| {
                Ok((
                    Linear::bind(params, &format!("{prefix}._decoder.{}", 3 * i), true)?,
                    LayerNorm::bind(params, &format!("{prefix}._decoder.{}", 3 * i + 2))?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            hidden,
            out: Linear::bind(params, &format!("{prefix}.out_layer"), true)?,
            activation,
        })
    }

    /// `cell`: `[B, D]`; returns logits `[B, classes]` in full precision.
    pub(super) fn forward(&self, cell: &Tensor) -> Result<Tensor> {
        let mut x = full(cell)?;
        for (linear, norm) in &self.hidden {
            let y = linear.forward(&x)?;
            let y = match self.activation {
                Activation::Relu => y.f_relu()?,
                Activation::LeakyRelu => y.f_leaky_relu()?,
            };
            x = norm.forward(&y)?;
        }
        self.out.forward(&x)
    }
}
