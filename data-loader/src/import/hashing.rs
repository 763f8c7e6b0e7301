//! Hashes of the source files, on a thread of their own while the cells are read.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::corpus::SourceFile;
use crate::{Error, Result};

/// Name, size and hash of each file; stops early when told to.
pub(super) fn hash_files(
    files: &[(String, PathBuf)],
    stop: &AtomicBool,
) -> Result<Vec<SourceFile>> {
    files
        .iter()
        .map(|(name, path)| hash(name, path, stop))
        .collect()
}

fn hash(name: &str, path: &Path, stop: &AtomicBool) -> Result<SourceFile> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    while !stop.load(Ordering::Relaxed) {
        let read = file.read(&mut block).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        bytes += read as u64;
    }
    Ok(SourceFile {
        name: name.to_owned(),
        bytes,
        blake3: hasher.finalize().to_hex().to_string(),
    })
}
