//! ENCODER, the bottleneck adapter (scPEFT; Houlsby et al. 2019): `A(z) = z + fc2(GELU(fc1(z)))`
//! between the attention half and the feed-forward half of a post-norm block.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, BlockShape, LayerSelection};
use crate::init::Init;
use crate::ops::Linear;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Result};

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
    bound: BTreeMap<usize, (Linear, Linear)>,
}

impl Encoder {
    pub(super) fn new(options: &EncoderOptions, shape: BlockShape) -> Result<Self> {
        let width = (shape.d_model as f64 * options.mlp_ratio) as i64;
        if width < 1 {
            return Err(Error::Setting {
                setting: "adapter.mlp_ratio",
                problem: format!(
                    "{} of d_model {} leaves no bottleneck",
                    options.mlp_ratio, shape.d_model
                ),
            });
        }
        Ok(Self {
            layers: options.layers.resolve(shape.n_layers)?,
            width,
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
        let mut specs = Vec::new();
        for &layer in &self.layers {
            let prefix = prefix(layer);
            specs.extend(Linear::specs(
                &format!("{prefix}.fc1"),
                shape.d_model,
                self.width,
                true,
                Role::Adapter,
            ));
            let second = Linear::specs(
                &format!("{prefix}.fc2"),
                self.width,
                shape.d_model,
                true,
                Role::Adapter,
            );
            specs.extend(second.into_iter().map(|mut spec| {
                if self.zero_init {
                    spec.init = Init::Zeros;
                }
                spec
            }));
        }
        specs
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let prefix = prefix(layer);
            let pair = (
                Linear::bind(params, &format!("{prefix}.fc1"), true)?,
                Linear::bind(params, &format!("{prefix}.fc2"), true)?,
            );
            self.bound.insert(layer, pair);
        }
        Ok(())
    }

    fn after_attention_norm(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        let Some((fc1, fc2)) = self.bound.get(&layer) else {
            return Ok(h);
        };
        let out = fc2.forward(&fc1.forward(&h)?.f_gelu("none")?)?;
        Ok(if self.skip_connect {
            h.f_add(&out)?
        } else {
            out
        })
    }
}
