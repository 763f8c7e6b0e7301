//! What the launcher sees of a run's checkpoints: names, manifests and sizes. Whether the bytes are
//! right is for the trainer to verify when it resumes.

use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// A checkpoint as its directory describes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Step after which it was written.
    pub step: u64,
    /// Name of its directory.
    pub name: String,
    /// Bytes of its files, as the manifest says.
    pub bytes: u64,
    /// Name and value of the metric that it was judged by.
    pub score: Option<(String, f64)>,
    /// Unix time of its manifest, seconds.
    pub time: f64,
    /// Whether all files are there in the sizes of the manifest.
    pub complete: bool,
}

/// The checkpoints of a run by step.
pub fn list(run_dir: &Path) -> Vec<Checkpoint> {
    let Ok(entries) = std::fs::read_dir(run_dir.join("checkpoints")) else {
        return Vec::new();
    };
    let mut found: Vec<Checkpoint> = entries
        .filter_map(|entry| describe(&entry.ok()?.path()))
        .collect();
    found.sort_by_key(|checkpoint| checkpoint.step);
    found
}

/// Step of the newest checkpoint whose files are all there in the sizes of its manifest; 0 when
/// there is none.
pub fn newest_complete(run_dir: &Path) -> u64 {
    let complete = list(run_dir).into_iter().filter(|c| c.complete);
    complete.map(|c| c.step).max().unwrap_or(0)
}

fn describe(path: &Path) -> Option<Checkpoint> {
    let name = path.file_name()?.to_str()?;
    let step = name.strip_prefix("step-")?.parse().ok()?;
    let manifest = path.join("manifest.json");
    let written = std::fs::metadata(&manifest).and_then(|meta| meta.modified());
    let manifest = std::fs::read(manifest).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let files = manifest["files"].as_object();
    let sizes = files
        .into_iter()
        .flatten()
        .map(|(_, file)| file["bytes"].as_u64());
    let score = &manifest["score"];
    Some(Checkpoint {
        step,
        name: name.to_owned(),
        bytes: sizes.map(Option::unwrap_or_default).sum(),
        score: (score["metric"].as_str().map(str::to_owned)).zip(score["value"].as_f64()),
        time: written
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0.0, |since| since.as_secs_f64()),
        complete: files.is_some_and(|files| {
            files.iter().all(|(name, record)| {
                let size = std::fs::metadata(path.join(name)).map(|meta| meta.len());
                size.is_ok_and(|size| record["bytes"].as_u64() == Some(size))
            })
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_counts_when_all_of_it_is_there() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(newest_complete(run.path()), 0);
        for (step, bytes) in [(2, 3), (4, 3), (6, 4)] {
            let dir = run.path().join(format!("checkpoints/step-{step:08}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("a"), "abc").unwrap();
            let manifest = format!("{{\"files\":{{\"a\":{{\"bytes\":{bytes}}}}}}}");
            std::fs::write(dir.join("manifest.json"), manifest).unwrap();
        }
        std::fs::create_dir_all(run.path().join("checkpoints/step-00000009")).unwrap();
        assert_eq!(newest_complete(run.path()), 4);
        let listed = list(run.path());
        let seen: Vec<_> = listed
            .iter()
            .map(|c| (c.step, c.bytes, c.complete))
            .collect();
        assert_eq!(
            seen,
            [(2, 3, true), (4, 3, true), (6, 4, false), (9, 0, false)]
        );
    }
}
