//! What independent programs make of our files: Python reads the adapter as HF PEFT lays it out,
//! pandas the predictions, and scanpy puts them beside the cells.

#![allow(clippy::unwrap_used)]

mod peft;

use std::path::{Path, PathBuf};
use std::process::Command;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, on_ranks, text};

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
