//! Asking a run to stop: a signal sets a flag, and the ranks agree on it through the step's
//! all-reduce.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::failure::{Failure, Result};

/// A supervisor may send one request twice, to the group and to its leader. Only later than this
/// is a second one meant: do not wait for the save.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// Set by SIGTERM, SIGINT and SIGUSR1.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs the handlers. A second SIGINT or SIGTERM a second or more after the first request
    /// ends the process at once.
    ///
    /// # Errors
    /// When the system refuses a handler or its thread.
    pub fn install() -> Result<Self> {
        let refuse = |e: std::io::Error| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                format!("signal handler: {e}"),
            )
        };
        let flag = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(refuse)?;
        let shared = flag.clone();
        std::thread::Builder::new()
            .name("scpeft-signals".into())
            .spawn(move || {
                let mut first: Option<Instant> = None;
                for signal in signals.forever() {
                    shared.0.store(true, Ordering::Relaxed);
                    let since = first.get_or_insert_with(Instant::now);
                    if signal != SIGUSR1 && since.elapsed() >= IMPATIENCE {
                        // Without destructors: MPI's would wait for the other ranks.
                        // SAFETY: _exit takes no pointers and does not return.
                        unsafe { libc::_exit(128 + signal) };
                    }
                }
            })
            .map_err(refuse)?;
        Ok(flag)
    }

    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
