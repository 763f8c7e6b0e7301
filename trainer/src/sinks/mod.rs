//! The log of a run for other programs: a table and TensorBoard's event files.
//!
//! `metrics.jsonl` is what counts. A sink that cannot be written is said once and left; it never ends a
//! run.

mod csv;
mod tensorboard;

use std::path::Path;
use std::time::SystemTime;

use scpeft_config::SinkKind;
use serde_json::{Map, Value};

use crate::failure::Result;

/// What every record has besides its values.
const HEAD: [&str; 4] = ["kind", "step", "epoch", "split"];

/// A record of `metrics.jsonl`, taken apart.
#[derive(Debug, Clone, PartialEq)]
struct Entry<'a> {
    kind: &'a str,
    split: &'a str,
    step: u64,
    epoch: u64,
    /// Names and values; what JSON has no number for is not a number.
    values: Vec<(&'a str, f64)>,
}

impl<'a> Entry<'a> {
    fn of(record: &'a Map<String, Value>) -> Self {
        let word = |name| record.get(name).and_then(Value::as_str).unwrap_or_default();
        let count = |name| record.get(name).and_then(Value::as_u64).unwrap_or_default();
        let values = record
            .iter()
            .filter(|(name, _)| !HEAD.contains(&name.as_str()));
        Self {
            kind: word("kind"),
            // Records of training have no split of their own.
            split: match word("split") {
                "" => word("kind"),
                split => split,
            },
            step: count("step"),
            epoch: count("epoch"),
            values: values
                .map(|(name, value)| (name.as_str(), value.as_f64().unwrap_or(f64::NAN)))
                .collect(),
        }
    }
}

/// The sinks of a run that still work.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    csv: Option<csv::Csv>,
    tensorboard: Option<tensorboard::Events>,
}

impl Sinks {
    /// Opens those that `kinds` names. `kept` are the lines of `metrics.jsonl` that a resumed run keeps,
    /// up to `resume_step`.
    ///
    /// # Errors
    /// When a file cannot be written: at the start that is said at once.
    pub(crate) fn open(
        run_dir: &Path,
        kinds: &[SinkKind],
        kept: &str,
        resume_step: u64,
    ) -> Result<Self> {
        let mut sinks = Self::default();
        if kinds.contains(&SinkKind::Csv) {
            sinks.csv = Some(csv::Csv::open(run_dir, kept)?);
        }
        if kinds.contains(&SinkKind::Tensorboard) {
            let events = tensorboard::Events::open(run_dir, resume_step, SystemTime::now())?;
            sinks.tensorboard = Some(events);
        }
        Ok(sinks)
    }

    /// Writes a record everywhere; returns what went wrong, each sink once.
    pub(crate) fn write(&mut self, record: &Map<String, Value>) -> Vec<String> {
        let entry = Entry::of(record);
        let mut problems = Vec::new();
        if let Some(csv) = &mut self.csv
            && let Err(error) = csv.write(&entry)
        {
            problems.push(format!("no more `metrics.csv`: {error}"));
            self.csv = None;
        }
        if let Some(events) = &mut self.tensorboard
            && let Err(error) = events.write(&entry, SystemTime::now())
        {
            problems.push(format!("no more events for TensorBoard: {error}"));
            self.tensorboard = None;
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_is_taken_apart_into_its_values() {
        let record = json!({"kind": "eval", "step": 12, "epoch": 1, "macro_f1": 0.5, "loss": null,
                            "split": "valid"});
        let entry = Entry::of(record.as_object().unwrap());
        assert_eq!(
            (entry.kind, entry.split, entry.step, entry.epoch),
            ("eval", "valid", 12, 1)
        );
        assert_eq!(entry.values[0], ("macro_f1", 0.5));
        assert!(entry.values[1].0 == "loss" && entry.values[1].1.is_nan());
        let record = json!({"kind": "train", "step": 3, "epoch": 0, "loss": 2});
        let entry = Entry::of(record.as_object().unwrap());
        assert_eq!(
            (entry.split, &entry.values[..]),
            ("train", &[("loss", 2.0)][..])
        );
    }

    #[test]
    fn a_sink_that_fails_is_said_once_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut sinks = Sinks::open(dir.path(), &[SinkKind::Csv], "", 0).unwrap();
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        sinks.csv.as_mut().unwrap().replace(full);
        let record = json!({"kind": "train", "step": 1, "epoch": 0, "loss": 1.0});
        let record = record.as_object().unwrap();
        assert!(sinks.write(record)[0].starts_with("no more `metrics.csv`: "));
        assert!(sinks.write(record).is_empty());
    }
}
