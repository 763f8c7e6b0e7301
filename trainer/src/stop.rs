//! Asking a run to stop: a signal sets a flag, and the ranks agree on it through the step's
//! all-reduce.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::failure::{Failure, Result};

/// Set by SIGTERM, SIGINT and SIGUSR1.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs the handlers. A second SIGINT or SIGTERM ends the process at once.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn install() -> Result<Self> {
        let flag = Self::default();
        let refuse = |e: std::io::Error| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                format!("signal handler: {e}"),
            )
        };
        for signal in [SIGINT, SIGTERM] {
            // Before the flag is set by the first one, this does nothing.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.0.clone())
                .map_err(refuse)?;
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, flag.0.clone()).map_err(refuse)?;
        }
        Ok(flag)
    }

    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
