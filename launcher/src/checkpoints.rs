//! What the launcher sees of a run's checkpoints: names, manifests and sizes. Whether the bytes are
//! right is for the trainer to verify when it resumes.

use serde_json::Value;
use std::path::Path;

/// Step of the newest checkpoint whose files are all there in the sizes of its manifest; 0 when
/// there is none.
pub fn newest_complete(run_dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(run_dir.join("checkpoints")) else {
        return 0;
    };
    let step = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let step = path
            .file_name()?
            .to_str()?
            .strip_prefix("step-")?
            .parse()
            .ok()?;
        is_complete(&path).then_some(step)
    };
    entries.filter_map(step).max().unwrap_or(0)
}

fn is_complete(checkpoint: &Path) -> bool {
    let manifest = std::fs::read(checkpoint.join("manifest.json")).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    manifest["files"].as_object().is_some_and(|files| {
        files.iter().all(|(name, record)| {
            let size = std::fs::metadata(checkpoint.join(name)).map(|meta| meta.len());
            size.is_ok_and(|size| record["bytes"].as_u64() == Some(size))
        })
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
    }
}
