//! PREFIX (scPEFT; deep prompt tuning, Liu et al. 2022): T trainable hidden states after `<cls>`.
//! The first selected block inserts its own, later selected blocks replace them by theirs, other
//! blocks pass them on as ordinary tokens; after the last block they are dropped. In scBERT all
//! selected blocks insert the same ones, and those of the last block stay.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection, Names};
use crate::ops::cast;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Settings of the PREFIX adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixOptions {
    /// Blocks that own prefix vectors.
    pub layers: LayerSelection,
    /// Prefix length T; published default 8 (the paper's variant: 64, 200 or 20 by task).
    pub token_nums: i64,
}

#[derive(Debug)]
pub(super) struct Prefix {
    names: Names,
    layers: Vec<usize>,
    token_nums: i64,
    bound: BTreeMap<usize, Tensor>,
}

impl Prefix {
    pub(super) fn new(options: &PrefixOptions, shape: BlockShape) -> Result<Self> {
        if options.token_nums < 1 {
            return Err(Error::Setting {
                setting: "adapter.token_nums",
                problem: format!("must be at least 1, got {}", options.token_nums),
            });
        }
        Ok(Self {
            names: shape.names,
            layers: options.layers.resolve(shape.n_layers)?,
            token_nums: options.token_nums,
            bound: BTreeMap::new(),
        })
    }

    fn name(&self, layer: usize) -> String {
        match self.names.prefix {
            Some(module) => format!("{module}.prompt_embeddings"),
            None => self.names.in_block(layer, "adapter_embeddings"),
        }
    }
}

impl Adapter for Prefix {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let spec = |&layer: &usize| {
            let shape = [1, self.token_nums, shape.d_model];
            TensorSpec::new(self.name(layer), &shape, Init::Zeros, Role::Adapter)
        };
        let own = match self.names.prefix {
            Some(_) => &self.layers[..1],
            None => &self.layers[..],
        };
        own.iter().map(spec).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn prefix(&self) -> Option<(usize, i64)> {
        self.layers.first().map(|&layer| (layer, self.token_nums))
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            self.bound.insert(layer, params.get(&self.name(layer))?);
        }
        Ok(())
    }

    fn before_block(&self, layer: usize, hidden: Tensor) -> Result<Tensor> {
        let Some(own) = self.bound.get(&layer) else {
            return Ok(hidden);
        };
        let (batch, seq, d_model) = hidden.size3()?;
        let own =
            cast(own, hidden.f_kind()?)?.f_expand([batch, self.token_nums, d_model], false)?;
        let genes_from = if self.layers.first() == Some(&layer) {
            1
        } else {
            1 + self.token_nums
        };
        let cls = hidden.f_narrow(1, 0, 1)?;
        let genes = hidden.f_narrow(1, genes_from, seq - genes_from)?;
        Ok(Tensor::f_cat(&[cls, own, genes], 1)?)
    }
}
