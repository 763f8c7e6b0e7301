//! `scpeft-checkpoint` on fine-tuned checkpoints of the reference, and on files that are damaged,
//! hostile, or do not belong together: what it prints and writes, its errors and its exit codes.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use scpeft_checkpoint::{ScgptDirectory, read_adapter};
use serde_json::Value;
use support::model::{D, Model, block};
use support::{fail, show, succeed};

/// Exit code for weights.
const WEIGHTS: i32 = 4;
/// Exit code for the command line.
const USAGE: i32 = 2;

struct Files {
    dir: tempfile::TempDir,
    backbone: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backbone = Model::backbone().publish(&dir.path().join("backbone"));
        Self { dir, backbone }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn save(&self, model: &Model) -> PathBuf {
        model.save(&self.path("model.pt"))
    }
}

/// The command line that converts a fine-tuned file.
fn from_scpeft<'a>(file: &'a Path, backbone: &'a Path, output: &'a Path) -> Vec<&'a str> {
    vec![
        "convert",
        "--from-scpeft",
        show(file),
        "--backbone",
        show(backbone),
        "--output",
        show(output),
    ]
}

fn tuned() -> Model {
    Model::fine_tuned()
        .with_bottleneck(&block(0, "space_adapter.fc"), 2)
        .with_lora(1, 2)
}

#[test]
fn a_fine_tuned_file_converts_with_a_table_of_what_is_stored_and_skipped() {
    let files = Files::new();
    let odd = "pooler.weight";
    let model = tuned().merged(1, 2, 1.0).with(odd, &[D]);
    let file = files.path("best_model.pt");
    std::fs::write(&file, model.torch().int("epoch", 7).build()).unwrap();
    let output = files.path("adapter");
    let text = succeed(&from_scpeft(&file, &files.backbone, &output));
    for expected in [
        "out of",
        "(library)",
        "encoder adapter",
        "lora adapter",
        "head cls_decoder",
        "backbone, as published",
        "second names of tensors",
        "unknown: pooler.weight",
        "layers [1] were saved with LoRA's update added",
        "no tensors are left out: epoch (an int)",
    ] {
        assert!(text.contains(expected), "no `{expected}` in {text}");
    }
    // fc1 and fc2 of width 2: 2 * 2 * 8 weights and 2 + 8 biases.
    let line = text
        .lines()
        .find(|l| l.contains("encoder adapter"))
        .unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells, ["encoder", "adapter", "4", "42", "0.000"], "{line}");
    let (config, tensors) = read_adapter(&output).unwrap();
    assert_eq!(config.scpeft.unwrap().adapters.len(), 2);
    assert_eq!(tensors.len(), 8);
    let inspected = succeed(&["inspect", show(&output)]);
    assert!(inspected.contains("SCPEFT_MULTI"), "{inspected}");
    let again = from_scpeft(&file, &files.backbone, &output);
    fail(&again, USAGE, "exists already");
}

#[test]
fn settings_that_the_file_lacks_come_from_the_command_line() {
    let files = Files::new();
    let file = files.save(&tuned().merged(1, 2, 4.0));
    let output = files.path("adapter");
    let mut command = from_scpeft(&file, &files.backbone, &output);
    fail(&command, WEIGHTS, "added for `lora_alpha` = 4.0000, not 1");
    assert!(!output.exists());
    command.extend([
        "--lora-alpha",
        "4",
        "--no-skip-connect",
        "--lora-targets",
        "v,q",
    ]);
    succeed(&command);
    let json = read_adapter(&output).unwrap().0.scpeft.unwrap().adapters;
    let json = serde_json::to_value(json).unwrap();
    assert_eq!(json[0]["lora_alpha"], 4.0);
    assert_eq!(json[0]["targets"], serde_json::json!(["q", "v"]));
    assert_eq!(json[1]["skip_connect"], false);
    for (flag, value) in [("--lora-alpha", "0"), ("--lora-targets", "q,x")] {
        let mut command = from_scpeft(&file, &files.backbone, &output);
        command.extend([flag, value]);
        fail(&command, USAGE, flag);
    }
    fail(
        &["convert", "--from-scpeft", show(&file)],
        USAGE,
        "--backbone",
    );
    fail(&["convert", show(&file)], USAGE, "OUTPUT");
}

#[test]
fn inspect_names_variant_adapters_and_sizes() {
    let files = Files::new();
    let model = tuned().with("pooler.weight", &[D]);
    let file = files.save(&model);
    let json: Value = serde_json::from_str(&succeed(&["inspect", "--json", show(&file)])).unwrap();
    assert_eq!(json["kind"], "scPEFT fine-tuned checkpoint");
    assert_eq!(json["variant"], "library");
    let adapters = serde_json::json!([
        {"kind": "lora", "layers": [1], "r": 2, "targets": ["q", "v"]},
        {"kind": "encoder", "layers": [0], "mlp_ratio": 0.25},
    ]);
    assert_eq!(json["adapters"], adapters);
    assert_eq!(json["parameters"]["encoder adapter"], 42);
    assert_eq!(json["parameters"]["lora adapter"], 2 * 2 * D + 2 * D * 2);
    assert_eq!(json["parameters"]["head cls_decoder"], 2 * D + 2);
    assert_eq!(json["unknown_names"], serde_json::json!(["pooler.weight"]));
    let second = json["second_names"].as_array().unwrap();
    assert_eq!(second.len(), 2);
    assert!(succeed(&["inspect", show(&file)]).contains("variant: library"));
    let plain = files.save(&Model::backbone());
    let text = succeed(&["inspect", show(&plain)]);
    assert!(text.starts_with("tensor file"), "{text}");
}

#[test]
fn a_fully_trained_file_is_refused_and_kept_whole_on_request() {
    let files = Files::new();
    let changed = block(2, "linear1.weight");
    let model = Model::fine_tuned().changed(&changed, |_, x| x * 1.01);
    let file = files.save(&model);
    let output = files.path("whole");
    let mut command = from_scpeft(&file, &files.backbone, &output);
    let message = fail(&command, WEIGHTS, "is no adapter checkpoint: 1 tensors");
    assert!(
        message.contains(&changed) && message.contains("--full"),
        "{message}"
    );
    assert!(!output.exists());
    command.push("--full");
    let text = succeed(&command);
    assert!(
        text.contains("fingerprint") && !text.contains("note:"),
        "{text}"
    );
    let whole = ScgptDirectory::open(&output).unwrap();
    assert_eq!(whole.get(&changed).as_ref(), Some(model.get(&changed)));
    let backbone = ScgptDirectory::open(&files.backbone).unwrap();
    assert_eq!(whole.args(), backbone.args());
    assert_eq!(whole.vocabulary(), backbone.vocabulary());
    let adapted = files.save(&tuned());
    let output = files.path("adapted");
    let mut command = from_scpeft(&adapted, &files.backbone, &output);
    command.push("--full");
    let text = succeed(&command);
    assert!(text.contains("a backbone does not apply them"), "{text}");
}

#[test]
fn second_names_that_disagree_are_refused_by_both_commands() {
    let files = Files::new();
    let mut model = tuned();
    let usual = block(1, "self_attn.in_proj_bias");
    model.aliases.retain(|(name, _)| *name != usual);
    let file = files.save(&model.with(&usual, &[3 * D]).changed(&usual, |_, x| x + 0.5));
    fail(&["inspect", show(&file)], WEIGHTS, "both stand for");
    let output = files.path("out");
    let command = from_scpeft(&file, &files.backbone, &output);
    fail(&command, WEIGHTS, "both stand for");
    assert!(!output.exists());
}

/// Runs `inspect` and `convert` on a path; both must fail with the code for weights and this text.
fn refused(files: &Files, path: &Path, expected: &str) {
    fail(&["inspect", show(path)], WEIGHTS, expected);
    let output = files.path("never");
    fail(&["convert", show(path), show(&output)], WEIGHTS, expected);
    assert!(!output.exists());
}

#[test]
fn published_directories_that_do_not_fit_themselves_are_refused() {
    let files = Files::new();
    let name = block(1, "norm2.weight");
    let missing = Model::backbone()
        .without(&name)
        .publish(&files.path("missing"));
    refused(&files, &missing, "is incomplete");
    refused(&files, &missing, &name);
    let other = Model::backbone().without(&name).with(&name, &[D + 1]);
    let other = other.publish(&files.path("other"));
    refused(
        &files,
        &other,
        &format!("{name}: [8] in the model, [9] in the file"),
    );
    let vocabulary = Model::backbone().publish(&files.path("vocabulary"));
    let tokens = r#"{"G1": 0, "<pad>": 1, "<cls>": 2}"#;
    std::fs::write(vocabulary.join("vocab.json"), tokens).unwrap();
    refused(
        &files,
        &vocabulary,
        "`encoder.embedding.weight` is [5, 8], but vocab.json and args.json make it [3, 8]",
    );
    std::fs::write(vocabulary.join("vocab.json"), r#"{"G1": 0, "<pad>": 1}"#).unwrap();
    refused(&files, &vocabulary, "has no token `<cls>`");
    std::fs::write(vocabulary.join("args.json"), "{").unwrap();
    refused(&files, &vocabulary, "args.json");
}

#[test]
fn files_that_are_damaged_or_hostile_are_refused() {
    let files = Files::new();
    let file = files.path("model.pt");
    let model = tuned().torch();
    let whole = model.build();
    let long = [
        b"\x80\x02}X\x00\x20\x00\x00",
        &vec![b'n'; 0x2000][..],
        b"Ns.",
    ]
    .concat();
    let inside = [b"\x80\x02cbuiltins\neval\n", &b"."[..]].concat();
    for (bytes, expected) in [
        (whole[..whole.len() / 2].to_vec(), "is it truncated?"),
        (whole[..whole.len() - 1].to_vec(), "is it truncated?"),
        (b"no archive at all".to_vec(), "neither safetensors nor zip"),
        (Vec::new(), "it is empty"),
        (b"\x80\x02}.".to_vec(), "before PyTorch 1.6"),
        (
            model.build_with_pickle(&inside),
            "Python class `builtins.eval`",
        ),
        (
            model.build_with_pickle(&long),
            "a name is longer than 4096 bytes",
        ),
        (
            model.build_with_pickle(b"\x80\x02]."),
            "it holds a list, not a dict",
        ),
    ] {
        std::fs::write(&file, bytes).unwrap();
        refused(&files, &file, expected);
        let output = files.path("never");
        fail(
            &from_scpeft(&file, &files.backbone, &output),
            WEIGHTS,
            expected,
        );
        assert!(!output.exists());
    }
}

#[test]
fn a_fine_tuned_file_that_does_not_fit_its_backbone_is_refused() {
    let files = Files::new();
    let output = files.path("never");
    let name = block(1, "norm2.weight");
    let embedding = "encoder.embedding.weight";
    for (model, expected) in [
        (tuned().without(&name), name.clone()),
        (
            tuned().without(&name).with(&name, &[4]),
            format!("{name}: [8] in the model, [4] in the file"),
        ),
        (
            tuned().without(embedding),
            format!("holds no tensor `{embedding}`"),
        ),
        (
            tuned().without(embedding).with(embedding, &[9, D]),
            "its embedding has 9 rows, but vocab.json".to_owned(),
        ),
        (
            tuned().with(&block(3, "linear1.weight"), &[6, D]),
            "layers.3.linear1.weight` and 0 more are not in the backbone".to_owned(),
        ),
    ] {
        let file = files.save(&model);
        for full in [false, true] {
            let mut command = from_scpeft(&file, &files.backbone, &output);
            command.extend(full.then_some("--full"));
            fail(&command, WEIGHTS, &expected);
        }
        assert!(!output.exists());
    }
}
