//! Losses of predicted responses to perturbations: distances between sets of cells, and errors of
//! genes that changed.
//!
//! Distances are taken in double precision: they are small differences of large numbers.

use tch::{Kind, Tensor};

use crate::Result;

/// Widths of the Gaussian kernels that [`mmd_rbf`] averages over, `exp(-gamma |x - y|^2)`.
pub const MMD_GAMMAS: [f64; 6] = [2.0, 1.0, 0.5, 0.1, 0.01, 0.005];
/// Squared distances up to this are zero, without a gradient: two equal cells have no direction,
/// and rounding leaves a little.
const SQUARE_MIN: f64 = 1e-10;
/// Control cells whose standard deviation is below this say nothing of a gene's scale (PertAdapt).
const STD_MIN: f64 = 1e-2;
/// Standard deviations from control beyond which a gene counts as changed (PertAdapt).
const Z_CHANGED: f64 = 2.0;

/// Squared maximum mean discrepancy of two sets of cells, all pairs, averaged over `gammas`.
///
/// # Shapes
/// `x`: f32 `[N, G]`, `y`: f32 `[M, G]`; returns a scalar in double precision.
///
/// # Errors
/// Only if libtorch fails.
pub fn mmd_rbf(x: &Tensor, y: &Tensor, gammas: &[f64]) -> Result<Tensor> {
    let kernel = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let square = squared_distances(a, b)?;
        let mut sum = square.f_zeros_like()?;
        for gamma in gammas {
            sum = sum.f_add(&square.f_mul_scalar(-gamma)?.f_exp()?)?;
        }
        Ok(sum
            .f_mean(Kind::Double)?
            .f_div_scalar(gammas.len() as f64)?)
    };
    let within = kernel(x, x)?.f_add(&kernel(y, y)?)?;
    Ok(within.f_sub(&kernel(x, y)?.f_mul_scalar(2.0)?)?)
}

/// Energy distance of two sets of cells, `2 E|x - y| - E|x - x'| - E|y - y'|`, all pairs.
///
/// # Shapes
/// `x`: f32 `[N, G]`, `y`: f32 `[M, G]`; returns a scalar in double precision.
///
/// # Errors
/// Only if libtorch fails.
pub fn energy_distance(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let distance = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let square = squared_distances(a, b)?;
        let apart = square.f_gt(SQUARE_MIN)?.f_to_kind(Kind::Double)?;
        // The bound takes the infinite slope of the root at zero away.
        let root = square.f_clamp_min(SQUARE_MIN)?.f_sqrt()?;
        Ok(root.f_mul(&apart)?.f_mean(Kind::Double)?)
    };
    let within = distance(x, x)?.f_add(&distance(y, y)?)?;
    Ok(distance(x, y)?.f_mul_scalar(2.0)?.f_sub(&within)?)
}

/// `[N, G]` and `[M, G]` to `[N, M]`.
fn squared_distances(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (x, y) = (x.f_to_kind(Kind::Double)?, y.f_to_kind(Kind::Double)?);
    let length = |v: &Tensor| v.f_mul(v)?.f_sum_dim_intlist(1, true, None::<Kind>);
    let products = x.f_mm(&y.f_tr()?)?.f_mul_scalar(2.0)?;
    Ok(length(&x)?
        .f_add(&length(&y)?.f_tr()?)?
        .f_sub(&products)?
        .f_clamp_min(0.0)?)
}

/// Sum of the squared errors of z-scores over genes that change, really or as predicted: the
/// adaptive loss of PertAdapt, whose divisor is the number of all values (its batch times genes).
/// z-scores are against control; genes that hardly vary among control cells are left out.
///
/// # Shapes
/// `prediction`, `target`: f32 `[B, G]`; `mean`, `std` of control cells: f32 `[G]` or `[B, G]`;
/// returns a scalar.
///
/// # Errors
/// Only if libtorch fails.
pub fn adaptive_squared_error_sum(
    prediction: &Tensor,
    target: &Tensor,
    mean: &Tensor,
    std: &Tensor,
) -> Result<Tensor> {
    let varies = std.f_gt(STD_MIN)?;
    let scale = std.f_clamp_min(STD_MIN)?;
    let z = |x: &Tensor| x.f_sub(mean)?.f_div(&scale);
    let (predicted, real) = (z(prediction)?, z(target)?);
    let beyond = |z: &Tensor| z.f_abs()?.f_gt(Z_CHANGED);
    let changed = beyond(&predicted)?
        .f_logical_or(&beyond(&real)?)?
        .f_logical_and(&varies)?;
    let error = predicted.f_sub(&real)?;
    Ok(error
        .f_mul(&error)?
        .f_mul(&changed.f_to_kind(Kind::Float)?)?
        .f_sum(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(seed: u64, n: i64) -> Tensor {
        let values: Vec<f32> = (0..n * 5)
            .map(|i| ((i as u64 * 7919 + seed * 31) % 97) as f32 / 40.0)
            .collect();
        Tensor::from_slice(&values).view([n, 5])
    }

    /// The gradient of a loss against differences of the loss.
    fn check_gradient(loss: &dyn Fn(&Tensor) -> Tensor, x: &Tensor) {
        let x = x.to_kind(Kind::Double).set_requires_grad(true);
        loss(&x).backward();
        let gradient = x.grad();
        assert_eq!(gradient.isfinite().all().int64_value(&[]), 1);
        let step = 1e-5;
        for i in 0..x.size()[0] {
            for j in 0..x.size()[1] {
                let shifted = |by: f64| {
                    let moved = x.detach().copy();
                    let _ = moved.get(i).get(j).g_add_scalar_(by);
                    loss(&moved).double_value(&[])
                };
                let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
                let found = gradient.double_value(&[i, j]);
                assert!(
                    (slope - found).abs() < 1e-5 * slope.abs().max(1.0),
                    "{slope} {found}"
                );
            }
        }
    }

    #[test]
    fn gradients_are_slopes_also_where_cells_are_equal() {
        let (x, y) = (cells(1, 4), cells(2, 3));
        check_gradient(&|x| mmd_rbf(x, &y, &MMD_GAMMAS).unwrap(), &x);
        check_gradient(&|x| energy_distance(x, &y).unwrap(), &x);
        let twins = Tensor::cat(&[&x, &x], 0).set_requires_grad(true);
        energy_distance(&twins, &y).unwrap().backward();
        assert_eq!(twins.grad().isfinite().all().int64_value(&[]), 1);
        assert!(energy_distance(&x, &x).unwrap().double_value(&[]).abs() < 1e-9);
        assert!(
            mmd_rbf(&x, &x, &MMD_GAMMAS)
                .unwrap()
                .double_value(&[])
                .abs()
                < 1e-12
        );
    }

    #[test]
    fn only_changed_genes_that_vary_in_control_count() {
        let mean = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 1.0]);
        let std = Tensor::from_slice(&[0.5f32, 0.5, 0.001, 0.5]);
        // z of truth: 4, 0.2, huge but no scale, 0; of the prediction: 1, 0.4, none, -3.
        let target = Tensor::from_slice(&[3.0f32, 1.1, 9.0, 1.0]).view([1, 4]);
        let prediction = Tensor::from_slice(&[1.5f32, 1.2, 1.0, -0.5]).view([1, 4]);
        let sum = adaptive_squared_error_sum(&prediction, &target, &mean, &std).unwrap();
        assert!((sum.double_value(&[]) - (9.0 + 9.0)).abs() < 1e-5);
    }
}
