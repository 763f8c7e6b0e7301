//! ENCODER, the bottleneck adapter (scPEFT): `A(z) = z + fc2(GELU(fc1(z)))` between the attention
//! half and the feed-forward half of a post-norm block.

use std::collections::BTreeMap;

use tch::Tensor;

use super::bottleneck::Bottleneck;
use super::{Adapter, BlockShape, LayerSelection};
use crate::Result;
use crate::params::{Params, TensorSpec};

/// Settings of the ENCODER adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderOptions {
    /// Blocks that carry a bottleneck.
    pub layers: LayerSelection,
    /// Bottleneck width as a share of D (truncated); published default 0.25.
    pub mlp_ratio: f64,
    /// Whether the input is added to the bottleneck's output; published default true.
    pub skip_connect: bool,
    /// Start `fc2` at zero, so that training starts from the pretrained function. The published
    /// code starts it like any linear layer.
    pub zero_init: bool,
}

#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<usize>,
    width: i64,
    skip_connect: bool,
    zero_init: bool,
    bound: BTreeMap<usize, Bottleneck>,
}

impl Encoder {
    pub(super) fn new(options: &EncoderOptions, shape: BlockShape) -> Result<Self> {
        Ok(Self {
            layers: options.layers.resolve(shape.n_layers)?,
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            skip_connect: options.skip_connect,
            zero_init: options.zero_init,
            bound: BTreeMap::new(),
        })
    }
}

fn prefix(layer: usize) -> String {
    format!("transformer_encoder.layers.{layer}.space_adapter")
}

impl Adapter for Encoder {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let specs = |&layer: &usize| {
            Bottleneck::specs(&prefix(layer), shape.d_model, self.width, self.zero_init)
        };
        self.layers.iter().flat_map(specs).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let bottleneck = Bottleneck::bind(params, &prefix(layer))?;
            self.bound.insert(layer, bottleneck);
        }
        Ok(())
    }

    fn after_attention_norm(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        let Some(bottleneck) = self.bound.get(&layer) else {
            return Ok(h);
        };
        let out = bottleneck.forward(&h)?;
        Ok(if self.skip_connect {
            h.f_add(&out)?
        } else {
            out
        })
    }
}
