mod cut;

use object_store::memory::InMemory;
use object_store::path::Path as Location;
use scpeft_store::Client;

use super::*;
use crate::run::Score;

const POLICY: Policy = Policy {
    keep_last: 1,
    keep_best: 1,
    keep_every_steps: 0,
};

fn mirror() -> Mirror {
    let client = Client {
        store: Box::new(InMemory::new()),
        folder: Location::from("runs/one"),
        lists: true,
    };
    Mirror(Remote::new("memory://runs/one", client, Duration::ZERO).unwrap())
}

/// A checkpoint whose files say what they are.
fn save(run: &CheckpointStore, step: u64, merit: Option<f64>, content: &str) {
    let score = merit.map(|value| Score {
        metric: "macro_f1".into(),
        value,
        larger_is_better: true,
    });
    let saved = run.save(step, score, |dir| -> Result<()> {
        fsx::create_dir_all(&dir.join("adapter"))?;
        fsx::write_atomic(&dir.join("adapter/tensors"), content.as_bytes())?;
        fsx::write_atomic(&dir.join("state.json"), content.as_bytes())
    });
    saved.unwrap();
}

fn steps(mirror: &Mirror) -> Vec<u64> {
    mirror.list().unwrap().iter().map(|e| e.step).collect()
}

fn content(run: &CheckpointStore, step: u64) -> String {
    run.verify(&run.path(step)).unwrap();
    std::fs::read_to_string(run.path(step).join("adapter/tensors")).unwrap()
}

fn folder() -> (tempfile::TempDir, CheckpointStore) {
    let dir = tempfile::tempdir().unwrap();
    let run = CheckpointStore::new(dir.path());
    (dir, run)
}

#[test]
fn the_newest_and_the_best_come_back_on_an_empty_machine() {
    let (mirror, (_one, run)) = (mirror(), folder());
    assert_eq!(mirror.sync(&run, POLICY).unwrap(), None);
    save(&run, 5, Some(0.9), "five");
    run.mark_best(5).unwrap();
    assert_eq!(mirror.sync(&run, POLICY).unwrap(), Some(5));
    for (step, merit) in [(7, Some(0.1)), (8, None)] {
        save(&run, step, merit, &step.to_string());
        assert_eq!(mirror.sync(&run, POLICY).unwrap(), Some(step));
    }
    assert_eq!(steps(&mirror), [5, 8], "7 is superseded, 5 is the best");
    let (_two, other) = folder();
    assert_eq!(mirror.fetch_newer(&other).unwrap(), [8, 5]);
    assert_eq!(content(&other, 8), "8");
    assert_eq!(content(&other, 5), "five");
    assert_eq!(other.latest_verified().unwrap(), Some(other.path(8)));
    assert_eq!(mirror.fetch_newer(&other).unwrap(), Vec::<u64>::new());
    mirror.clear().unwrap();
    assert_eq!(mirror.0.list("").unwrap(), []);
}

/// A best one whose turn never came while the store was down is put there later.
#[test]
fn a_best_checkpoint_that_was_missed_is_made_up_for() {
    let (mirror, (_dir, run)) = (mirror(), folder());
    save(&run, 1, Some(0.5), "one");
    run.mark_best(1).unwrap();
    save(&run, 2, None, "two");
    assert_eq!(mirror.sync(&run, POLICY).unwrap(), Some(2));
    assert_eq!(steps(&mirror), [1, 2]);
}

#[test]
fn without_its_manifest_a_checkpoint_is_not_there_and_goes_once_superseded() {
    let (mirror, (_dir, run)) = (mirror(), folder());
    save(&run, 1, None, "one");
    mirror.sync(&run, POLICY).unwrap();
    let half = "checkpoints/step-00000002-0123456789ab/state.json";
    mirror.0.put(half, &"half".into()).unwrap();
    let foreign = "checkpoints/notes/readme";
    mirror.0.put(foreign, &"mine".into()).unwrap();
    assert_eq!(steps(&mirror), [1]);
    mirror.sync(&run, POLICY).unwrap();
    assert!(
        mirror.0.get(half).unwrap().is_some(),
        "nothing is newer yet"
    );
    save(&run, 3, None, "three");
    mirror.sync(&run, POLICY).unwrap();
    assert_eq!(steps(&mirror), [3]);
    assert_eq!(mirror.0.get(half).unwrap(), None);
    assert!(mirror.0.get(foreign).unwrap().is_some(), "not ours");
}

/// A step that is written again lies beside its first form until it is complete.
#[test]
fn a_step_that_is_written_again_takes_the_place_of_its_first_form() {
    let (mirror, (_dir, run)) = (mirror(), folder());
    save(&run, 4, None, "first");
    mirror.sync(&run, POLICY).unwrap();
    let first = mirror.list().unwrap().remove(0);
    save(&run, 4, Some(0.3), "second");
    let listing = mirror.look().unwrap();
    mirror.put(&listing, &run.path(4)).unwrap();
    let forms = mirror.list().unwrap();
    assert_eq!(
        (forms.len(), forms.last()),
        (2, Some(&first)),
        "LATEST decides"
    );
    mirror.sync(&run, POLICY).unwrap();
    assert_eq!(steps(&mirror), [4]);
    let (_other, other) = folder();
    mirror.fetch_newer(&other).unwrap();
    assert_eq!(content(&other, 4), "second");
}

/// Damage in the newest: the one before it is taken; and retention keeps it while nothing newer is
/// good.
#[test]
fn damage_in_the_mirror_is_passed_over() {
    let keep_two = Policy {
        keep_last: 2,
        ..POLICY
    };
    let (mirror, (_dir, run)) = (mirror(), folder());
    for step in [1, 2] {
        save(&run, step, None, &step.to_string());
        mirror.sync(&run, keep_two).unwrap();
    }
    let newest = mirror.list().unwrap().remove(1);
    let object = format!("checkpoints/{}/state.json", newest.name);
    let spoil = |bytes: &'static str| {
        mirror.0.put(&object, &bytes.into()).unwrap();
        let (_other, other) = folder();
        assert_eq!(mirror.fetch_newer(&other).unwrap(), [1], "{bytes}");
        assert!(!other.path(2).exists(), "nothing half fetched");
    };
    spoil("x");
    spoil("truncated");
    mirror.prune(POLICY).unwrap();
    assert_eq!(steps(&mirror), [1, 2], "2 has not the right size");
    mirror.0.delete(&object).unwrap();
    let (_other, other) = folder();
    assert_eq!(mirror.fetch_newer(&other).unwrap(), [1], "missing");
    mirror.sync(&run, keep_two).unwrap();
    assert_eq!(mirror.fetch_newer(&other).unwrap(), [2], "made good");
}

#[test]
fn what_holds_no_mirror_is_refused_with_a_remedy() {
    for (address, words) in [
        ("runs/one", "is no address of an object store"),
        ("https://host/x", "a web server keeps no checkpoints"),
        ("ftp://host/x", "nothing is known of `ftp://`"),
    ] {
        let message = Mirror::open(address, Duration::ZERO)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(words) && message.contains("help:"),
            "{message}"
        );
    }
    let names = [
        "step-00000004-0123456789ab",
        "step-4-0123456789ab",
        "step-00000004-xyz",
    ];
    assert_eq!(names.map(step_of), [Some(4), None, None]);
}
