//! Runs whose checkpoints meet a kill, a full disk, a read-only one, or damage.

#![allow(clippy::unwrap_used)]

mod clock;
mod mirror;
#[path = "../store/server.rs"]
#[allow(dead_code, unreachable_pub)]
mod server;

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use scpeft_tests::corpus::Plan;
use scpeft_tests::faults::{interposer, spoil};
use scpeft_tests::train::{Lab, adapter_bytes, assert_refused, loss_curve, text};
use serde_json::Value;

/// 20 steps in epochs of 6; checkpoints at 6, 11, 12, 18 and 20.
const TWENTY: [&str; 8] = [
    "--set",
    "train.epochs=4",
    "--set",
    "train.max_steps=20",
    "--set",
    "checkpoint.every_steps=11",
    "--set",
    "train.schedule=wsd",
];
/// errno.
const DISK_FULL: i32 = 28;
const READ_ONLY: i32 = 30;

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Runs into `dir` with a fault on paths that begin with `prefix`.
fn faulty(
    lab: &Lab,
    library: &Path,
    dir: &str,
    prefix: &str,
    fault: &str,
    more: &[&str],
) -> Output {
    let run = lab.path(dir);
    let set = format!("run.dir={}", run.display());
    let mut command = lab.command(1, &[&["--set", &set], more].concat());
    spoil(&mut command, library, &run.join(prefix), fault);
    command.output().unwrap()
}

fn assert_same_end(run: &Path, whole: &Path, what: &str) {
    assert_eq!(loss_curve(run), loss_curve(whole), "{what}: losses");
    assert_eq!(adapter_bytes(run), adapter_bytes(whole), "{what}: adapter");
    let state = |run: &Path| std::fs::read(checkpoint(run, 20).join("trainer.safetensors"));
    assert_eq!(
        state(run).unwrap(),
        state(whole).unwrap(),
        "{what}: moments"
    );
}

/// Twenty steps are eleven, SIGKILL, and nine, to the last bit; and so they are when it comes in the
/// middle of the next checkpoint, or just after it has its name.
#[test]
fn a_kill_in_any_phase_of_a_save_costs_no_bit() {
    let lab = Lab::new(&Plan::default());
    let library = interposer(lab.dir.path());
    let whole = lab.train(1, "whole", &TWENTY);
    assert_eq!(loss_curve(&whole).len(), 20);
    // The first file of a checkpoint to go is the first of its operations of this kind.
    let log = lab.path("operations");
    let run = lab.path("counted");
    let set = format!("run.dir={}", run.display());
    let mut counted = lab.command(1, &[&["--set", &set], &TWENTY[..]].concat());
    spoil(&mut counted, &library, &checkpoint(&run, 6), "count");
    let output = counted.env("SCPEFT_TEST_FAULT_LOG", &log).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let operations = std::fs::read_to_string(&log).unwrap();
    let gone = operations
        .lines()
        .position(|line| line.contains(" unlink "));
    let retired = format!("kill:{}", gone.expect("step 6 is deleted") + 1);
    for (name, prefix, fault, from) in [
        ("first operation", "checkpoints/step-00000012", "kill:1", 11),
        (
            "half a tensor file",
            "checkpoints/step-00000012",
            "kill:5",
            11,
        ),
        ("moments", "checkpoints/step-00000012", "kill:12", 11),
        ("pointer", "LATEST", "kill:4", 6),
        ("retention", "checkpoints/step-00000006", &retired, 12),
    ] {
        let dir = name.replace(' ', "-");
        let output = faulty(&lab, &library, &dir, prefix, fault, &TWENTY);
        assert_eq!(
            output.status.signal(),
            Some(9),
            "{name}: {}",
            text(&output.stderr)
        );
        let run = lab.path(&dir);
        let visible = std::fs::read_dir(run.join("checkpoints")).unwrap();
        for entry in visible.map(|e| e.unwrap().path()) {
            let hidden = entry.to_string_lossy().contains(".tmp-");
            assert!(
                hidden || entry.join("manifest.json").is_file(),
                "{entry:?} is half written"
            );
        }
        let resumed = lab.train(1, &dir, &[&["--resume"], &TWENTY[..]].concat());
        let record: Value =
            serde_json::from_slice(&std::fs::read(resumed.join("run.json")).unwrap()).unwrap();
        assert_eq!(record["starts"][1]["from_step"], from, "{name}");
        assert_same_end(&resumed, &whole, name);
        let left = std::fs::read_dir(run.join("checkpoints")).unwrap();
        let temporary = left.filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_string_lossy().contains(".tmp-")
        });
        assert_eq!(temporary.count(), 0, "{name}: leftovers");
    }
}

/// A save that fails is said, the run goes on and ends where it would have; too many in a row, or the
/// last one, end it, and what was saved before stays.
#[test]
fn a_full_disk_costs_the_checkpoint_not_the_run() {
    let lab = Lab::new(&Plan::default());
    let library = interposer(lab.dir.path());
    let whole = lab.train(1, "whole", &TWENTY);
    let all = |code: i32| format!("{code}:1:1000000");

    let once = faulty(
        &lab,
        &library,
        "once",
        "checkpoints/step-00000011",
        &all(DISK_FULL),
        &TWENTY,
    );
    let said = text(&once.stderr);
    assert!(once.status.success(), "{said}");
    for words in [
        "the checkpoint of step 11 was not saved",
        "No space left on device",
        "the run goes on (failure 1 of at most 3)",
    ] {
        assert!(said.contains(words), "`{words}` is not in\n{said}");
    }
    assert_same_end(&lab.path("once"), &whole, "one save failed");

    let often = faulty(
        &lab,
        &library,
        "often",
        "checkpoints/step-0000001",
        &all(READ_ONLY),
        &[&TWENTY[..], &["--set", "checkpoint.max_failures=2"]].concat(),
    );
    assert_refused(
        &often,
        1,
        &[
            "the checkpoint of step 12 was not saved",
            "Read-only file system",
            "2 saves in a row failed",
            "help:",
        ],
    );
    let kept = std::fs::read_to_string(lab.path("often").join("LATEST")).unwrap();
    assert_eq!(kept, "step-00000006\n");
    let resumed = lab.train(1, "often", &[&["--resume"], &TWENTY[..]].concat());
    assert_same_end(&resumed, &whole, "after the disk had room again");

    let last = faulty(
        &lab,
        &library,
        "last",
        "checkpoints/step-00000020",
        &all(DISK_FULL),
        &TWENTY,
    );
    assert_refused(
        &last,
        1,
        &[
            "the last checkpoint of the run, of step 20, was not saved",
            "help:",
        ],
    );
    let kept = std::fs::read_to_string(lab.path("last").join("LATEST")).unwrap();
    assert_eq!(kept, "step-00000018\n");
}

/// A truncated adapter file in the newest checkpoint is passed over.
#[test]
fn a_truncated_adapter_file_is_passed_over() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &TWENTY);
    let (curve, adapter) = (loss_curve(&run), adapter_bytes(&run));
    let file = checkpoint(&run, 20).join("adapter/adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let output = lab
        .command(1, &[&["--resume"], &TWENTY[..]].concat())
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("adapter_model.safetensors") && said.contains("resumed at step 18"),
        "{said}"
    );
    assert_eq!((loss_curve(&run), adapter_bytes(&run)), (curve, adapter));
}

/// A changed schedule is refused, unless it is named; then it is recorded.
#[test]
fn a_change_that_is_named_is_made_and_recorded() {
    let lab = Lab::new(&Plan::default());
    let arguments = ["--set", "train.epochs=1"];
    let run = lab.train(1, "run", &arguments);
    let longer = [
        "--resume",
        "--set",
        "train.epochs=2",
        "--set",
        "train.lr=1e-3",
    ];
    let refused = lab.command(1, &longer).output().unwrap();
    assert_refused(
        &refused,
        2,
        &[
            "train.epochs: 1 in the checkpoint, 2 now",
            "`--allow-change schedule`",
        ],
    );
    let partly = [&longer[..], &["--allow-change", "train.lr"]].concat();
    let refused = lab.command(1, &partly).output().unwrap();
    assert_refused(&refused, 2, &["train.epochs: 1"]);
    lab.train(
        1,
        "run",
        &[&longer[..], &["--allow-change", "schedule"]].concat(),
    );
    assert_eq!(loss_curve(&run).len(), 12);
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(
        record["starts"][1]["changed"],
        serde_json::json!([
            "train.epochs: 1 in the checkpoint, 2 now",
            "train.lr: 0.005 in the checkpoint, 0.001 now"
        ])
    );
    // It is the run's own schedule from here on.
    let again = [
        "--resume",
        "--set",
        "train.epochs=2",
        "--set",
        "train.lr=1e-3",
    ];
    assert!(lab.command(1, &again).output().unwrap().status.success());
    let nonsense = ["--resume", "--allow-change", "learning-rate"];
    let refused = lab.command(1, &nonsense).output().unwrap();
    assert_refused(&refused, 2, &["`--allow-change learning-rate`: expected"]);
}

/// A learning rate that moves nothing is said after the third update.
#[test]
fn tensors_that_do_not_move_are_named() {
    let lab = Lab::new(&Plan::default());
    let said = |lr: &str| {
        let set = format!("train.lr={lr}");
        let output = lab
            .command(
                1,
                &["--overwrite", "--set", "train.epochs=1", "--set", &set],
            )
            .output()
            .unwrap();
        assert!(output.status.success());
        text(&output.stderr)
    };
    let stuck = said("1e-30");
    assert!(
        stuck.contains("did not move") && stuck.contains("lora_A"),
        "{stuck}"
    );
    let trained = said("5e-3");
    assert!(
        !trained.contains("did not move") && !trained.contains("no gradient"),
        "{trained}"
    );
}
