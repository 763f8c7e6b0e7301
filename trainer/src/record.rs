//! `run.json`: what is needed to say what a run was and to repeat it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use scpeft_checkpoint::fsx;
use scpeft_collective::Topology;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::{Failure, Result};

const FILE: &str = "run.json";

/// One start of the run: the first, or a resumption.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Start {
    time: String,
    argv: Vec<String>,
    host: String,
    world_size: usize,
    from_step: u64,
    device: String,
    threads_per_rank: usize,
    /// What changed on resumption with the user's leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
}

/// Facts about the run that do not change from start to start.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Backbone, adapter and task.
    pub model: Value,
    /// Corpus path, fingerprint and cells per split.
    pub data: Value,
    /// Trainable parameters.
    pub trainable_parameters: usize,
    /// All parameters.
    pub total_parameters: usize,
    /// Seed.
    pub seed: u64,
    /// What changed on resumption with the user's leave.
    pub changed: Vec<String>,
}

/// Writes the record.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    record: Map<String, Value>,
    earlier_seconds: f64,
    begun: Instant,
}

impl Recorder {
    /// Starts or continues the record of a run directory.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn begin(
        run_dir: &Path,
        facts: &Facts,
        topology: &Topology,
        from_step: u64,
        device: &str,
        threads: usize,
    ) -> Result<Self> {
        let path = run_dir.join(FILE);
        let previous: Value = if path.exists() && from_step > 0 {
            read(&path)?
        } else {
            Value::Null
        };
        let mut starts: Vec<Start> =
            serde_json::from_value(previous["starts"].clone()).unwrap_or_default();
        starts.push(Start {
            time: now(),
            argv: std::env::args().collect(),
            host: hostname(),
            world_size: topology.world_size,
            from_step,
            device: device.to_owned(),
            threads_per_rank: threads,
            changed: facts.changed.clone(),
        });
        let mut record = Map::new();
        record.insert("format_version".into(), 1.into());
        record.insert("status".into(), "running".into());
        record.insert("scpeft_version".into(), env!("CARGO_PKG_VERSION").into());
        record.insert("libtorch_version".into(), "2.11.0".into());
        record.insert("seed".into(), facts.seed.into());
        record.insert("model".into(), facts.model.clone());
        record.insert("data".into(), facts.data.clone());
        record.insert(
            "trainable_parameters".into(),
            facts.trainable_parameters.into(),
        );
        record.insert("total_parameters".into(), facts.total_parameters.into());
        record.insert("starts".into(), json!(starts));
        let earlier_seconds = previous["seconds"].as_f64().unwrap_or(0.0);
        record.insert("seconds".into(), json!(earlier_seconds));
        let recorder = Self {
            path,
            record,
            earlier_seconds,
            begun: Instant::now(),
        };
        recorder.write()?;
        Ok(recorder)
    }

    /// Adds how the run ended.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn end(
        &mut self,
        status: &str,
        step: u64,
        best: &Value,
        peak_rss_bytes: &[u64],
        adapter_bytes: u64,
    ) -> Result<()> {
        self.record.insert("status".into(), status.into());
        self.record.insert("steps".into(), step.into());
        self.record.insert("best".into(), best.clone());
        self.record
            .insert("adapter_bytes".into(), adapter_bytes.into());
        self.record
            .insert("peak_rss_bytes_per_rank".into(), json!(peak_rss_bytes));
        self.record.insert("seconds".into(), json!(self.seconds()));
        self.record.insert("ended".into(), now().into());
        self.write()
    }

    /// Seconds over all starts of the run that ended orderly.
    pub fn seconds(&self) -> f64 {
        self.earlier_seconds + self.begun.elapsed().as_secs_f64()
    }

    fn write(&self) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.record).unwrap_or_default();
        text.push('\n');
        Ok(fsx::write_atomic(&self.path, text.as_bytes())?)
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = fsx::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|e| {
        Failure::data(format!(
            "`{}`, line {}: {e}\nhelp: the file is not a run record; move it away",
            path.display(),
            e.line()
        ))
    })
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// This host's name, as the kernel has it.
pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())
}

/// Largest resident memory of this process so far, in bytes.
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: an all-zero rusage is a valid value for getrusage to overwrite.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid rusage that lives through the call.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    // Linux counts in KiB.
    if status == 0 {
        usage.ru_maxrss as u64 * 1024
    } else {
        0
    }
}

/// Gives what is free in the heap back to the system. Loading leaves much of it, which would otherwise stay
/// with the process.
pub fn return_free_memory() {
    // SAFETY: takes no pointers; the allocator looks at its own state under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Resident memory of this process now, in bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    // SAFETY: sysconf takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page).unwrap_or(0)
}
