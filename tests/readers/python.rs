//! What independent programs make of our files: Python reads the adapter as HF PEFT lays it out,
//! pandas the predictions, and scanpy puts them beside the cells.

#![allow(clippy::unwrap_used)]

mod peft;

use std::path::{Path, PathBuf};
use std::process::Command;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, loss_curve, metrics, on_ranks, text};

fn python() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    assert!(
        path.exists(),
        "no `{}`: run `make setup-test` first",
        path.display()
    );
    path
}

fn run_script(script: &str, arguments: &[&Path]) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("readers")
        .join(script);
    let output = Command::new(python())
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn python_reads_adapter_and_predictions() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=25"]);
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    let adapter = run.join("checkpoints").join(latest.trim()).join("adapter");
    let found = run_script("adapter.py", &[&adapter]);
    assert_eq!(found["config"]["peft_type"], "LORA");
    // q and v share one fused projection: twice the rank, twice the alpha, the same scale.
    assert_eq!(
        (&found["config"]["r"], &found["config"]["lora_alpha"]),
        (&8.into(), &16.0.into())
    );
    assert_eq!(
        found["config"]["modules_to_save"],
        serde_json::json!(["cls_decoder"])
    );
    let shapes = found["tensors"].as_object().unwrap();
    let projection = "base_model.model.transformer_encoder.layers.1.self_attn.Wqkv";
    assert_eq!(
        shapes[&format!("{projection}.lora_A.weight")],
        serde_json::json!([8, 16])
    );
    assert_eq!(
        shapes[&format!("{projection}.lora_B.weight")],
        serde_json::json!([48, 8])
    );
    assert_eq!(
        shapes["base_model.model.cls_decoder.out_layer.weight"],
        serde_json::json!([3, 16])
    );
    assert_eq!(shapes.len(), 2 * 3 + 10);

    let output = lab.path("predicted");
    let status = on_ranks(1)
        .arg("predict")
        .arg("--run")
        .arg(&run)
        .arg("--output")
        .arg(&output)
        .args(["--split", "all"])
        .status()
        .unwrap();
    assert!(status.success());
    let joined = run_script("predictions.py", &[&output, &lab.corpus]);
    assert_eq!(joined["cells"], 120);
    assert_eq!(
        joined["categories"],
        serde_json::json!(scpeft_tests::corpus::TYPES)
    );
    assert_eq!(joined["embedding_shape"], serde_json::json!([120, 16]));
    let scores: serde_json::Value =
        serde_json::from_slice(&std::fs::read(output.join("metrics.json")).unwrap()).unwrap();
    for name in ["accuracy", "balanced_accuracy", "macro_f1"] {
        let (ours, theirs) = (
            scores[name].as_f64().unwrap(),
            joined[name].as_f64().unwrap(),
        );
        assert!(
            (ours - theirs).abs() < 1e-9,
            "{name}: {ours} here, {theirs} by scikit-learn"
        );
    }
}

/// A run that is resumed in its middle: pandas and an independent reader of event files find every value
/// of `metrics.jsonl`, once.
#[test]
fn python_reads_the_table_and_the_event_files() {
    let lab = Lab::new(&Plan::default());
    let sinks = [
        "--set",
        "log.sinks=[\"csv\", \"tensorboard\"]",
        "--set",
        "train.epochs=2",
    ];
    let run = lab.train(1, "run", &sinks);
    let first = loss_curve(&run);
    assert_eq!(first.len(), 12);
    // The newest checkpoint is damaged, so that the second epoch is trained again.
    let file = run.join("checkpoints/step-00000012/trainer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    lab.train(1, "run", &[&["--resume"], &sinks[..]].concat());
    assert_eq!(loss_curve(&run), first);

    let table = run_script("table.py", &[&run.join("metrics.csv")]);
    assert_eq!(table["train/loss"], serde_json::json!(first));
    let evaluations: Vec<(u64, f64)> = metrics(&run)
        .iter()
        .filter(|record| record["kind"] == "eval")
        .map(|r| (r["step"].as_u64().unwrap(), r["macro_f1"].as_f64().unwrap()))
        .collect();
    assert_eq!(evaluations.len(), 2);
    assert_eq!(table["valid/macro_f1"], serde_json::json!(evaluations));

    let files = run_script("events.py", &[&run.join("tensorboard")]);
    let files = files.as_array().unwrap();
    assert_eq!(files.len(), 2);
    for (file, begins) in files.iter().zip([1, 7]) {
        assert_eq!(file[0]["version"], "brain.Event:2");
        let found: Vec<(u64, f32)> = scalars(file, "train/loss");
        let expected: Vec<(u64, f32)> = first[begins - 1..]
            .iter()
            .map(|(step, loss)| (*step, *loss as f32))
            .collect();
        assert_eq!(found, expected);
    }
    assert_eq!(
        (&files[1][1]["session"], &files[1][1]["step"]),
        (&1.into(), &7.into())
    );
    assert_eq!(
        scalars(&files[1], "valid/macro_f1"),
        [(12, evaluations[1].1 as f32)]
    );
}

fn scalars(file: &serde_json::Value, tag: &str) -> Vec<(u64, f32)> {
    let events = file.as_array().unwrap().iter();
    events
        .filter_map(|event| {
            let value = event["values"][tag].as_f64()?;
            Some((event["step"].as_u64().unwrap(), value as f32))
        })
        .collect()
}

/// An AnnData with something of everything keeps all of it, and scanpy finds what was added.
#[test]
fn scanpy_opens_an_exported_file_unchanged_but_for_what_was_added() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    let (predicted, embedded) = (lab.path("predicted"), lab.path("embedded"));
    for (command, output) in [("predict", &predicted), ("embed", &embedded)] {
        let mut process = on_ranks(1);
        process.arg(command).arg("--run").arg(&run);
        process.arg("--output").arg(output).args(["--split", "all"]);
        assert!(process.status().unwrap().success());
    }
    let work = lab.path("work");
    std::fs::create_dir(&work).unwrap();
    let program = scpeft_tests::binary("scpeft-data");
    let found = run_script("export.py", &[&program, &predicted, &embedded, &work]);
    assert_eq!(
        found,
        serde_json::json!({
            "cells": 120, "missing": 10, "classes": scpeft_tests::corpus::TYPES,
            "added": ["scpeft_predicted_type", "scpeft_true_type"],
            "obsm": ["X_scpeft", "X_scpeft_probability", "X_unit"],
        })
    );
    // Names that are taken, tables of other cells and files of another kind are refused.
    let refuse = |arguments: &[&Path], words: &[&str]| {
        let mut process = Command::new(&program);
        process.arg("export").arg("--input").arg(arguments[0]);
        process.arg("--table").arg(arguments[1]).arg("--output");
        let output = process.arg(work.join("refused.h5ad")).output().unwrap();
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && words.iter().all(|w| said.contains(w)),
            "{said}"
        );
        let left = std::fs::read_dir(&work).unwrap().flatten();
        let left: Vec<_> = left
            .filter(|e| e.file_name().to_string_lossy().contains("refused"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    };
    refuse(
        &[&work.join("annotated.h5ad"), &predicted],
        &["scpeft_predicted_type", "NAME=PATH"],
    );
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/h5ad");
    refuse(
        &[&fixtures.join("csr.h5ad"), &predicted],
        &["none of its 120 cells", "imported from"],
    );
    refuse(
        &[&fixtures.join("legacy_records.h5ad"), &predicted],
        &["table of records", "anndata"],
    );
    refuse(
        &[&fixtures.join("csr.h5ad"), &lab.corpus],
        &["no Parquet file", "cell_id"],
    );
}
