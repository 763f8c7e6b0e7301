//! What the end of a run means: the exit code to pass on and one line for the user.

use scpeft_protocol::exit;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// Codes above this one mean "killed by signal (code - 128)", as shells and `mpirun` report it.
const SIGNAL_BASE: i32 = 128;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code of the first rank that failed, or 0.
    pub code: i32,
    /// What to tell the user; nothing when all went well.
    pub message: Option<String>,
}

impl Outcome {
    /// Reads the end of the started process, be it `mpirun` or the only rank.
    pub fn of(status: ExitStatus) -> Self {
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => SIGNAL_BASE + signal,
            (None, None) => exit::INTERNAL,
        };
        Self::with(code)
    }

    /// What an exit code means.
    pub fn with(code: i32) -> Self {
        Self {
            code,
            message: explain(code),
        }
    }
}

/// One line on an exit code: what happened and, where there is something to do, what.
fn explain(code: i32) -> Option<String> {
    let what = match code {
        exit::OK => return None,
        exit::INTERNAL => "the run failed; its own message above says why".into(),
        exit::CONFIG => "the configuration or the command line is wrong".into(),
        exit::DATA => "the corpus or an input file is missing, malformed or does not fit".into(),
        exit::WEIGHTS => "backbone or adapter weights are missing, malformed or do not fit".into(),
        exit::HANG => "a hang or a communication failure; a retry may succeed: run the same \
                       command with `--resume`"
            .into(),
        exit::PREEMPTED => "stopped on request with the state saved; run the same command with \
                            `--resume` to continue"
            .into(),
        exit::NON_FINITE => "too many steps in a row had non-finite gradients".into(),
        exit::PANIC => "internal error in a rank; please report it".into(),
        code if code > SIGNAL_BASE => killed(code - SIGNAL_BASE),
        _ => "the run failed".into(),
    };
    Some(format!("{what} (exit code {code})"))
}

fn killed(signal: i32) -> String {
    let (name, hint) = match signal {
        libc::SIGKILL => (
            "SIGKILL",
            "; if nobody did so by hand, the kernel may have run out of memory",
        ),
        libc::SIGSEGV => ("SIGSEGV", "; please report it"),
        libc::SIGABRT => ("SIGABRT", "; please report it"),
        libc::SIGBUS => ("SIGBUS", "; a file it had mapped may have been truncated"),
        libc::SIGTERM => ("SIGTERM", ""),
        libc::SIGINT => ("SIGINT", ""),
        libc::SIGUSR1 => (
            "SIGUSR1",
            "; the stop request came before it was ready to save",
        ),
        _ => return format!("a rank was killed by signal {signal}"),
    };
    format!("a rank was killed by signal {signal} ({name}){hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Outcome {
        Outcome::of(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn success_is_silent() {
        assert_eq!(
            exited(0),
            Outcome {
                code: 0,
                message: None
            }
        );
    }

    #[test]
    fn every_other_code_is_passed_on_and_explained_in_one_line() {
        for code in 1..=255 {
            let outcome = exited(code);
            let message = outcome.message.expect("a failure is explained");
            assert_eq!(outcome.code, code);
            assert!(
                message.ends_with(&format!("(exit code {code})")),
                "{message}"
            );
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn codes_worth_a_retry_say_so() {
        let retry: Vec<i32> = (1..=255)
            .filter(|code| {
                exited(*code)
                    .message
                    .is_some_and(|m| m.contains("`--resume`"))
            })
            .collect();
        assert_eq!(retry, [exit::HANG, exit::PREEMPTED]);
    }

    #[test]
    fn death_by_signal_is_told_the_same_with_and_without_mpirun() {
        let direct = Outcome::of(ExitStatus::from_raw(libc::SIGKILL));
        assert_eq!(direct.code, 137);
        assert_eq!(direct, exited(137));
        assert!(
            direct
                .message
                .is_some_and(|m| m.contains("signal 9 (SIGKILL)"))
        );
    }
}
