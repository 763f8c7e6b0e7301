//! The rank statistic of attention scores (scPEFT's marker genes).

use tch::{Kind, Tensor};

use crate::Result;

/// Share of elements that come before each one in a stable ascending sort along `dim`.
///
/// # Shapes
/// Any; returns f32 of the same shape.
///
/// # Errors
/// Only if libtorch fails.
pub fn stable_ranks(x: &Tensor, dim: i64) -> Result<Tensor> {
    let order = x.f_argsort_stable(true, dim, false)?;
    let size = x.size();
    let axis = if dim < 0 {
        dim + size.len() as i64
    } else {
        dim
    };
    let n = size[axis as usize];
    let mut shape = vec![1; size.len()];
    shape[axis as usize] = n;
    let places = Tensor::f_arange(n, (Kind::Float, x.device()))?
        .f_view(shape.as_slice())?
        .f_expand(size.as_slice(), false)?;
    let mut ranks = Tensor::f_zeros(size.as_slice(), (Kind::Float, x.device()))?;
    let _ = ranks.f_scatter_(axis, &order, &places.f_contiguous()?)?;
    Ok(ranks.f_div_scalar(n)?)
}

/// Row of `<cls>` (row 0) of the column ranks of the row ranks, mean over heads, its own column
/// left out.
///
/// Row ranks are multiples of 1/S, so columns are full of ties. In a stable sort row 0 comes first
/// among its ties: its rank in a column is the number of rows with a smaller row rank, and no column
/// need be sorted.
///
/// # Shapes
/// `raw`: `[B, H, S, S]`; returns f32 `[B, S - 1]`. Holds some `S^2` numbers of one head of one cell at a
/// time.
///
/// # Errors
/// Only if libtorch fails.
pub fn cls_ranks(raw: &Tensor) -> Result<Tensor> {
    let (batch, heads, seq, _) = raw.size4()?;
    let of_head = |cell: i64, head: i64| -> Result<Tensor> {
        let rows = stable_ranks(&raw.f_select(0, cell)?.f_select(0, head)?, -1)?; // [S, S]
        let before = rows.f_lt_tensor(&rows.f_narrow(0, 0, 1)?)?;
        let ranks = before.f_sum_dim_intlist(0, false, Kind::Float)?;
        Ok(ranks.f_div_scalar(seq)?) // [S]
    };
    let cells = (0..batch)
        .map(|cell| {
            let ranks = (0..heads).map(|head| of_head(cell, head));
            let ranks = Tensor::f_stack(&ranks.collect::<Result<Vec<_>>>()?, 0)?; // [H, S]
            let mean = ranks.f_mean_dim(0, false, Kind::Float)?;
            Ok(mean.f_narrow(0, 1, seq - 1)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&cells, 0)?)
}
