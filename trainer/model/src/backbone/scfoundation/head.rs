//! The classifier of cells: the reference has one for each way to pool.

use tch::Tensor;

use super::pool::{Pool, PoolStyle};
use crate::Result;
use crate::exec::Pass;
use crate::ops::{LayerNorm, Linear};
use crate::params::{Params, Role, TensorSpec};

pub(super) const MODULE: &str = "fc1";
/// Hidden width of the classifier of [`PoolStyle::All`].
const NARROW: i64 = 256;

/// Places of the hidden layers within the module: linear layer and norm.
const HIDDEN: [[usize; 2]; 2] = [[0, 1], [4, 5]];
const OUTPUT: usize = 8;

/// The bound classifier.
#[derive(Debug)]
pub(super) enum ClassifierHead {
    /// Two hidden layers of width D, each with norm, ReLU and dropout.
    Deep {
        hidden: Vec<(Linear, LayerNorm)>,
        output: Linear,
        dropout: f64,
    },
    /// One hidden layer.
    Shallow { hidden: Linear, output: Linear },
}

fn part(place: usize) -> String {
    format!("{MODULE}.{place}")
}

pub(super) fn specs(pool: Pool, d_model: i64, classes: i64) -> Vec<TensorSpec> {
    let role = Role::Head;
    let linear = |place, inputs, outputs| Linear::specs(&part(place), inputs, outputs, true, role);
    match pool.style {
        PoolStyle::Max => {
            let mut specs = Vec::new();
            for [layer, norm] in HIDDEN {
                specs.extend(linear(layer, d_model, d_model));
                specs.extend(LayerNorm::specs(&part(norm), d_model, role));
            }
            specs.extend(linear(OUTPUT, d_model, classes));
            specs
        }
        PoolStyle::All => {
            let mut specs = linear(0, pool.width(d_model), NARROW);
            specs.extend(linear(2, NARROW, classes));
            specs
        }
    }
}

impl ClassifierHead {
    pub(super) fn bind(params: &Params, pool: Pool, dropout: f64) -> Result<Self> {
        let linear = |place| Linear::bind(params, &part(place), true);
        Ok(match pool.style {
            PoolStyle::Max => Self::Deep {
                hidden: HIDDEN
                    .iter()
                    .map(|&[layer, norm]| {
                        Ok((linear(layer)?, LayerNorm::bind(params, &part(norm))?))
                    })
                    .collect::<Result<_>>()?,
                output: linear(OUTPUT)?,
                dropout,
            },
            PoolStyle::All => Self::Shallow {
                hidden: linear(0)?,
                output: linear(2)?,
            },
        })
    }

    /// `cell`: `[B, D]` or `[B, 4D]`; returns `[B, classes]`.
    pub(super) fn forward(&self, cell: &Tensor, pass: Pass) -> Result<Tensor> {
        match self {
            Self::Deep {
                hidden,
                output,
                dropout,
            } => {
                let mut x = cell.shallow_clone();
                for (place, (linear, norm)) in hidden.iter().enumerate() {
                    x = norm.forward(&linear.forward(&x)?)?.f_relu()?;
                    x = pass.drop_in_head(x, *dropout, place as u64)?;
                }
                output.forward(&x)
            }
            Self::Shallow { hidden, output } => output.forward(&hidden.forward(cell)?.f_relu()?),
        }
    }
}
