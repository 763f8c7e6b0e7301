//! The files that the page leaves in a run directory.

use crate::guard::hostname;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Where the page is.
pub(super) const PAGE: &str = "launcher.json";
/// What a request must bring; for this user alone.
pub(super) const TOKEN: &str = "page-token";
/// The ranks as they were last known, for those who look after the end.
pub(super) const RANKS: &str = "ranks.json";
/// What the run is expected to need.
pub(super) const PLAN: &str = "plan.json";
/// Targets in Prometheus's file format.
pub(super) const TARGETS: &str = "targets.json";

/// Says where the page is and what it takes to ask for something.
pub(super) fn publish(run_dir: &Path, url: &str, token: &str) -> io::Result<()> {
    std::fs::create_dir_all(run_dir)?;
    write(run_dir, TOKEN, &format!("{token}\n"), 0o600)?;
    let page = json!({
        "format_version": 1,
        "page": url,
        "host": hostname(),
        "pid": std::process::id(),
    });
    write(run_dir, PAGE, &format!("{page}\n"), 0o644)
}

/// Takes back what [`publish`] wrote.
pub(super) fn withdraw(run_dir: &Path) {
    for name in [PAGE, TOKEN] {
        let _ = std::fs::remove_file(run_dir.join(name));
    }
}

/// Writes a file so that a reader sees all of it or the one before.
pub(super) fn write(run_dir: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    let part = run_dir.join(format!(".{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, run_dir.join(name)));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}
