use tch::Tensor;

use super::stack::{Activation, ClassifierStack};
use crate::Result;
use crate::params::{Params, TensorSpec};

const PREFIX: &str = "cls_decoder";

/// Cell-type classifier: `n_layers - 1` times [Linear(D, D), ReLU, LayerNorm], then
/// Linear(D, classes).
#[derive(Debug)]
pub struct ClassificationHead(ClassifierStack);

impl ClassificationHead {
    /// Tensors of the head; `n_layers` counts the output layer (published default 3).
    pub fn specs(d_model: i64, n_layers: usize, classes: i64) -> Vec<TensorSpec> {
        ClassifierStack::specs(PREFIX, d_model, n_layers, classes)
    }

    /// Binds to the tensors of [`ClassificationHead::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, n_layers: usize) -> Result<Self> {
        ClassifierStack::bind(params, PREFIX, n_layers, Activation::Relu).map(Self)
    }

    /// # Shapes
    /// `cell`: `[B, D]`; returns logits `[B, classes]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, cell: &Tensor) -> Result<Tensor> {
        self.0.forward(cell)
    }
}
