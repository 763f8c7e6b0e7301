//! Multi-head self-attention on libtorch's fused kernel.

use tch::{Kind, Tensor};

use crate::adapter::AdapterSet;
use crate::ops::{Linear, cast, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

/// How the tensors of an attention are named.
#[derive(Debug, Clone)]
pub struct AttentionNames {
    /// Prefix of the projection to queries, keys and values.
    pub prefix: String,
    /// The output projection.
    pub out_proj: String,
    /// The modules of query, key and value, where they have a layer each; `None` where they have one
    /// together, as torch's `MultiheadAttention` stores it.
    pub projections: Option<[&'static str; 3]>,
}

impl AttentionNames {
    fn parts(&self) -> Option<[String; 3]> {
        let modules = self.projections?;
        Some(modules.map(|module| format!("{}.{module}", self.prefix)))
    }
}

/// The projection to queries, keys and values.
#[derive(Debug)]
enum InProjection {
    /// Weight `[3D, D]` and bias `[3D]`, rows q, k, v.
    Packed { weight: Tensor, bias: Tensor },
    /// A layer each.
    Separate([Linear; 3]),
}

impl InProjection {
    /// Weight `[3D, D]` and bias `[3D]`. Layers of their own are put together whenever they are used:
    /// little beside the product with all tokens, and they stay views of their file.
    fn packed(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Packed { weight, bias } => Ok((weight.shallow_clone(), bias.shallow_clone())),
            Self::Separate(parts) => {
                let weights = parts.each_ref().map(|part| &part.weight);
                let biases: Vec<&Tensor> = parts.iter().filter_map(|p| p.bias.as_ref()).collect();
                Ok((Tensor::f_cat(&weights, 0)?, Tensor::f_cat(&biases, 0)?))
            }
        }
    }

    fn trains(&self) -> bool {
        match self {
            Self::Packed { weight, bias } => weight.requires_grad() || bias.requires_grad(),
            Self::Separate(parts) => parts.iter().any(Linear::trains),
        }
    }
}

/// Self-attention of H heads.
#[derive(Debug)]
pub struct SelfAttention {
    in_proj: InProjection,
    out_proj: Linear,
    n_heads: i64,
}

impl SelfAttention {
    /// Tensors `in_proj_weight [3D, D]` and `in_proj_bias [3D]`, or `query`, `key` and `value` with
    /// `weight [D, D]` and `bias [D]` each, and the same of the output projection.
    pub fn specs(names: &AttentionNames, d_model: i64) -> Vec<TensorSpec> {
        let role = Role::Backbone;
        let square = |name: &str| Linear::specs(name, d_model, d_model, true, role);
        let mut specs = Vec::new();
        if let Some(parts) = names.parts() {
            specs.extend(parts.iter().flat_map(|name| square(name)));
        } else {
            specs.push(TensorSpec::new(
                format!("{}.in_proj_weight", names.prefix),
                &[3 * d_model, d_model],
                Init::xavier(3 * d_model, d_model),
                role,
            ));
            specs.push(TensorSpec::new(
                format!("{}.in_proj_bias", names.prefix),
                &[3 * d_model],
                Init::Zeros,
                role,
            ));
        }
        specs.extend(square(&names.out_proj).into_iter().map(|mut spec| {
            if spec.shape.len() == 1 {
                spec.init = Init::Zeros;
            }
            spec
        }));
        specs
    }

    /// Binds to the tensors of [`SelfAttention::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, names: &AttentionNames, n_heads: i64) -> Result<Self> {
        let in_proj = if let Some([query, key, value]) = names.parts() {
            InProjection::Separate([
                Linear::bind(params, &query, true)?,
                Linear::bind(params, &key, true)?,
                Linear::bind(params, &value, true)?,
            ])
        } else {
            InProjection::Packed {
                weight: params.get(&format!("{}.in_proj_weight", names.prefix))?,
                bias: params.get(&format!("{}.in_proj_bias", names.prefix))?,
            }
        };
        Ok(Self {
            in_proj,
            out_proj: Linear::bind(params, &names.out_proj, true)?,
            n_heads,
        })
    }

    /// Whether a gradient is wanted for one of its tensors.
    pub(crate) fn trains(&self) -> bool {
        self.in_proj.trains() || self.out_proj.trains()
    }

    /// # Shapes
    /// `x`: `[B, S, D]`; `keep`: bool `[B, 1, 1, S]`, true where the key is no padding, or `None`
    /// when nothing is padded; `own`: further keys and values, `[B, T, D]` each, that are never
    /// padding; returns `[B, S, D]`. Scale 1/sqrt(D/H).
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        keep: Option<&Tensor>,
        own: Option<&[Tensor; 2]>,
        adapters: &AdapterSet,
        dropout: f64,
    ) -> Result<Tensor> {
        let (batch, seq, d_model) = x.size3()?;
        let [q, mut k, mut v] = self.project(layer, x, adapters)?;
        let mut keep = keep.map(Tensor::shallow_clone);
        if let Some([keys, values]) = own {
            k = Tensor::f_cat(&[self.heads(keys, x.f_kind()?)?, k], 2)?;
            v = Tensor::f_cat(&[self.heads(values, x.f_kind()?)?, v], 2)?;
            if let Some(mask) = &keep {
                let seen =
                    Tensor::f_ones([batch, 1, 1, keys.size()[1]], (Kind::Bool, mask.device()))?;
                keep = Some(Tensor::f_cat(&[&seen, mask], 3)?);
            }
        }
        let mixed = Tensor::f_scaled_dot_product_attention(
            &q,
            &k,
            &v,
            keep.as_ref(),
            dropout,
            false,
            None,
            false,
        )?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([batch, seq, d_model])?;
        let mixed = adapters.attention_context(layer, mixed)?;
        self.out_proj.forward(&mixed)
    }

    /// `[B, T, D]` to `[B, H, T, D/H]`, in another format.
    fn heads(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let (batch, tokens, d_model) = x.size3()?;
        let heads = cast(x, kind)?.f_view([batch, tokens, self.n_heads, d_model / self.n_heads])?;
        Ok(heads.f_transpose(1, 2)?)
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
        let (weight, bias) = self.in_proj.packed()?;
        let weight = cast(&adapters.qkv_weight(layer, &weight)?, kind)?;
        let qkv = x.f_linear(&weight, Some(&cast(&bias, kind)?))?;
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
