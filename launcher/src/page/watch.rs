//! Builds the state on request, at most a few times a second however many look at it.

use super::{Live, discovery, files};
use crate::state::{Folder, Pace, RankFacts, Redactor, RunState, Watched, of_board};
use hyper::body::Bytes;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The state is not built again before this has passed.
const FRESH: Duration = Duration::from_millis(250);
/// A `ranks.json` that is older is not kept fresh by a launcher any more.
const FRESH_RANKS: Duration = Duration::from_secs(15);

/// Watches a run.
#[derive(Debug)]
pub(super) struct Watcher {
    folder: Folder,
    run_dir: PathBuf,
    live: Option<Live>,
    pace: Pace,
    redactor: Redactor,
    built: Option<(Instant, Bytes)>,
    complained: bool,
}

/// Unix time in seconds.
fn unix_now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

impl Watcher {
    pub(super) fn new(run_dir: &Path, live: Option<Live>, token: Option<&str>) -> Self {
        let redactor = Redactor::of_this_process();
        Self {
            folder: Folder::new(run_dir),
            run_dir: run_dir.to_owned(),
            live,
            pace: Pace::default(),
            redactor: token.into_iter().fold(redactor, Redactor::and),
            built: None,
            complained: false,
        }
    }

    /// What hides secrets.
    pub(super) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// The JSON of the state.
    pub(super) fn json(&mut self) -> Bytes {
        if let Some((at, json)) = &self.built
            && at.elapsed() < FRESH
        {
            return json.clone();
        }
        let json = Bytes::from(self.state().json(&self.redactor));
        self.built = Some((Instant::now(), json.clone()));
        json
    }

    fn state(&mut self) -> RunState {
        self.folder.look();
        let now = unix_now();
        let ranks = self.ranks(now);
        RunState::new(&self.folder, &ranks, self.watched(), &mut self.pace, now)
    }

    fn ranks(&self, now: f64) -> Vec<RankFacts> {
        match &self.live {
            Some(live) => of_board(&live.ranks.board(), (Instant::now(), now)),
            None => self.folder.ranks.clone(),
        }
    }

    fn watched(&self) -> Option<Watched> {
        match &self.live {
            Some(live) => Some(Watched {
                world_size: live.world_size,
                stop_requested: live.asker.is_requested(),
                controls: true,
            }),
            // Another launcher may be at work on it.
            None => self.is_watched_elsewhere().then_some(Watched {
                world_size: self.folder.ranks.len() as u32,
                stop_requested: false,
                controls: false,
            }),
        }
    }

    fn is_watched_elsewhere(&self) -> bool {
        let written = std::fs::metadata(self.run_dir.join(files::RANKS)).and_then(|m| m.modified());
        let age = written.ok().and_then(|written| written.elapsed().ok());
        self.run_dir.join(files::PAGE).exists() && age.is_some_and(|age| age < FRESH_RANKS)
    }

    /// The targets of Prometheus as JSON.
    pub(super) fn targets(&mut self) -> String {
        self.folder.look();
        let ranks = self.ranks(unix_now());
        discovery::targets(&self.folder, &ranks)
    }

    /// Writes what others read from the run directory. A run directory that is not there yet, or is
    /// on a full disk, is no concern of the run.
    pub(super) fn write_files(&mut self) {
        if self.live.is_none() || !self.run_dir.is_dir() {
            return;
        }
        let ranks = self.ranks(unix_now());
        let mut kept = serde_json::to_value(&ranks).unwrap_or_default();
        self.redactor.value(&mut kept);
        let targets = self.targets();
        self.write(files::RANKS, &kept.to_string());
        self.write(files::TARGETS, &targets);
    }

    /// The same after the end: nobody answers a scrape any more.
    pub(super) fn write_last_files(&mut self) {
        self.write_files();
        if self.live.is_some() && self.run_dir.is_dir() {
            self.write(files::TARGETS, "[]");
        }
    }

    fn write(&mut self, name: &str, text: &str) {
        if let Err(error) = files::write(&self.run_dir, name, text, 0o644)
            && !std::mem::replace(&mut self.complained, true)
        {
            use std::io::Write as _;
            let _ = writeln!(
                std::io::stderr(),
                "scpeft-launch: cannot write `{}`: {error}",
                self.run_dir.join(name).display()
            );
        }
    }
}
