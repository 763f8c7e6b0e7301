//! The runtime that transfers run on: two threads for the process, which never decode anything.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::{Error, Result};

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

fn handle() -> Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = runtime.as_ref() {
        return Ok(runtime.handle().clone());
    }
    let made = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("scpeft-io")
        .enable_all()
        .build()
        .map_err(|source| Error::Threads { source })?;
    Ok(runtime.insert(made).handle().clone())
}

/// Runs a transfer and waits for it. The calling thread may belong to another runtime.
pub(super) fn wait<T: Send + 'static>(
    transfer: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (send, receive) = crossbeam_channel::bounded(1);
    handle()?.spawn(async move {
        // Nobody is left to hear it when the receiving thread is gone.
        let _ = send.send(transfer.await);
    });
    receive
        .recv()
        .map_err(|_| Error::internal("a transfer ended without a result"))?
}
