//! Trying again: which failures may pass, how long to wait, when to give up.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scpeft_store::{Verdict, pause};
use tokio::time::Instant;

use super::{StoreOptions, Traffic};
use crate::{Error, Result};

/// No wait between two tries is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// One try is cut off after this, or after a quarter of the whole time when that is shorter.
const LONGEST_TRY: Duration = Duration::from_secs(30);

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may go well the next time.
    Passing(String),
    /// It will not.
    Final(Error),
}

/// What is asked for, for messages.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) place: String,
}

impl Target {
    pub(super) fn new(path: &Path, place: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            place: place.into(),
        }
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::store(&self.path, self.place.clone(), problem)
    }
}

/// The patience of one transfer: all its requests together have `timeout`.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    retries: u32,
    timeout: Duration,
    begun: Instant,
    traffic: Arc<Traffic>,
}

impl Patience {
    pub(super) fn new(options: &StoreOptions, traffic: &Arc<Traffic>) -> Self {
        Self {
            retries: options.retries,
            timeout: options.timeout,
            begun: Instant::now(),
            traffic: traffic.clone(),
        }
    }

    /// Calls `attempt` until it succeeds, fails for good, or patience is at its end.
    pub(super) async fn run<T, F>(
        &self,
        target: &Target,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = self.begun + self.timeout;
        let longest = LONGEST_TRY.min(self.timeout / 4);
        let mut tries = 0;
        loop {
            tries += 1;
            let until = deadline.min(Instant::now() + longest);
            let problem = match tokio::time::timeout_at(until, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Failure::Final(error))) => return Err(error),
                Ok(Err(Failure::Passing(problem))) => problem,
                Err(_) => "no complete answer in time".to_owned(),
            };
            let wait = pause(tries, LONGEST_WAIT);
            if tries > self.retries || Instant::now() + wait >= deadline {
                return Err(target.error(format!(
                    "given up after {tries} tries in {:.1} s: {problem}\nhelp: the store is out of reach, overloaded or refuses; SCPEFT_STORE_RETRIES and SCPEFT_STORE_TIMEOUT (seconds) say how long it is tried",
                    self.begun.elapsed().as_secs_f64()
                )));
            }
            tracing::debug!(
                "`{}`, {}: {problem}; trying again in {} ms",
                target.path.display(),
                target.place,
                wait.as_millis()
            );
            tokio::time::sleep(wait).await;
            self.traffic.count_retry();
        }
    }
}

/// Judges an error of the store.
pub(super) fn judge(error: &object_store::Error, target: &Target) -> Failure {
    match scpeft_store::judge(error) {
        Verdict::Passing(problem) => Failure::Passing(problem),
        Verdict::Final(problem) => Failure::Final(target.error(problem)),
    }
}
