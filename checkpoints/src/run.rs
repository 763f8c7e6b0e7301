//! The checkpoints of a run directory: `checkpoints/step-00000400/`, each with a manifest of sizes
//! and hashes that is written last, and the small files `LATEST` and `BEST` that name one.
//!
//! One process writes. A reader trusts only a directory whose manifest verifies.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::retention::{Candidate, Policy, to_delete};

pub(crate) const MANIFEST: &str = "manifest.json";
const MANIFEST_VERSION: u32 = 1;

/// The list of files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format_version: u32,
    /// The optimizer step.
    pub step: u64,
    /// The evaluation at this step, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Relative path, with `/`, to size and hash.
    pub files: BTreeMap<String, FileRecord>,
}

/// The metric that selects the best checkpoint, as evaluated at a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name.
    pub metric: String,
    /// Its value; finite.
    pub value: f64,
    /// Which way is better.
    pub larger_is_better: bool,
}

impl Score {
    /// The value turned so that larger is better.
    pub fn merit(&self) -> f64 {
        if self.larger_is_better {
            self.value
        } else {
            -self.value
        }
    }
}

/// Size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its directory.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// A checkpoint directory that exists; whether it verifies is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its step.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
}

/// The checkpoints of one run directory.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    run: PathBuf,
}

/// What lies in a directory; nothing when there is none.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::io("list", dir))
}

pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

pub(crate) fn parse_step(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

impl CheckpointStore {
    /// The store of a run directory; nothing is created yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            run: run_dir.to_owned(),
        }
    }

    fn checkpoints(&self) -> PathBuf {
        self.run.join("checkpoints")
    }

    /// Where the checkpoint of a step lies.
    pub fn path(&self, step: u64) -> PathBuf {
        self.checkpoints().join(step_name(step))
    }

    /// Writes a checkpoint: `fill` puts its files into the directory it is given, then the
    /// manifest is added, everything is synced, the directory gets its name, and `LATEST` names
    /// it. A checkpoint of the same step is replaced. Leftovers of killed writers are removed.
    ///
    /// # Errors
    /// When `fill` or a file operation fails; the checkpoints that existed are untouched.
    pub fn save<E: From<Error>>(
        &self,
        step: u64,
        score: Option<Score>,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Saved, E> {
        fsx::create_dir_all(&self.checkpoints())?;
        self.remove_leftovers()?;
        let path = self.path(step);
        let bytes = fsx::publish_dir(&path, Existing::Replace, |prepared| -> Result<u64, E> {
            fill(prepared)?;
            Ok(write_manifest(prepared, step, score)?)
        })?;
        self.point("LATEST", step)?;
        Ok(Saved { path, bytes })
    }

    /// Takes in a checkpoint that was written elsewhere: `fill` puts all its files, the manifest too,
    /// into the directory it is given, and verifies them; then it gets its name. `LATEST` names it when
    /// nothing newer is there.
    ///
    /// # Errors
    /// When `fill` or a file operation fails; nothing is left behind then.
    pub fn adopt<E: From<Error>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        fsx::publish_dir(&self.path(step), Existing::Replace, fill)?;
        if self.list()?.iter().all(|listed| listed.step <= step) {
            self.point("LATEST", step)?;
        }
        Ok(())
    }

    /// Removes what writers that were killed left unfinished. Other threads of this process may be
    /// writing; no other process may.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_leftovers(&self) -> Result<()> {
        for entry in entries(&self.checkpoints())?
            .into_iter()
            .chain(entries(&self.run)?)
        {
            if fsx::is_temporary(&entry) && !fsx::is_own_temporary(&entry) {
                tracing::warn!(path = %entry.display(), "removing an unfinished file or checkpoint");
                fsx::remove(&entry)?;
            }
        }
        Ok(())
    }

    /// Every checkpoint directory, oldest first; unfinished ones are not seen.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = entries(&self.checkpoints())?
            .into_iter()
            .filter_map(|path| {
                let step = parse_step(path.file_name()?.to_str()?)?;
                path.is_dir().then_some(Listed { step, path })
            })
            .collect();
        listed.sort_by_key(|entry| entry.step);
        Ok(listed)
    }

    /// Checks every file of a checkpoint against its manifest.
    ///
    /// # Errors
    /// Naming the first file that is missing or differs.
    pub fn verify(&self, path: &Path) -> Result<Manifest> {
        verify_checkpoint(path)
    }

    /// The newest checkpoint that verifies; newer ones that do not are named in a warning.
    ///
    /// # Errors
    /// When the directory cannot be read. Damaged checkpoints are not an error as long as the
    /// directory can be listed; `None` means that none verifies.
    pub fn latest_verified(&self) -> Result<Option<PathBuf>> {
        for Listed { path, .. } in self.list()?.into_iter().rev() {
            match verify_checkpoint(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) => {
                    tracing::warn!(%error, "falling back to an older checkpoint");
                }
            }
        }
        Ok(None)
    }

    /// Makes `BEST` name the checkpoint of a step.
    ///
    /// # Errors
    /// When there is no such checkpoint or the file cannot be written.
    pub fn mark_best(&self, step: u64) -> Result<()> {
        if !self.path(step).is_dir() {
            return Err(Error::NoStep {
                run: self.run.clone(),
                step,
            });
        }
        self.point("BEST", step)
    }

    /// The checkpoint that `BEST` names, if any was marked. It is not verified here.
    ///
    /// # Errors
    /// When `BEST` is unreadable or names a checkpoint that does not exist.
    pub fn best(&self) -> Result<Option<PathBuf>> {
        match self.best_step()? {
            Some(step) if self.path(step).is_dir() => Ok(Some(self.path(step))),
            Some(step) => Err(Error::NoStep {
                run: self.run.clone(),
                step,
            }),
            None => Ok(None),
        }
    }

    fn best_step(&self) -> Result<Option<u64>> {
        let file = self.run.join("BEST");
        if !file.exists() {
            return Ok(None);
        }
        let text = fsx::read_to_string(&file)?;
        let step = parse_step(text.trim());
        step.map(Some).ok_or_else(|| {
            Error::content(
                &file,
                format!("must name a checkpoint, got `{}`", text.trim()),
            )
        })
    }

    fn point(&self, name: &str, step: u64) -> Result<()> {
        fsx::write_atomic(
            &self.run.join(name),
            format!("{}\n", step_name(step)).as_bytes(),
        )
    }

    /// Deletes what [`to_delete`] allows and returns the deleted steps. Newer checkpoints are
    /// verified in full until one is good; for older ones complete sizes count.
    ///
    /// # Errors
    /// When `BEST` is unreadable (nothing is deleted then), or a directory cannot be removed.
    pub fn prune(&self, policy: Policy) -> Result<Vec<u64>> {
        let best = self.best_step()?;
        let mut newest_is_known = false;
        let mut candidates = Vec::new();
        for Listed { step, path } in self.list()?.into_iter().rev() {
            let manifest = if newest_is_known {
                read_manifest(&path).and_then(|m| check_sizes(&path, &m).map(|()| m))
            } else {
                verify_checkpoint(&path)
            };
            let good = manifest.is_ok();
            newest_is_known |= good;
            let score = manifest.ok().and_then(|m| m.score);
            let merit = score.map(|score| score.merit());
            candidates.push(Candidate { step, good, merit });
        }
        let delete = to_delete(&candidates, best, policy);
        for &step in &delete {
            fsx::retire_dir(&self.path(step))?;
        }
        Ok(delete)
    }
}

/// Checks every file of a checkpoint directory against its manifest.
///
/// # Errors
/// Naming the first file that is missing or differs.
pub fn verify_checkpoint(path: &Path) -> Result<Manifest> {
    let manifest = read_manifest(path)?;
    check_sizes(path, &manifest)?;
    for (name, record) in &manifest.files {
        let found = hash_file(&path.join(name))?;
        if found != record.blake3 {
            return Err(Error::Unverified {
                path: path.to_owned(),
                reason: format!(
                    "`{name}` has changed: BLAKE3 {found}, expected {}",
                    record.blake3
                ),
            });
        }
    }
    Ok(manifest)
}

/// Reads the manifest of a checkpoint directory.
///
/// # Errors
/// When it is missing, malformed, of another version, or names a file outside the directory.
pub fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = path.join(MANIFEST);
    let unverified = |reason: String| Error::Unverified {
        path: path.to_owned(),
        reason,
    };
    if !file.is_file() {
        return Err(unverified(
            "it has no manifest.json, so it is not complete".to_owned(),
        ));
    }
    manifest_of(path, &fsx::read(&file)?)
}

/// The manifest that `text` is, of the checkpoint at `path`.
pub(crate) fn manifest_of(path: &Path, text: &[u8]) -> Result<Manifest> {
    let unverified = |reason: String| Error::Unverified {
        path: path.to_owned(),
        reason,
    };
    let manifest: Manifest = serde_json::from_slice(text)
        .map_err(|e| unverified(format!("its manifest.json is malformed: {e}")))?;
    if manifest.format_version != MANIFEST_VERSION {
        return Err(unverified(format!(
            "its format version is {}, this program reads {MANIFEST_VERSION}",
            manifest.format_version
        )));
    }
    let inside = |name: &&String| {
        Path::new(name)
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)))
    };
    if let Some(name) = manifest.files.keys().find(|name| !inside(name)) {
        return Err(unverified(format!(
            "its manifest names `{name}`, which lies outside of it"
        )));
    }
    Ok(manifest)
}

fn check_sizes(path: &Path, manifest: &Manifest) -> Result<()> {
    for (name, record) in &manifest.files {
        let found = path.join(name).metadata().map(|meta| meta.len());
        let reason = match found {
            Ok(bytes) if bytes == record.bytes => continue,
            Ok(bytes) => format!("`{name}` has {bytes} bytes, expected {}", record.bytes),
            Err(_) => format!("`{name}` is missing"),
        };
        return Err(Error::Unverified {
            path: path.to_owned(),
            reason,
        });
    }
    Ok(())
}

fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(Error::io("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Writes the manifest of everything in `dir`; returns the bytes of all files.
fn write_manifest(dir: &Path, step: u64, score: Option<Score>) -> Result<u64> {
    let mut files = BTreeMap::new();
    for (relative, bytes) in fsx::files_below(dir)? {
        let blake3 = hash_file(&dir.join(&relative))?;
        let name = relative
            .to_str()
            .ok_or_else(|| Error::content(&dir.join(&relative), "has a name that is not UTF-8"))?;
        files.insert(name.to_owned(), FileRecord { bytes, blake3 });
    }
    let manifest = Manifest {
        format_version: MANIFEST_VERSION,
        step,
        score,
        files,
    };
    let total: u64 = manifest.files.values().map(|record| record.bytes).sum();
    let path = dir.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Error::content(&path, e.to_string()))?;
    fsx::write_atomic(&path, text.as_bytes())?;
    Ok(total + text.len() as u64)
}

#[cfg(test)]
mod tests;
