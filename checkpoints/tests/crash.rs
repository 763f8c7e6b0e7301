//! A process that dies, or whose disk is full, at any single file operation of a save: what a reader
//! sees is the state before or the state after, and the next save works.
//!
//! The operations are counted and spoiled by `tests/faults/interpose.c`, preloaded into a child that
//! is this test program itself: the code under test knows nothing of it.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/src/faults.rs"]
#[allow(dead_code, unreachable_pub)]
mod faults;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use scpeft_checkpoint::run::Listed;
use scpeft_checkpoint::{CheckpointStore, Error, Policy, fsx};

use faults::{interposer, spoil};

/// Set for the child: the run directory.
const CHILD: &str = "SCPEFT_TEST_CRASH_RUN";
const POLICY: Policy = Policy {
    keep_last: 2,
    keep_best: 1,
    keep_every_steps: 0,
};

/// Content that says which save it is from.
fn fill(mark: &str) -> impl FnOnce(&Path) -> Result<(), Error> {
    let content = mark.repeat(1000);
    move |dir| {
        fsx::create_dir_all(&dir.join("adapter"))?;
        fsx::write_atomic(&dir.join("adapter/tensors"), content.as_bytes())?;
        fsx::write_atomic(&dir.join("state.json"), content.as_bytes())
    }
}

/// The save under test: step 3 is written again, marked best, and step 1 becomes too many.
fn save(run: &Path) -> Result<(), Error> {
    let store = CheckpointStore::new(run);
    store.remove_leftovers()?;
    store.save(3, None, fill("new"))?;
    store.mark_best(3)?;
    store.prune(POLICY).map(|_| ())
}

/// A run directory with steps 1 (best), 2 and 3.
fn prepare(run: &Path) {
    let store = CheckpointStore::new(run);
    for step in [1, 2, 3] {
        store.save(step, None, fill("old")).unwrap();
    }
    store.mark_best(1).unwrap();
}

fn child(library: &Path, run: &Path, fault: &str, log: Option<&Path>) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_save_survives_a_fault_at_every_operation"])
        .env(CHILD, run)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    spoil(&mut command, library, run, fault);
    if let Some(log) = log {
        command.env("SCPEFT_TEST_FAULT_LOG", log);
    }
    command.status().unwrap()
}

/// What stands in a checkpoint, which must verify.
fn content(store: &CheckpointStore, step: u64) -> String {
    store.verify(&store.path(step)).unwrap();
    let read = |name| std::fs::read_to_string(store.path(step).join(name)).unwrap();
    let (tensors, state) = (read("adapter/tensors"), read("state.json"));
    assert_eq!(tensors, state, "two saves are mixed in one checkpoint");
    assert_eq!(tensors.len(), 3000);
    tensors[..3].to_owned()
}

/// What must hold after any fault: every visible checkpoint is whole, the newest is step 3 in its old
/// or new form, and `LATEST` and `BEST` name checkpoints that exist.
fn check_visible(run: &Path, what: &str) -> String {
    let store = CheckpointStore::new(run);
    let listed = store.list().unwrap();
    for Listed { step, .. } in &listed {
        content(&store, *step);
    }
    let newest = store.latest_verified().unwrap();
    assert_eq!(newest, Some(store.path(3)), "{what}");
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    assert_eq!(latest, "step-00000003\n", "{what}");
    assert!(store.best().unwrap().is_some(), "{what}");
    content(&store, 3)
}

#[test]
fn a_save_survives_a_fault_at_every_operation() {
    if let Some(run) = std::env::var_os(CHILD) {
        let saved = save(Path::new(&run));
        std::process::exit(i32::from(saved.is_err()));
    }
    let dir = tempfile::tempdir().unwrap();
    let library = interposer(dir.path());
    let log = dir.path().join("operations");
    let counted = dir.path().join("counted");
    prepare(&counted);
    assert!(child(&library, &counted, "count", Some(&log)).success());
    let operations: Vec<String> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    for needed in [
        "create", "write", "sync", "mkdir", "rename", "exchange", "unlink",
    ] {
        assert!(
            operations.iter().any(|line| line.contains(needed)),
            "no {needed} among {operations:#?}"
        );
    }
    let exchange = operations
        .iter()
        .position(|o| o.contains("exchange"))
        .unwrap();
    for (index, operation) in operations.iter().enumerate() {
        let n = index + 1;
        let run = dir.path().join(format!("killed-{n}"));
        prepare(&run);
        let status = child(&library, &run, &format!("kill:{n}"), None);
        assert_eq!(status.signal(), Some(9), "{operation}");
        // Up to the exchange of names the old one is there, after it the new one.
        let expected = if index <= exchange { "old" } else { "new" };
        assert_eq!(check_visible(&run, operation), expected, "{operation}");
        // The next start cleans up and saves.
        save(&run).unwrap();
        assert_eq!(check_visible(&run, operation), "new");
        let left = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
        assert_eq!(left, 2, "leftovers after {operation}");
    }
    // Disk full (28) and read-only file system (30), from each operation on.
    for (index, operation) in operations.iter().enumerate() {
        let n = index + 1;
        let code = if n % 2 == 0 { 28 } else { 30 };
        let run = dir.path().join(format!("full-{n}"));
        prepare(&run);
        let status = child(&library, &run, &format!("{code}:{n}:100000"), None);
        let expected = if index <= exchange { "old" } else { "new" };
        assert_eq!(status.code(), Some(1), "{operation}: an error, no panic");
        assert_eq!(check_visible(&run, operation), expected, "{operation}");
        save(&run).unwrap();
        assert_eq!(check_visible(&run, operation), "new");
    }
}
