//! The loss that GEARS is trained with.

use tch::{Kind, Tensor};

use crate::Result;

/// Cells of a micro-batch with one perturbation.
#[derive(Debug)]
pub struct Condition {
    /// Their places: i64 `[n]`.
    pub cells: Tensor,
    /// The genes that count, i64 `[k]`: those that the perturbation's cells express. All where there are
    /// none.
    pub genes: Option<Tensor>,
}

/// Autofocus and direction (Roohani et al. 2024): `mean |p - y|^(2 + focus)` over cells and genes of a
/// condition, and `direction` times the mean of `(sign(y - c) - sign(p - c))^2`, summed over conditions
/// and divided by their number. Only the first has a gradient.
///
/// # Shapes
/// `predicted` p and `target` y: f32 `[B, G]`; `control` c: f32 `[G]`; returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn autofocus_direction(
    predicted: &Tensor,
    target: &Tensor,
    control: &Tensor,
    conditions: &[Condition],
    focus: f64,
    direction: f64,
) -> Result<Tensor> {
    let mut sum = predicted.f_new_zeros([], (predicted.f_kind()?, predicted.device()))?;
    for condition in conditions {
        let of = |x: &Tensor| -> Result<Tensor> {
            let x = x.f_index_select(0, &condition.cells)?;
            match &condition.genes {
                Some(genes) => Ok(x.f_index_select(1, genes)?),
                None => Ok(x),
            }
        };
        let (p, y) = (of(predicted)?, of(target)?);
        let c = match &condition.genes {
            Some(genes) => control.f_index_select(0, genes)?,
            None => control.shallow_clone(),
        };
        let error = p.f_sub(&y)?.f_abs()?.f_pow_tensor_scalar(2.0 + focus)?;
        let turned = y.f_sub(&c)?.f_sign()?.f_sub(&p.f_sub(&c)?.f_sign()?)?;
        let turned = turned.f_square()?.f_mul_scalar(direction)?;
        sum = sum.f_add(&error.f_add(&turned)?.f_mean(None::<Kind>)?)?;
    }
    Ok(sum.f_div_scalar(conditions.len().max(1) as f64)?)
}
