//! What the files of a corpus cost to read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of what was asked of a store since the corpus was opened; loader threads share them.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    bytes: AtomicU64,
    retries: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficSnapshot {
    /// Requests sent, those that failed and were sent again included; for a local folder, reads.
    pub requests: u64,
    /// Bytes that arrived, those of bodies that broke off included.
    pub bytes: u64,
    /// Requests that had to be sent again.
    pub retries: u64,
    /// Ranges that the local cache had.
    pub cache_hits: u64,
    /// Ranges that the local cache lacked, or had damaged.
    pub cache_misses: u64,
}

impl Traffic {
    /// The counts now.
    pub fn snapshot(&self) -> TrafficSnapshot {
        TrafficSnapshot {
            requests: self.requests.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            retries: self.retries.load(Relaxed),
            cache_hits: self.cache_hits.load(Relaxed),
            cache_misses: self.cache_misses.load(Relaxed),
        }
    }

    pub(super) fn count_read(&self, requests: u64, bytes: u64) {
        self.requests.fetch_add(requests, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn count_cache(&self, hits: u64, misses: u64) {
        self.cache_hits.fetch_add(hits, Relaxed);
        self.cache_misses.fetch_add(misses, Relaxed);
    }
}
