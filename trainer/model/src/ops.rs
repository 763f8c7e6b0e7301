//! The few layers that every part is made of, over tensors bound by name.

use tch::Tensor;

use crate::Result;
use crate::init::Init;
use crate::params::{Params, Role, TensorSpec};

/// Epsilon of every layer norm of the backbones here.
const LAYER_NORM_EPS: f64 = 1e-5;

/// `y = x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// The tensors of a linear layer `prefix` with torch's default initialisation.
    pub(crate) fn specs(
        prefix: &str,
        inputs: i64,
        outputs: i64,
        bias: bool,
        role: Role,
    ) -> Vec<TensorSpec> {
        let init = Init::linear(inputs);
        let mut specs = vec![TensorSpec::new(
            format!("{prefix}.weight"),
            &[outputs, inputs],
            init,
            role,
        )];
        if bias {
            specs.push(TensorSpec::new(
                format!("{prefix}.bias"),
                &[outputs],
                init,
                role,
            ));
        }
        specs
    }

    pub(crate) fn bind(params: &Params, prefix: &str, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: params.get(&format!("{prefix}.weight"))?,
            bias: if bias {
                Some(params.get(&format!("{prefix}.bias"))?)
            } else {
                None
            },
        })
    }

    /// `x`: `[.., inputs]`; returns `[.., outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// Layer norm over the last dimension, with weight and bias.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl LayerNorm {
    pub(crate) fn specs(prefix: &str, width: i64, role: Role) -> Vec<TensorSpec> {
        vec![
            TensorSpec::new(format!("{prefix}.weight"), &[width], Init::Ones, role),
            TensorSpec::new(format!("{prefix}.bias"), &[width], Init::Zeros, role),
        ]
    }

    pub(crate) fn bind(params: &Params, prefix: &str) -> Result<Self> {
        let weight = params.get(&format!("{prefix}.weight"))?;
        let width = weight.size()[0];
        Ok(Self {
            weight,
            bias: params.get(&format!("{prefix}.bias"))?,
            width,
        })
    }

    /// `x`: `[.., width]`; returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm(
            [self.width],
            Some(&self.weight),
            Some(&self.bias),
            LAYER_NORM_EPS,
            true,
        )?)
    }
}
