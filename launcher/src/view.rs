//! `scpeft-launch view RUN`: the page of a run directory, also after the end of the run.

use crate::page::{Page, resolve};
use anyhow::Context as _;
use scpeft_protocol::exit;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// There is no run to look at.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` is no run directory: {reason}\nhelp: name the folder that `run.dir` names in the configuration",
    run.display()
)]
pub struct NoRun {
    run: PathBuf,
    reason: &'static str,
}

/// Serves the page until SIGINT, SIGTERM or SIGHUP, and returns the exit code.
///
/// # Errors
/// When there is no run directory, or the page cannot be served.
pub fn run(run: &Path, listen: &str, say: fn(&str)) -> anyhow::Result<i32> {
    let refuse = |reason| NoRun {
        run: run.to_owned(),
        reason,
    };
    if !run.is_dir() {
        return Err(refuse("it does not exist").into());
    }
    let known = ["run.json", "events.jsonl", "config.toml", "metrics.jsonl"];
    if !known.iter().any(|name| run.join(name).is_file()) {
        return Err(refuse("it has neither `run.json` nor `events.jsonl`").into());
    }
    let run = std::path::absolute(run).context("cannot find the current directory")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for signals")?
        .block_on(async {
            let mut int = signal(SignalKind::interrupt())?;
            let mut term = signal(SignalKind::terminate())?;
            let mut hup = signal(SignalKind::hangup())?;
            let page = Page::of_directory(resolve(listen)?, &run)?;
            say(&format!("page: {} (Ctrl-C ends it)", page.url));
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            Ok(exit::OK)
        })
}
