//! What a run directory says. Read again and again while the run lives, so only what has changed is
//! parsed anew.

use super::curves::Curves;
use super::follow::Follower;
use super::ranks::RankFacts;
use super::settings::{self, Setting};
use crate::checkpoints::{self, Checkpoint};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Events kept; a run that restarts for weeks has more.
const EVENTS_MAX: usize = 200;
/// A larger file under one of our names is not ours.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A run directory as it was at the last [`Folder::look`].
#[derive(Debug)]
pub struct Folder {
    /// The directory.
    pub path: PathBuf,
    /// Records of `metrics.jsonl`.
    pub curves: Curves,
    /// The last records of `events.jsonl`, oldest first.
    pub events: VecDeque<Value>,
    /// Unix time at which somebody launched the run; starts after failures are part of a launch.
    pub launched: Option<f64>,
    /// Starts after failures since then.
    pub restarts: u64,
    /// Unix time at which `metrics.jsonl` was last written.
    pub written: Option<f64>,
    /// `run.json`.
    pub record: Value,
    /// `plan.json`.
    pub plan: Value,
    /// `config.toml`.
    pub settings: Vec<Setting>,
    /// Checkpoints by step.
    pub checkpoints: Vec<Checkpoint>,
    /// What `LATEST` and `BEST` name.
    pub latest: Option<String>,
    /// See `latest`.
    pub best: Option<String>,
    /// `ranks.json`: the ranks as they were last known.
    pub ranks: Vec<RankFacts>,
    metrics_file: Follower,
    events_file: Follower,
    seen: Seen,
}

/// When the small files were written that have been parsed.
#[derive(Debug, Default)]
struct Seen {
    record: Option<SystemTime>,
    plan: Option<SystemTime>,
    settings: Option<SystemTime>,
    ranks: Option<SystemTime>,
}

impl Folder {
    /// Looks at a run directory, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            curves: Curves::default(),
            events: VecDeque::new(),
            launched: None,
            restarts: 0,
            written: None,
            record: Value::Null,
            plan: Value::Null,
            settings: Vec::new(),
            checkpoints: Vec::new(),
            latest: None,
            best: None,
            ranks: Vec::new(),
            metrics_file: Follower::new(path.join("metrics.jsonl")),
            events_file: Follower::new(path.join("events.jsonl")),
            seen: Seen::default(),
        }
    }

    /// Reads what is new. What cannot be read is as if it were not there.
    pub fn look(&mut self) {
        let news = self.metrics_file.look();
        if news.restarted {
            self.curves = Curves::default();
        }
        for line in &news.lines {
            self.curves.add(line);
        }
        self.written = written(&self.path.join("metrics.jsonl"));
        self.look_at_events();
        let path = self.path.clone();
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        if let Some(text) = changed(&path.join("run.json"), &mut self.seen.record) {
            self.record = json(&text);
        }
        if let Some(text) = changed(&path.join("plan.json"), &mut self.seen.plan) {
            self.plan = json(&text);
        }
        if let Some(text) = changed(&path.join("config.toml"), &mut self.seen.settings) {
            self.settings = settings::parse(&text);
        }
        if let Some(text) = changed(&path.join("ranks.json"), &mut self.seen.ranks) {
            self.ranks = serde_json::from_str(&text).unwrap_or_default();
        }
        self.checkpoints = checkpoints::list(&path);
        self.latest = name_in(&path.join("LATEST"));
        self.best = name_in(&path.join("BEST"));
    }

    fn look_at_events(&mut self) {
        let news = self.events_file.look();
        if news.restarted {
            self.events.clear();
            (self.launched, self.restarts) = (None, 0);
        }
        for line in &news.lines {
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if !event["kind"].is_string() {
                continue;
            }
            let restarts = self
                .events
                .back()
                .is_some_and(|last| last["kind"] == "restart");
            if event["kind"] == "restart" {
                self.restarts += 1;
            } else if event["kind"] == "start" && !restarts {
                (self.launched, self.restarts) = (event["time"].as_f64(), 0);
            }
            self.events.push_back(event);
            if self.events.len() > EVENTS_MAX {
                self.events.pop_front();
            }
        }
    }

    /// The last event of one of these kinds.
    pub fn last_event(&self, kinds: &[&str]) -> Option<&Value> {
        let is_one = |event: &&Value| event["kind"].as_str().is_some_and(|k| kinds.contains(&k));
        self.events.iter().rev().find(is_one)
    }
}

/// Unix time at which a file was last written.
fn written(path: &Path) -> Option<f64> {
    let written = std::fs::metadata(path).ok()?.modified().ok()?;
    let since = written.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// The text of a file that was written since `seen`; empty when it has gone.
fn changed(path: &Path, seen: &mut Option<SystemTime>) -> Option<String> {
    let meta = std::fs::metadata(path)
        .ok()
        .filter(std::fs::Metadata::is_file);
    let written = meta.as_ref().and_then(|meta| meta.modified().ok());
    if written == *seen {
        return None;
    }
    *seen = written;
    if meta.is_none_or(|meta| meta.len() > FILE_BYTES_MAX) {
        return Some(String::new());
    }
    Some(std::fs::read_to_string(path).unwrap_or_default())
}

/// The name in a file of one name.
fn name_in(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.len() > 256 {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_fills_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = Folder::new(&path);
        run.look();
        assert!(run.events.is_empty() && run.record.is_null());
        std::fs::create_dir(&path).unwrap();
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
        write("run.json", "{\"seed\": 3}");
        write("config.toml", "[run]\nseed = 3 # f.toml:2\n");
        write("metrics.jsonl", "{\"step\":4,\"loss\":1}\n");
        write(
            "events.jsonl",
            "{\"time\":1,\"kind\":\"start\"}\nx\n{\"time\":2,\"kind\":\"done\"}\n",
        );
        write("BEST", "step-00000004\n");
        write("ranks.json", "no json");
        run.look();
        assert_eq!(run.record["seed"], 3);
        assert_eq!((run.settings.len(), run.curves.last_step()), (1, 4));
        assert_eq!((run.events.len(), run.launched), (2, Some(1.0)));
        assert_eq!(run.best.as_deref(), Some("step-00000004"));
        assert_eq!(run.last_event(&["start"]).unwrap()["time"], 1);
        // Another run in its place.
        std::fs::remove_file(path.join("events.jsonl")).unwrap();
        std::fs::remove_file(path.join("run.json")).unwrap();
        run.look();
        assert!(run.events.is_empty() && run.launched.is_none() && run.record.is_null());
    }

    #[test]
    fn a_launch_begins_with_a_start_that_no_restart_announced() {
        let folder = tempfile::tempdir().unwrap();
        let line = |(time, kind): (u32, &str)| format!("{{\"time\":{time},\"kind\":\"{kind}\"}}\n");
        let kinds = [
            "start", "restart", "start", "failure", "start", "restart", "start",
        ];
        let lines: Vec<String> = (1..).zip(kinds).map(line).collect();
        std::fs::write(folder.path().join("events.jsonl"), lines.concat()).unwrap();
        let mut run = Folder::new(folder.path());
        run.look();
        assert_eq!((run.launched, run.restarts), (Some(5.0), 1));
    }

    #[test]
    fn only_so_many_events_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let line = "{\"time\":1,\"kind\":\"start\"}\n";
        std::fs::write(folder.path().join("events.jsonl"), line.repeat(1000)).unwrap();
        let mut run = Folder::new(folder.path());
        run.look();
        assert_eq!(run.events.len(), EVENTS_MAX);
    }
}
