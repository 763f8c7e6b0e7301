//! `events.jsonl` of a run directory: what happened to the run as a whole, one JSON object a line.

use serde_json::{Map, Value};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where events are written; nowhere for a program without a run directory.
#[derive(Debug, Clone)]
pub struct Events {
    path: Option<PathBuf>,
}

impl Events {
    /// Those of a run directory.
    pub fn of(run_dir: Option<&Path>) -> Self {
        Self {
            path: run_dir.map(|dir| dir.join("events.jsonl")),
        }
    }

    /// Adds an event: `time` in seconds of the Unix epoch, `kind`, and the given fields.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, kind: &str, fields: &[(&str, Value)]) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut event = Map::new();
        event.insert("time".into(), now.as_secs_f64().into());
        event.insert("kind".into(), kind.into());
        for (name, value) in fields {
            event.insert((*name).into(), value.clone());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // One write of one line: a reader never sees half of one.
        let line = format!("{}\n", Value::Object(event));
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_added_in_order_and_only_where_there_is_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::of(Some(&folder.path().join("run")));
        events.add("start", &[("ranks", 2.into())]).unwrap();
        events.add("end", &[("code", 0.into())]).unwrap();
        let text = std::fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(
            (lines.len(), &lines[0]["ranks"], &lines[1]["code"]),
            (2, &2.into(), &0.into())
        );
        assert!(lines[1]["time"].as_f64() >= lines[0]["time"].as_f64());
        Events::of(None).add("start", &[]).unwrap();
    }
}
