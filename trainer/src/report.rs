//! What a run says while it runs: a progress bar on a terminal, one JSON line per log step
//! otherwise, always `metrics.jsonl` in the run directory, and what `log.sinks` names.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::failure::{Result, io};
use crate::sinks::Sinks;
use crate::task::NamedValue;
use scpeft_config::SinkKind;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ProgressMode {
    /// A bar when standard error is a terminal, JSON lines otherwise.
    #[default]
    Auto,
    /// A bar.
    Bar,
    /// One JSON line per log step on standard output.
    Json,
    /// Nothing.
    None,
}

impl ProgressMode {
    fn shows_bar(self) -> bool {
        match self {
            Self::Auto => std::io::stderr().is_terminal(),
            Self::Bar => true,
            Self::Json | Self::None => false,
        }
    }
}

/// The voice of rank 0. Other ranks have none.
#[derive(Debug)]
pub struct Reporter {
    bar: Option<ProgressBar>,
    lines: bool,
    file: File,
    path: PathBuf,
    sinks: Sinks,
}

impl Reporter {
    /// Opens `metrics.jsonl` of a run; a resumed run drops the lines beyond `resume_step`, which
    /// the interrupted run wrote after its last checkpoint.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(
        run_dir: &Path,
        mode: ProgressMode,
        planned_steps: u64,
        resume_step: u64,
        sinks: &[SinkKind],
    ) -> Result<Self> {
        let path = run_dir.join("metrics.jsonl");
        let mut kept = String::new();
        if path.exists() {
            kept = lines_up_to(&path, resume_step)?;
            scpeft_checkpoint::fsx::write_atomic(&path, kept.as_bytes())?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io(&path))?;
        let bar = mode.shows_bar().then(|| {
            let bar = ProgressBar::new(planned_steps).with_position(resume_step);
            let style = "{bar:24} {pos}/{len} steps, {msg}, {elapsed} gone, {eta} left";
            bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
            bar
        });
        let lines = bar.is_none() && mode != ProgressMode::None;
        Ok(Self {
            bar,
            lines,
            file,
            path,
            sinks: Sinks::open(run_dir, sinks, &kept, resume_step)?,
        })
    }

    /// Moves the bar.
    pub fn advance(&self, step: u64, loss: f64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(format!("loss {loss:.4}"));
        }
    }

    /// Writes a record of training progress.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn train(&mut self, step: u64, epoch: u64, values: &[NamedValue]) -> Result<()> {
        let record = record("train", step, epoch, values);
        self.write(&record)
    }

    /// Writes a record of an evaluation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn evaluation(
        &mut self,
        split: &str,
        step: u64,
        epoch: u64,
        values: &[NamedValue],
    ) -> Result<()> {
        let mut record = record("eval", step, epoch, values);
        record.insert("split".into(), split.into());
        if let Some(bar) = &self.bar {
            let text: Vec<String> = values.iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
            bar.println(format!("epoch {epoch}, {split}: {}", text.join(", ")));
        }
        self.write(&record)
    }

    /// Says something once: a warning or a milestone.
    pub fn say(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => tracing::info!("{message}"),
        }
    }

    /// Says that something needs the user's attention.
    pub fn warn(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("warning: {message}")),
            None => tracing::warn!("{message}"),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    fn write(&mut self, record: &Map<String, Value>) -> Result<()> {
        let line = Value::Object(record.clone()).to_string();
        writeln!(self.file, "{line}").map_err(io(&self.path))?;
        for problem in self.sinks.write(record) {
            self.warn(&problem);
        }
        if self.lines {
            // A reader that closed the pipe does not end the run.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        Ok(())
    }
}

fn record(kind: &str, step: u64, epoch: u64, values: &[NamedValue]) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("kind".into(), kind.into());
    record.insert("step".into(), step.into());
    record.insert("epoch".into(), epoch.into());
    for (name, value) in values {
        record.insert((*name).into(), json!(value));
    }
    record
}

/// The complete lines of a metrics file whose step is at most `step`.
fn lines_up_to(path: &Path, step: u64) -> Result<String> {
    let mut kept = String::new();
    for line in BufReader::new(File::open(path).map_err(io(path))?).lines() {
        let line = line.map_err(io(path))?;
        // A line cut off by a kill does not parse and is dropped with those after the checkpoint.
        let parsed: Option<Value> = serde_json::from_str(&line).ok();
        if parsed.is_some_and(|v| v["step"].as_u64().is_some_and(|s| s <= step)) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_drops_what_came_after_its_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let values = [("loss", 1.0)];
        let mut first = Reporter::open(dir.path(), ProgressMode::None, 9, 0, &[]).unwrap();
        for step in 1..=4 {
            first.train(step, 0, &values).unwrap();
        }
        drop(first);
        let path = dir.path().join("metrics.jsonl");
        let cut = std::fs::read_to_string(&path).unwrap() + "{\"kind\":\"tr";
        std::fs::write(&path, cut).unwrap();
        let mut second = Reporter::open(dir.path(), ProgressMode::None, 9, 2, &[]).unwrap();
        second.train(3, 0, &[("loss", 2.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<(u64, f64)> = text
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .map(|v| (v["step"].as_u64().unwrap(), v["loss"].as_f64().unwrap()))
            .collect();
        assert_eq!(steps, [(1, 1.0), (2, 1.0), (3, 2.0)]);
    }
}
