/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Stays.
    Constant,
    /// Times `gamma` after every epoch (published default 0.9).
    Step {
        /// Factor per epoch.
        gamma: f64,
    },
    /// Straight down from 1 to `min_ratio` at the last planned step.
    Linear {
        /// Share of the peak that is left at the end.
        min_ratio: f64,
    },
    /// Warm-up, stable, decay: stays at 1, then straight down to `min_ratio` over the last
    /// `decay_steps` planned steps (Hu et al. 2024).
    Wsd {
        /// Steps of the decay.
        decay_steps: u64,
        /// Share of the peak that is left at the end.
        min_ratio: f64,
    },
    /// Half a cosine from 1 down to `min_ratio` at the last planned step.
    Cosine {
        /// Share of the peak that is left at the end.
        min_ratio: f64,
    },
}

/// The learning rate as a pure function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up from lr/warmup to lr.
    pub warmup_steps: u64,
    /// What follows.
    pub shape: Shape,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Steps that the run will take.
    pub planned_steps: u64,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Step { gamma } => gamma.powf((step / self.steps_per_epoch.max(1)) as f64),
            Shape::Linear { min_ratio } => {
                let span = self.planned_steps.saturating_sub(self.warmup_steps);
                falling(step - self.warmup_steps, span, min_ratio)
            }
            Shape::Wsd {
                decay_steps,
                min_ratio,
            } => {
                let stable_until = self.planned_steps.saturating_sub(decay_steps);
                falling(step.saturating_sub(stable_until), decay_steps, min_ratio)
            }
            Shape::Cosine { min_ratio } => {
                let span = self.planned_steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
                min_ratio
                    + (1.0 - min_ratio) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        self.lr * factor
    }
}

/// A straight line from 1 to `end` over `span` steps, flat afterwards.
fn falling(steps: u64, span: u64, end: f64) -> f64 {
    let progress = (steps as f64 / span.max(1) as f64).min(1.0);
    1.0 - (1.0 - end) * progress
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule {
            lr: 1.0,
            warmup_steps: 4,
            shape,
            steps_per_epoch: 10,
            planned_steps: 24,
        }
    }

    #[test]
    fn warm_up_is_linear_and_ends_at_the_peak() {
        let s = schedule(Shape::Constant);
        assert_eq!(
            [0, 1, 2, 3, 4, 99].map(|t| s.lr(t)),
            [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
        );
    }

    #[test]
    fn step_decays_once_an_epoch() {
        let s = schedule(Shape::Step { gamma: 0.5 });
        assert_eq!(
            [4, 9, 10, 19, 20].map(|t| s.lr(t)),
            [1.0, 1.0, 0.5, 0.5, 0.25]
        );
    }

    fn assert_close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found} instead of {expected}"
        );
    }

    #[test]
    fn linear_falls_in_a_straight_line_after_the_warm_up() {
        let s = schedule(Shape::Linear { min_ratio: 0.2 });
        for (step, lr) in [
            (0, 0.25),
            (3, 1.0),
            (4, 1.0),
            (9, 0.8),
            (14, 0.6),
            (24, 0.2),
            (99, 0.2),
        ] {
            assert_close(s.lr(step), lr);
        }
    }

    #[test]
    fn wsd_is_stable_until_its_last_steps() {
        let s = schedule(Shape::Wsd {
            decay_steps: 8,
            min_ratio: 0.1,
        });
        for (step, lr) in [
            (1, 0.5),
            (4, 1.0),
            (16, 1.0),
            (18, 0.775),
            (20, 0.55),
            (24, 0.1),
            (99, 0.1),
        ] {
            assert_close(s.lr(step), lr);
        }
    }

    #[test]
    fn cosine_falls_from_the_peak_to_the_floor() {
        let s = schedule(Shape::Cosine { min_ratio: 0.1 });
        assert!((s.lr(4) - 1.0).abs() < 1e-12);
        assert!((s.lr(14) - 0.55).abs() < 1e-12);
        assert!((s.lr(24) - 0.1).abs() < 1e-12);
        assert!((s.lr(1000) - 0.1).abs() < 1e-12);
    }
}
