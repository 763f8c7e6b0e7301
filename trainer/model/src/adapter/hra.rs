//! HRA (Yuan et al. 2024, equation 4): the packed qkv weight times a chain of r Householder
//! reflections, `W' = W H_0 H_1 .. H_{r-1}` with `H_i = I - 2 u_i u_i^T`, u_i the normalised columns
//! of `hra_u [D, r]`. Started in equal pairs the chain is the identity.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection, Names};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Settings of the HRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct HraOptions {
    /// Blocks whose projection is adapted.
    pub layers: LayerSelection,
    /// Number of reflections r, even; published default 8.
    pub r: i64,
}

#[derive(Debug)]
pub(super) struct Hra {
    names: Names,
    layers: Vec<usize>,
    r: i64,
    bound: BTreeMap<usize, Tensor>,
}

impl Hra {
    pub(super) fn new(options: &HraOptions, shape: BlockShape) -> Result<Self> {
        if options.r < 2 || options.r % 2 != 0 || options.r > shape.d_model {
            return Err(Error::Setting {
                setting: "adapter.r",
                problem: format!(
                    "`hra` wants an even number of reflections from 2 to d_model ({}), got {}",
                    shape.d_model, options.r
                ),
            });
        }
        Ok(Self {
            names: shape.names,
            layers: options.layers.resolve(shape.n_layers)?,
            r: options.r,
            bound: BTreeMap::new(),
        })
    }

    fn name(&self, layer: usize) -> String {
        format!("{}.hra_u", self.names.qkv(layer))
    }
}

impl Adapter for Hra {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        // Neighbouring columns are equal: two equal reflections cancel.
        let init = Init::Pairs {
            bound: 1.0 / (shape.d_model as f64).sqrt(),
        };
        let spec = |&layer: &usize| {
            TensorSpec::new(
                self.name(layer),
                &[shape.d_model, self.r],
                init,
                Role::Adapter,
            )
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
        let Some(u) = self.bound.get(&layer) else {
            return Ok(weight);
        };
        let unit = u.f_div(&u.f_norm_scalaropt_dim(2.0, [0], true)?)?; // [D, r]
        (0..self.r).try_fold(weight, |w, i| {
            let column = unit.f_narrow(1, i, 1)?; // [D, 1]
            // W (I - 2 u u^T) = W - 2 (W u) u^T
            let step = w.f_matmul(&column)?.f_mul_scalar(2.0)?;
            Ok(w.f_sub(&step.f_matmul(&column.f_tr()?)?)?)
        })
    }
}
