//! SIGKILL of any rank at any moment: all ranks go, none is orphaned, and the run comes back exactly.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, loss_curve, metrics, rank_pids, signal, wait, wait_until,
};

/// What the other ranks may take to follow.
const GONE: Duration = Duration::from_secs(5);
/// Steps of an epoch: 72 training cells in batches of 12.
const EPOCH: usize = 6;

/// When a rank is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// After this many logged steps, in whatever the rank is doing then.
    Step(usize),
    /// In the evaluation that ends the first epoch.
    Evaluation,
}

/// A validation set large enough for the evaluation to be hit.
fn mostly_validation(cell: usize, _kind: usize) -> &'static str {
    if cell < 72 { "train" } else { "valid" }
}

fn trained_steps(run: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"train\"")).count()
}

#[test]
fn a_run_survives_the_death_of_each_rank_in_steps_and_in_evaluations() {
    let lab = Lab::new(&Plan {
        cells: 1872,
        split: mostly_validation,
        ..Plan::default()
    });
    let arguments = [
        "--set",
        "train.epochs=3",
        "--set",
        "checkpoint.every_steps=4",
    ];
    let whole = lab.train(2, "whole", &arguments);
    assert_eq!(loss_curve(&whole).len(), 3 * EPOCH);
    // Different in each run of the test, and printed when it fails.
    let random = std::process::id() as usize % 4 + 1;
    for (victim, moment) in [
        (0, Moment::Step(random)),
        (1, Moment::Step(EPOCH + random)),
        (0, Moment::Evaluation),
        (1, Moment::Evaluation),
    ] {
        let name = format!("killed-{victim}-{moment:?}");
        let run = lab.path(&name);
        let set = format!("run.dir={}", run.display());
        let mut child = lab
            .command(2, &[&["--set", &set], &arguments[..]].concat())
            .spawn()
            .unwrap();
        let steps = match moment {
            Moment::Step(steps) => steps,
            Moment::Evaluation => EPOCH,
        };
        wait_until("the moment has come", || trained_steps(&run) >= steps);
        let pids = rank_pids(&run);
        assert_eq!(pids.len(), 2, "{name}: both ranks are alive");
        signal(pids[victim], "KILL");
        let begun = Instant::now();
        assert_eq!(wait(&mut child).code(), Some(137), "{name}");
        wait_until("no rank is left", || rank_pids(&run).is_empty());
        assert!(begun.elapsed() <= GONE, "{name}: {:?}", begun.elapsed());
        let evaluations = metrics_so_far(&run);
        match moment {
            Moment::Step(steps) => assert_eq!(evaluations, steps / EPOCH, "{name}"),
            Moment::Evaluation => assert_eq!(evaluations, 0, "{name}: hit the evaluation"),
        }
        lab.train(2, &name, &[&["--resume"], &arguments[..]].concat());
        assert_eq!(loss_curve(&run), loss_curve(&whole), "{name}: losses");
        assert_eq!(adapter_bytes(&run), adapter_bytes(&whole), "{name}");
        assert_eq!(metrics(&run).len(), metrics(&whole).len(), "{name}: log");
    }
}

/// Evaluations in the log of a killed run, whose last line may be cut off.
fn metrics_so_far(run: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().filter(|l| l.contains("\"eval\"")).count()
}
