//! ENCODER and MLP in blocks that normalise the input of their halves, as scPEFT has them for scBERT.
//! Each bottleneck has a norm of its own.
//!
//! ENCODER acts on the output of the attention, before the residual sum: `S(a) = n + fc2(GELU(fc1(n)))`
//! with `n = LN(a)`, so its skip connection passes the normalised branch. MLP takes the place of the
//! residual of the feed-forward half: `y = M(h) + FF(h)` with `M(h) = fc2(GELU(fc1(LN(h))))`. That
//! loses `h` itself, which looks like a mistake of the published code, but adapters were trained so.

use std::collections::BTreeMap;

use tch::Tensor;

use super::bottleneck::Bottleneck;
use super::{Adapter, BlockShape, EncoderOptions, MlpOptions, Names, Placement};
use crate::ops::LayerNorm;
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Result};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Attention { skip_connect: bool },
    Residual,
}

/// Bottlenecks with norms.
#[derive(Debug)]
pub(super) struct PreNorm {
    names: Names,
    place: Place,
    layers: Vec<usize>,
    width: i64,
    zero_init: bool,
    bound: BTreeMap<usize, (LayerNorm, Bottleneck)>,
}

impl PreNorm {
    pub(super) fn encoder(options: &EncoderOptions, shape: BlockShape) -> Result<Self> {
        if options.placement != Placement::AfterNorm {
            return Err(Error::Setting {
                setting: "adapter.placement",
                problem: "in this backbone the bottleneck acts on the output of the attention; \
                          leave `adapter.placement` out"
                    .into(),
            });
        }
        Ok(Self {
            names: shape.names,
            place: Place::Attention {
                skip_connect: options.skip_connect,
            },
            layers: options.layers.resolve(shape.n_layers)?,
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            zero_init: options.zero_init,
            bound: BTreeMap::new(),
        })
    }

    pub(super) fn mlp(options: &MlpOptions, shape: BlockShape) -> Result<Self> {
        Ok(Self {
            names: shape.names,
            place: Place::Residual,
            layers: options.layers.resolve(shape.n_layers)?,
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            zero_init: options.zero_init,
            bound: BTreeMap::new(),
        })
    }

    fn prefix(&self, layer: usize) -> String {
        let module = match self.place {
            Place::Attention { .. } => "space_adapter",
            Place::Residual => "mlp_adapter",
        };
        self.names.in_block(layer, module)
    }
}

impl Adapter for PreNorm {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        let specs = |&layer: &usize| {
            let prefix = self.prefix(layer);
            let norm = format!("{prefix}.norm");
            let mut specs = LayerNorm::specs(&norm, shape.d_model, Role::Adapter);
            let (d_model, zero) = (shape.d_model, self.zero_init);
            specs.extend(Bottleneck::specs(&prefix, d_model, self.width, zero));
            specs
        };
        self.layers.iter().flat_map(specs).collect()
    }

    fn layers(&self) -> &[usize] {
        &self.layers
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        for &layer in &self.layers {
            let prefix = self.prefix(layer);
            let norm = LayerNorm::bind(params, &format!("{prefix}.norm"))?;
            let bottleneck = Bottleneck::bind(params, &prefix)?;
            self.bound.insert(layer, (norm, bottleneck));
        }
        Ok(())
    }

    fn attention_output(
        &self,
        layer: usize,
        attended: Tensor,
        _treatment: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Place::Attention { skip_connect } = self.place else {
            return Ok(attended);
        };
        let Some((norm, bottleneck)) = self.bound.get(&layer) else {
            return Ok(attended);
        };
        let normed = norm.forward(&attended)?;
        let out = bottleneck.forward(&normed)?;
        Ok(if skip_connect {
            normed.f_add(&out)?
        } else {
            out
        })
    }

    fn feed_forward_residual(&self, layer: usize, h: Tensor) -> Result<Tensor> {
        match (self.place, self.bound.get(&layer)) {
            (Place::Residual, Some((norm, bottleneck))) => bottleneck.forward(&norm.forward(&h)?),
            _ => Ok(h),
        }
    }
}
