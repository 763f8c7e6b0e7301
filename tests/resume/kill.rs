//! An interrupted run ends exactly where an uninterrupted one does.

#![allow(clippy::unwrap_used)]

mod ema;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_refused, assert_same_curve, logged_lines, loss_curve, rank_pids,
    set, signal, text, wait, wait_until,
};
use serde_json::Value;

const ARGUMENTS: [&str; 8] = [
    "--set",
    "train.epochs=30",
    "--set",
    "checkpoint.every_steps=7",
    "--set",
    "train.schedule=cosine",
    "--set",
    "train.warmup_steps=5",
];

fn set_dir(run: &std::path::Path) -> String {
    format!("run.dir={}", run.display())
}

/// Kills a rank with SIGKILL in mid-run, resumes, and compares every byte of the adapter and every
/// logged loss with the uninterrupted run.
#[test]
fn a_killed_rank_costs_nothing_but_time() {
    let lab = Lab::new(&Plan::default());
    let whole = lab.train(2, "whole", &ARGUMENTS);
    let steps = loss_curve(&whole).len();
    assert_eq!(steps, 30 * 6);

    let run = lab.path("killed");
    let set = set_dir(&run);
    let mut child = lab
        .command(2, &[&["--set", &set], &ARGUMENTS[..]].concat())
        .spawn()
        .unwrap();
    wait_until("the run is under way", || logged_lines(&run) > 40);
    let pids = rank_pids(&run);
    assert_eq!(pids.len(), 2, "both ranks are alive");
    signal(pids[1], "KILL");
    let status = wait(&mut child);
    assert_eq!(status.code(), Some(137), "mpirun reports the kill");
    wait_until("no rank is left", || rank_pids(&run).is_empty());
    let done = loss_curve_prefix(&run);
    assert!(done < steps, "the run ended before it was killed");

    lab.train(2, "killed", &[&["--resume"], &ARGUMENTS[..]].concat());
    assert_eq!(
        loss_curve(&run),
        loss_curve(&whole),
        "losses, to the last bit"
    );
    assert_eq!(adapter_bytes(&run), adapter_bytes(&whole), "adapter bytes");
}

/// Complete lines so far; a kill may cut the last one.
fn loss_curve_prefix(run: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter(|v| v["kind"] == "train")
        .count()
}

/// SIGTERM saves, exits 85, and the run goes on with another number of ranks on the same batches.
#[test]
fn a_preempted_run_continues_on_another_number_of_ranks() {
    let lab = Lab::new(&Plan::default());
    let whole = lab.train(1, "whole", &ARGUMENTS);
    let run = lab.path("stopped");
    let set = set_dir(&run);
    let mut child = lab
        .command(1, &[&["--set", &set], &ARGUMENTS[..]].concat())
        .spawn()
        .unwrap();
    wait_until("the run is under way", || logged_lines(&run) > 20);
    signal(child.id(), "TERM");
    assert_eq!(wait(&mut child).code(), Some(85));
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["status"], "preempted");
    let stopped_at = record["steps"].as_u64().unwrap();
    assert!((10..180).contains(&stopped_at), "{stopped_at}");

    lab.train(2, "stopped", &[&["--resume"], &ARGUMENTS[..]].concat());
    // Two ranks add gradients in another order, and over many steps that rounding grows.
    let (found, expected) = (loss_curve(&run), loss_curve(&whole));
    let soon = stopped_at as usize + 20;
    assert_same_curve(&found[..soon], &expected[..soon], 2e-5);
    assert_same_curve(&found, &expected, 5e-3);
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(
        (
            &record["status"],
            record["starts"].as_array().unwrap().len()
        ),
        (&Value::from("done"), 2)
    );
    assert_eq!(record["starts"][1]["from_step"], stopped_at);
}

#[test]
fn a_resumed_run_may_not_become_another_run() {
    let lab = Lab::new(&Plan::default());
    lab.train(1, "run", &["--set", "train.epochs=1"]);
    let again = lab
        .command(1, &["--set", "train.epochs=1"])
        .output()
        .unwrap();
    assert_refused(&again, 2, &["earlier run", "--resume", "--overwrite"]);
    let changed = lab
        .command(
            1,
            &["--set", "train.epochs=1", "--set", "run.seed=4", "--resume"],
        )
        .output()
        .unwrap();
    assert_refused(
        &changed,
        2,
        &["run.seed: 3 in the checkpoint, 4 now", "help:"],
    );
    let complete = lab
        .command(1, &["--set", "train.epochs=1", "--resume"])
        .output()
        .unwrap();
    assert!(
        complete.status.success(),
        "a complete run has nothing left to do"
    );
}

/// The newest checkpoint is damaged: the one before it is used, and the result is the same.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let lab = Lab::new(&Plan::default());
    let arguments = [
        "--set",
        "train.epochs=2",
        "--set",
        "checkpoint.every_steps=2",
        "--set",
        "checkpoint.keep_last=3",
    ];
    let run = lab.train(1, "run", &arguments);
    let (curve, adapter) = (loss_curve(&run), adapter_bytes(&run));
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    let damaged = run
        .join("checkpoints")
        .join(latest.trim())
        .join("adapter/adapter_model.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = lab
        .command(1, &[&["--resume"], &arguments[..]].concat())
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("adapter_model.safetensors") && said.contains("resumed at step"),
        "{said}"
    );
    assert_eq!((loss_curve(&run), adapter_bytes(&run)), (curve, adapter));
}

/// Twice the same bits, with the bits of any other run, and a place that it is held to.
#[test]
fn a_deterministic_run_is_checked_and_held_to_its_ranks_and_threads() {
    let lab = Lab::new(&Plan::default());
    let short = set(&["train.epochs=1"]);
    let plain = lab.train(2, "plain", &short);
    let run = lab.path("checked");
    let dir = format!("run.dir={}", run.display());
    let deterministic = [&set(&["run.deterministic=true", dir.as_str()])[..], &short].concat();
    let output = lab.command(2, &deterministic).output().unwrap();
    let said = text(&output.stderr) + &text(&output.stdout);
    assert!(output.status.success(), "{said}");
    let checked = "the gradients of the first step are the same bits twice";
    assert_eq!(said.matches(checked).count(), 1, "{said}");
    assert_eq!(loss_curve(&run), loss_curve(&plain));
    assert_eq!(adapter_bytes(&run), adapter_bytes(&plain));
    let resume = |ranks: usize, more: &[&str]| {
        let arguments = [&deterministic[..], &["--resume"], more].concat();
        lab.command(ranks, &arguments).output().unwrap()
    };
    assert_refused(
        &resume(1, &["--set", "run.threads=2"]),
        2,
        &[
            "ranks: 2 in the checkpoint, 1 now",
            "run.threads: 1 in the checkpoint, 2 now",
            "`--allow-change ranks --allow-change run.threads`",
        ],
    );
    let allowed = resume(1, &["--allow-change", "ranks"]);
    assert!(allowed.status.success(), "{}", text(&allowed.stderr));
}
