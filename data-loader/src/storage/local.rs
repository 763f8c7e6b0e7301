//! Files of a local folder.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Listed;
use crate::{Error, Result};

/// The folder that a path or a `file://` URL names.
pub(super) fn folder(root: &Path) -> PathBuf {
    let text = root.to_str().and_then(|text| text.strip_prefix("file://"));
    text.map_or_else(|| root.to_owned(), PathBuf::from)
}

pub(super) fn read(path: &Path) -> Result<Bytes> {
    std::fs::read(path)
        .map(Bytes::from)
        .map_err(Error::io("read", path))
}

pub(super) fn fetch(path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let read = |range: &Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)
            .map_err(Error::io("read", path))?;
        Ok(Bytes::from(bytes))
    };
    ranges.iter().map(read).collect()
}

pub(super) fn size(path: &Path) -> Result<u64> {
    std::fs::metadata(path)
        .map(|m| m.len())
        .map_err(Error::io("find", path))
}

/// All files below a folder. Links are followed, as deep as folders of data are nested.
pub(super) fn list(root: &Path) -> Result<Vec<Listed>> {
    const DEEPEST: usize = 8;
    let mut files = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(Error::io("list", &folder))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Error::corpus(&path, "name", "is not UTF-8"));
            };
            let name = format!("{prefix}{name}");
            let found = std::fs::metadata(&path).map_err(Error::io("find", &path))?;
            if !found.is_dir() {
                let bytes = found.len();
                files.push(Listed { name, bytes });
            } else if depth < DEEPEST {
                folders.push((path, format!("{name}/"), depth + 1));
            }
        }
    }
    Ok(files)
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
