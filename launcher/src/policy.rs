//! Whether a run that ended is started again. Pure: what happened comes in, a decision goes out.

use scpeft_protocol::exit;
use std::time::Duration;

/// Pause before the first restart; doubled for each further one without progress.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// How far a run has come, over all its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Reached {
    /// The newest complete checkpoint.
    pub checkpoint_step: u64,
    /// The furthest step that a rank has told of.
    pub step: u64,
}

impl Reached {
    fn is_beyond(self, earlier: Self) -> bool {
        self.checkpoint_step > earlier.checkpoint_step || self.step > earlier.step
    }

    fn furthest(self, other: Self) -> Self {
        Self {
            checkpoint_step: self.checkpoint_step.max(other.checkpoint_step),
            step: self.step.max(other.step),
        }
    }
}

/// The end of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Exit code of the first rank that failed, or 0.
    pub code: i32,
    /// Whether somebody had asked the run to stop.
    pub stop_requested: bool,
    /// Whether any rank had started at all.
    pub started: bool,
    /// How far the attempt came.
    pub reached: Reached,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: the run is over.
    End,
    /// The run is over, since it has failed this often in a row without coming any further.
    GiveUp {
        /// Restarts without progress.
        restarts: u32,
    },
    /// Start again after a pause.
    Restart {
        /// The pause.
        after: Duration,
    },
}

/// The policy with what it remembers.
#[derive(Debug, Clone, Copy)]
pub struct Restarts {
    limit: u32,
    preempted_is_final: bool,
    in_vain: u32,
    reached: Reached,
}

impl Restarts {
    /// At most `limit` restarts without progress; `reached` is where the run stands before its
    /// first attempt.
    pub fn new(limit: u32, reached: Reached) -> Self {
        Self {
            limit,
            preempted_is_final: false,
            in_vain: 0,
            reached,
        }
    }

    /// Leaves a preempted run to whoever preempted it: a scheduler that takes the machines away
    /// starts the job again itself.
    pub fn under_scheduler(self) -> Self {
        Self {
            preempted_is_final: true,
            ..self
        }
    }

    /// Decides about an attempt that has ended.
    pub fn decide(&mut self, ending: Ending) -> Decision {
        if ending.reached.is_beyond(self.reached) {
            self.in_vain = 0;
        }
        self.reached = self.reached.furthest(ending.reached);
        // What was stopped on purpose stays so; what never started would not start again.
        let is_final = self.preempted_is_final && ending.code == exit::PREEMPTED;
        if ending.stop_requested || !ending.started || is_final || !is_worth_a_retry(ending.code) {
            return Decision::End;
        }
        if self.in_vain >= self.limit {
            return match self.limit {
                0 => Decision::End,
                restarts => Decision::GiveUp { restarts },
            };
        }
        let after = BACKOFF_FIRST
            .saturating_mul(1 << self.in_vain.min(16))
            .min(BACKOFF_MAX);
        self.in_vain += 1;
        Decision::Restart { after }
    }
}

/// Whether another attempt may end differently: a hang, a preemption, a crash.
fn is_worth_a_retry(code: i32) -> bool {
    // With 126 and 127 a shell or `mpirun` found no program, or one that it may not run.
    !matches!(
        code,
        exit::OK | exit::CONFIG | exit::DATA | exit::WEIGHTS | exit::NON_FINITE | 126 | 127
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(code: i32, step: u64) -> Ending {
        Ending {
            code,
            stop_requested: false,
            started: true,
            reached: Reached {
                checkpoint_step: 0,
                step,
            },
        }
    }

    fn seconds(decision: Decision) -> Option<u64> {
        match decision {
            Decision::Restart { after } => Some(after.as_secs()),
            _ => None,
        }
    }

    #[test]
    fn only_what_may_end_differently_is_started_again() {
        let restarted: Vec<i32> = (0..=255)
            .filter(|code| {
                let mut restarts = Restarts::new(1, Reached::default());
                matches!(restarts.decide(ending(*code, 0)), Decision::Restart { .. })
            })
            .collect();
        let never = [0, 2, 3, 4, 86, 126, 127];
        let expected: Vec<i32> = (0..=255).filter(|code| !never.contains(code)).collect();
        assert_eq!(restarted, expected);
    }

    #[test]
    fn a_crash_loop_backs_off_and_gives_up() {
        let mut restarts = Restarts::new(3, Reached::default());
        let pauses: Vec<_> = (0..3)
            .map(|_| seconds(restarts.decide(ending(137, 0))))
            .collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(4)]);
        assert_eq!(
            restarts.decide(ending(137, 0)),
            Decision::GiveUp { restarts: 3 }
        );
        let mut many = Restarts::new(100, Reached::default());
        let last = (0..100).map(|_| many.decide(ending(75, 0))).last().unwrap();
        assert_eq!(seconds(last), Some(60));
    }

    #[test]
    fn progress_starts_the_count_again_but_repeating_a_step_does_not() {
        let mut restarts = Restarts::new(1, Reached::default());
        assert_eq!(seconds(restarts.decide(ending(1, 5))), Some(1));
        assert_eq!(seconds(restarts.decide(ending(1, 6))), Some(1));
        let mut stuck = restarts;
        assert_eq!(stuck.decide(ending(1, 6)), Decision::GiveUp { restarts: 1 });
        let mut saved = ending(1, 6);
        saved.reached.checkpoint_step = 4;
        assert_eq!(seconds(restarts.decide(saved)), Some(1));
    }

    #[test]
    fn where_a_resumed_run_begins_is_no_progress() {
        let begun = Reached {
            checkpoint_step: 40,
            step: 40,
        };
        let mut restarts = Restarts::new(1, begun);
        assert_eq!(seconds(restarts.decide(ending(1, 40))), Some(1));
        assert_eq!(
            restarts.decide(ending(1, 40)),
            Decision::GiveUp { restarts: 1 }
        );
    }

    #[test]
    fn what_was_stopped_or_never_started_stays_so() {
        let mut restarts = Restarts::new(9, Reached::default());
        let mut stopped = ending(exit::PREEMPTED, 5);
        assert!(seconds(restarts.decide(stopped)).is_some());
        stopped.stop_requested = true;
        assert_eq!(restarts.decide(stopped), Decision::End);
        let mut never = ending(1, 0);
        never.started = false;
        assert_eq!(restarts.decide(never), Decision::End);
    }

    #[test]
    fn a_scheduler_that_preempts_starts_again_itself() {
        let mut restarts = Restarts::new(9, Reached::default()).under_scheduler();
        assert_eq!(restarts.decide(ending(exit::PREEMPTED, 5)), Decision::End);
        assert!(seconds(restarts.decide(ending(exit::HANG, 6))).is_some());
    }

    #[test]
    fn without_restarts_the_first_failure_ends_the_run() {
        let mut restarts = Restarts::new(0, Reached::default());
        assert_eq!(restarts.decide(ending(75, 3)), Decision::End);
    }
}
