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
    let tail = 5;
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

/// Communication is counted in a real step of a rank whose siblings do not exist, and is what was planned.
#[test]
fn a_fake_world_moves_the_bytes_that_are_planned_and_simulates_larger_ones() {
    let lab = Lab::new(&Plan::default());
    let found = json(
        &lab,
        &["--fake-world", "4", "--set", "backbone.shard=world"],
    );
    let fake = &found["fake_world"];
    assert_eq!(found["ranks"], 4);
    assert_eq!(
        fake["bytes"]["all_reduce_f32"],
        found["step"]["all_reduce_bytes"]
    );
    // A rank hands over its part once for each gather, and receives those of three others.
    let parts = fake["bytes"]["all_gather"].as_u64().unwrap();
    assert_eq!(3 * parts, found["step"]["gathered_bytes"].as_u64().unwrap());
    assert_eq!(fake["measured"], true);
    assert!(fake["step_seconds"].as_f64().unwrap() > 0.0);
    assert!(fake["peak_bytes"].as_u64().unwrap() > 10 << 20);
    let sharing: Vec<(&str, u64)> = fake["sharing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["shard"].as_str().unwrap(),
                row["memory_bytes"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        sharing.iter().map(|row| row.0).collect::<Vec<_>>(),
        ["none", "node", "world"]
    );
    assert_eq!(sharing[2].1, found["memory_bytes"].as_u64().unwrap());

    let given = ["--fake-world", "2", "--step-seconds", "0.001"];
    let table = plan(&lab, &given);
    assert!(table.status.success(), "{}", text(&table.stderr));
    let table = text(&table.stdout);
    for word in [
        "0.001 s as given",
        "simulated, not measured",
        "efficiency = step / (step + all-reduce)",
    ] {
        assert!(table.contains(word), "`{word}` is not in\n{table}");
    }
    let simulated = json(&lab, &given);
    let rows = simulated["fake_world"]["scaling"].as_array().unwrap();
    let gpus: Vec<u64> = rows
        .iter()
        .map(|row| row["gpus"].as_u64().unwrap())
        .collect();
    assert_eq!(gpus, [8, 16, 32, 64, 128, 256, 512, 1024]);
    for row in rows {
        let seconds = row["communication_seconds"].as_f64().unwrap();
        let efficiency = row["efficiency"].as_f64().unwrap();
        assert!(
            (efficiency - 0.001 / (0.001 + seconds)).abs() < 1e-12,
            "{row}"
        );
    }
    assert!(!lab.path("run").exists());
    let none = plan(&lab, &["--fake-world", "1"]);
    assert_refused(&none, 2, &["at least 2"]);
    let odd = plan(&lab, &["--fake-world", "3"]);
    assert_refused(&odd, 2, &["4 micro-batches", "3 ranks", "help:"]);
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
