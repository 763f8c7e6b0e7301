//! The local cache of a remote corpus.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scpeft_data::storage::{CacheOptions, TrafficSnapshot};
use scpeft_data::{Corpus, StoreOptions};

use crate::common;
use crate::s3::{assert_same, url};
use crate::server::{Server, options};

struct Lab {
    dir: tempfile::TempDir,
    local: Arc<Corpus>,
    server: Server,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let local = common::write_corpus(dir.path());
        let server = Server::start();
        server.upload(local.path(), "corpus");
        Self { dir, local, server }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn open(&self, bytes: u64) -> Arc<Corpus> {
        let options = StoreOptions {
            cache: Some(CacheOptions {
                dir: self.cache(),
                bytes,
            }),
            ..options(&self.server.address)
        };
        Arc::new(Corpus::open_with(&url("corpus"), &options).unwrap())
    }

    /// Reads all of the corpus through the cache, as a process of its own would.
    fn read(&self, bytes: u64) -> TrafficSnapshot {
        let remote = self.open(bytes);
        assert_same(&self.local, &remote);
        remote.traffic().snapshot()
    }

    fn entries(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in std::fs::read_dir(self.cache()).unwrap() {
            let folder = folder.unwrap().path();
            if folder.is_dir() {
                let inside = std::fs::read_dir(folder).unwrap();
                files.extend(inside.map(|file| file.unwrap().path()));
            }
        }
        files
    }
}

fn size(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

#[test]
fn a_second_reading_asks_for_manifest_and_genes_alone() {
    let lab = Lab::new();
    let first = lab.read(100_000_000);
    assert!(first.cache_misses > 20, "{first:?}");
    let second = lab.read(100_000_000);
    assert_eq!((second.requests, second.cache_misses), (2, 0), "{second:?}");
    // A damaged range is fetched again, and repaired.
    let entry = lab.entries().into_iter().max_by_key(|path| size(path));
    let file = OpenOptions::new().write(true).open(entry.unwrap()).unwrap();
    file.write_all_at(b"damage", 50).unwrap();
    let third = lab.read(100_000_000);
    assert_eq!((third.requests, third.cache_misses), (3, 1), "{third:?}");
    let fourth = lab.read(100_000_000);
    assert_eq!((fourth.requests, fourth.cache_misses), (2, 0), "{fourth:?}");
}

#[test]
fn a_small_cache_stays_small_and_a_tiny_one_is_refused() {
    let lab = Lab::new();
    lab.read(100_000_000);
    let whole: u64 = lab.entries().iter().map(|path| size(path)).sum();
    let largest = lab.entries().iter().map(|path| size(path)).max().unwrap();
    std::fs::remove_dir_all(lab.cache()).unwrap();
    let limit = (whole / 2).max(2 * largest);
    let small = lab.read(limit);
    assert!(small.cache_misses > 20, "{small:?}");
    let used: u64 = lab.entries().iter().map(|path| size(path)).sum();
    assert!(used <= limit && used > 0, "{used} of {limit}");
    let error = lab.open(20).read_block(0, None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    assert!(
        message.contains("may hold 20 bytes") && message.contains("SCPEFT_CACHE_BYTES"),
        "{message}"
    );
}
