use tch::{Kind, Tensor};

use crate::{Error, Result};

/// A weighted graph as the matrix that averages neighbours (Kipf and Welling 2017): with a loop of
/// weight 1 at every node, `D^-1/2 A D^-1/2`.
#[derive(Debug)]
pub struct Graph {
    matrix: Tensor,
    nodes: i64,
}

impl Graph {
    /// A graph of `nodes` nodes. Where the edges have a loop, it stands for the one that is added.
    ///
    /// # Shapes
    /// `edges`: i64 `[2, E]`, from and to; `weights`: f32 `[E]`, at least 0.
    ///
    /// # Errors
    /// An edge to a node that there is not, or libtorch fails.
    pub fn new(edges: &Tensor, weights: &Tensor, nodes: i64) -> Result<Self> {
        let outside = edges.f_lt(0)?.f_logical_or(&edges.f_ge(nodes)?)?;
        if outside.f_any()?.f_int64_value(&[])? != 0 {
            return Err(Error::Internal(format!(
                "an edge leads out of {nodes} nodes"
            )));
        }
        let options = (weights.f_kind()?, weights.device());
        let (from, to) = (edges.f_get(0)?, edges.f_get(1)?);
        let all = Tensor::f_arange(nodes, (Kind::Int64, weights.device()))?;
        let looped = from.f_eq_tensor(&to)?;
        let own = Tensor::f_ones([nodes], options)?;
        let own = own.f_index_put(
            &[Some(&from.f_masked_select(&looped)?)],
            &weights.f_masked_select(&looped)?,
            false,
        )?;
        let kept = looped.f_logical_not()?;
        let from = Tensor::f_cat(&[&from.f_masked_select(&kept)?, &all], 0)?;
        let to = Tensor::f_cat(&[&to.f_masked_select(&kept)?, &all], 0)?;
        let weights = Tensor::f_cat(&[&weights.f_masked_select(&kept)?, &own], 0)?;
        let degree = Tensor::f_zeros([nodes], options)?.f_index_add(0, &to, &weights)?;
        // No node is without weight unless its loop has none.
        let scale = degree.f_pow_tensor_scalar(-0.5)?;
        let scale = scale.f_masked_fill(&degree.f_eq(0.0)?, 0.0)?;
        let weights = weights
            .f_mul(&scale.f_index_select(0, &from)?)?
            .f_mul(&scale.f_index_select(0, &to)?)?;
        let places = Tensor::f_stack(&[&to, &from], 0)?;
        let matrix = Tensor::f_sparse_coo_tensor_indices_size(
            &places,
            &weights,
            [nodes, nodes],
            options,
            false,
        )?;
        Ok(Self {
            matrix: matrix.f_coalesce()?,
            nodes,
        })
    }

    pub(super) fn nodes(&self) -> i64 {
        self.nodes
    }

    /// `x`: `[nodes, D]`; returns the same shape.
    pub(super) fn spread(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.matrix.f_mm(x)?)
    }
}
