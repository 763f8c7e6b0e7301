//! Frozen matrices in 8 bits: one whole number of -127 to 127 for each weight and one scale for each
//! output channel (row), the largest magnitude of the row divided by 127. What a weight becomes is off
//! by half a scale at most.

use tch::{Device, Kind, Tensor};

use super::image::ALIGNMENT;
use crate::{Error, Result};

/// The largest whole number.
const MOST: f64 = 127.0;

/// Where the scales begin behind `rows * columns` whole numbers.
fn scales_at(numel: usize) -> usize {
    numel.next_multiple_of(ALIGNMENT)
}

/// Bytes of a matrix of this shape.
pub(crate) fn bytes(shape: &[i64]) -> usize {
    let numel = shape.iter().product::<i64>() as usize;
    scales_at(numel) + shape[0] as usize * size_of::<f32>()
}

/// Packs a matrix `[rows, columns]` into u8 `[bytes]`: the whole numbers row by row, then the scales,
/// f32.
///
/// # Errors
/// A weight that is not finite, or libtorch out of memory.
pub(super) fn pack(value: &Tensor) -> Result<Tensor> {
    let value = value.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let shape = value.size();
    // [rows, 1]
    let scale = value.f_abs()?.f_amax([1], true)?.f_div_scalar(MOST)?;
    if scale.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(Error::Setting {
            setting: "backbone.storage",
            problem: format!(
                "a frozen matrix of shape {shape:?} has weights that are not finite and have no form in 8 bits\n\
                 help: check the weights with `scpeft-checkpoint inspect`"
            ),
        });
    }
    // A row of zeros has no scale to divide by; it stays zero.
    let divisor = scale.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    let whole = value
        .f_div(&divisor)?
        .f_round()?
        .f_clamp(-MOST, MOST)?
        .f_to_kind(Kind::Int8)?;
    let packed = Tensor::f_zeros([bytes(&shape) as i64], (Kind::Uint8, Device::Cpu))?;
    let put = |at: usize, source: &Tensor| -> Result<()> {
        let source = source.f_view([-1])?.f_view_dtype(Kind::Uint8)?;
        packed
            .f_narrow(0, at as i64, source.numel() as i64)?
            .f_copy_(&source)?;
        Ok(())
    };
    put(0, &whole)?;
    put(scales_at(whole.numel()), &scale)?;
    Ok(packed)
}

/// The matrix of [`pack`]ed bytes, in `kind`: each weight is its whole number times its row's scale,
/// rounded once.
///
/// # Errors
/// Only if libtorch fails.
pub(super) fn unpack(packed: &Tensor, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let full = if kind == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let numel = shape.iter().product::<i64>();
    let scale = packed
        .f_narrow(
            0,
            scales_at(numel as usize) as i64,
            shape[0] * size_of::<f32>() as i64,
        )?
        .f_view_dtype(Kind::Float)?
        .f_view([shape[0], 1])?
        .f_to_kind(full)?;
    let mut matrix = packed
        .f_narrow(0, 0, numel)?
        .f_view_dtype(Kind::Int8)?
        .f_view(shape)?
        .f_to_kind(full)?;
    let _ = matrix.f_mul_(&scale)?;
    Ok(matrix.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_off_by_half_a_scale_at_most() {
        tch::manual_seed(3);
        let value = Tensor::randn([17, 33], (Kind::Float, Device::Cpu));
        let _ = value.get(4).fill_(0.0);
        let _ = value.get(5).g_mul_scalar_(1e-30);
        let packed = pack(&value).unwrap();
        assert_eq!(packed.size(), [bytes(&[17, 33]) as i64]);
        assert_eq!(
            bytes(&[17, 33]),
            (17 * 33_usize).next_multiple_of(64) + 17 * 4
        );
        let found = unpack(&packed, &[17, 33], Kind::Float).unwrap();
        let scale = value.abs().amax([1], true) / MOST;
        let worst = ((&found - &value).abs() - &scale * 0.500_001).max();
        assert!(worst.double_value(&[]) <= 0.0, "{worst:?}");
        assert_eq!(found.get(4).abs().sum(Kind::Float).double_value(&[]), 0.0);
        // What has this form already does not change.
        let again = unpack(&pack(&found).unwrap(), &[17, 33], Kind::Float).unwrap();
        let moved = (&again - &found).abs().max().double_value(&[]);
        assert!(moved < 1e-7, "{moved}");
        // The largest of a row is met.
        let largest = (found.abs().amax([1], false) - value.abs().amax([1], false)).abs();
        assert!(largest.max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn weights_that_are_not_finite_are_refused() {
        for bad in [f64::NAN, f64::INFINITY] {
            let value = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
            let _ = value.get(1).get(2).fill_(bad);
            let message = pack(&value).unwrap_err().to_string();
            assert!(
                message.contains("not finite") && message.contains("help:"),
                "{message}"
            );
        }
    }
}
