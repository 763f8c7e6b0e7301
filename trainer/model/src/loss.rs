//! Losses, as sums wherever the divisor is a count: the trainer divides once, by the count of the
//! whole global batch, so that ragged batches and any number of ranks give the same gradient.

mod gears;
mod response;

use tch::{Kind, Reduction, Tensor};

use crate::Result;

pub use gears::{Condition, autofocus_direction};
pub use response::{MMD_GAMMAS, adaptive_squared_error_sum, energy_distance, mmd_rbf};

/// Sum over masked positions of the squared error.
///
/// # Shapes
/// `prediction`, `target`: f32 `[B, S]`; `mask`: f32 `[B, S]`, 1 where masked; returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn masked_squared_error_sum(
    prediction: &Tensor,
    target: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    let error = prediction.f_sub(target)?.f_mul(mask)?;
    Ok(error.f_mul(&error)?.f_sum(Kind::Float)?)
}

/// Sum over masked positions of the negative Bernoulli log-likelihood of "expression is not zero".
///
/// # Shapes
/// `probability`, `target`, `mask`: f32 `[B, S]`; returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn nonzero_nll_sum(probability: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    // torch's Bernoulli clamps probabilities to one float32 epsilon from 0 and 1.
    let eps = f64::from(f32::EPSILON);
    let p = probability.f_clamp(eps, 1.0 - eps)?;
    let expressed = target.f_gt(0.0)?.f_to_kind(Kind::Float)?;
    let hit = p.f_log()?.f_mul(&expressed)?;
    let miss = p
        .f_neg()?
        .f_log1p()?
        .f_mul(&expressed.f_neg()?.f_add_scalar(1.0)?)?;
    Ok(hit.f_add(&miss)?.f_mul(mask)?.f_sum(Kind::Float)?.f_neg()?)
}

/// Sum over masked positions of the relative error `|prediction - target| / (target + 1e-6)`: a
/// metric, not a loss. It explodes where targets are zero.
///
/// # Shapes
/// `prediction`, `target`, `mask`: f32 `[B, S]`; returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn masked_relative_error_sum(
    prediction: &Tensor,
    target: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    let error = prediction.f_sub(target)?.f_abs()?.f_mul(mask)?;
    Ok(error
        .f_div(&target.f_add_scalar(1e-6)?)?
        .f_sum(Kind::Float)?)
}

/// Sum of the (weighted) cross-entropy; its divisor is the sum of the targets' weights.
///
/// # Shapes
/// `logits`: f32 `[B, classes]`; `labels`: i64 `[B]`; `class_weight`: f32 `[classes]`; returns a
/// scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn cross_entropy_sum(
    logits: &Tensor,
    labels: &Tensor,
    class_weight: Option<&Tensor>,
) -> Result<Tensor> {
    Ok(logits.f_cross_entropy_loss(labels, class_weight, Reduction::Sum, -100, 0.0)?)
}

/// Elastic cell similarity (scGPT): the mean over all `B * B` pairs of `1 - (s - threshold)^2`,
/// where s is the cosine similarity, negative ones cut to 0 and the diagonal set to 0 (so each
/// diagonal entry contributes `1 - threshold^2`).
///
/// # Shapes
/// `cell`: f32 `[B, D]`; returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn elastic_cell_similarity(cell: &Tensor, threshold: f64) -> Result<Tensor> {
    let unit = normalize(cell)?;
    let similarity = unit.f_mm(&unit.f_tr()?)?;
    let off_diagonal = similarity.f_ones_like()?.f_fill_diagonal_(0.0, false)?;
    let distance = similarity
        .f_mul(&off_diagonal)?
        .f_relu()?
        .f_sub_scalar(threshold)?;
    Ok(distance
        .f_mul(&distance)?
        .f_neg()?
        .f_add_scalar(1.0)?
        .f_mean(Kind::Float)?)
}

/// Contrastive cell embedding (scGPT, SimCSE): cross-entropy against the diagonal of the cosine
/// similarities over temperature 0.5 between two passes over the same cells.
///
/// # Shapes
/// `first`, `second`: f32 `[B, D]`; returns a scalar, the mean over B.
///
/// # Errors
/// Only if libtorch fails.
pub fn contrastive_cell_embedding(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let similarity = normalize(first)?
        .f_mm(&normalize(second)?.f_tr()?)?
        .f_div_scalar(0.5)?;
    let labels = Tensor::f_arange(first.size()[0], (Kind::Int64, first.device()))?;
    Ok(similarity.f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)?)
}

/// `x` `[B, D]` with rows of length 1; rows of zeros stay as they are.
///
/// # Errors
/// Only if libtorch fails.
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    // torch's normalize divides by the norm, at least 1e-12.
    let norm = x.f_norm_scalaropt_dim(2.0, [1], true)?.f_clamp_min(1e-12)?;
    Ok(x.f_div(&norm)?)
}
