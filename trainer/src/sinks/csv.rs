//! `metrics.csv`: one line per value, so that training and evaluations, whose values differ, share a
//! table. A resumed run writes it anew from `metrics.jsonl`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::Value;

use super::Entry;
use crate::failure::{Result, io};

const HEADER: &str = "kind,split,step,epoch,metric,value\n";

#[derive(Debug)]
pub(super) struct Csv {
    file: File,
}

impl Csv {
    /// Writes what `kept`, lines of `metrics.jsonl`, tells, and stays open for more.
    pub(super) fn open(run_dir: &Path, kept: &str) -> Result<Self> {
        let path = run_dir.join("metrics.csv");
        let mut text = HEADER.to_owned();
        for line in kept.lines() {
            if let Ok(Value::Object(record)) = serde_json::from_str(line) {
                text.push_str(&lines(&Entry::of(&record)));
            }
        }
        scpeft_checkpoint::fsx::write_atomic(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self {
            file: file.map_err(io(&path))?,
        })
    }

    pub(super) fn write(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        // One write: a reader never sees half of a record.
        self.file.write_all(lines(entry).as_bytes())
    }

    #[cfg(test)]
    pub(super) fn replace(&mut self, file: File) {
        self.file = file;
    }
}

/// The lines of a record. Names are ours or those of obs values, so they may need quotes.
fn lines(entry: &Entry<'_>) -> String {
    let mut text = String::new();
    for (name, value) in &entry.values {
        let _ = writeln!(
            text,
            "{},{},{},{},{},{value}",
            entry.kind,
            field(entry.split),
            entry.step,
            entry.epoch,
            field(name)
        );
    }
    text
}

fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_begins_with_what_is_kept_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let kept = "{\"kind\":\"train\",\"step\":1,\"epoch\":0,\"loss\":1.5,\"lr\":0.001}\n\
                    {\"kind\":\"eval\",\"step\":1,\"epoch\":0,\"f1\":null,\"split\":\"a,b\"}\n";
        std::fs::write(dir.path().join("metrics.csv"), "from before\n").unwrap();
        let mut csv = Csv::open(dir.path(), kept).unwrap();
        let entry = Entry {
            kind: "train",
            split: "train",
            step: 2,
            epoch: 1,
            values: vec![("loss", 1e-7), ("say \"x\"", f64::INFINITY)],
        };
        csv.write(&entry).unwrap();
        let text = std::fs::read_to_string(dir.path().join("metrics.csv")).unwrap();
        let expected = "kind,split,step,epoch,metric,value\n\
                        train,train,1,0,loss,1.5\n\
                        train,train,1,0,lr,0.001\n\
                        eval,\"a,b\",1,0,f1,NaN\n\
                        train,train,2,1,loss,0.0000001\n\
                        train,train,2,1,\"say \"\"x\"\"\",inf\n";
        assert_eq!(text, expected);
    }
}
