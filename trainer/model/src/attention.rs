//! Multi-head self-attention on libtorch's fused kernel.

use tch::Tensor;

use crate::adapter::AdapterSet;
use crate::ops::{Linear, cast, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

/// Self-attention with a packed projection, as torch's `MultiheadAttention` stores it.
#[derive(Debug)]
pub struct SelfAttention {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    n_heads: i64,
}

impl SelfAttention {
    /// Tensors `in_proj_weight [3D, D]`, `in_proj_bias [3D]`, `out_proj.weight [D, D]`,
    /// `out_proj.bias [D]` under `prefix`.
    pub fn specs(prefix: &str, d_model: i64) -> Vec<TensorSpec> {
        let role = Role::Backbone;
        vec![
            TensorSpec::new(
                format!("{prefix}.in_proj_weight"),
                &[3 * d_model, d_model],
                Init::xavier(3 * d_model, d_model),
                role,
            ),
            TensorSpec::new(
                format!("{prefix}.in_proj_bias"),
                &[3 * d_model],
                Init::Zeros,
                role,
            ),
            TensorSpec::new(
                format!("{prefix}.out_proj.weight"),
                &[d_model, d_model],
                Init::linear(d_model),
                role,
            ),
            TensorSpec::new(
                format!("{prefix}.out_proj.bias"),
                &[d_model],
                Init::Zeros,
                role,
            ),
        ]
    }

    /// Binds to the tensors of [`SelfAttention::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, prefix: &str, n_heads: i64) -> Result<Self> {
        Ok(Self {
            in_proj_weight: params.get(&format!("{prefix}.in_proj_weight"))?,
            in_proj_bias: params.get(&format!("{prefix}.in_proj_bias"))?,
            out_proj: Linear::bind(params, &format!("{prefix}.out_proj"), true)?,
            n_heads,
        })
    }

    /// Whether a gradient is wanted for one of its tensors.
    pub(crate) fn trains(&self) -> bool {
        self.in_proj_weight.requires_grad()
            || self.in_proj_bias.requires_grad()
            || self.out_proj.trains()
    }

    /// # Shapes
    /// `x`: `[B, S, D]`; `keep`: bool `[B, 1, 1, S]`, true where the key is no padding, or `None`
    /// when nothing is padded; returns `[B, S, D]`. Scale 1/sqrt(D/H).
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        keep: Option<&Tensor>,
        adapters: &AdapterSet,
        dropout: f64,
    ) -> Result<Tensor> {
        let (batch, seq, d_model) = x.size3()?;
        let [q, k, v] = self.project(layer, x, adapters)?;
        let mixed =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, keep, dropout, false, None, false)?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([batch, seq, d_model])?;
        let mixed = adapters.attention_context(layer, mixed)?;
        self.out_proj.forward(&mixed)
    }

    /// Products of queries and keys, in full precision: no scale, no mask, no softmax.
    ///
    /// # Shapes
    /// `x`: `[B, S, D]`; returns `[B, H, S, S]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn raw_scores(&self, layer: usize, x: &Tensor, adapters: &AdapterSet) -> Result<Tensor> {
        let [q, k, _] = self.project(layer, &full(x)?, adapters)?;
        Ok(q.f_matmul(&k.f_transpose(2, 3)?)?)
    }

    /// Queries, keys and values, each `[B, H, S, D/H]`.
    fn project(&self, layer: usize, x: &Tensor, adapters: &AdapterSet) -> Result<[Tensor; 3]> {
        let (batch, seq, d_model) = x.size3()?;
        let kind = x.f_kind()?;
        let weight = cast(&adapters.qkv_weight(layer, &self.in_proj_weight)?, kind)?;
        let qkv = x.f_linear(&weight, Some(&cast(&self.in_proj_bias, kind)?))?;
        let heads = adapters
            .qkv(layer, x, qkv)?
            .f_view([batch, seq, 3, self.n_heads, d_model / self.n_heads])?
            .f_permute([2, 0, 3, 1, 4])?; // [3, B, H, S, D/H]
        Ok([
            heads.f_select(0, 0)?,
            heads.f_select(0, 1)?,
            heads.f_select(0, 2)?,
        ])
    }
}
