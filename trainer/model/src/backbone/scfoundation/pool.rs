use tch::{Kind, Tensor};

use crate::Result;
use crate::ops::{cast, full};

/// What the cell embedding is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PoolStyle {
    /// The largest of each feature over all tokens: `[B, D]`.
    #[default]
    Max,
    /// The states of the last token and the one before, which are the read depths S and T where the
    /// cell has them, and the largest and the mean over all others: `[B, 4D]`.
    All,
}

/// How token states become a cell embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pool {
    /// What it is made of.
    pub style: PoolStyle,
    /// Whether places of padding count, as in the reference: what stands for a cell then depends on
    /// the longest one beside it.
    pub padded: bool,
}

impl Pool {
    /// Width of the cell embedding.
    pub(super) fn width(self, d_model: i64) -> i64 {
        match self.style {
            PoolStyle::Max => d_model,
            PoolStyle::All => 4 * d_model,
        }
    }

    /// `hidden`: `[B, S, D]`; `padding`: bool `[B, S]`, on the right of each cell; returns `[B, D]`
    /// or `[B, 4D]` in full precision.
    pub(super) fn apply(self, hidden: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        let hidden = full(hidden)?;
        let padding = padding.filter(|_| !self.padded);
        match (self.style, padding) {
            (PoolStyle::Max, None) => Ok(hidden.f_max_dim(1, false)?.0),
            (PoolStyle::Max, Some(padding)) => largest(&hidden, padding),
            (PoolStyle::All, padding) => all(&hidden, padding),
        }
    }
}

/// The largest of each feature over the places that are not `skipped`.
fn largest(hidden: &Tensor, skipped: &Tensor) -> Result<Tensor> {
    let kept = hidden.f_masked_fill(&skipped.f_unsqueeze(-1)?, f64::NEG_INFINITY)?;
    Ok(kept.f_max_dim(1, false)?.0)
}

fn all(hidden: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
    let (batch, seq, d_model) = hidden.size3()?;
    let options = (Kind::Int64, hidden.device());
    let lengths = match padding {
        Some(padding) => padding
            .f_logical_not()?
            .f_sum_dim_intlist(1, true, Kind::Int64)?,
        None => Tensor::f_full([batch, 1], seq, options)?,
    }; // [B, 1]
    let state = |from_end: i64| {
        let place = lengths.f_sub_scalar(from_end)?.f_clamp_min(0)?;
        let place = place
            .f_unsqueeze(-1)?
            .f_expand([batch, 1, d_model], false)?;
        Ok::<_, crate::Error>(hidden.f_gather(1, &place, false)?.f_squeeze_dim(1)?)
    };
    // A cell of two tokens has no others: their largest and mean are 0.
    let others = lengths.f_sub_scalar(2)?.f_clamp_min(0)?;
    let beyond = Tensor::f_arange(seq, options)?
        .f_unsqueeze(0)?
        .f_ge_tensor(&others)?; // [B, S]
    let most = largest(hidden, &beyond)?.f_masked_fill(&others.f_eq(0)?, 0.0)?;
    let weights = cast(&beyond.f_logical_not()?, hidden.f_kind()?)?.f_unsqueeze(1)?;
    let sum = weights.f_bmm(hidden)?.f_squeeze_dim(1)?;
    let mean = sum.f_div(&cast(&others.f_clamp_min(1)?, hidden.f_kind()?)?)?;
    Ok(Tensor::f_cat(&[state(1)?, state(2)?, most, mean], 1)?)
}
