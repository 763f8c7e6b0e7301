//! The thread that keeps the mirror of a run up to date: it is told that there is something new, and
//! brings over the newest and the best checkpoint, however many were written meanwhile. A store that is
//! down costs the run nothing; the thread tries again with growing pauses.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scpeft_checkpoint::{CheckpointStore, Mirror, Policy};
use scpeft_config::Config;
use scpeft_data::StoreOptions;
use scpeft_protocol::exit;

use crate::failure::{Failure, Result};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How long a start, an end and a fetch keep trying: `SCPEFT_STORE_TIMEOUT`.
fn patience() -> Result<Duration> {
    Ok(StoreOptions::from_env()?.timeout)
}

/// The mirror of a run, if it has one, for its start.
///
/// # Errors
/// An address or settings that cannot be used.
pub(crate) fn open(config: &Config) -> Result<Option<Mirror>> {
    match &config.checkpoint.mirror {
        Some(address) => Ok(Some(Mirror::open(address, patience()?)?)),
        None => Ok(None),
    }
}

/// What the loop and the thread tell each other.
#[derive(Debug, Default)]
struct Board {
    /// Checkpoints that were announced, and how many of them the mirror has.
    announced: u64,
    mirrored: u64,
    failures: u64,
    last_failure: Option<String>,
    /// Somebody waits for the end: pauses stay short.
    hurry: bool,
    over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `done`, at most `longest`.
    fn wait(
        &self,
        longest: Duration,
        mut done: impl FnMut(&Board) -> bool,
    ) -> MutexGuard<'_, Board> {
        let waiting = |board: &mut Board| !done(board);
        let (board, _) = self
            .changed
            .wait_timeout_while(self.board(), longest, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        board
    }
}

/// The loop's end of the thread.
#[derive(Debug)]
pub(super) struct Mirroring {
    shared: Arc<Shared>,
    address: String,
    patience: Duration,
    /// Failures that were counted already.
    counted: u64,
}

impl Mirroring {
    /// Starts the thread for a run that has a mirror. It ends when this is dropped.
    ///
    /// # Errors
    /// As [`open`]; also when the system refuses a thread.
    pub(super) fn start(
        config: &Config,
        store: &CheckpointStore,
        policy: Policy,
    ) -> Result<Option<Self>> {
        let Some(address) = config.checkpoint.mirror.clone() else {
            return Ok(None);
        };
        // Its tries are made, and counted, here.
        let mirror = Mirror::open(&address, Duration::ZERO)?;
        let shared = Arc::new(Shared::default());
        let (theirs, store) = (shared.clone(), store.clone());
        std::thread::Builder::new()
            .name("scpeft-mirror".into())
            .spawn(move || follow(&theirs, &mirror, &store, policy))
            .map_err(|e| Failure::new(exit::INTERNAL, format!("mirror thread: {e}")))?;
        Ok(Some(Self {
            shared,
            address,
            patience: patience()?,
            counted: 0,
        }))
    }

    /// There is a new checkpoint.
    pub(super) fn announce(&self) {
        self.shared.board().announced += 1;
        self.shared.changed.notify_all();
    }

    /// Tries that failed since the last call.
    pub(super) fn new_failures(&mut self) -> u64 {
        let failures = self.shared.board().failures;
        failures - std::mem::replace(&mut self.counted, failures)
    }

    /// Waits until the mirror has everything that was announced.
    ///
    /// # Errors
    /// When the store does not take it in time.
    pub(super) fn settle(&self) -> Result<()> {
        self.shared.board().hurry = true;
        self.shared.changed.notify_all();
        let board = (self.shared).wait(self.patience, |b| b.mirrored >= b.announced);
        if board.mirrored >= board.announced {
            return Ok(());
        }
        let said = board.last_failure.as_deref().unwrap_or("no answer");
        Err(Failure::new(
            exit::HANG,
            format!(
                "the last checkpoint of the run is in `run.dir`, but not in the mirror `{}` after {} s: {said}\n\
                 help: with `--resume` it is brought over once the store answers; SCPEFT_STORE_TIMEOUT (seconds) says how long it is tried",
                self.address,
                self.patience.as_secs()
            ),
        ))
    }
}

impl Drop for Mirroring {
    fn drop(&mut self) {
        self.shared.board().over = true;
        self.shared.changed.notify_all();
    }
}

/// The body of the thread.
fn follow(shared: &Shared, mirror: &Mirror, store: &CheckpointStore, policy: Policy) {
    let (mut failed, mut hurried) = (0, false);
    let mut next_try = Instant::now();
    loop {
        let board = shared.wait(Duration::MAX, |b| b.over || b.announced > b.mirrored);
        if board.over {
            return;
        }
        drop(board);
        let pause = next_try.saturating_duration_since(Instant::now());
        let board = shared.wait(pause, |b| b.over || b.hurry != hurried);
        if board.over {
            return;
        }
        hurried = board.hurry;
        drop(board);
        let announced = shared.board().announced;
        let outcome = mirror.sync(store, policy);
        let mut board = shared.board();
        match outcome {
            Ok(step) => {
                if let Some(step) = step.filter(|_| failed > 0) {
                    tracing::info!(
                        "the mirror has the checkpoint of step {step} after {failed} failed tries"
                    );
                }
                board.mirrored = announced;
                failed = 0;
            }
            Err(error) => {
                let pause = if hurried {
                    FIRST_PAUSE
                } else {
                    pause_after(failed)
                };
                failed += 1;
                board.failures += 1;
                tracing::warn!(
                    "the mirror was not brought up to date: {error}; the run goes on, next try in {} s (failure {failed} in a row)",
                    pause.as_secs()
                );
                board.last_failure = Some(error.to_string());
                next_try = Instant::now() + pause;
            }
        }
        drop(board);
        shared.changed.notify_all();
    }
}

/// The pause after so many failures in a row before this one.
fn pause_after(failed: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failed.min(16))
        .min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let seconds: Vec<u64> = (0..8).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
