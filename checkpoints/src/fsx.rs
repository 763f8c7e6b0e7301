//! Files and directories that are complete or invisible, with errors that name the path.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What stands between a name and the nonce of its unfinished form.
pub const TEMPORARY_MARK: &str = ".tmp-";

/// A suffix that no other writer uses, nor one before a restart that left something behind. Process
/// ids come again, in containers at once, and clocks are set back: it is drawn.
fn nonce() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{count:x}", own_mark())
}

/// What the suffixes of this process begin with.
fn own_mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| {
        // The keys of a hash table of this process: from the system's random numbers.
        let drawn = RandomState::new().build_hasher().finish();
        format!("{:x}-{drawn:x}", std::process::id())
    })
}

/// A sibling of `path` under which it is prepared.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY_MARK);
    name.push(nonce());
    path.with_file_name(name)
}

/// Whether a name is that of something unfinished.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().contains(TEMPORARY_MARK))
}

/// Whether a name is that of something unfinished that this process is writing now, on any thread.
pub fn is_own_temporary(path: &Path) -> bool {
    let mark = format!("{TEMPORARY_MARK}{}-", own_mark());
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().contains(&mark))
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io("read", path))
}

/// Reads a whole file as UTF-8.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| Error::content(path, "is not UTF-8 text"))
}

/// Creates a directory and its parents.
///
/// # Errors
/// When it cannot be created.
pub fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create the directory", path))
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// When it cannot be synced.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync the directory", path))
}

/// Replaces a file by `bytes`: readers see the old content or the new, never a part of it.
///
/// # Errors
/// When it cannot be written; the old file is then unchanged and nothing is left behind.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with content that `fill` writes.
///
/// # Errors
/// When it cannot be written; the old file is then unchanged and nothing is left behind.
pub fn write_atomic_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let prepared = temporary(path);
    let result = (|| {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create_new(&prepared)?);
        fill(&mut writer)?;
        writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(&prepared, path)
    })();
    if let Err(source) = result {
        let _ = fs::remove_file(&prepared);
        return Err(Error::io("write", path)(source));
    }
    sync_dir(parent(path))
}

/// What to do when the destination of [`publish_dir`] exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Fail; an empty directory counts as absent.
    Refuse,
    /// Take its place, in one step where the file system can exchange two names (Linux ones can).
    /// Elsewhere the old one is moved aside first: a crash in between leaves neither under the
    /// name, but never a mixture.
    Replace,
}

/// Fills a directory under a temporary name, syncs everything in it, and gives it its name.
///
/// # Errors
/// When `fill` fails or a file operation does; nothing is left behind.
pub fn publish_dir<T, E: From<Error>>(
    path: &Path,
    existing: Existing,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    if existing == Existing::Refuse {
        refuse_existing(path)?;
    }
    create_dir_all(parent(path))?;
    let prepared = temporary(path);
    let mut guard = RemoveOnDrop(Some(&prepared));
    fs::create_dir(&prepared).map_err(Error::io("create the directory", &prepared))?;
    let value = fill(&prepared)?;
    sync_tree(&prepared)?;
    let displaced = existing == Existing::Replace && path.symlink_metadata().is_ok();
    let aside = if displaced && exchange(&prepared, path) {
        Some(prepared.clone())
    } else if displaced {
        let aside = temporary(path);
        fs::rename(path, &aside).map_err(Error::io("move aside", path))?;
        if let Err(source) = fs::rename(&prepared, path) {
            let _ = fs::rename(&aside, path);
            return Err(Error::io("publish", path)(source).into());
        }
        Some(aside)
    } else {
        fs::rename(&prepared, path).map_err(Error::io("publish", path))?;
        None
    };
    guard.0 = None;
    sync_dir(parent(path))?;
    if let Some(old) = aside {
        remove(&old)?;
    }
    Ok(value)
}

/// Exchanges two names atomically; false when the file system cannot.
fn exchange(one: &Path, other: &Path) -> bool {
    let name = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).ok();
    let (Some(one), Some(other)) = (name(one), name(other)) else {
        return false;
    };
    // SAFETY: both are NUL-terminated strings that live through the call.
    let status = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    status == 0
}

/// Refuses a path that is a file or a directory with content.
///
/// # Errors
/// When it is.
pub fn refuse_existing(path: &Path) -> Result<()> {
    let empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.symlink_metadata().is_ok() && !empty {
        return Err(Error::Exists {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Removes a file or a directory with everything in it.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let result = if is_dir {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    result.map_err(Error::io("remove", path))
}

/// Removes a directory so that no part of it is ever seen under its name.
///
/// # Errors
/// When it cannot be removed.
pub fn retire_dir(path: &Path) -> Result<()> {
    let aside = temporary(path);
    fs::rename(path, &aside).map_err(Error::io("move aside", path))?;
    remove(&aside)
}

/// Every file below `dir` as a sorted path relative to it, with its size.
///
/// # Errors
/// When a directory cannot be read.
pub fn files_below(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(current) = pending.pop() {
        let list = Error::io("list", &current);
        let entries = fs::read_dir(&current)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(list)?;
        for entry in entries {
            let path = entry.path();
            let meta = entry.metadata().map_err(Error::io("inspect", &path))?;
            if meta.is_dir() {
                pending.push(path);
            } else {
                let relative = path.strip_prefix(dir).expect("it was listed below dir");
                files.push((relative.to_owned(), meta.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn sync_tree(dir: &Path) -> Result<()> {
    let mut dirs = vec![dir.to_owned()];
    for (relative, _) in files_below(dir)? {
        let path = dir.join(&relative);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("sync", &path))?;
        dirs.extend(
            relative
                .ancestors()
                .skip(1)
                .map(|ancestor| dir.join(ancestor)),
        );
    }
    dirs.sort();
    dirs.dedup();
    dirs.iter().rev().try_for_each(|dir| sync_dir(dir))
}

struct RemoveOnDrop<'a>(Option<&'a Path>);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // An error is on its way already; what is left behind stays invisible by its name.
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_this_process_is_writing_is_told_from_what_others_left() {
        let path = temporary(Path::new("run/state.json"));
        assert!(is_temporary(&path) && is_own_temporary(&path));
        let left = format!("run/state.json{TEMPORARY_MARK}{:x}-1-0", std::process::id());
        assert!(is_temporary(Path::new(&left)) && !is_own_temporary(Path::new(&left)));
        assert!(!is_own_temporary(Path::new("run/state.json")));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        let result = write_atomic_with(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("cannot write") && message.contains("state.json"),
            "{message}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["state.json"]);
    }

    #[test]
    fn a_failed_fill_leaves_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        let result: Result<()> = publish_dir(&path, Existing::Refuse, |prepared| {
            fs::write(prepared.join("part"), b"x").unwrap();
            Err(Error::content(prepared, "no"))
        });
        assert!(result.is_err());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn replacing_swaps_whole_directories_and_refusing_keeps_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        let write = |existing, file: &'static str| {
            publish_dir(&path, existing, |prepared| {
                write_atomic(&prepared.join(file), b"x")
            })
        };
        write(Existing::Refuse, "a").unwrap();
        assert!(matches!(
            write(Existing::Refuse, "b"),
            Err(Error::Exists { .. })
        ));
        assert_eq!(names(&path), ["a"]);
        write(Existing::Replace, "b").unwrap();
        assert_eq!(names(&path), ["b"]);
        assert_eq!(names(dir.path()), ["step"]);
    }
}
