//! Which failures may pass, and how long to wait for it.

use std::error::Error as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use object_store::client::HttpError;

/// The first pause is about half of this.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What a failure means for the next try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may go well the next time.
    Passing(String),
    /// It will not; the text says what to do.
    Final(String),
}

/// Judges an error of a store.
pub fn judge(error: &object_store::Error) -> Verdict {
    use object_store::Error as Store;
    let said = said(error);
    match error {
        Store::NotFound { .. } if said.contains("NoSuchBucket") => Verdict::Final(
            "its bucket does not exist\nhelp: check the name of the bucket, the endpoint and the region".to_owned(),
        ),
        Store::NotFound { .. } => Verdict::Final("does not exist in the store".to_owned()),
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => Verdict::Final(format!(
            "access is refused: {said}\nhelp: check the credentials (AWS_*, GOOGLE_* or AZURE_* variables); a public bucket needs AWS_SKIP_SIGNATURE=true"
        )),
        Store::Generic { .. } => generic(error, said),
        _ => Verdict::Final(said),
    }
}

fn generic(error: &object_store::Error, said: String) -> Verdict {
    let text = error.to_string();
    // Without other credentials the client asks the host it runs on, which exists in a cloud alone.
    if text.contains("169.254.169.254") || text.contains("metadata.google.internal") {
        return Verdict::Final(format!(
            "no credentials: {said}\nhelp: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_*, AZURE_*); a public bucket needs AWS_SKIP_SIGNATURE=true"
        ));
    }
    if let Some(status) = status(&text) {
        return if status >= 500 || status == 429 || status == 408 {
            Verdict::Passing(said)
        } else {
            Verdict::Final(said)
        };
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<HttpError>() {
            return Verdict::Passing(root_cause(error));
        }
        cause = inner.source();
    }
    Verdict::Final(said)
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

/// The pause after so many tries, at most `longest`: it doubles, and ranks that failed together do not
/// come back together.
pub fn pause(tries: u32, longest: Duration) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(longest);
    let random = RandomState::new().build_hasher().finish() >> 11;
    full.mul_f64(0.5 + 0.5 * random as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        for (tries, full) in [(1, 0.1), (2, 0.2), (5, 1.6), (9, 10.0), (40, 10.0)] {
            let pause = pause(tries, Duration::from_secs(10)).as_secs_f64();
            assert!((0.5 * full..=full).contains(&pause), "{tries}: {pause}");
        }
    }

    #[test]
    fn only_passing_statuses_are_tried_again() {
        let judged = |status: &str| {
            let source = format!(
                "Server returned non-2xx status code: {status}: <Error><Code>Odd</Code><Message>why</Message></Error>"
            );
            let store = "S3";
            judge(&object_store::Error::Generic {
                store,
                source: source.into(),
            })
        };
        for status in ["503 Service Unavailable", "429 Too Many", "500 Internal"] {
            assert!(matches!(judged(status), Verdict::Passing(_)), "{status}");
        }
        assert_eq!(
            judged("400 Bad Request"),
            Verdict::Final("400 Odd: why".into())
        );
    }
}
