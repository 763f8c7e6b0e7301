//! Ranges of remote files that were fetched before, in a local folder of limited size.
//!
//! Each range is a file: the hash of its bytes, then the bytes. It appears under its name complete or not
//! at all. Its time of modification is when it was last used; the least recently used ranges make room for
//! new ones. Several processes may share the folder: the file `used` holds how many bytes all ranges have,
//! and whoever adds or removes one holds a lock on it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{CacheOptions, Traffic};
use crate::{Error, Result};

/// Bytes of the hash before the bytes of a range.
const HASH: usize = blake3::OUT_LEN;
/// A file that was begun and not completed is left behind by a process that is gone after this time.
const ABANDONED: Duration = Duration::from_hours(1);
/// The file with the bytes in use.
const USED: &str = "used";
/// Numbers the temporary files of this process, whichever of its caches writes them.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    limit: u64,
    used: File,
    warned: AtomicBool,
}

impl Cache {
    pub(super) fn open(options: &CacheOptions) -> Result<Self> {
        let dir = options.dir.clone();
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(USED);
        let used = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        Ok(Self {
            dir,
            limit: options.bytes,
            used,
            warned: AtomicBool::new(false),
        })
    }

    /// The ranges of a file, those that are missing by `fetch`. `file` names the file and its version.
    pub(super) fn through(
        &self,
        file: &str,
        ranges: &[Range<u64>],
        traffic: &Traffic,
        fetch: impl FnOnce(&[Range<u64>]) -> Result<Vec<Bytes>>,
    ) -> Result<Vec<Bytes>> {
        self.check_size(ranges)?;
        let entries: Vec<PathBuf> = ranges.iter().map(|r| self.entry(file, r)).collect();
        let mut found: Vec<Option<Bytes>> = ranges
            .iter()
            .zip(&entries)
            .map(|(range, entry)| self.get(entry, range.end - range.start))
            .collect();
        let missing: Vec<usize> = (0..ranges.len()).filter(|&i| found[i].is_none()).collect();
        traffic.count_cache((ranges.len() - missing.len()) as u64, missing.len() as u64);
        if !missing.is_empty() {
            let wanted: Vec<Range<u64>> = missing.iter().map(|&i| ranges[i].clone()).collect();
            for (&i, bytes) in missing.iter().zip(fetch(&wanted)?) {
                self.put_or_warn(&entries[i], &bytes);
                found[i] = Some(bytes);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// What is read together must fit, or every read would throw out what the next one needs.
    fn check_size(&self, ranges: &[Range<u64>]) -> Result<()> {
        let needed: u64 = ranges
            .iter()
            .map(|range| range.end - range.start + HASH as u64)
            .sum();
        if needed <= self.limit {
            return Ok(());
        }
        Err(Error::options(
            format!(
                "the cache `{}` may hold {} bytes, but one row group needs {needed}",
                self.dir.display(),
                self.limit
            ),
            format!(
                "allow it at least {} bytes (SCPEFT_CACHE_BYTES), room for some row groups, or use no cache",
                needed.saturating_mul(8)
            ),
        ))
    }

    fn entry(&self, file: &str, range: &Range<u64>) -> PathBuf {
        let key = format!("{file}\n{}\n{}", range.start, range.end);
        let name = blake3::hash(key.as_bytes()).to_hex();
        self.dir.join(&name[..2]).join(&name[2..])
    }

    /// A range that is there and sound. One that is damaged is removed.
    fn get(&self, entry: &Path, length: u64) -> Option<Bytes> {
        let bytes = Bytes::from(std::fs::read(entry).ok()?);
        let sound = bytes.len() as u64 == length + HASH as u64
            && blake3::hash(&bytes[HASH..]).as_bytes() == &bytes[..HASH];
        if !sound {
            tracing::warn!("`{}` is damaged, it is fetched again", entry.display());
            let removed = self.locked(|used| Ok(used.saturating_sub(remove(entry))));
            self.warn(removed, entry);
            return None;
        }
        // A read-only folder still serves; its ranges then look older than they are.
        let now = File::open(entry).and_then(|file| file.set_modified(SystemTime::now()));
        self.warn(now, entry);
        Some(bytes.slice(HASH..))
    }

    /// A disk that is full must not end a run that does not need it.
    fn put_or_warn(&self, entry: &Path, bytes: &Bytes) {
        let done = self.put(entry, bytes);
        self.warn(done, entry);
    }

    fn warn(&self, done: std::io::Result<()>, entry: &Path) {
        if let Err(error) = done
            && !self.warned.swap(true, Relaxed)
        {
            tracing::warn!(
                "the cache cannot be written: `{}`: {error}; ranges are fetched each time",
                entry.display()
            );
        }
    }

    fn put(&self, entry: &Path, bytes: &Bytes) -> std::io::Result<()> {
        let folder = entry.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(folder)?;
        let number = TEMPORARY.fetch_add(1, Relaxed);
        let temporary = self
            .dir
            .join(format!("tmp-{}-{number}", std::process::id()));
        let written = File::create_new(&temporary).and_then(|mut file| {
            file.write_all(blake3::hash(bytes).as_bytes())?;
            file.write_all(bytes)
        });
        let size = (bytes.len() + HASH) as u64;
        let placed = written.and_then(|()| {
            self.locked(|used| {
                let replaced = std::fs::metadata(entry).map_or(0, |found| found.len());
                let mut used = used.saturating_sub(replaced);
                if used + size > self.limit {
                    used = self.make_room(size, entry)?;
                }
                std::fs::rename(&temporary, entry)?;
                Ok(used + size)
            })
        });
        if placed.is_err() {
            remove(&temporary);
        }
        placed
    }

    /// Changes the number of bytes in use, under the lock.
    fn locked(&self, change: impl FnOnce(u64) -> std::io::Result<u64>) -> std::io::Result<()> {
        // A lock belongs to an open file: threads, too, need one each.
        let lock = OpenOptions::new().write(true).open(self.dir.join(USED))?;
        lock.lock()?;
        let mut number = [0; 8];
        let used = match self.used.read_exact_at(&mut number, 0) {
            Ok(()) => u64::from_le_bytes(number),
            // A new cache, or one whose number was lost: counted when room is made.
            Err(_) => self.entries()?.iter().map(|entry| entry.bytes).sum(),
        };
        let now = change(used)?;
        self.used.write_all_at(&now.to_le_bytes(), 0)
    }

    /// Removes the least recently used ranges until there is room, and a tenth of the limit besides.
    /// Returns the bytes left in use.
    fn make_room(&self, size: u64, replaced: &Path) -> std::io::Result<u64> {
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.path != replaced);
        entries.sort_by_key(|entry| entry.last_use);
        let mut used: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let goal = (self.limit - self.limit / 10).saturating_sub(size);
        for entry in &entries {
            if used <= goal {
                break;
            }
            used -= remove(&entry.path).min(used);
        }
        Ok(used)
    }

    /// All ranges. Files that dead processes left are removed on the way.
    fn entries(&self) -> std::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for folder in std::fs::read_dir(&self.dir)? {
            let path = folder?.path();
            if path.is_dir() {
                for file in std::fs::read_dir(&path)? {
                    let file = file?;
                    let found = file.metadata()?;
                    entries.push(Entry {
                        path: file.path(),
                        bytes: found.len(),
                        last_use: found.modified()?,
                    });
                }
            } else if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("tmp-"))
                && path
                    .metadata()
                    .and_then(|found| found.modified())
                    .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED))
            {
                remove(&path);
            }
        }
        Ok(entries)
    }
}

struct Entry {
    path: PathBuf,
    bytes: u64,
    last_use: SystemTime,
}

/// Removes a file and returns how many bytes it had; another process may have been faster.
fn remove(path: &Path) -> u64 {
    let bytes = std::fs::metadata(path).map_or(0, |found| found.len());
    match std::fs::remove_file(path) {
        Ok(()) => bytes,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "s3://bucket/shard\n1000\nhash";

    fn cache(dir: &Path, bytes: u64) -> Cache {
        let dir = dir.to_owned();
        Cache::open(&CacheOptions { dir, bytes }).unwrap()
    }

    /// Reads ranges whose bytes are their own start, and says which were fetched.
    fn read(cache: &Cache, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut fetched = Vec::new();
        let traffic = Traffic::default();
        let parts = cache.through(FILE, ranges, &traffic, |missing| {
            fetched.extend_from_slice(missing);
            Ok(missing.iter().map(content).collect())
        });
        let wanted: Vec<Bytes> = ranges.iter().map(content).collect();
        assert_eq!(parts.unwrap(), wanted);
        assert_eq!(traffic.snapshot().cache_misses, fetched.len() as u64);
        let all = (ranges.len() - fetched.len()) as u64;
        assert_eq!(traffic.snapshot().cache_hits, all);
        fetched
    }

    fn content(range: &Range<u64>) -> Bytes {
        Bytes::from(vec![range.start as u8; (range.end - range.start) as usize])
    }

    fn on_disk(dir: &Path) -> u64 {
        let folders = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
        folders
            .filter(|folder| folder.is_dir())
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum()
    }

    #[test]
    fn a_range_is_fetched_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = cache(dir.path(), 10_000);
        assert_eq!(read(&first, &[0..10, 20..40]), vec![0..10, 20..40]);
        assert_eq!(read(&first, &[20..40, 50..60]), vec![50..60]);
        // Another process finds what this one fetched.
        let second = cache(dir.path(), 10_000);
        assert_eq!(read(&second, &[0..10, 20..40, 50..60]), vec![]);
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 10_000);
        read(&cache, &[0..10, 20..40]);
        let entry = cache.entry(FILE, &(20..40));
        let mut bytes = std::fs::read(&entry).unwrap();
        bytes[HASH + 3] ^= 1;
        std::fs::write(&entry, &bytes).unwrap();
        assert_eq!(read(&cache, &[0..10, 20..40]), vec![20..40]);
        std::fs::write(&entry, &bytes[..HASH + 5]).unwrap();
        assert_eq!(read(&cache, &[0..10, 20..40]), vec![20..40]);
        assert_eq!(read(&cache, &[0..10, 20..40]), vec![]);
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let each = 100 + HASH as u64;
        let cache = cache(dir.path(), 10 * each);
        let range = |i: u64| i * 100..i * 100 + 100;
        for i in 0..10 {
            read(&cache, &[range(i)]);
            let time = SystemTime::now() - Duration::from_secs(1000 - i);
            let entry = File::open(cache.entry(FILE, &range(i))).unwrap();
            entry.set_modified(time).unwrap();
        }
        // Using the oldest one makes it the newest.
        assert_eq!(read(&cache, &[range(0)]), vec![]);
        assert_eq!(read(&cache, &[range(10)]), vec![range(10)]);
        assert!(on_disk(dir.path()) <= 10 * each);
        assert_eq!(read(&cache, &[range(0), range(10), range(9)]), vec![]);
        assert_eq!(read(&cache, &[range(1)]), vec![range(1)]);
    }

    #[test]
    fn many_threads_stay_below_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 8 * (100 + HASH as u64);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cache = cache(dir.path(), limit);
                scope.spawn(move || {
                    for i in 0..50 {
                        let start = (i * 7 + thread) % 40 * 100;
                        let range = start..start + 100;
                        read(&cache, std::slice::from_ref(&range));
                    }
                });
            }
        });
        let used = on_disk(dir.path());
        assert!(used > 0 && used <= limit, "{used} of {limit}");
        let number = std::fs::read(dir.path().join(USED)).unwrap();
        assert_eq!(u64::from_le_bytes(number.try_into().unwrap()), used);
    }

    #[test]
    fn a_limit_below_one_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 50);
        let traffic = Traffic::default();
        let refused = cache.through(FILE, std::slice::from_ref(&(0..100)), &traffic, |_| {
            Ok(Vec::new())
        });
        let message = refused.unwrap_err().to_string();
        assert!(
            message.contains("may hold 50 bytes, but one row group needs 132"),
            "{message}"
        );
    }
}
