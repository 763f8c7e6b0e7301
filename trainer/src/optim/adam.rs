use tch::{Kind, TchError, Tensor};

/// Settings of Adam and AdamW, with torch's meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay, applied to every trainable parameter.
    pub weight_decay: f64,
    /// Decay the weights directly (AdamW, Loshchilov and Hutter 2019) instead of through the
    /// gradient (Adam).
    pub decoupled: bool,
}

/// Adam over one flat buffer (Kingma and Ba 2015, algorithm 1). libtorch's own optimizers do not
/// let their moments out, so a run on them cannot resume exactly.
#[derive(Debug)]
pub struct Adam {
    options: AdamOptions,
    first: Tensor,
    second: Tensor,
    updates: u64,
}

impl Adam {
    /// Zero moments for the flat buffer `like` `[n]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn new(options: AdamOptions, like: &Tensor) -> Result<Self, TchError> {
        Ok(Self {
            options,
            first: like.f_zeros_like()?,
            second: like.f_zeros_like()?,
            updates: 0,
        })
    }

    /// First moment `[n]`, second moment `[n]`, number of updates: what a checkpoint stores.
    pub fn state(&self) -> (&Tensor, &Tensor, u64) {
        (&self.first, &self.second, self.updates)
    }

    /// Continues from stored moments.
    ///
    /// # Errors
    /// Moments of another length.
    pub fn restore(
        &mut self,
        first: &Tensor,
        second: &Tensor,
        updates: u64,
    ) -> Result<(), TchError> {
        self.first.f_copy_(first)?;
        self.second.f_copy_(second)?;
        self.updates = updates;
        Ok(())
    }

    /// One update of `params` `[n]` by `grad` `[n]`, both f32 on one device.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn step(&mut self, params: &mut Tensor, grad: &Tensor, lr: f64) -> Result<(), TchError> {
        let AdamOptions {
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
        } = self.options;
        self.updates += 1;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = 1.0 - beta2.powf(self.updates as f64);
        let decayed;
        let grad = if weight_decay == 0.0 {
            grad
        } else if decoupled {
            let _ = params.f_mul_scalar_(1.0 - lr * weight_decay)?;
            grad
        } else {
            decayed = grad.f_add(&params.f_mul_scalar(weight_decay)?)?;
            &decayed
        };
        let _ = self.first.f_lerp_(grad, 1.0 - beta1)?;
        let _ = self
            .second
            .f_mul_scalar_(beta2)?
            .f_add_(&grad.f_mul(grad)?.f_mul_scalar_(1.0 - beta2)?)?;
        let denominator = self
            .second
            .f_sqrt()?
            .f_div_scalar_(correction2.sqrt())?
            .f_add_scalar_(eps)?;
        let update = self
            .first
            .f_div(&denominator)?
            .f_mul_scalar_(-lr / correction1)?;
        let _ = params.f_add_(&update)?;
        debug_assert_eq!(params.kind(), Kind::Float);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::OptimizerConfig;
    use tch::{Device, nn};

    /// Twenty updates on a quadratic bowl, against libtorch's optimizer.
    fn compare(decoupled: bool) {
        let options = AdamOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            decoupled,
        };
        let scale = Tensor::from_slice(&[0.5f32, 2.0, 10.0]);
        let start = Tensor::from_slice(&[1.0f32, -2.0, 0.3]);
        let mut ours = start.copy();
        let mut adam = Adam::new(options, &ours).unwrap();

        let store = nn::VarStore::new(Device::Cpu);
        let theirs = store.root().var_copy("x", &start);
        let mut optimizer = if decoupled {
            nn::AdamW {
                beta1: 0.9,
                beta2: 0.99,
                wd: 0.1,
                eps: 1e-8,
                amsgrad: false,
            }
            .build(&store, 0.05)
        } else {
            nn::Adam {
                beta1: 0.9,
                beta2: 0.99,
                wd: 0.1,
                eps: 1e-8,
                amsgrad: false,
            }
            .build(&store, 0.05)
        }
        .unwrap();
        for _ in 0..20 {
            let grad = &ours * &scale;
            adam.step(&mut ours, &grad, 0.05).unwrap();
            let loss = (&theirs * &theirs * &scale).sum(Kind::Float) * 0.5;
            optimizer.backward_step(&loss);
        }
        let difference = (&ours - theirs.detach()).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
        let moved = (&ours - &start).abs().min().double_value(&[]);
        assert!(moved > 0.1, "nothing moved: {moved}");
    }

    #[test]
    fn adam_agrees_with_libtorch() {
        compare(false);
    }

    #[test]
    fn adamw_agrees_with_libtorch() {
        compare(true);
    }
}
