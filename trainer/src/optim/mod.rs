//! The update of the flat parameter buffer: clipping, Adam and AdamW, learning-rate
//! schedules, the moving average.

mod adam;
mod ema;
mod schedule;

pub use adam::{Adam, AdamOptions};
pub use ema::Ema;
pub use schedule::{Schedule, Shape};

use tch::{Kind, Tensor};

/// Scales `grad` `[n]` down to `max_norm` when its norm is larger; returns the norm before.
///
/// The buffer is the reduced one, so that all ranks compute the same bits. A `max_norm` of 0
/// clips nothing.
///
/// # Errors
/// Only if libtorch fails.
pub fn clip_grad_norm(grad: &mut Tensor, max_norm: f64) -> Result<f64, tch::TchError> {
    let norm = grad
        .f_norm()?
        .f_to_kind(Kind::Double)?
        .f_double_value(&[])?;
    if max_norm > 0.0 && norm > max_norm {
        // torch adds 1e-6 to the norm; the published runs were clipped that way.
        let _ = grad.f_mul_scalar_(max_norm / (norm + 1e-6))?;
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_keeps_the_direction_and_reports_the_norm_before() {
        let mut grad = Tensor::from_slice(&[3.0f32, 4.0]);
        assert!((clip_grad_norm(&mut grad, 0.0).unwrap() - 5.0).abs() < 1e-6);
        assert_eq!(Vec::<f32>::try_from(&grad).unwrap(), [3.0, 4.0]);
        assert!((clip_grad_norm(&mut grad, 1.0).unwrap() - 5.0).abs() < 1e-6);
        let clipped = Vec::<f32>::try_from(&grad).unwrap();
        assert!(
            (clipped[0] - 0.6).abs() < 1e-5 && (clipped[1] - 0.8).abs() < 1e-5,
            "{clipped:?}"
        );
        assert!((clip_grad_norm(&mut grad, 2.0).unwrap() - 1.0).abs() < 1e-5);
    }
}
