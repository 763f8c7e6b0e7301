//! A backbone that is shared by the ranks trains as one that every rank holds: the same bits on the
//! same number of ranks, with ranks that have fewer micro-batches than others, or none.

#![allow(clippy::unwrap_used)]

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_refused, loss_curve, metrics, on_ranks, set, text,
};
use serde_json::Value;

/// 72 training cells in batches whose last one has fewer micro-batches than ranks can share: three
/// for two ranks, two for three.
fn ragged(ranks: usize) -> [&'static str; 3] {
    match ranks {
        2 => [
            "train.batch_cells=20",
            "train.micro_batch_cells=5",
            "train.epochs=2",
        ],
        _ => [
            "train.batch_cells=21",
            "train.micro_batch_cells=7",
            "train.epochs=2",
        ],
    }
}

/// What the evaluations of a run found.
fn evaluations(run: &std::path::Path) -> Vec<(Value, Value)> {
    let lines = metrics(run).into_iter();
    let lines = lines.filter(|r| r["kind"] == "eval");
    lines
        .map(|r| (r["step"].clone(), r["loss"].clone()))
        .collect()
}

/// Trains whole and shared, and compares everything; returns the shared run.
fn assert_same_run(lab: &Lab, ranks: usize, shard: &str, settings: &[&str]) -> std::path::PathBuf {
    let settings = [&ragged(ranks)[..], settings].concat();
    let whole = [&settings[..], &["run.recompute=true"]].concat();
    let whole = lab.train(ranks, &format!("whole-{ranks}-{shard}"), &set(&whole));
    let shard_setting = format!("backbone.shard={shard}");
    let shared = [&settings[..], &[&shard_setting]].concat();
    let shared = lab.train(ranks, &format!("shared-{ranks}-{shard}"), &set(&shared));
    let curve = loss_curve(&shared);
    assert_eq!(curve.len(), 8);
    assert!(curve.iter().all(|(_, loss)| loss.is_finite()), "{curve:?}");
    assert_eq!(curve, loss_curve(&whole), "{ranks} ranks");
    assert_eq!(evaluations(&shared), evaluations(&whole), "{ranks} ranks");
    assert_eq!(
        adapter_bytes(&shared),
        adapter_bytes(&whole),
        "{ranks} ranks"
    );
    shared
}

#[test]
fn two_and_three_ranks_that_share_the_backbone_train_bitwise_as_with_their_own() {
    let lab = Lab::new(&Plan::default());
    // A block without an adapter below one with, and one of every kind that changes weights.
    let settings = [
        r#"adapter.kind=["lora","encoder","hra"]"#,
        "adapter.layers=[1]",
    ];
    assert_same_run(&lab, 3, "world", &settings);
    let run = assert_same_run(&lab, 2, "world", &settings);
    let predict = |ranks: usize, shard: &str| {
        let output = lab.path(&format!("predicted-{ranks}-{shard}"));
        let done = on_ranks(ranks)
            .args(["predict", "--run"])
            .arg(&run)
            .arg("--output")
            .arg(&output)
            .args(["--set", &format!("backbone.shard={shard}")])
            .args(["--set", "train.micro_batch_cells=5"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read_to_string(output.join("metrics.json")).unwrap()
    };
    let whole = predict(1, "none");
    assert!(whole.contains("macro_f1"));
    assert_eq!(predict(2, "node"), whole);
}

/// Two passes over each micro-batch, and a further one without a graph before.
#[test]
fn the_contrastive_objective_gathers_in_step_on_ranks_with_fewer_micro_batches() {
    let lab = Lab::new(&Plan::default());
    let settings = [
        "task.kind=batch-correction",
        "data.batch=donor",
        "data.mask_ratio=0.4",
        "task.mvc=true",
        "task.cce_weight=10",
        "adapter.kind=hybrid",
        "train.lr=1e-3",
    ];
    assert_same_run(&lab, 2, "node", &settings);
}

/// Weights of a directory: each rank takes its slices out of the mapped file.
#[test]
fn shares_of_published_weights_are_those_of_the_file() {
    let lab = Lab::new(&Plan::default());
    let pretraining = [
        "task.kind=masked-expression",
        "task.trainable=all",
        "adapter.kind=none",
        "data.mask_ratio=0.4",
        "train.epochs=1",
    ];
    let run = lab.train(1, "pretrained", &set(&pretraining));
    let backbone = lab.path("backbone");
    let export = std::process::Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .args(["export", "--run"])
        .arg(&run)
        .arg("--output")
        .arg(&backbone)
        .output()
        .unwrap();
    assert!(export.status.success(), "{}", text(&export.stderr));
    lab.use_backbone(&backbone);
    assert_same_run(&lab, 2, "world", &["adapter.kind=encoder"]);
    let settings = ["run.precision=bf16", "adapter.kind=mlp"];
    let lab_of_bf16 = Lab::new(&Plan::default());
    lab_of_bf16.use_backbone(&backbone);
    assert_same_run(&lab_of_bf16, 2, "world", &settings);
}

/// Two ranks with half of the packed layers each, and two with all of them, compute the same bits; a
/// resumption and a prediction may share otherwise, but not pack otherwise.
#[test]
fn packed_layers_train_the_same_shared_or_not() {
    let lab = Lab::new(&Plan::default());
    let packed = [&ragged(2)[..], &["backbone.storage=int8"]].concat();
    let full = lab.train(2, "full", &set(&ragged(2)));
    let whole = lab.train(2, "whole", &set(&packed));
    let shared = [&packed[..], &["backbone.shard=world"]].concat();
    let shared = lab.train(2, "shared", &set(&shared));
    let curve = loss_curve(&shared);
    assert_eq!(curve, loss_curve(&whole));
    assert_eq!(adapter_bytes(&shared), adapter_bytes(&whole));
    assert_ne!(curve, loss_curve(&full), "8 bits change nothing");
    scpeft_tests::train::assert_same_curve(&curve, &loss_curve(&full), 0.02);
    let dir = format!("run.dir={}", shared.display());
    let resume = |settings: &[&str]| {
        let settings = [&ragged(2)[..], &[dir.as_str()], settings].concat();
        let arguments = [&set(&settings)[..], &["--resume"]].concat();
        lab.command(1, &arguments).output().unwrap()
    };
    let refused = resume(&[]);
    assert_refused(
        &refused,
        2,
        &["backbone.storage: \"int8\" in the checkpoint, \"full\" now"],
    );
    let resumed = resume(&["backbone.storage=int8"]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let all = [
        "backbone.storage=int8",
        "task.trainable=all",
        "adapter.kind=none",
    ];
    let output = lab.command(1, &set(&all)).output().unwrap();
    assert_refused(
        &output,
        2,
        &["backbone.storage", "no layer is frozen", "help:"],
    );
}

#[test]
fn sharing_a_backbone_that_trains_is_refused_with_the_reason() {
    let lab = Lab::new(&Plan::default());
    let all = [
        "backbone.shard=world",
        "task.trainable=all",
        "adapter.kind=none",
    ];
    let output = lab.command(1, &set(&all)).output().unwrap();
    assert_refused(
        &output,
        2,
        &["backbone.shard", "`all`", "no layer is frozen", "help:"],
    );
    let output = lab
        .command(1, &set(&["backbone.shard=wrold"]))
        .output()
        .unwrap();
    assert_refused(
        &output,
        2,
        &[
            "backbone.shard",
            "`none` or `node` or `world`",
            "did you mean `world`",
        ],
    );
}
