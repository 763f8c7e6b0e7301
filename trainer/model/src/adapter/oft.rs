//! Constrained OFT (Qiu et al. 2023, section 3.3): the packed qkv weight times a block-diagonal
//! rotation near the identity. Each of four blocks is the Cayley transform of a skew-symmetric
//! matrix: `Q = (I - K)(I + K)^-1`, `K = (R - R^T) / 2`, `W' = W blockdiag(Q)^T`, with R held inside
//! a Frobenius ball around zero.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection, Names};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Number of diagonal blocks.
const BLOCKS: i64 = 4;
/// Radius of the ball per element of a block, before the published scaling.
const EPS: f64 = 1e-5;

/// Settings of the OFT adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct OftOptions {
    /// Blocks whose projection is adapted.
    pub layers: LayerSelection,
}

#[derive(Debug)]
pub(super) struct Oft {
    names: Names,
    layers: Vec<usize>,
    bound: BTreeMap<usize, Tensor>,
}

impl Oft {
    pub(super) fn new(options: &OftOptions, shape: BlockShape) -> Result<Self> {
        if shape.d_model % BLOCKS != 0 {
            return Err(Error::Setting {
                setting: "adapter.kind",
                problem: format!(
                    "`oft` wants a d_model that {BLOCKS} divides, got {}",
                    shape.d_model
                ),
            });
        }
        Ok(Self {
            names: shape.names,
            layers: options.layers.resolve(shape.n_layers)?,
            bound: BTreeMap::new(),
        })
    }

    fn name(&self, layer: usize) -> String {
        format!("{}.R", self.names.qkv(layer))
    }
}

/// The rotations `[4, D/4, D/4]` of `R`.
fn rotations(r: &Tensor) -> Result<Tensor> {
    let skew = r.f_sub(&r.f_transpose(1, 2)?)?.f_mul_scalar(0.5)?;
    let eye = Tensor::f_eye(r.size()[1], (r.f_kind()?, r.device()))?.f_expand_as(r)?;
    Ok(eye
        .f_sub(&skew)?
        .f_bmm(&Tensor::f_linalg_inv(&eye.f_add(&skew)?)?)?)
}

impl Adapter for Oft {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let side = shape.d_model / BLOCKS;
        let spec = |&layer: &usize| {
            let shape = [BLOCKS, side, side];
            TensorSpec::new(self.name(layer), &shape, Init::Zeros, Role::Adapter)
        };
        self.layers.iter().map(spec).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            self.bound.insert(layer, params.get(&self.name(layer))?);
        }
        Ok(())
    }

    fn changes_qkv_weight(&self, layer: usize) -> bool {
        self.bound.contains_key(&layer)
    }

    fn qkv_weight(&self, layer: usize, weight: Tensor) -> Result<Tensor> {
        let Some(r) = self.bound.get(&layer) else {
            return Ok(weight);
        };
        let (rows, d_model) = weight.size2()?;
        let side = d_model / BLOCKS;
        // W Q^T by blocks: [4, 3D, D/4] x [4, D/4, D/4].
        let blocks = weight
            .f_view([rows, BLOCKS, side])?
            .f_transpose(0, 1)?
            .f_bmm(&rotations(r)?.f_transpose(1, 2)?)?;
        Ok(blocks.f_transpose(0, 1)?.f_reshape([rows, d_model])?)
    }

    fn constrain(&self) -> Result<()> {
        for r in self.bound.values() {
            let side = r.size()[1] as f64;
            let radius = EPS * side * side / (BLOCKS as f64).sqrt();
            let mut r = r.f_detach()?;
            let norm = r.f_norm_scalaropt_dim(2.0, [1, 2], true)?;
            let factor = norm
                .f_clamp_min(radius)?
                .f_reciprocal()?
                .f_mul_scalar(radius)?;
            // Exactly 1 inside the ball, so that a projection never moves what is inside.
            let inside = norm.f_le(radius)?;
            let factor = factor.f_where_self(&inside.f_logical_not()?, &factor.f_ones_like()?)?;
            let _ = r.f_mul_(&factor.f_to_kind(r.f_kind()?)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn rotations_are_orthogonal() {
        let r = Tensor::randn([4, 5, 5], (Kind::Double, Device::Cpu));
        let q = rotations(&r).unwrap();
        let eye = Tensor::eye(5, (Kind::Double, Device::Cpu)).expand_as(&q);
        let off = (q.bmm(&q.transpose(1, 2)) - eye).abs().max();
        assert!(off.double_value(&[]) < 1e-10, "{off:?}");
    }
}
