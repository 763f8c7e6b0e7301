//! The heads of scBERT: a class of the cell from all places, the bin of each gene.

use tch::Tensor;

use super::Head;
use crate::Result;
use crate::backbone::absent;
use crate::ops::{Linear, full};
use crate::params::{Params, Role, TensorSpec};

const HEAD: &str = "to_out";

/// The bound head.
#[derive(Debug)]
pub(super) enum BoundHead {
    Cell {
        /// One vector that each place is multiplied with: `[1, 1, 1, D]` and `[1]`.
        conv: Linear,
        layers: [Linear; 3],
    },
    Masked(Linear),
}

pub(super) fn specs(head: Head, d_model: i64, vocab: i64, places: i64) -> Vec<TensorSpec> {
    let role = Role::Head;
    let linear = |part: &str, inputs, outputs| {
        Linear::specs(&format!("{HEAD}.{part}"), inputs, outputs, true, role)
    };
    match head {
        Head::Cell {
            classes,
            hidden: [first, second],
        } => {
            let mut specs = linear("conv1", d_model, 1);
            // A convolution over one row of the matrix of states.
            specs[0].shape = vec![1, 1, 1, d_model];
            specs.extend(linear("fc1", places, first));
            specs.extend(linear("fc2", first, second));
            specs.extend(linear("fc3", second, classes));
            specs
        }
        Head::MaskedTokens => Linear::specs(HEAD, d_model, vocab, true, role),
    }
}

impl BoundHead {
    pub(super) fn bind(params: &Params, head: Head) -> Result<Self> {
        let linear = |part: &str| Linear::bind(params, &format!("{HEAD}.{part}"), true);
        Ok(match head {
            Head::Cell { .. } => Self::Cell {
                conv: linear("conv1")?,
                layers: [linear("fc1")?, linear("fc2")?, linear("fc3")?],
            },
            Head::MaskedTokens => Self::Masked(Linear::bind(params, HEAD, true)?),
        })
    }

    /// `hidden`: `[B, N, D]`; logits `[B, classes]`.
    pub(super) fn classify(&self, hidden: &Tensor) -> Result<Tensor> {
        let Self::Cell {
            conv,
            layers: [first, second, third],
        } = self
        else {
            return Err(absent("classification"));
        };
        let hidden = full(hidden)?;
        let width = hidden.size()[2];
        let weight = conv.weight.f_view([1, width])?;
        let places = hidden
            .f_linear(&weight, conv.bias.as_ref())?
            .f_squeeze_dim(2)?
            .f_relu()?; // [B, N]
        let x = first.forward(&places)?.f_relu()?;
        third.forward(&second.forward(&x)?.f_relu()?)
    }

    /// `hidden`: `[B, N, D]`; logits `[B, N, V]`.
    pub(super) fn predict_tokens(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Masked(linear) => linear.forward(&full(hidden)?),
            Self::Cell { .. } => Err(absent("masked token")),
        }
    }
}
