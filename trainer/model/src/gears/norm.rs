use tch::{Kind, Tensor};

use super::Statistics;
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

/// torch's defaults.
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch norm over rows.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

/// What a norm saw in a training pass, with its running statistics.
#[derive(Debug)]
pub struct Seen {
    mean: Tensor,
    variance: Tensor,
    running: [Tensor; 2],
}

impl BatchNorm {
    pub(super) fn specs(prefix: &str, width: i64) -> Vec<TensorSpec> {
        let spec = |name: &str, init, role| {
            TensorSpec::new(format!("{prefix}.{name}"), &[width], init, role).in_full_precision()
        };
        vec![
            spec("weight", Init::Ones, Role::Head),
            spec("bias", Init::Zeros, Role::Head),
            spec("running_mean", Init::Zeros, Role::Buffer),
            spec("running_var", Init::Ones, Role::Buffer),
        ]
    }

    pub(super) fn bind(params: &Params, prefix: &str) -> Result<Self> {
        let get = |name: &str| params.get(&format!("{prefix}.{name}"));
        Ok(Self {
            weight: get("weight")?,
            bias: get("bias")?,
            mean: get("running_mean")?,
            variance: get("running_var")?,
        })
    }

    /// `x`: `[N, D]`, at least two rows in training; returns the same shape.
    pub(super) fn forward(&self, x: &Tensor, statistics: &mut Statistics) -> Result<Tensor> {
        let Statistics::Batch(seen) = statistics else {
            let (mean, variance) = (Some(&self.mean), Some(&self.variance));
            return Ok(x.f_batch_norm(
                Some(&self.weight),
                Some(&self.bias),
                mean,
                variance,
                false,
                MOMENTUM,
                EPS,
                true,
            )?);
        };
        let (mean, variance) = tch::no_grad(|| -> Result<_> {
            let dims = [0_i64].as_slice();
            Ok((
                x.f_mean_dim(Some(dims), false, None::<Kind>)?,
                x.f_var_dim(Some(dims), true, false)?,
            ))
        })?;
        seen.push(Seen {
            mean,
            variance,
            running: [self.mean.shallow_clone(), self.variance.shallow_clone()],
        });
        let none = None::<&Tensor>;
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        Ok(x.f_batch_norm(weight, bias, none, none, true, MOMENTUM, EPS, true)?)
    }
}

impl Seen {
    /// Moves the running statistics.
    pub(super) fn apply(&self) -> Result<()> {
        tch::no_grad(|| {
            for (running, seen) in self.running.iter().zip([&self.mean, &self.variance]) {
                let _ = running.shallow_clone().f_lerp_(seen, MOMENTUM)?;
            }
            Ok(())
        })
    }
}
