//! The one place that touches the files of a corpus, so that another store can take its place.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::{Error, Result};

/// Reads the files under one folder.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
}

impl Storage {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The full name of a file, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
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

    /// A whole file.
    pub(crate) fn read(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        std::fs::read(&path)
            .map(Bytes::from)
            .map_err(Error::io("read", &path))
    }

    /// Some ranges of a file, in the order asked for.
    pub(crate) fn fetch(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.path(name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let read = |range: &Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start)
                .map_err(Error::io("read", &path))?;
            Ok(Bytes::from(bytes))
        };
        ranges.iter().map(read).collect()
    }

    /// The size of a file.
    pub(crate) fn bytes(&self, name: &str) -> Result<u64> {
        let path = self.path(name);
        std::fs::metadata(&path)
            .map(|m| m.len())
            .map_err(Error::io("find", &path))
    }

    /// The blake3 of a file, in hexadecimal.
    pub(crate) fn hash(&self, name: &str) -> Result<String> {
        hash_file(&self.path(name))
    }
}

/// The blake3 of a file, in hexadecimal, read in blocks.
pub(crate) fn hash_file(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(file)
        .map_err(Error::io("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}
