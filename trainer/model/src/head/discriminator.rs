use tch::Tensor;

use super::stack::{Activation, ClassifierStack};
use crate::Result;
use crate::params::{Params, TensorSpec};

const PREFIX: &str = "grad_reverse_discriminator";
/// Layers of the published discriminator, output included.
const LAYERS: usize = 3;

/// Adversarial batch discriminator (DAB): guesses the batch of a cell from its embedding through a
/// gradient reversal (Ganin and Lempitsky 2015, lambda 1), so that training it makes the embedding
/// forget the batch.
#[derive(Debug)]
pub struct BatchDiscriminator(ClassifierStack);

impl BatchDiscriminator {
    /// Tensors of the head.
    pub fn specs(d_model: i64, batches: i64) -> Vec<TensorSpec> {
        ClassifierStack::specs(PREFIX, d_model, LAYERS, batches)
    }

    /// Binds to the tensors of [`BatchDiscriminator::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params) -> Result<Self> {
        ClassifierStack::bind(params, PREFIX, LAYERS, Activation::LeakyRelu).map(Self)
    }

    /// # Shapes
    /// `cell`: `[B, D]`; returns logits `[B, batches]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, cell: &Tensor) -> Result<Tensor> {
        self.0.forward(&reverse_gradient(cell)?)
    }
}

/// `x` itself (2x - x is exact in floating point), with the gradient of -x.
fn reverse_gradient(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_mul_scalar(2.0)?.f_sub(x)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_reversal_keeps_values_and_turns_gradients_round() {
        let x = Tensor::randn([64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let y = reverse_gradient(&x).unwrap();
        assert!(y.equal(&x));
        (&y * 3.0).sum(Kind::Float).backward();
        assert!(
            x.grad()
                .equal(&Tensor::full([64], -3.0, (Kind::Float, Device::Cpu)))
        );
    }
}
