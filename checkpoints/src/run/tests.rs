//! Checkpoints that are complete or invisible, whatever happens in between.

use super::*;

fn fill(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
    move |dir| {
        fsx::create_dir_all(&dir.join("adapter"))?;
        fsx::write_atomic(&dir.join("adapter/a.bin"), content.as_bytes())?;
        fsx::write_atomic(&dir.join("state.json"), b"{}")
    }
}

fn last(keep_last: usize) -> Policy {
    Policy {
        keep_last,
        keep_best: 0,
        keep_every_steps: 0,
    }
}

fn steps(store: &CheckpointStore) -> Vec<u64> {
    store
        .list()
        .unwrap()
        .iter()
        .map(|listed| listed.step)
        .collect()
}

#[test]
fn a_saved_checkpoint_verifies_and_is_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    assert_eq!(store.latest_verified().unwrap(), None);
    assert_eq!(store.best().unwrap(), None);
    store.save(200, None, fill("one")).unwrap();
    let saved = store.save(400, None, fill("two!")).unwrap();
    assert_eq!(saved.path, dir.path().join("checkpoints/step-00000400"));
    let sizes: u64 = fsx::files_below(&saved.path)
        .unwrap()
        .iter()
        .map(|(_, n)| n)
        .sum();
    assert_eq!(saved.bytes, sizes);
    let manifest = store.verify(&saved.path).unwrap();
    assert_eq!(manifest.step, 400);
    assert_eq!(manifest.files["adapter/a.bin"].bytes, 4);
    assert_eq!(store.latest_verified().unwrap(), Some(saved.path));
    assert_eq!(
        std::fs::read(dir.path().join("LATEST")).unwrap(),
        b"step-00000400\n"
    );
    store.mark_best(200).unwrap();
    assert_eq!(store.best().unwrap(), Some(store.path(200)));
    assert!(matches!(
        store.mark_best(300),
        Err(Error::NoStep { step: 300, .. })
    ));
}

#[test]
fn damage_is_found_and_the_newest_good_one_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    for step in [1, 2, 3, 4] {
        store.save(step, None, fill("abc")).unwrap();
    }
    std::fs::write(store.path(4).join("adapter/a.bin"), "abd").unwrap();
    std::fs::remove_file(store.path(3).join("state.json")).unwrap();
    std::fs::remove_file(store.path(2).join(MANIFEST)).unwrap();
    let reason = |step| store.verify(&store.path(step)).unwrap_err().to_string();
    assert!(
        reason(4).contains("`adapter/a.bin` has changed"),
        "{}",
        reason(4)
    );
    assert!(
        reason(3).contains("`state.json` is missing"),
        "{}",
        reason(3)
    );
    assert!(reason(2).contains("no manifest.json"), "{}", reason(2));
    assert_eq!(store.latest_verified().unwrap(), Some(store.path(1)));
    std::fs::write(store.path(1).join("adapter/a.bin"), "abcd").unwrap();
    assert!(
        reason(1).contains("has 4 bytes, expected 3"),
        "{}",
        reason(1)
    );
    assert_eq!(store.latest_verified().unwrap(), None);
}

#[test]
fn a_failed_save_leaves_the_old_state_and_a_killed_one_is_invisible() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    store.save(1, None, fill("abc")).unwrap();
    let failed = store.save(2, None, |dir: &Path| {
        fill("half")(dir)?;
        Err(Error::content(dir, "out of space"))
    });
    assert!(failed.is_err());
    let leftover = dir.path().join("checkpoints/step-00000002.tmp-dead-1");
    std::fs::create_dir(&leftover).unwrap();
    std::fs::write(leftover.join(MANIFEST), "{}").unwrap();
    assert_eq!(steps(&store), [1]);
    assert_eq!(store.latest_verified().unwrap(), Some(store.path(1)));
    store.save(3, None, fill("abc")).unwrap();
    assert!(!leftover.exists());
    let entries = std::fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .count();
    assert_eq!((steps(&store), entries), (vec![1, 3], 2));
}

#[test]
fn a_step_can_be_saved_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    store.save(1, None, fill("old")).unwrap();
    store.save(1, None, fill("newer")).unwrap();
    assert_eq!(
        std::fs::read(store.path(1).join("adapter/a.bin")).unwrap(),
        b"newer"
    );
    assert_eq!(store.latest_verified().unwrap(), Some(store.path(1)));
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    for step in 1..=6 {
        store.save(step, None, fill("abc")).unwrap();
    }
    store.mark_best(2).unwrap();
    std::fs::write(store.path(6).join("adapter/a.bin"), "abd").unwrap();
    let mut deleted = store.prune(last(2)).unwrap();
    deleted.sort_unstable();
    assert_eq!(deleted, [1, 3]);
    assert_eq!(steps(&store), [2, 4, 5, 6]);
    std::fs::write(dir.path().join("BEST"), "step-x").unwrap();
    assert!(
        store
            .prune(last(1))
            .unwrap_err()
            .to_string()
            .contains("must name a checkpoint")
    );
    assert_eq!(steps(&store), [2, 4, 5, 6]);
}

#[test]
fn a_manifest_cannot_name_files_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    store.save(1, None, fill("abc")).unwrap();
    let file = store.path(1).join(MANIFEST);
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("state.json", "../../LATEST");
    std::fs::write(&file, text).unwrap();
    let message = store.verify(&store.path(1)).unwrap_err().to_string();
    assert!(message.contains("lies outside of it"), "{message}");
}

#[test]
fn pruning_goes_by_the_scores_in_the_manifests() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path());
    for (step, value) in [(1, 0.3), (2, 0.1), (3, 0.2), (4, 0.9)] {
        let score = Score {
            metric: "loss".to_owned(),
            value,
            larger_is_better: false,
        };
        store.save(step, Some(score), fill("abc")).unwrap();
    }
    let policy = Policy {
        keep_best: 2,
        ..last(1)
    };
    assert_eq!(store.prune(policy).unwrap(), [1]);
    assert_eq!(steps(&store), [2, 3, 4]);
}
