//! MLP, the second bottleneck of the paper's variant of scPEFT: in parallel with the feed-forward
//! half, added at half weight after the block's last norm: `y = LN2(h + FF(h)) + scale * M(h)`.

use std::collections::BTreeMap;

use tch::Tensor;

use super::bottleneck::Bottleneck;
use super::{Adapter, BlockShape, LayerSelection, Names};
use crate::Result;
use crate::params::{Params, TensorSpec};

/// Settings of the MLP adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpOptions {
    /// Blocks that carry a bottleneck.
    pub layers: LayerSelection,
    /// Bottleneck width as a share of D (truncated); published default 0.25.
    pub mlp_ratio: f64,
    /// Weight of the bottleneck's output; published default 0.5.
    pub scale: f64,
    /// Start `fc2` at zero, so that training starts from the pretrained function.
    pub zero_init: bool,
}

#[derive(Debug)]
pub(super) struct Mlp {
    names: Names,
    layers: Vec<usize>,
    width: i64,
    scale: f64,
    zero_init: bool,
    bound: BTreeMap<usize, Bottleneck>,
}

impl Mlp {
    pub(super) fn new(options: &MlpOptions, shape: BlockShape) -> Result<Self> {
        Ok(Self {
            names: shape.names,
            layers: options.layers.resolve(shape.n_layers)?,
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            scale: options.scale,
            zero_init: options.zero_init,
            bound: BTreeMap::new(),
        })
    }

    fn prefix(&self, layer: usize) -> String {
        self.names.in_block(layer, "mlp_adapter")
    }
}

impl Adapter for Mlp {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let specs = |&layer: &usize| {
            let prefix = self.prefix(layer);
            Bottleneck::specs(&prefix, shape.d_model, self.width, self.zero_init)
        };
        self.layers.iter().flat_map(specs).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let bottleneck = Bottleneck::bind(params, &self.prefix(layer))?;
            self.bound.insert(layer, bottleneck);
        }
        Ok(())
    }

    fn after_block(&self, layer: usize, h: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(bottleneck) = self.bound.get(&layer) else {
            return Ok(y);
        };
        Ok(y.f_add(&bottleneck.forward(h)?.f_mul_scalar(self.scale)?)?)
    }
}
