//! A system clock that jumps decades ahead and back while a run goes on.

use std::path::Path;

use scpeft_tests::corpus::Plan;
use scpeft_tests::faults::{interposer, jump_clock};
use scpeft_tests::train::{Lab, adapter_bytes, latest_step, loss_curve, metrics, text, wait_until};
use serde_json::Value;

const ARGUMENTS: [&str; 6] = [
    "--set",
    "train.max_steps=120",
    "--set",
    "train.epochs=20",
    "--set",
    "checkpoint.every_steps=10",
];
const DECADES: i64 = 1_000_000_000;

fn names(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Checkpoints, what is kept of them, the resumption after a kill, and every duration are those of a
/// run whose clock is right.
#[test]
fn a_clock_that_jumps_costs_no_bit_and_no_checkpoint() {
    let lab = Lab::new(&Plan::default());
    let library = interposer(lab.dir.path());
    let whole = lab.train(1, "whole", &ARGUMENTS);

    let run = lab.path("jumping");
    let set = format!("run.dir={}", run.display());
    let command = |more: &[&str]| {
        let mut command = lab.command(1, &[&["--set", &set], &ARGUMENTS[..], more].concat());
        jump_clock(&mut command, &library, DECADES);
        command
    };
    let mut child = command(&[]).spawn().unwrap();
    wait_until("a checkpoint", || latest_step(&run) >= 20);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        latest_step(&run) < 120,
        "the run ended before it was killed"
    );
    let resumed = command(&["--resume"]).output().unwrap();
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));

    assert_eq!(loss_curve(&run), loss_curve(&whole));
    assert_eq!(adapter_bytes(&run), adapter_bytes(&whole));
    assert_eq!(names(&run), names(&whole));
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    let sane = |seconds: &Value| (0.0..120.0).contains(&seconds.as_f64().unwrap());
    assert!(sane(&record["seconds"]), "{}", record["seconds"]);
    let year = |time: &Value| time.as_str().unwrap()[..4].parse::<u32>().unwrap();
    let started: Vec<u32> = (record["starts"].as_array().unwrap().iter())
        .map(|start| year(&start["time"]))
        .collect();
    assert!(
        started.iter().any(|&y| !(2020..2045).contains(&y)),
        "no jump: {started:?}"
    );
    for line in metrics(&run).iter().filter(|line| line["kind"] == "train") {
        for key in ["step_seconds", "data_seconds", "collective_seconds"] {
            assert!(sane(&line[key]), "{line}");
        }
        assert!(line["cells_per_second"].as_f64().unwrap() > 0.0, "{line}");
    }
}
