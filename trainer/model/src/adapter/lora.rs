//! LoRA (Hu et al. 2021, equation 3) on the projection to query, key and value. Where they have one
//! weight together it is in loralib's `MergedLinear` layout: enabled parts share one
//! `lora_A [r*n, D]` and one `lora_B [n*D, r]`; part j's update is
//! `lora_B[jD:(j+1)D] @ lora_A[jr:(j+1)r]`, scaled by `lora_alpha / r`. Where each has its own
//! weight, each enabled part has its own `lora_A [r, D]` and `lora_B [D, r]`, as PEFT has them;
//! stacked, these are the same.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection, Names};
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
    pub(crate) const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];
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
    names: Names,
    layers: Vec<usize>,
    r: i64,
    scale: f64,
    targets: Vec<Projection>,
    train_qkv_bias: bool,
    /// `lora_A` and `lora_B` of a block: one pair, or one of each target.
    bound: BTreeMap<usize, Vec<(Tensor, Tensor)>>,
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
            names: shape.names,
            layers: options.layers.resolve(shape.n_layers)?,
            r: options.r,
            scale: options.lora_alpha / options.r as f64,
            targets,
            train_qkv_bias: options.train_qkv_bias,
            bound: BTreeMap::new(),
        })
    }

    /// Prefixes of the pairs of block `layer`.
    fn modules(&self, layer: usize) -> Vec<String> {
        let own = |&part: &Projection| self.names.projection(layer, part);
        let modules: Option<_> = self.targets.iter().map(own).collect();
        modules.unwrap_or_else(|| vec![self.names.qkv(layer)])
    }

    /// The pairs of a block stacked: `lora_A [r*n, D]` and `lora_B [n*D, r]`.
    fn factors(pairs: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
        if let [(a, b)] = pairs {
            return Ok((a.shallow_clone(), b.shallow_clone()));
        }
        let (a, b): (Vec<&Tensor>, Vec<&Tensor>) = pairs.iter().map(|(a, b)| (a, b)).unzip();
        Ok((Tensor::f_cat(&a, 0)?, Tensor::f_cat(&b, 0)?))
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
        let (d, e) = (shape.d_model, shape.d_attention);
        let modules = self.layers.iter().flat_map(|&layer| self.modules(layer));
        // Parts that a pair updates.
        let n = match self.names.projections {
            Some(_) => 1,
            None => self.targets.len() as i64,
        };
        modules
            .flat_map(|module| {
                let name = |factor: &str| format!("{module}.{factor}");
                let role = Role::Adapter;
                [
                    // loralib draws A as a Kaiming-uniform (a = sqrt 5) matrix: bound 1/sqrt(D).
                    TensorSpec::new(name("lora_A"), &[self.r * n, d], Init::linear(d), role),
                    TensorSpec::new(name("lora_B"), &[n * e, self.r], Init::Zeros, role),
                ]
            })
            .collect()
    }

    fn unfreezes(&self) -> Vec<String> {
        if !self.train_qkv_bias {
            return Vec::new();
        }
        let biases = |&layer: &usize| {
            let own = |part| Some(format!("{}.bias", self.names.projection(layer, part)?));
            let biases: Option<Vec<_>> = Projection::ALL.into_iter().map(own).collect();
            biases.unwrap_or_else(|| vec![self.names.in_attention(layer, "in_proj_bias")])
        };
        self.layers.iter().flat_map(biases).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let pair = |module: &String| {
                Ok((
                    params.get(&format!("{module}.lora_A"))?,
                    params.get(&format!("{module}.lora_B"))?,
                ))
            };
            let modules = self.modules(layer);
            let pairs = modules.iter().map(pair).collect::<Result<_>>()?;
            self.bound.insert(layer, pairs);
        }
        Ok(())
    }

    fn qkv(&self, layer: usize, x: &Tensor, qkv: Tensor) -> Result<Tensor> {
        let Some(pairs) = self.bound.get(&layer) else {
            return Ok(qkv);
        };
        let (lora_a, lora_b) = Self::factors(pairs)?;
        let (shape, kind) = (qkv.size(), x.f_kind()?);
        let down = x.f_linear(&cast(&lora_a, kind)?, None::<&Tensor>)?; // [B, S, r*n]
        let down = down.f_reshape([-1, self.r * self.targets.len() as i64])?;
        let up = cast(&self.spread(&lora_b)?, kind)?; // [3D, r*n]
        let rows = qkv.f_reshape([-1, shape[2]])?;
        // rows + scale * down @ up^T: the multiply-add writes the scaled sum in one pass.
        let down = down.f_mul_scalar(self.scale)?;
        Ok(rows.f_addmm(&down, &up.f_tr()?)?.f_view(shape.as_slice())?)
    }
}
