//! Trying again: which failures may pass, how long to wait, when to give up.

use std::error::Error as _;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::client::HttpError;
use tokio::time::Instant;

use super::{StoreOptions, Traffic};
use crate::{Error, Result};

/// The first wait is about half of this.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// No wait is longer.
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
            let wait = wait(tries);
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

/// The wait after so many tries: it doubles, and ranks that failed together do not come back together.
fn wait(tries: u32) -> Duration {
    let full = FIRST_WAIT
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(LONGEST_WAIT);
    let random = RandomState::new().build_hasher().finish() >> 11;
    full.mul_f64(0.5 + 0.5 * random as f64 / (1_u64 << 53) as f64)
}

/// Judges an error of the store.
pub(super) fn judge(error: &object_store::Error, target: &Target) -> Failure {
    use object_store::Error as Store;
    let end = |problem: String| Failure::Final(target.error(problem));
    let said = said(error);
    match error {
        Store::NotFound { .. } if said.contains("NoSuchBucket") => end(
            "its bucket does not exist\nhelp: check the name of the bucket, the endpoint and the region".to_owned(),
        ),
        Store::NotFound { .. } => end("does not exist in the store".to_owned()),
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => end(format!(
            "access is refused: {said}\nhelp: check the credentials (AWS_*, GOOGLE_* or AZURE_* variables); a public bucket needs AWS_SKIP_SIGNATURE=true"
        )),
        Store::Generic { .. } => generic(error, said, target),
        _ => end(said),
    }
}

fn generic(error: &object_store::Error, said: String, target: &Target) -> Failure {
    let text = error.to_string();
    // Without other credentials the client asks the host it runs on, which exists in a cloud alone.
    if text.contains("169.254.169.254") || text.contains("metadata.google.internal") {
        return Failure::Final(target.error(format!(
            "no credentials: {said}\nhelp: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_*, AZURE_*); a public bucket needs AWS_SKIP_SIGNATURE=true"
        )));
    }
    if let Some(status) = status(&text) {
        return if status >= 500 || status == 429 || status == 408 {
            Failure::Passing(said)
        } else {
            Failure::Final(target.error(said))
        };
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<HttpError>() {
            return Failure::Passing(root_cause(error));
        }
        cause = inner.source();
    }
    Failure::Final(target.error(said))
}

/// The HTTP status that an error of the store tells in its text; it has no other way to tell it.
fn status(text: &str) -> Option<u16> {
    let after = text.split("status code: ").nth(1)?;
    after.get(..3)?.parse().ok()
}

fn root_cause(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What the server said, in one line: code and message of an XML body, or the beginning of the text.
fn said(error: &object_store::Error) -> String {
    const LONGEST: usize = 300;
    let text = error.to_string();
    let tag = |name: &str| {
        let body = text.split(&format!("<{name}>")).nth(1)?;
        body.split(&format!("</{name}>")).next()
    };
    match (status(&text), tag("Code")) {
        (Some(status), Some(code)) => {
            format!("{status} {code}: {}", tag("Message").unwrap_or_default())
        }
        _ => text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(LONGEST)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        for (tries, full) in [(1, 0.1), (2, 0.2), (5, 1.6), (9, 10.0), (40, 10.0)] {
            let wait = wait(tries).as_secs_f64();
            assert!((0.5 * full..=full).contains(&wait), "{tries}: {wait}");
        }
    }

    #[test]
    fn only_passing_statuses_are_tried_again() {
        let target = Target::new(Path::new("s3://b/k"), "bytes 0 to 4");
        let judged = |status: &str| {
            let source = format!(
                "Server returned non-2xx status code: {status}: <Error><Code>Odd</Code><Message>why</Message></Error>"
            );
            let store = "S3";
            judge(
                &object_store::Error::Generic {
                    store,
                    source: source.into(),
                },
                &target,
            )
        };
        for status in ["503 Service Unavailable", "429 Too Many", "500 Internal"] {
            assert!(matches!(judged(status), Failure::Passing(_)), "{status}");
        }
        let Failure::Final(error) = judged("400 Bad Request") else {
            panic!("400 is tried again");
        };
        assert_eq!(error.to_string(), "`s3://b/k`, bytes 0 to 4: 400 Odd: why");
    }
}
