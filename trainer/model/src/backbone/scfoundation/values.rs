use tch::{Kind, Tensor};

use super::Values;
use crate::ops::{Linear, cast};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

const MODULE: &str = "token_emb";
/// Slope of the activation below zero.
const SLOPE: f64 = 0.1;

/// The embedding of a number by auto-discretisation: two small layers say how much of each bin it
/// is, and its embedding is the mean of the bins' by these shares.
///
/// `h = leaky_relu(w x + b)`, `e = softmax(alpha h + M h + c) E`. Two numbers stand for padding and
/// for a hidden value and have an embedding of their own.
#[derive(Debug)]
pub(super) struct AutoBins {
    spread: Linear,
    mix: Linear,
    /// Embeddings of the bins `[N, D]`.
    bins: Tensor,
    /// Embeddings of a hidden value and of padding, `[1, D]` each.
    mask: Tensor,
    pad: Tensor,
    values: Values,
}

pub(super) fn specs(values: Values, d_model: i64) -> Vec<TensorSpec> {
    let (bins, role) = (values.bins, Role::Backbone);
    let name = |part: &str| format!("{MODULE}.{part}");
    let mut specs = Linear::specs(&name("mlp"), 1, bins, true, role);
    specs.extend(Linear::specs(&name("mlp2"), bins, bins, true, role));
    for (part, rows) in [("emb", bins), ("emb_mask", 1), ("emb_pad", 1)] {
        let shape = [rows, d_model];
        let name = name(&format!("{part}.weight"));
        specs.push(TensorSpec::new(name, &shape, Init::standard_normal(), role));
    }
    // The numbers themselves are in full precision, and so is what weighs them.
    specs
        .into_iter()
        .map(TensorSpec::in_full_precision)
        .collect()
}

impl AutoBins {
    pub(super) fn bind(params: &Params, values: Values) -> Result<Self> {
        let table = |part: &str| params.get(&format!("{MODULE}.{part}.weight"));
        Ok(Self {
            spread: Linear::bind(params, &format!("{MODULE}.mlp"), true)?,
            mix: Linear::bind(params, &format!("{MODULE}.mlp2"), true)?,
            bins: table("emb")?,
            mask: table("emb_mask")?,
            pad: table("emb_pad")?,
            values,
        })
    }

    /// `values`: `[B, S]`; returns `[B, S, D]` in full precision.
    pub(super) fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let x = cast(values, self.bins.f_kind()?)?.f_unsqueeze(-1)?; // [B, S, 1]
        let h = self.spread.forward(&x)?; // [B, S, N]
        let h = h.f_where_self(&h.f_gt(0.0)?, &h.f_mul_scalar(SLOPE)?)?;
        let mixed = self.mix.forward(&h)?;
        let shares = h
            .f_mul_scalar(self.values.bin_alpha)?
            .f_add(&mixed)?
            .f_softmax(-1, None::<Kind>)?;
        let e = shares.f_matmul(&self.bins)?;
        let e = self
            .mask
            .f_where_self(&x.f_eq(self.values.mask_value)?, &e)?;
        Ok(self.pad.f_where_self(&x.f_eq(self.values.pad_value)?, &e)?)
    }

    /// The embedding of a gene that is not expressed, `[1, 1, D]`.
    pub(super) fn zero(&self) -> Result<Tensor> {
        self.forward(&Tensor::f_zeros([1, 1], (Kind::Float, self.bins.device()))?)
    }
}
