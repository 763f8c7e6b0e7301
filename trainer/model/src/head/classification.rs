use tch::Tensor;

use crate::Result;
use crate::ops::{LayerNorm, Linear};
use crate::params::{Params, Role, TensorSpec};

const PREFIX: &str = "cls_decoder";

/// Cell-type classifier: `hidden_layers` times [Linear(D, D), ReLU, LayerNorm], then
/// Linear(D, classes).
#[derive(Debug)]
pub struct ClassificationHead {
    hidden: Vec<(Linear, LayerNorm)>,
    out: Linear,
}

impl ClassificationHead {
    /// Tensors of the head; `n_layers` counts the output layer (published default 3).
    pub fn specs(d_model: i64, n_layers: usize, classes: i64) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        for i in 0..n_layers.saturating_sub(1) {
            // The published module list holds Linear, ReLU and LayerNorm in turn.
            specs.extend(Linear::specs(
                &format!("{PREFIX}._decoder.{}", 3 * i),
                d_model,
                d_model,
                true,
                Role::Head,
            ));
            specs.extend(LayerNorm::specs(
                &format!("{PREFIX}._decoder.{}", 3 * i + 2),
                d_model,
                Role::Head,
            ));
        }
        specs.extend(Linear::specs(
            &format!("{PREFIX}.out_layer"),
            d_model,
            classes,
            true,
            Role::Head,
        ));
        specs
    }

    /// Binds to the tensors of [`ClassificationHead::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, n_layers: usize) -> Result<Self> {
        let hidden = (0..n_layers.saturating_sub(1))
            .map(|i| {
                Ok((
                    Linear::bind(params, &format!("{PREFIX}._decoder.{}", 3 * i), true)?,
                    LayerNorm::bind(params, &format!("{PREFIX}._decoder.{}", 3 * i + 2))?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            hidden,
            out: Linear::bind(params, &format!("{PREFIX}.out_layer"), true)?,
        })
    }

    /// # Shapes
    /// `cell`: `[B, D]`; returns logits `[B, classes]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, cell: &Tensor) -> Result<Tensor> {
        let mut x = cell.shallow_clone();
        for (linear, norm) in &self.hidden {
            x = norm.forward(&linear.forward(&x)?.f_relu()?)?;
        }
        self.out.forward(&x)
    }
}
