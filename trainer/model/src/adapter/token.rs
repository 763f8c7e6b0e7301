//! TOKEN (scPEFT's gene token prompt): one bottleneck with skip on the embedding. In scGPT it sits
//! inside the continuous value encoder, after its norm and before its dropout, and so acts on the
//! embeddings of values; in Geneformer and scFoundation after the embedding, the sum of its parts.

use tch::Tensor;

use super::bottleneck::Bottleneck;
use super::{Adapter, BlockShape};
use crate::params::{Params, TensorSpec};
use crate::{Error, Result};

/// Settings of the TOKEN adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOptions {
    /// Bottleneck width as a share of D (truncated); published default 1 (0.25 in the paper's
    /// variant and in HYBRID).
    pub mlp_ratio: f64,
    /// Start `fc2` at zero, so that training starts from the pretrained function.
    pub zero_init: bool,
}

#[derive(Debug)]
pub(super) struct Token {
    prefix: String,
    width: i64,
    zero_init: bool,
    bound: Option<Bottleneck>,
}

impl Token {
    pub(super) fn new(options: &TokenOptions, shape: BlockShape) -> Result<Self> {
        let Some(module) = shape.names.token else {
            return Err(Error::Setting {
                setting: "adapter.kind",
                problem: "`token` sits inside the continuous value encoder, which this backbone \
                          does not have (its values are categories or scale the gene embedding)"
                    .into(),
            });
        };
        Ok(Self {
            prefix: format!("{module}.adapter"),
            width: Bottleneck::width(shape.d_model, options.mlp_ratio)?,
            zero_init: options.zero_init,
            bound: None,
        })
    }
}

impl Adapter for Token {
    fn specs(&self, shape: BlockShape) -> Vec<TensorSpec> {
        Bottleneck::specs(&self.prefix, shape.d_model, self.width, self.zero_init)
    }

    fn bind(&mut self, params: &Params) -> Result<()> {
        self.bound = Some(Bottleneck::bind(params, &self.prefix)?);
        Ok(())
    }

    fn value_embedding(&self, v: Tensor) -> Result<Tensor> {
        match &self.bound {
            Some(bottleneck) => Ok(v.f_add(&bottleneck.forward(&v)?)?),
            None => Ok(v),
        }
    }
}
