//! What this process has used: memory by kind, processor time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Largest resident size so far.
pub fn peak_mib() -> f64 {
    status_mib("VmHWM")
}

fn status_mib(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|l| l.starts_with(key)).expect(key);
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("KiB");
    kib / 1024.0
}

/// User and system time of this process.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let after = stat.rsplit(')').next().expect("a command name");
    let ticks: f64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse::<f64>().expect("ticks"))
        .sum();
    // Linux reports 100 ticks a second to programs, whatever its own clock.
    ticks / 100.0
}

/// Resident memory by kind, in MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kinds {
    /// The process's own.
    pub anon: f64,
    /// Mapped from files.
    pub file: f64,
    /// Shared with other processes.
    pub shmem: f64,
}

impl Kinds {
    /// What the kernel says now.
    pub fn now() -> Self {
        Self {
            anon: status_mib("RssAnon"),
            file: status_mib("RssFile"),
            shmem: status_mib("RssShmem"),
        }
    }

    /// The larger of each kind.
    fn max(self, other: Self) -> Self {
        Self {
            anon: self.anon.max(other.anon),
            file: self.file.max(other.file),
            shmem: self.shmem.max(other.shmem),
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}, {:.0}, {:.0}", self.anon, self.file, self.shmem)
    }
}

/// The largest sizes by kind of memory while something runs.
#[derive(Debug)]
pub struct Peaks {
    over: Arc<AtomicBool>,
    watcher: JoinHandle<Kinds>,
}

impl Peaks {
    /// Starts to look every few milliseconds.
    pub fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let watcher = std::thread::spawn(move || {
            let mut most = Kinds::now();
            while !told.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(3));
                most = most.max(Kinds::now());
            }
            most
        });
        Self { over, watcher }
    }

    /// Ends it.
    pub fn end(self) -> Kinds {
        self.over.store(true, Ordering::Relaxed);
        self.watcher.join().expect("the watcher")
    }
}
