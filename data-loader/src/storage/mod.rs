//! The one place that opens the files of a corpus, in a local folder or in an object store.
//!
//! `local` reads by position, `remote` by range requests with retries, `cache` keeps what was fetched.
//! All calls block: loader threads make them, and only the transfer itself runs elsewhere.

mod batches;
mod cache;
mod footer;
mod local;
mod options;
mod remote;
mod retry;
mod runtime;
mod traffic;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::{Error, Result};
pub(crate) use batches::{Batches, guarded};
use cache::Cache;
pub(crate) use footer::Footer;
pub(crate) use local::hash_file;
pub use options::{CacheOptions, StoreOptions};
use remote::Remote;
pub use traffic::{Traffic, TrafficSnapshot};

/// Bytes that are hashed at a time.
const HASH_BLOCK: u64 = 8 << 20;

/// A file below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its path below the root, with `/` between the parts.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
}

/// What is known of a file before it is read.
#[derive(Debug, Clone)]
struct Expected {
    bytes: u64,
    /// Names the content, so that a cache does not mix up two versions of a file.
    identity: String,
}

/// Reads the files of a corpus: those of the corpus folder, and its shards, which may lie elsewhere.
#[derive(Debug)]
pub(crate) struct Storage {
    home: Place,
    shards: Option<Place>,
    expected: Mutex<HashMap<String, Expected>>,
    cache: Option<Cache>,
    options: StoreOptions,
    traffic: Arc<Traffic>,
}

/// A folder, or what takes its place in an object store.
#[derive(Debug)]
enum Place {
    Local(PathBuf),
    Remote { root: PathBuf, store: Remote },
}

impl Place {
    fn new(root: &Path, options: &StoreOptions, traffic: &Arc<Traffic>) -> Result<Self> {
        match remote::url(root)? {
            Some(url) => Ok(Self::Remote {
                root: root.to_owned(),
                store: Remote::new(&url, options, traffic.clone())?,
            }),
            None => Ok(Self::Local(local::folder(root))),
        }
    }

    fn root(&self) -> &Path {
        match self {
            Self::Local(root) | Self::Remote { root, .. } => root,
        }
    }
}

impl Storage {
    /// The files under a folder or URL. Nothing is read yet.
    pub(crate) fn open(root: &Path, options: &StoreOptions) -> Result<Self> {
        let traffic = Arc::new(Traffic::default());
        let home = Place::new(root, options, &traffic)?;
        let mut storage = Self {
            home,
            shards: None,
            expected: Mutex::default(),
            cache: None,
            options: options.clone(),
            traffic,
        };
        storage.open_cache()?;
        Ok(storage)
    }

    /// Looks for the files that [`Storage::expect`] names below another folder or URL.
    pub(crate) fn shards_below(&mut self, root: &str) -> Result<()> {
        // A relative folder is meant from where the corpus is.
        let root = match remote::url(Path::new(root))? {
            Some(_) => PathBuf::from(root),
            None => self.home.root().join(root),
        };
        self.shards = Some(Place::new(&root, &self.options, &self.traffic)?);
        self.open_cache()
    }

    fn open_cache(&mut self) -> Result<()> {
        let remote = self.is_remote() || self.has_remote_shards();
        if let Some(options) = self.options.cache.as_ref().filter(|_| remote)
            && self.cache.is_none()
        {
            self.cache = Some(Cache::open(options)?);
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        self.home.root()
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.home, Place::Remote { .. })
    }

    /// Whether the shards are fetched over a network.
    pub(crate) fn has_remote_shards(&self) -> bool {
        matches!(
            self.shards.as_ref().unwrap_or(&self.home),
            Place::Remote { .. }
        )
    }

    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    fn place(&self, name: &str) -> (&Place, Option<Expected>) {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = expected.get(name).cloned();
        let place = match (&expected, &self.shards) {
            (Some(_), Some(shards)) => shards,
            _ => &self.home,
        };
        (place, expected)
    }

    /// The full name of a file, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place(name).0.root().join(name)
    }

    /// Refuses names that lead out of the folder.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if inside && !name.is_empty() {
            Ok(())
        } else {
            Err(Error::corpus(
                &self.path("manifest.json"),
                format!("path `{name}`"),
                "leads out of the corpus folder",
            ))
        }
    }

    /// Says what the manifest knows of a shard. A local one is checked at once; of a remote one the size
    /// comes with the first request for it and is checked then, so that opening a corpus asks nothing of
    /// its shards.
    pub(crate) fn expect(&self, name: &str, bytes: u64, identity: &str) -> Result<()> {
        let expected = Expected {
            bytes,
            identity: identity.to_owned(),
        };
        self.expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), expected);
        if let (Place::Local(root), _) = self.place(name) {
            let path = root.join(name);
            let found = local::size(&path)?;
            if found != bytes {
                return Err(wrong_size(&path, found, bytes));
            }
        }
        Ok(())
    }

    /// A whole file.
    pub(crate) fn read(&self, name: &str) -> Result<Bytes> {
        match self.place(name).0 {
            Place::Local(root) => {
                let bytes = local::read(&root.join(name))?;
                self.traffic.count_read(1, bytes.len() as u64);
                Ok(bytes)
            }
            Place::Remote { root, store } => store.read(&root.join(name), name),
        }
    }

    /// A whole file, `None` when there is none of this name.
    pub(crate) fn read_if_there(&self, name: &str) -> Result<Option<Bytes>> {
        match &self.home {
            Place::Local(root) if !root.join(name).exists() => Ok(None),
            Place::Local(_) => self.read(name).map(Some),
            Place::Remote { root, store } => store.read_if_there(&root.join(name), name),
        }
    }

    /// Some ranges of a file, in the order asked for.
    pub(crate) fn fetch(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (place, expected) = self.place(name);
        match (place, &self.cache, &expected) {
            (Place::Local(root), ..) => {
                let parts = local::fetch(&root.join(name), ranges)?;
                let bytes = parts.iter().map(Bytes::len).sum::<usize>();
                self.traffic.count_read(ranges.len() as u64, bytes as u64);
                Ok(parts)
            }
            (Place::Remote { root, store }, Some(cache), Some(expected)) => {
                let path = root.join(name);
                let file = format!(
                    "{}\n{}\n{}",
                    path.display(),
                    expected.bytes,
                    expected.identity
                );
                cache.through(&file, ranges, &self.traffic, |missing| {
                    store.fetch(&path, name, missing, Some(expected.bytes))
                })
            }
            (Place::Remote { root, store }, ..) => {
                let bytes = expected.map(|e| e.bytes);
                store.fetch(&root.join(name), name, ranges, bytes)
            }
        }
    }

    /// The blake3 of a file, in hexadecimal.
    pub(crate) fn hash(&self, name: &str) -> Result<String> {
        let Place::Remote { root, store } = self.place(name).0 else {
            return hash_file(&self.path(name));
        };
        let path = root.join(name);
        let size = store.size(&path, name)?;
        let mut hasher = blake3::Hasher::new();
        let mut start = 0;
        while start < size {
            let end = (start + HASH_BLOCK).min(size);
            for part in store.fetch(&path, name, std::slice::from_ref(&(start..end)), Some(size))? {
                hasher.update(&part);
            }
            start = end;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// All files whose names end in `suffix`, by name. Hidden ones, and those in hidden folders, are left
    /// out.
    pub(crate) fn list(&self, suffix: &str) -> Result<Vec<Listed>> {
        let mut files = match &self.home {
            Place::Local(root) => local::list(root)?,
            Place::Remote { root, store } => store.list(root)?,
        };
        files.retain(|file| {
            file.name.ends_with(suffix) && !file.name.split('/').any(|part| part.starts_with('.'))
        });
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

fn wrong_size(path: &Path, found: u64, expected: u64) -> Error {
    Error::store(
        path,
        "shard",
        format!(
            "has {found} bytes, the manifest says {expected}\nhelp: the file was changed or not copied in full; copy it again, or make the corpus again"
        ),
    )
}
