use tch::Tensor;

use crate::ops::LayerNorm;
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

const PREFIX: &str = "batch_encoder";

/// Embedding of the batch that a cell comes from, input of the expression decoders.
#[derive(Debug)]
pub struct BatchEncoder {
    embedding: Tensor,
    norm: LayerNorm,
}

impl BatchEncoder {
    /// Tensors of the encoder.
    pub fn specs(d_model: i64, batches: i64) -> Vec<TensorSpec> {
        let mut specs = vec![
            TensorSpec::new(
                format!("{PREFIX}.embedding.weight"),
                &[batches, d_model],
                Init::standard_normal(),
                Role::Head,
            )
            .in_full_precision(),
        ];
        specs.extend(LayerNorm::specs(
            &format!("{PREFIX}.enc_norm"),
            d_model,
            Role::Head,
        ));
        specs
    }

    /// Binds to the tensors of [`BatchEncoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params) -> Result<Self> {
        Ok(Self {
            embedding: params.get(&format!("{PREFIX}.embedding.weight"))?,
            norm: LayerNorm::bind(params, &format!("{PREFIX}.enc_norm"))?,
        })
    }

    /// # Shapes
    /// `labels`: i64 `[B]`; returns `[B, D]` in full precision.
    ///
    /// # Errors
    /// A label beyond the batches of the model.
    pub fn forward(&self, labels: &Tensor) -> Result<Tensor> {
        let embedded = Tensor::f_embedding(&self.embedding, labels, -1, false, false)?;
        self.norm.forward(&embedded)
    }
}
