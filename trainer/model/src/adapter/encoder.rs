//! ENCODER, the bottleneck adapter (scPEFT): `A(z) = z + fc2(GELU(fc1(z)))` between the attention
//! half and the feed-forward half of a post-norm block, or on the attention's context or output.

use std::collections::BTreeMap;

use tch::Tensor;

use super::bottleneck::Bottleneck;
use super::{Adapter, BlockShape, LayerSelection, Names};
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
    /// Where in the block it acts.
    pub placement: Placement,
    /// Start `fc2` at zero, so that training starts from the pretrained function. The published
    /// code starts it like any linear layer.
    pub zero_init: bool,
}

/// Where in a block the bottleneck acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// On the output of the first norm.
    #[default]
    AfterNorm,
    /// On what the attention heads found, before it is projected.
    Context,
    /// On the projected output of the attention, before the residual sum.
    AttentionOutput,
}

#[derive(Debug)]
pub(super) struct Encoder {
    names: Names,
    layers: Vec<usize>,
    width: i64,
    skip_connect: bool,
    placement: Placement,
    zero_init: bool,
    bound: BTreeMap<usize, Bottleneck>,
}

impl Encoder {
    pub(super) fn new(options: &EncoderOptions, shape: BlockShape) -> Result<Self> {
        Ok(Self {
            names: shape.names,
            placement: options.placement,
            layers: options.layers.resolve(shape.n_layers)?,
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            skip_connect: options.skip_connect,
            zero_init: options.zero_init,
            bound: BTreeMap::new(),
        })
    }

    fn prefix(&self, layer: usize) -> String {
        self.names.in_block(layer, "space_adapter")
    }

    fn forward(&self, layer: usize, z: Tensor) -> Result<Tensor> {
        let Some(bottleneck) = self.bound.get(&layer) else {
            return Ok(z);
        };
        let out = bottleneck.forward(&z)?;
        Ok(if self.skip_connect {
            z.f_add(&out)?
        } else {
            out
        })
    }
}

impl Adapter for Encoder {
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

    fn attention_context(&self, layer: usize, mixed: Tensor) -> Result<Tensor> {
        match self.placement {
            Placement::Context => self.forward(layer, mixed),
            Placement::AfterNorm | Placement::AttentionOutput => Ok(mixed),
        }
    }

    fn attention_output(
        &self,
        layer: usize,
        attended: Tensor,
        _treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self.placement {
            Placement::AttentionOutput => self.forward(layer, attended),
            Placement::AfterNorm | Placement::Context => Ok(attended),
        }
    }

    fn after_attention_norm(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        match self.placement {
            Placement::AfterNorm => self.forward(layer, h),
            Placement::Context | Placement::AttentionOutput => Ok(h),
        }
    }
}
