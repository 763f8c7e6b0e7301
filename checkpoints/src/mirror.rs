//! A second home of a run's checkpoints in an object store, for machines that may be lost.
//!
//! Below the address lie `checkpoints/step-00000400-<id>/` and the objects `LATEST` and `BEST`, which
//! name one of them. The id begins the hash of the manifest, so that a checkpoint that is written again
//! lies beside the first one until it is complete. The manifest is put last and deleted first: without
//! it a checkpoint is not there. One process writes.

mod remote;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::fsx;
use crate::retention::{Candidate, Policy, to_delete};
use crate::run::{
    CheckpointStore, MANIFEST, Manifest, manifest_of, parse_step, read_manifest, step_name,
    verify_checkpoint,
};
use remote::Remote;

const CHECKPOINTS: &str = "checkpoints";
const LATEST: &str = "LATEST";
const BEST: &str = "BEST";
/// Digits of a manifest's hash in a name.
const ID_DIGITS: usize = 12;

/// A checkpoint of the mirror that is complete by its manifest; its files are not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The optimizer step.
    pub step: u64,
    /// Its folder in the mirror.
    name: String,
    /// Files in it with their sizes, the manifest left out.
    files: BTreeMap<String, u64>,
}

/// What a look into the mirror finds.
#[derive(Debug, Default)]
struct Listing {
    /// With a manifest; oldest first, of one step the one that `LATEST` or `BEST` names last.
    complete: Vec<Entry>,
    /// Without one: left by a writer that was killed, or in deletion.
    remains: Vec<Entry>,
    latest: Option<String>,
    best: Option<String>,
}

/// The mirror of one run directory. All calls block.
#[derive(Debug)]
pub struct Mirror(Remote);

impl Mirror {
    /// The mirror at an address such as `s3://bucket/runs/one`. Credentials come from the usual
    /// variables. Each call keeps trying for `patience`; with none, it tries once.
    ///
    /// # Errors
    /// An address of a kind that cannot hold a mirror, or settings that cannot be used.
    pub fn open(address: &str, patience: Duration) -> Result<Self> {
        Remote::open(address, patience).map(Self)
    }

    /// Complete checkpoints, oldest first; of one step the one that counts comes last.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn list(&self) -> Result<Vec<Entry>> {
        Ok(self.look()?.complete)
    }

    fn look(&self) -> Result<Listing> {
        let mut folders: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (path, bytes) in self.0.list(CHECKPOINTS)? {
            if let Some((folder, file)) = path.split_once('/') {
                let files = folders.entry(folder.to_owned()).or_default();
                files.insert(file.to_owned(), bytes);
            }
        }
        let mut listing = Listing {
            latest: self.pointer(LATEST)?,
            best: self.pointer(BEST)?,
            ..Listing::default()
        };
        for (name, mut files) in folders {
            let Some(step) = step_of(&name) else { continue };
            let complete = files.remove(MANIFEST).is_some();
            let entry = Entry { step, name, files };
            if complete {
                listing.complete.push(entry);
            } else {
                listing.remains.push(entry);
            }
        }
        let (latest, best) = (listing.latest.clone(), listing.best.clone());
        let is = |pointer: &Option<String>, entry: &Entry| pointer.as_ref() == Some(&entry.name);
        (listing.complete).sort_by_key(|e| (e.step, is(&latest, e), is(&best, e)));
        Ok(listing)
    }

    fn pointer(&self, which: &str) -> Result<Option<String>> {
        let found = self.0.get(which)?;
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }

    /// Brings the mirror up to date with a run directory: its newest checkpoint and its best one are
    /// put into the store where they are missing, then `LATEST` and `BEST` name them, and what
    /// `policy` no longer keeps is deleted. Returns the newest step, `None` for a run without one.
    ///
    /// # Errors
    /// When the store does not answer, or does not return what was put into it. What was complete in
    /// the mirror before is then still there.
    pub fn sync(&self, run: &CheckpointStore, policy: Policy) -> Result<Option<u64>> {
        let Some(newest) = run.latest_verified()? else {
            return Ok(None);
        };
        let listing = self.look()?;
        let (step, name) = self.put(&listing, &newest)?;
        let best = match run.best()? {
            Some(path) if path == newest => Some(name.clone()),
            Some(path) => Some(self.put(&listing, &path)?.1),
            None => None,
        };
        self.point(LATEST, listing.latest.as_deref(), &name)?;
        if let Some(best) = best {
            self.point(BEST, listing.best.as_deref(), &best)?;
        }
        self.prune(policy)?;
        Ok(Some(step))
    }

    fn point(&self, which: &str, now: Option<&str>, name: &str) -> Result<()> {
        if now == Some(name) {
            return Ok(());
        }
        self.0.put(which, &format!("{name}\n").into())
    }

    /// Puts a checkpoint into the store, unless it is there; returns its step and name. Each file is
    /// read back before the manifest makes the checkpoint one.
    fn put(&self, listing: &Listing, path: &std::path::Path) -> Result<(u64, String)> {
        let manifest = read_manifest(path)?;
        let text = fsx::read(&path.join(MANIFEST))?;
        let id = blake3::hash(&text).to_hex();
        let name = format!("{}-{}", step_name(manifest.step), &id[..ID_DIGITS]);
        let is_there = |entry: &Entry| entry.name == name && sizes_fit(&manifest, entry);
        if listing.complete.iter().any(is_there) {
            return Ok((manifest.step, name));
        }
        for (file, record) in &manifest.files {
            let bytes = fsx::read(&path.join(file))?;
            if blake3::hash(&bytes).to_hex().as_str() != record.blake3 {
                return Err(Error::Unverified {
                    path: path.to_owned(),
                    reason: format!("`{file}` has changed"),
                });
            }
            self.put_checked(&format!("{CHECKPOINTS}/{name}/{file}"), &bytes.into())?;
        }
        self.put_checked(&format!("{CHECKPOINTS}/{name}/{MANIFEST}"), &text.into())?;
        Ok((manifest.step, name))
    }

    fn put_checked(&self, object: &str, bytes: &Bytes) -> Result<()> {
        self.0.put(object, bytes)?;
        if self.0.get(object)?.as_ref() == Some(bytes) {
            return Ok(());
        }
        Err(self.0.error(object, "does not read back as it was written"))
    }

    /// Deletes what [`to_delete`] allows by the sizes of files, older forms of one step, and remains
    /// that are older than a good checkpoint.
    fn prune(&self, policy: Policy) -> Result<()> {
        let listing = self.look()?;
        let mut newest_forms: BTreeMap<u64, &Entry> = BTreeMap::new();
        let mut superseded: Vec<&Entry> = Vec::new();
        for entry in &listing.complete {
            superseded.extend(newest_forms.insert(entry.step, entry));
        }
        let mut candidates = Vec::new();
        for entry in newest_forms.values() {
            let manifest = self.manifest(entry).ok();
            let good = manifest.as_ref().is_some_and(|m| sizes_fit(m, entry));
            let merit = manifest.and_then(|m| m.score).map(|score| score.merit());
            let step = entry.step;
            candidates.push(Candidate { step, good, merit });
        }
        let best = listing.best.as_deref().and_then(step_of);
        for step in to_delete(&candidates, best, policy) {
            superseded.extend(newest_forms.get(&step));
        }
        let newest_good = candidates.iter().filter(|c| c.good).map(|c| c.step).max();
        let remains = listing.remains.iter();
        let stale = remains.filter(|entry| newest_good.is_some_and(|newest| entry.step <= newest));
        for entry in superseded.into_iter().chain(stale) {
            self.delete(entry)?;
        }
        Ok(())
    }

    fn delete(&self, entry: &Entry) -> Result<()> {
        let manifest = MANIFEST.to_owned();
        for file in std::iter::once(&manifest).chain(entry.files.keys()) {
            let object = format!("{CHECKPOINTS}/{}/{file}", entry.name);
            self.0.delete(&object)?;
        }
        Ok(())
    }

    fn manifest(&self, entry: &Entry) -> Result<Manifest> {
        let object = format!("{CHECKPOINTS}/{}/{MANIFEST}", entry.name);
        let text = self.0.get(&object)?;
        let text = text.ok_or_else(|| self.0.error(&object, "does not exist in the store"))?;
        manifest_of(&PathBuf::from(self.0.address(&object)), &text)
    }

    /// Brings a run directory up to date with the mirror: when the mirror has a newer checkpoint than
    /// the newest one there that verifies, it is fetched and verified, and the best one with it.
    /// Damaged ones are passed over with a warning. Returns the steps that were fetched.
    ///
    /// # Errors
    /// When the store does not answer or the run directory cannot be written.
    pub fn fetch_newer(&self, run: &CheckpointStore) -> Result<Vec<u64>> {
        let listing = self.look()?;
        let own = match run.latest_verified()? {
            Some(path) => Some(read_manifest(&path)?.step),
            None => None,
        };
        let mut fetched = Vec::new();
        for entry in listing.complete.iter().rev() {
            if own.is_some_and(|own| entry.step <= own) {
                return Ok(fetched);
            }
            if self.fetch_or_warn(entry, run)? {
                fetched.push(entry.step);
                break;
            }
        }
        let best = listing.best.as_deref().and_then(step_of);
        let mut forms = listing.complete.iter().rev();
        let best = forms.find(|e| Some(e.step) == best && !fetched.contains(&e.step));
        if let Some(entry) = best.filter(|e| !fetched.is_empty() && !run.path(e.step).is_dir())
            && self.fetch_or_warn(entry, run)?
        {
            fetched.push(entry.step);
        }
        Ok(fetched)
    }

    fn fetch_or_warn(&self, entry: &Entry, run: &CheckpointStore) -> Result<bool> {
        match self.fetch(entry, run) {
            Ok(()) => Ok(true),
            Err(error @ Error::Unverified { .. }) => {
                tracing::warn!(%error, "passing over a checkpoint of the mirror");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn fetch(&self, entry: &Entry, run: &CheckpointStore) -> Result<()> {
        let folder = format!("{CHECKPOINTS}/{}", entry.name);
        let unverified = |reason: String| Error::Unverified {
            path: PathBuf::from(self.0.address(&folder)),
            reason,
        };
        let get = |file: &str| {
            let found = self.0.get(&format!("{folder}/{file}"))?;
            found.ok_or_else(|| unverified(format!("`{file}` is missing")))
        };
        let manifest = self.manifest(entry)?;
        run.adopt(entry.step, |prepared| {
            for file in manifest.files.keys() {
                let path = prepared.join(file);
                if let Some(parent) = path.parent() {
                    fsx::create_dir_all(parent)?;
                }
                fsx::write_atomic(&path, &get(file)?)?;
            }
            fsx::write_atomic(&prepared.join(MANIFEST), &get(MANIFEST)?)?;
            match verify_checkpoint(prepared) {
                Ok(found) if found.step == entry.step => Ok(()),
                Ok(found) => Err(unverified(format!("it is of step {}", found.step))),
                Err(Error::Unverified { reason, .. }) => Err(unverified(reason)),
                Err(error) => Err(error),
            }
        })
    }

    /// Deletes every checkpoint of the mirror.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn clear(&self) -> Result<()> {
        let listing = self.look()?;
        for entry in listing.complete.iter().chain(&listing.remains) {
            self.delete(entry)?;
        }
        [LATEST, BEST]
            .iter()
            .try_for_each(|name| self.0.delete(name))
    }
}

fn step_of(name: &str) -> Option<u64> {
    let (step, id) = name.rsplit_once('-')?;
    let digits = id.len() == ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    parse_step(step).filter(|_| digits)
}

fn sizes_fit(manifest: &Manifest, entry: &Entry) -> bool {
    let mut files = manifest.files.iter();
    files.all(|(name, record)| entry.files.get(name) == Some(&record.bytes))
}

#[cfg(test)]
mod tests;
