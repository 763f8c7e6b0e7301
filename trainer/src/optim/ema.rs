use tch::{TchError, Tensor};

/// Exponential moving average of the flat parameter buffer: a weighted mean of its values after each
/// update so far, those k updates ago weighing `decay`^k.
///
/// The weights are divided by their sum, so that the start values, which are no result of training,
/// never take part; the correction is that of Adam's moments (Kingma and Ba 2015, section 3).
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    mean: Tensor,
    updates: u64,
}

impl Ema {
    /// An average of nothing yet, for the flat buffer `like` `[n]`. `decay` is at least 0, below 1.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn new(decay: f64, like: &Tensor) -> Result<Self, TchError> {
        Ok(Self {
            decay,
            mean: like.f_zeros_like()?,
            updates: 0,
        })
    }

    /// The mean `[n]` and the number of updates that it is over: what a checkpoint stores.
    pub fn state(&self) -> (&Tensor, u64) {
        (&self.mean, self.updates)
    }

    /// Whether there was an update: before it there is no mean.
    pub fn is_known(&self) -> bool {
        self.updates > 0
    }

    /// Continues from a stored mean.
    ///
    /// # Errors
    /// A mean of another length.
    pub fn restore(&mut self, mean: &Tensor, updates: u64) -> Result<(), TchError> {
        self.mean.f_copy_(mean)?;
        self.updates = updates;
        Ok(())
    }

    /// Takes in the parameters `[n]` after an update.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn observe(&mut self, params: &Tensor) -> Result<(), TchError> {
        self.updates += 1;
        let share = (1.0 - self.decay) / (1.0 - self.decay.powf(self.updates as f64));
        let _ = self.mean.f_lerp_(&params.f_detach()?, share)?;
        Ok(())
    }

    /// Runs `use_it` while the parameters `[n]` are the mean, and gives them their own bits back.
    ///
    /// # Errors
    /// Those of `use_it`, and when libtorch fails.
    pub fn in_place_of<T, E: From<TchError>>(
        &self,
        params: &Tensor,
        use_it: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut params = params.f_detach()?;
        let mut own = params.f_empty_like()?;
        own.f_copy_(&params)?;
        params.f_copy_(&self.mean)?;
        let result = use_it();
        params.f_copy_(&own)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    /// With a decay of 1/2 three updates weigh 1/4, 1/2 and 1 of a sum of 7/4.
    #[test]
    fn the_mean_is_that_of_a_hand_calculation() {
        let start = Tensor::from_slice(&[100.0f32, 100.0]);
        let mut ema = Ema::new(0.5, &start).unwrap();
        assert!(!ema.is_known());
        for (params, mean) in [
            ([1.0f32, 7.0], [1.0f32, 7.0]),
            ([2.0, 0.0], [(0.5 + 2.0) / 1.5, 3.5 / 1.5]),
            ([4.0, 7.0], [(0.25 + 1.0 + 4.0) / 1.75, (1.75 + 7.0) / 1.75]),
        ] {
            ema.observe(&Tensor::from_slice(&params)).unwrap();
            for (found, expected) in values(ema.state().0).iter().zip(mean) {
                assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
            }
        }
        assert_eq!((ema.state().1, ema.is_known()), (3, true));
    }

    #[test]
    fn parameters_come_back_to_the_bit_whatever_happened_meanwhile() {
        let own = [0.1f32, f32::MIN_POSITIVE, -0.0];
        let params = Tensor::from_slice(&own).set_requires_grad(true);
        let mut ema = Ema::new(0.9, &params.detach()).unwrap();
        ema.observe(&Tensor::from_slice(&[1.0f32, 2.0, 3.0]))
            .unwrap();
        let seen = ema.in_place_of(&params, || Ok::<_, TchError>(values(&params.detach())));
        assert_eq!(seen.unwrap(), [1.0, 2.0, 3.0]);
        let failed = ema.in_place_of(&params, || {
            Err::<(), _>(TchError::Torch("no such luck".into()))
        });
        assert!(failed.is_err());
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values(&params.detach())), bits(&own));
    }
}
