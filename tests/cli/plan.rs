//! `scpeft-train plan` says what a run will need, and refuses what cannot be.

#![allow(clippy::unwrap_used)]

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, assert_refused, on_ranks, text};
use serde_json::Value;

fn plan(lab: &Lab, arguments: &[&str]) -> std::process::Output {
    on_ranks(1)
        .args(["plan", "--config"])
        .arg(&lab.config)
        .args(arguments)
        .output()
        .unwrap()
}

fn json(lab: &Lab, arguments: &[&str]) -> Value {
    let output = plan(lab, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_plan_counts_parameters_and_bytes_for_any_number_of_ranks() {
    let lab = Lab::new(&Plan::default());
    let whole = json(&lab, &["--world", "4"]);
    let trained = ["adapters", "heads", "backbone"].map(|k| whole["parameters"][k].as_u64());
    // Two layers of LoRA of rank 4 on q and v of width 16; the packed biases.
    assert_eq!(trained[0], Some(2 * (8 * 16 + 32 * 4)));
    assert_eq!(trained[2], Some(2 * 48));
    let n: u64 = trained.iter().flatten().sum();
    // What `parameters` counts.
    assert_eq!(n, 1_267);
    let tail = 4;
    assert_eq!(whole["memory"]["trainable"], 4 * (4 * n + tail));
    assert_eq!(whole["step"]["all_reduce_bytes"], 4 * (n + tail));
    assert_eq!(whole["step"]["gathered_bytes"], 0);
    assert_eq!(whole["micro_batches"], 1);
    let shared = json(
        &lab,
        &[
            "--world",
            "4",
            "--ranks-per-node",
            "2",
            "--set",
            "backbone.shard=world",
        ],
    );
    // Matrices and norms of a layer of width 16 and 32, without the biases that train.
    let layer = (3 * 16 * 16 + 16 * 16 + 16 + 2 * 16 * 32 + 32 + 16 + 4 * 16) * 4;
    assert_eq!(shared["memory"]["frozen_blocks"], 2 * layer / 4);
    assert_eq!(shared["memory"]["gathered"], 2 * layer);
    // Forward two layers, backward the first again, which the next pass finds.
    assert_eq!(shared["step"]["gathered_bytes"], 2 * layer * 3 / 4);
    assert_eq!(shared["parameters"], whole["parameters"]);
    let packed = json(&lab, &["--set", "backbone.storage=int8"]);
    let weights = 3 * 16 * 16 + 16 * 16 + 2 * 16 * 32;
    let rows = 3 * 16 + 16 + 16 + 32;
    // The scales are f32, as are the vectors of a layer.
    let stored = weights + 4 * rows + (layer - 4 * weights);
    assert_eq!(packed["memory"]["frozen_blocks"], 2 * stored);
    assert_eq!(packed["memory"]["gathered"], 4 * weights);
    let both = shared["memory_bytes"].as_u64().unwrap() * 2;
    assert_eq!(shared["node_bytes"], both);
    assert!(!lab.path("run").exists());
}

#[test]
fn what_cannot_be_is_refused_with_the_arithmetic() {
    let lab = Lab::new(&Plan::default());
    let table = plan(&lab, &["--world", "2"]);
    assert!(table.status.success());
    assert!(text(&table.stdout).contains("trained: adapters"));
    let odd = plan(&lab, &["--world", "3"]);
    assert_refused(&odd, 2, &["4 micro-batches", "3 ranks", "help:"]);
    let small = plan(&lab, &["--world", "2", "--memory-gib", "0.25"]);
    assert_refused(
        &small,
        2,
        &["2 rank(s) of a machine need", "it has 0.25 GiB", "help:"],
    );
    let none = plan(&lab, &["--world", "0"]);
    assert_refused(&none, 2, &["at least 1"]);
}

/// The peak of a real run, which is libtorch and little else here.
#[test]
fn a_plan_is_near_the_memory_of_a_small_run() {
    let lab = Lab::new(&Plan::default());
    let planned = json(&lab, &[])["memory_bytes"].as_f64().unwrap();
    let run = lab.train(1, "run", &["--set", "train.max_steps=4"]);
    let record = std::fs::read_to_string(run.join("run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let peaks = &record["peak_rss_bytes_per_rank"][0];
    let peak = peaks.as_f64().unwrap();
    let off = planned / peak - 1.0;
    assert!(off.abs() < 0.2, "{planned} planned, {peak} measured");
}
