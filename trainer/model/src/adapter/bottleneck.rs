use tch::Tensor;

use crate::ops::Linear;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// `fc2(GELU(fc1(z)))` with a narrow middle (Houlsby et al. 2019), the part that the ENCODER, TOKEN
/// and MLP adapters share.
#[derive(Debug)]
pub(super) struct Bottleneck {
    fc1: Linear,
    fc2: Linear,
}

impl Bottleneck {
    /// Width of the middle: `mlp_ratio` of D, truncated.
    pub(super) fn width(d_model: i64, mlp_ratio: f64) -> Result<i64> {
        let width = (d_model as f64 * mlp_ratio) as i64;
        if width < 1 {
            return Err(Error::Setting {
                setting: "adapter.mlp_ratio",
                problem: format!("{mlp_ratio} of d_model {d_model} leaves no bottleneck"),
            });
        }
        Ok(width)
    }

    /// `zero_init` starts `fc2` at zero, so that the bottleneck first adds nothing.
    pub(super) fn specs(
        prefix: &str,
        d_model: i64,
        width: i64,
        zero_init: bool,
    ) -> Vec<TensorSpec> {
        let role = Role::Adapter;
        let mut specs = Linear::specs(&format!("{prefix}.fc1"), d_model, width, true, role);
        let second = Linear::specs(&format!("{prefix}.fc2"), width, d_model, true, role);
        specs.extend(second.into_iter().map(|mut spec| {
            if zero_init {
                spec.init = Init::Zeros;
            }
            spec
        }));
        specs
    }

    pub(super) fn bind(params: &Params, prefix: &str) -> Result<Self> {
        Ok(Self {
            fc1: Linear::bind(params, &format!("{prefix}.fc1"), true)?,
            fc2: Linear::bind(params, &format!("{prefix}.fc2"), true)?,
        })
    }

    /// `z`: `[.., D]`; returns the same shape, without `z` added.
    pub(super) fn forward(&self, z: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward(z)?.f_gelu("none")?)
    }
}
