//! LoRA (Hu et al. 2021, equation 3) on the packed qkv projection, in loralib's `MergedLinear`
//! layout: enabled parts share one `lora_A [r*n, D]` and one `lora_B [n*D, r]`; part j's update is
//! `lora_B[jD:(j+1)D] @ lora_A[jr:(j+1)r]`, scaled by `lora_alpha / r`.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection, qkv_prefix};
use crate::init::Init;
use crate::ops::cast;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Result};

/// A part of the packed projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// Rows `[0, D)`.
    Query,
    /// Rows `[D, 2D)`.
    Key,
    /// Rows `[2D, 3D)`.
    Value,
}

impl Projection {
    const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];
}

/// Settings of the LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// Blocks whose projection is adapted.
    pub layers: LayerSelection,
    /// Rank r; published default 8.
    pub r: i64,
    /// Numerator of the scale `lora_alpha / r`; published default 1.
    pub lora_alpha: f64,
    /// Adapted parts; published default query and value.
    pub targets: Vec<Projection>,
    /// Whether the packed bias of the adapted blocks trains too (loralib's "lora_only"); published
    /// default true.
    pub train_qkv_bias: bool,
}

#[derive(Debug)]
pub(super) struct Lora {
    layers: Vec<usize>,
    r: i64,
    scale: f64,
    targets: Vec<Projection>,
    train_qkv_bias: bool,
    bound: BTreeMap<usize, (Tensor, Tensor)>,
}

impl Lora {
    pub(super) fn new(options: &LoraOptions, shape: BlockShape) -> Result<Self> {
        if options.r < 1 || options.r > shape.d_model {
            return Err(Error::Setting {
                setting: "adapter.r",
                problem: format!(
                    "must be between 1 and d_model ({}), got {}",
                    shape.d_model, options.r
                ),
            });
        }
        let mut targets = options.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        if targets.is_empty() {
            return Err(Error::Setting {
                setting: "adapter.targets",
                problem: "name at least one of `q`, `k`, `v`".into(),
            });
        }
        Ok(Self {
            layers: options.layers.resolve(shape.n_layers)?,
            r: options.r,
            scale: options.lora_alpha / options.r as f64,
            targets,
            train_qkv_bias: options.train_qkv_bias,
            bound: BTreeMap::new(),
        })
    }

    /// `lora_B` as the matrix `[3D, r*n]` of the whole packed projection: block j of the enabled
    /// parts in its rows and columns, zeros elsewhere. Tiny beside the projection itself, and it
    /// turns the update into one fused multiply-add over all tokens.
    fn spread(&self, lora_b: &Tensor) -> Result<Tensor> {
        let d = lora_b.size()[0] / self.targets.len() as i64;
        let columns = self.r * self.targets.len() as i64;
        let options = (lora_b.f_kind()?, lora_b.device());
        let mut rows = Vec::with_capacity(Projection::ALL.len());
        for part in Projection::ALL {
            rows.push(match self.targets.iter().position(|&t| t == part) {
                None => Tensor::f_zeros([d, columns], options)?,
                Some(j) => {
                    let j = j as i64;
                    let block = lora_b.f_narrow(0, j * d, d)?;
                    block.f_constant_pad_nd([j * self.r, columns - (j + 1) * self.r])?
                }
            });
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }
}

impl Adapter for Lora {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let n = self.targets.len() as i64;
        let d = shape.d_model;
        self.layers
            .iter()
            .flat_map(|&layer| {
                let prefix = qkv_prefix(layer);
                [
                    // loralib draws A as a Kaiming-uniform (a = sqrt 5) matrix: bound 1/sqrt(D).
                    TensorSpec::new(
                        format!("{prefix}.lora_A"),
                        &[self.r * n, d],
                        Init::linear(d),
                        Role::Adapter,
                    ),
                    TensorSpec::new(
                        format!("{prefix}.lora_B"),
                        &[n * d, self.r],
                        Init::Zeros,
                        Role::Adapter,
                    ),
                ]
            })
            .collect()
    }

    fn unfreezes(&self) -> Vec<String> {
        if !self.train_qkv_bias {
            return Vec::new();
        }
        self.layers
            .iter()
            .map(|layer| format!("transformer_encoder.layers.{layer}.self_attn.in_proj_bias"))
            .collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let prefix = qkv_prefix(layer);
            let pair = (
                params.get(&format!("{prefix}.lora_A"))?,
                params.get(&format!("{prefix}.lora_B"))?,
            );
            self.bound.insert(layer, pair);
        }
        Ok(())
    }

    fn qkv(&self, layer: usize, x: &Tensor, qkv: Tensor) -> Result<Tensor> {
        let Some((lora_a, lora_b)) = self.bound.get(&layer) else {
            return Ok(qkv);
        };
        let (shape, kind) = (qkv.size(), x.f_kind()?);
        let down = x.f_linear(&cast(lora_a, kind)?, None::<&Tensor>)?; // [B, S, r*n]
        let down = down.f_reshape([-1, self.r * self.targets.len() as i64])?;
        let up = cast(&self.spread(lora_b)?, kind)?; // [3D, r*n]
        let rows = qkv.f_reshape([-1, shape[2]])?;
        // rows + scale * down @ up^T: the multiply-add writes the scaled sum in one pass.
        let down = down.f_mul_scalar(self.scale)?;
        Ok(rows.f_addmm(&down, &up.f_tr()?)?.f_view(shape.as_slice())?)
    }
}
