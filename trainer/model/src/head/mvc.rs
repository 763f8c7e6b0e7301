use tch::Tensor;

use super::Expression;
use crate::ops::{Linear, cast, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

const PREFIX: &str = "mvc_decoder";
/// Width of the hidden layer of the query styles.
const HIDDEN: i64 = 64;

/// How gene and cell embedding meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MvcStyle {
    /// `<W sigmoid(gene2query(g)), c>`, the published default.
    #[default]
    InnerProduct,
    /// The same without a gradient into the gene embeddings.
    InnerProductDetached,
    /// A small network on `[c, sigmoid(gene2query(g))]`.
    ConcatQuery,
    /// A small network on `c + sigmoid(gene2query(g))`.
    SumQuery,
}

/// What an [`MvcDecoder`] is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MvcOptions {
    /// How gene and cell embedding meet.
    pub style: MvcStyle,
    /// Also model the probability of zero expression; inner-product styles only.
    pub explicit_zero: bool,
    /// The cell embedding comes with the batch embedding; inner-product styles only.
    pub batch_labels: bool,
}

impl MvcOptions {
    /// # Errors
    /// The query styles know neither zero probabilities nor batch labels.
    pub fn validate(self) -> Result<()> {
        let query = matches!(self.style, MvcStyle::ConcatQuery | MvcStyle::SumQuery);
        let problem = if query && self.explicit_zero {
            "the query styles do not model zero probabilities: use an inner-product style"
        } else if query && self.batch_labels {
            "the query styles take no batch embedding: use an inner-product style"
        } else {
            return Ok(());
        };
        Err(Error::Setting {
            setting: "task.mvc_style",
            problem: problem.into(),
        })
    }
}

#[derive(Debug)]
enum Meeting {
    InnerProduct {
        value: Linear,
        nonzero: Option<Linear>,
        detached: bool,
    },
    Query {
        fc1: Linear,
        slope: Tensor,
        fc2: Linear,
        concat: bool,
    },
}

/// Masked value prediction from the cell embedding (GEPC): of gene embeddings g and cell
/// embedding c, in one of four styles.
#[derive(Debug)]
pub struct MvcDecoder {
    gene2query: Linear,
    meeting: Meeting,
}

impl MvcDecoder {
    /// Tensors of the decoder.
    pub fn specs(d_model: i64, options: MvcOptions) -> Vec<TensorSpec> {
        let linear = |name: &str, inputs, outputs, bias| {
            let name = format!("{PREFIX}.{name}");
            Linear::specs(&name, inputs, outputs, bias, Role::Head)
        };
        let query = if options.style == MvcStyle::ConcatQuery {
            HIDDEN
        } else {
            d_model
        };
        let mut specs = linear("gene2query", d_model, query, true);
        match options.style {
            MvcStyle::InnerProduct | MvcStyle::InnerProductDetached => {
                let width = if options.batch_labels {
                    2 * d_model
                } else {
                    d_model
                };
                specs.extend(linear("W", d_model, width, false));
                if options.explicit_zero {
                    specs.extend(linear("W_zero_logit", d_model, width, true));
                }
            }
            MvcStyle::ConcatQuery | MvcStyle::SumQuery => {
                let inputs = if options.style == MvcStyle::ConcatQuery {
                    d_model + query
                } else {
                    d_model
                };
                specs.extend(linear("fc1", inputs, HIDDEN, true));
                let slope = Init::Constant { value: 0.25 };
                let name = format!("{PREFIX}.hidden_activation.weight");
                specs.push(TensorSpec::new(name, &[1], slope, Role::Head));
                specs.extend(linear("fc2", HIDDEN, 1, true));
            }
        }
        specs
    }

    /// Binds to the tensors of [`MvcDecoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, options: MvcOptions) -> Result<Self> {
        let linear = |name: &str, bias| Linear::bind(params, &format!("{PREFIX}.{name}"), bias);
        let meeting = match options.style {
            MvcStyle::InnerProduct | MvcStyle::InnerProductDetached => Meeting::InnerProduct {
                value: linear("W", false)?,
                nonzero: if options.explicit_zero {
                    Some(linear("W_zero_logit", true)?)
                } else {
                    None
                },
                detached: options.style == MvcStyle::InnerProductDetached,
            },
            MvcStyle::ConcatQuery | MvcStyle::SumQuery => Meeting::Query {
                fc1: linear("fc1", true)?,
                slope: params.get(&format!("{PREFIX}.hidden_activation.weight"))?,
                fc2: linear("fc2", true)?,
                concat: options.style == MvcStyle::ConcatQuery,
            },
        };
        Ok(Self {
            gene2query: linear("gene2query", true)?,
            meeting,
        })
    }

    /// # Shapes
    /// `cell`: `[B, D]`, or `[B, 2D]` with the batch embedding; `genes`: gene embeddings
    /// `[B, S, D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn forward(&self, cell: &Tensor, genes: &Tensor) -> Result<Expression> {
        let kind = genes.f_kind()?;
        let cell = cast(cell, kind)?;
        match &self.meeting {
            Meeting::InnerProduct {
                value,
                nonzero,
                detached,
            } => {
                let query = if *detached {
                    self.query(&genes.f_detach()?)?
                } else {
                    self.query(genes)?
                };
                let project = |w: &Linear| inner_product(w, &query, &cell);
                Ok(Expression {
                    prediction: project(value)?,
                    nonzero_probability: match nonzero {
                        Some(w) => Some(project(w)?.f_sigmoid()?),
                        None => None,
                    },
                })
            }
            Meeting::Query {
                fc1,
                slope,
                fc2,
                concat,
            } => {
                let query = self.query(genes)?;
                let met = if *concat {
                    let (batch, seq, _) = query.size3()?;
                    let repeated = cell.f_unsqueeze(1)?.f_expand([batch, seq, -1], false)?;
                    Tensor::f_cat(&[&repeated, &query], 2)?
                } else {
                    cell.f_unsqueeze(1)?.f_add(&query)?
                };
                let hidden = fc1.forward(&met)?.f_prelu(&cast(slope, kind)?)?;
                Ok(Expression {
                    prediction: full(&fc2.forward(&hidden)?.f_squeeze_dim(2)?)?,
                    nonzero_probability: None,
                })
            }
        }
    }

    fn query(&self, genes: &Tensor) -> Result<Tensor> {
        Ok(self.gene2query.forward(genes)?.f_sigmoid()?)
    }
}

/// `<w(query), cell>` per token. W is applied to the cells, of which there are fewer than tokens:
/// `<W q + b, c> = <q, W^T c> + <b, c>`.
fn inner_product(w: &Linear, query: &Tensor, cell: &Tensor) -> Result<Tensor> {
    let weight = cast(&w.weight, cell.f_kind()?)?; // [Dc, D]
    let projected = cell.f_matmul(&weight)?.f_unsqueeze(2)?; // [B, D, 1]
    let product = full(&query.f_bmm(&projected)?.f_squeeze_dim(2)?)?; // [B, S]
    match &w.bias {
        None => Ok(product),
        Some(bias) => {
            let shift = full(cell)?.f_matmul(&bias.f_unsqueeze(1)?)?; // [B, 1]
            Ok(product.f_add(&shift)?)
        }
    }
}
