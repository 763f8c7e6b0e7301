//! The check of the deterministic mode: gradients that are computed twice are the same bits.

use scpeft_collective::Collective;
use scpeft_data::StepBatches;
use scpeft_protocol::heartbeat::Section;
use tch::{Kind, Tensor};

use super::Stepper;
use crate::failure::Result;
use crate::shard;

impl Stepper<'_> {
    /// Computes this rank's gradients and sums of step number `step` (from 0) twice; whether both were
    /// the same, bit by bit. Updates nothing.
    ///
    /// # Collective
    /// Must be called by all ranks, with the same step and their shares of the same global batch.
    ///
    /// # Errors
    /// As [`Stepper::step`], and when libtorch was asked for deterministic algorithms and has none for
    /// an operation.
    pub fn rehearse(
        &mut self,
        world: &dyn Collective,
        step: u64,
        batch: &StepBatches,
    ) -> Result<bool> {
        self.watch.enter(Section::Forward);
        let counts = self.agree_on_counts(world, batch)?;
        let passes = shard::passes(world, self.model, batch.micro.len())?;
        let mut once = || -> Result<(Tensor, Vec<u64>)> {
            self.params.zero_grad()?;
            let sums = self.gradients(world, step, batch, &counts, passes)?;
            let sums = sums.terms.iter().chain(std::iter::once(&sums.contrast));
            let mut gradients = self.params.grad().f_empty_like()?;
            gradients.f_copy_(self.params.grad())?;
            Ok((gradients, sums.map(|sum| sum.to_bits()).collect()))
        };
        let ((first, first_sums), (second, second_sums)) = (once()?, once()?);
        Ok(first_sums == second_sums && have_same_bits(&first, &second)?)
    }
}

/// Whether two f32 tensors are the same, bit by bit.
fn have_same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let bits = |tensor: &Tensor| tensor.f_view_dtype(Kind::Int);
    Ok(bits(a)?.f_equal(&bits(b)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_a_difference_and_the_same_nan_is_none() {
        let values = [1.0_f32, f32::NAN, 0.0, 3.5];
        let same = |other: [f32; 4]| {
            have_same_bits(&Tensor::from_slice(&values), &Tensor::from_slice(&other)).unwrap()
        };
        assert!(same(values));
        assert!(!same([1.0, f32::NAN, -0.0, 3.5]));
        assert!(!same([
            1.0,
            f32::NAN,
            0.0,
            f32::from_bits(3.5f32.to_bits() + 1)
        ]));
    }
}
