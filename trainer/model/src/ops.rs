//! The few layers that every part is made of, over tensors bound by name.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::init::Init;
use crate::params::{Params, Role, TensorSpec};

/// torch's epsilon of a layer norm.
pub(crate) const LAYER_NORM_EPS: f64 = 1e-5;

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

    /// `x`: `[.., inputs]`; returns `[.., outputs]` in the format of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let bias = match &self.bias {
            Some(bias) => Some(cast(bias, kind)?),
            None => None,
        };
        Ok(x.f_linear(&cast(&self.weight, kind)?, bias.as_ref())?)
    }

    /// Whether a gradient is wanted for one of its tensors.
    pub(crate) fn trains(&self) -> bool {
        self.weight.requires_grad() || self.bias.as_ref().is_some_and(Tensor::requires_grad)
    }
}

/// `x` in another number format; itself when it already has it.
pub(crate) fn cast(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.f_kind()? == kind {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_to_kind(kind)?)
}

/// `x` in full precision: as it is, unless it is bf16.
pub(crate) fn full(x: &Tensor) -> Result<Tensor> {
    match x.f_kind()? {
        Kind::BFloat16 => cast(x, Kind::Float),
        _ => Ok(x.shallow_clone()),
    }
}

/// A copy that shares nothing with `x` and belongs to no graph.
pub(crate) fn copy(x: &Tensor) -> Result<Tensor> {
    let mut out = x.f_empty_like()?;
    tch::no_grad(|| out.f_copy_(x))?;
    Ok(out)
}

/// Layer norm over the last dimension, with weight and bias.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn specs(prefix: &str, width: i64, role: Role) -> Vec<TensorSpec> {
        vec![
            TensorSpec::new(format!("{prefix}.weight"), &[width], Init::Ones, role)
                .in_full_precision(),
            TensorSpec::new(format!("{prefix}.bias"), &[width], Init::Zeros, role)
                .in_full_precision(),
        ]
    }

    pub(crate) fn bind(params: &Params, prefix: &str) -> Result<Self> {
        Self::bind_with(params, prefix, LAYER_NORM_EPS)
    }

    pub(crate) fn bind_with(params: &Params, prefix: &str, eps: f64) -> Result<Self> {
        let weight = params.get(&format!("{prefix}.weight"))?;
        let width = weight.size()[0];
        Ok(Self {
            weight,
            bias: params.get(&format!("{prefix}.bias"))?,
            width,
            eps,
        })
    }

    /// `x`: `[.., width]`; returns the same shape and format. Mean and variance are taken in full
    /// precision whatever the format of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        if kind == self.weight.f_kind()? || x.device() == Device::Cpu {
            return self.normalize(x);
        }
        // The CUDA kernel wants input and weight in one format, the CPU's does not.
        cast(&self.normalize(&full(x)?)?, kind)
    }

    /// Whether a gradient is wanted for one of its tensors.
    pub(crate) fn trains(&self) -> bool {
        self.weight.requires_grad() || self.bias.requires_grad()
    }

    fn normalize(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm(
            [self.width],
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )?)
    }
}
