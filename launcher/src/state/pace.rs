//! How fast steps go by, evaluations and checkpoints included.

use std::collections::VecDeque;

/// What the pace is taken over.
const WINDOW_SECONDS: f64 = 300.0;
/// Moments kept in it.
const MOMENTS_MAX: usize = 64;

/// Moments at which the step was looked at.
#[derive(Debug, Default)]
pub struct Pace {
    moments: VecDeque<(f64, u64)>,
}

impl Pace {
    /// Notes the step at Unix time `now` and returns steps per second; `None` while there are none.
    pub fn observe(&mut self, now: f64, step: u64) -> Option<f64> {
        // A run that was started again repeats steps.
        if self.moments.back().is_some_and(|(_, last)| step < *last) {
            self.moments.clear();
        }
        let spacing = WINDOW_SECONDS / MOMENTS_MAX as f64;
        match self.moments.iter().nth_back(1).copied() {
            // The newest moment moves until it is far enough from the one before.
            Some((before, _)) if now - before < spacing => {
                self.moments.pop_back();
            }
            _ => {}
        }
        self.moments.push_back((now, step));
        while (self.moments.front()).is_some_and(|(time, _)| now - time > WINDOW_SECONDS)
            || self.moments.len() > MOMENTS_MAX
        {
            self.moments.pop_front();
        }
        let (time, first) = *self.moments.front()?;
        let (seconds, steps) = (now - time, step - first);
        (seconds > 0.0 && steps > 0).then(|| steps as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_run_has_its_pace_and_little_is_kept() {
        let mut pace = Pace::default();
        assert_eq!(pace.observe(0.0, 10), None);
        for tick in 1..5000_u64 {
            let seen = pace.observe(tick as f64 / 4.0, 10 + tick).unwrap();
            assert!((seen - 4.0).abs() < 1e-9, "{tick}: {seen}");
            assert!(pace.moments.len() <= MOMENTS_MAX);
        }
    }

    #[test]
    fn a_run_that_stands_still_or_starts_again_has_none() {
        let mut pace = Pace::default();
        pace.observe(0.0, 10);
        assert!(pace.observe(10.0, 20).is_some());
        assert_eq!(pace.observe(20.0, 5), None);
        assert_eq!(pace.observe(1000.0, 5), None);
    }
}
