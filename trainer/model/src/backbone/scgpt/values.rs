//! From expression values to embeddings.

use tch::{Kind, Tensor};

use crate::adapter::AdapterSet;
use crate::exec::Pass;
use crate::ops::{LayerNorm, Linear, cast};
use crate::params::{Params, Role, TensorSpec};
use crate::{Init, Result};

const PREFIX: &str = "value_encoder";
/// Values above this are cut before the continuous encoder.
const VALUE_MAX: f64 = 512.0;

/// What a value becomes (`input_emb_style`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValueStyle {
    /// Two linear layers and a norm on the number itself, mask and pad values included.
    #[default]
    Continuous,
    /// A row of a table of bins.
    Category {
        /// Rows of the table: bins, the pad value and the mask value.
        n_input_bins: i64,
        /// The row of padding, which never trains.
        pad_value: i64,
    },
    /// A factor on the gene embedding.
    Scaling,
}

#[derive(Debug)]
enum Kinds {
    Continuous {
        linear1: Linear,
        linear2: Linear,
        norm: LayerNorm,
        compute: Kind,
    },
    Category {
        table: Tensor,
        norm: LayerNorm,
        pad_value: i64,
    },
    Scaling,
}

/// The bound value encoder.
#[derive(Debug)]
pub struct ValueEncoder(Kinds);

impl ValueEncoder {
    /// Tensors of the encoder; none for scaling.
    pub fn specs(style: ValueStyle, d_model: i64) -> Vec<TensorSpec> {
        let role = Role::Backbone;
        match style {
            ValueStyle::Continuous => {
                // The numbers themselves are never rounded to bf16.
                let first = Linear::specs(&format!("{PREFIX}.linear1"), 1, d_model, true, role);
                let mut specs: Vec<TensorSpec> = first
                    .into_iter()
                    .map(TensorSpec::in_full_precision)
                    .collect();
                let second = format!("{PREFIX}.linear2");
                specs.extend(Linear::specs(&second, d_model, d_model, true, role));
                specs.extend(LayerNorm::specs(&format!("{PREFIX}.norm"), d_model, role));
                specs
            }
            ValueStyle::Category {
                n_input_bins,
                pad_value,
            } => {
                let init = Init::NormalButRow {
                    row: pad_value as usize,
                    width: d_model as usize,
                };
                let mut specs = vec![TensorSpec::new(
                    format!("{PREFIX}.embedding.weight"),
                    &[n_input_bins, d_model],
                    init,
                    role,
                )];
                let norm = format!("{PREFIX}.enc_norm");
                specs.extend(LayerNorm::specs(&norm, d_model, role));
                specs
            }
            ValueStyle::Scaling => Vec::new(),
        }
    }

    /// Binds to the tensors of [`ValueEncoder::specs`].
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, style: ValueStyle) -> Result<Self> {
        Ok(Self(match style {
            ValueStyle::Continuous => Kinds::Continuous {
                linear1: Linear::bind(params, &format!("{PREFIX}.linear1"), true)?,
                linear2: Linear::bind(params, &format!("{PREFIX}.linear2"), true)?,
                norm: LayerNorm::bind(params, &format!("{PREFIX}.norm"))?,
                compute: params.precision().compute(),
            },
            ValueStyle::Category { pad_value, .. } => Kinds::Category {
                table: params.get(&format!("{PREFIX}.embedding.weight"))?,
                norm: LayerNorm::bind(params, &format!("{PREFIX}.enc_norm"))?,
                pad_value,
            },
            ValueStyle::Scaling => Kinds::Scaling,
        }))
    }

    /// Gene embeddings with their values: `genes` `[B, S, D]`, `values` `[B, S]`; returns
    /// `[B, S, D]`.
    pub(super) fn combine(
        &self,
        genes: &Tensor,
        values: &Tensor,
        adapters: &AdapterSet,
        pass: Pass,
    ) -> Result<Tensor> {
        match self.embed(values, adapters, pass)? {
            Some(v) => Ok(genes.f_add(&cast(&v, genes.f_kind()?)?)?),
            None => Ok(genes.f_mul(&cast(values, genes.f_kind()?)?.f_unsqueeze(-1)?)?),
        }
    }

    /// Value embeddings `[B, S, D]` of `values` `[B, S]`; `None` where values scale the gene
    /// embedding instead.
    ///
    /// # Errors
    /// A bin beyond the table, or libtorch fails.
    pub fn embed(
        &self,
        values: &Tensor,
        adapters: &AdapterSet,
        pass: Pass,
    ) -> Result<Option<Tensor>> {
        match &self.0 {
            Kinds::Continuous {
                linear1,
                linear2,
                norm,
                compute,
            } => {
                let v = cast(values, linear1.weight.f_kind()?)?
                    .f_clamp_max(VALUE_MAX)?
                    .f_unsqueeze(-1)?;
                let v = cast(&linear1.forward(&v)?.f_relu()?, *compute)?;
                let v = adapters.value_embedding(norm.forward(&linear2.forward(&v)?)?)?;
                Ok(Some(pass.drop_embedding(v)?))
            }
            Kinds::Category {
                table,
                norm,
                pad_value,
            } => {
                let bins = values.f_to_kind(Kind::Int64)?;
                let v = Tensor::f_embedding(table, &bins, *pad_value, false, false)?;
                Ok(Some(norm.forward(&v)?))
            }
            Kinds::Scaling => Ok(None),
        }
    }
}
