//! `scpeft-checkpoint` on the published form of a backbone, on adapters, run checkpoints and
//! damaged files: what it prints, what it writes, and its exit codes.
//!
//! The published directory is the reference's own `torch.save` output with the values that a load
//! must give; sizes are taken from the fixture, so that another one of the same name works too.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary};
use scpeft_checkpoint::{
    AdapterConfig, CheckpointStore, Error, HostTensor, LoadReport, ScgptDirectory, TensorFile,
    write_adapter,
};
use scpeft_tests::{case, fixture};
use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn fail(arguments: &[&str], code: i32, expected: &str) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(
        error.contains(expected),
        "expected `{expected}`, got `{error}`"
    );
}

fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn published() -> PathBuf {
    fixture("scgpt", "checkpoint_flash")
}

fn names(case: &Value, key: &str) -> Vec<String> {
    let list = case[key]
        .as_array()
        .unwrap_or_else(|| panic!("case.json has no list `{key}`"));
    let mut names: Vec<String> = list
        .iter()
        .map(|n| n.as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
fn the_published_file_loads_what_the_reference_loads_with_its_values() {
    let dir = published();
    let case = case(&dir);
    let backbone = ScgptDirectory::open(&dir).unwrap();
    let model = TensorFile::open(&dir.join("weights_after_load.safetensors")).unwrap();
    let in_model: Vec<_> = model
        .names()
        .map(|n| (n, model.info(n).unwrap().1))
        .collect();
    let report = LoadReport::compare(in_model, backbone.shapes());
    assert_eq!(
        sorted(report.loaded.clone()),
        names(&case, "keys_taken_from_checkpoint")
    );
    let mut kept = report.missing.clone();
    kept.extend(report.mismatched.iter().map(|m| m.name.clone()));
    assert_eq!(sorted(kept), names(&case, "keys_kept"));
    let mut ignored = report.extra.clone();
    ignored.extend(report.mismatched.iter().map(|m| m.name.clone()));
    assert_eq!(sorted(ignored), names(&case, "checkpoint_keys_ignored"));
    for name in &report.loaded {
        assert_eq!(
            backbone.get(name).unwrap(),
            model.get(name).unwrap(),
            "{name}"
        );
    }
    let config = &case["config"];
    assert_eq!(
        backbone.vocabulary().len() as u64,
        config["ntoken"].as_u64().unwrap()
    );
    assert_eq!(
        backbone.args().embsize as u64,
        config["d_model"].as_u64().unwrap()
    );
    let id = |token| backbone.vocabulary().id(token).map(|id| id as u64);
    assert_eq!(id("<pad>"), config["pad_id"].as_u64());
    assert_eq!(id("<cls>"), config["cls_id"].as_u64());
    let backbone_only =
        |name: &str| name.starts_with("transformer_encoder.") && !name.contains("adapter");
    report.require_complete("backbone", backbone_only).unwrap();
    let error = report
        .require_complete("head", |n| n.starts_with("cls_decoder.out"))
        .unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }));
}

#[test]
fn every_published_tensor_can_be_used_in_place() {
    let backbone = ScgptDirectory::open(&published()).unwrap();
    for (name, tensor) in backbone.tensors() {
        let mapped = backbone.mapped(name).unwrap().in_place();
        let mapped = mapped.unwrap_or_else(|| panic!("`{name}` needs a copy"));
        assert_eq!(mapped.as_host(), tensor, "{name}");
        assert_eq!(mapped.bytes().as_ptr(), tensor.data.as_ptr(), "{name}");
        // torch.save puts storages at multiples of 64 bytes.
        assert!(mapped.alignment() >= 64, "{name}: {}", mapped.alignment());
    }
    assert!(backbone.mapped("no such tensor").is_none());
}

#[test]
fn inspect_lists_every_tensor_as_a_table_and_as_json() {
    let dir = published();
    let backbone = ScgptDirectory::open(&dir).unwrap();
    let table = succeed(&["inspect", show(&dir)]);
    assert!(table.contains(&backbone.fingerprint()), "{table}");
    assert!(
        table.contains("transformer_encoder.layers.0.self_attn.in_proj_weight"),
        "{table}"
    );
    let json: Value = serde_json::from_str(&succeed(&["inspect", "--json", show(&dir)])).unwrap();
    assert_eq!(json["kind"], "scGPT backbone");
    assert_eq!(
        json["tensors"].as_array().unwrap().len(),
        backbone.tensors().count()
    );
    let elements: usize = backbone.tensors().map(|(_, tensor)| tensor.len()).sum();
    assert_eq!(json["elements"], elements);
    let file = succeed(&["inspect", show(&dir.join("best_model.pt"))]);
    assert!(
        file.contains("torch.save zip") && file.contains("self_attn.Wqkv.weight"),
        "{file}"
    );
    assert!(succeed(&["verify", show(&dir)]).contains("ok"));
    assert!(succeed(&["inspect", "--help"]).contains("85  preempted"));
}

#[test]
fn convert_keeps_every_value_and_refuses_to_overwrite() {
    let dir = published();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("weights.safetensors");
    let pickled = dir.join("best_model.pt");
    succeed(&["convert", show(&pickled), show(&file)]);
    let (before, after) = (
        TensorFile::open(&pickled).unwrap(),
        TensorFile::open(&file).unwrap(),
    );
    assert_eq!(before.names().count(), after.names().count());
    for (name, tensor) in before.tensors() {
        assert_eq!(after.get(name).unwrap(), tensor, "{name}");
    }
    let ours = scratch.path().join("backbone");
    succeed(&["convert", show(&dir), show(&ours)]);
    let (before, after) = (
        ScgptDirectory::open(&dir).unwrap(),
        ScgptDirectory::open(&ours).unwrap(),
    );
    assert_eq!(before.fingerprint(), after.fingerprint());
    assert_eq!(
        (before.args(), before.vocabulary()),
        (after.args(), after.vocabulary())
    );
    fail(&["convert", show(&dir), show(&ours)], 2, "exists already");
    fail(
        &["convert", show(&pickled), show(&file)],
        2,
        "exists already",
    );
}

#[test]
fn damaged_and_hostile_files_are_refused_with_the_code_for_weights() {
    let dir = published();
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("best_model.pt");
    let output = scratch.path().join("out.safetensors");
    let whole = std::fs::read(dir.join("best_model.pt")).unwrap();
    for len in [1, 4, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&copy, &whole[..len]).unwrap();
        for command in ["inspect", "verify"] {
            fail(&[command, show(&copy)], 4, "best_model.pt");
        }
    }
    let mut flipped = whole.clone();
    let backbone = TensorFile::open(&dir.join("best_model.pt")).unwrap();
    let bytes = backbone
        .get("encoder.embedding.weight")
        .unwrap()
        .data
        .into_owned();
    let at = whole
        .windows(bytes.len())
        .position(|window| window == bytes)
        .unwrap();
    flipped[at] ^= 1;
    std::fs::write(&copy, &flipped).unwrap();
    fail(&["verify", show(&copy)], 4, "is damaged");
    fail(&["convert", show(&copy), show(&output)], 4, "is damaged");
    assert!(!output.exists());
    // The class name is changed in place, so that archive and pickle stay well-formed; only the
    // checksum does not fit, and reading the pickle comes first.
    let known = b"ctorch._utils\n_rebuild_tensor_v2\n";
    let hostile = b"cos\nsystem\nccollections\nOrderedDict\n";
    let at = whole
        .windows(known.len())
        .position(|window| window == known)
        .unwrap();
    let mut changed = whole;
    changed[at..at + known.len()].copy_from_slice(&hostile[..known.len()]);
    std::fs::write(&copy, &changed).unwrap();
    fail(&["inspect", show(&copy)], 4, "Python class `os.system`");
    fail(
        &["inspect", show(&scratch.path().join("none"))],
        2,
        "does not exist",
    );
    fail(&["inspect"], 2, "Usage");
}

#[test]
fn a_backbone_with_other_shapes_than_its_arguments_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["best_model.pt", "vocab.json"] {
        std::fs::copy(published().join(name), scratch.path().join(name)).unwrap();
    }
    let args = std::fs::read(published().join("args.json")).unwrap();
    let mut args: Value = serde_json::from_slice(&args).unwrap();
    args["embsize"] = (2 * args["embsize"].as_u64().unwrap()).into();
    std::fs::write(scratch.path().join("args.json"), args.to_string()).unwrap();
    fail(
        &["inspect", show(scratch.path())],
        4,
        "`encoder.embedding.weight` is [",
    );
    std::fs::remove_file(scratch.path().join("vocab.json")).unwrap();
    fail(&["verify", show(scratch.path())], 4, "has no vocab.json");
}

/// A run directory with one checkpoint of these tensors.
fn run_with(dir: &Path, tensors: &[(String, HostTensor<'_>)]) -> PathBuf {
    let backbone = dir.join("backbone");
    std::fs::create_dir_all(&backbone).unwrap();
    for name in ["args.json", "vocab.json"] {
        std::fs::copy(published().join(name), backbone.join(name)).unwrap();
    }
    let store = CheckpointStore::new(dir);
    let fill = |prepared: &Path| {
        write_adapter(
            &prepared.join("adapter"),
            &AdapterConfig::default(),
            tensors,
        )
    };
    store.save(400, None, fill).unwrap().path
}

#[test]
fn a_fully_trained_run_exports_as_a_backbone() {
    let scratch = tempfile::tempdir().unwrap();
    let backbone = ScgptDirectory::open(&published()).unwrap();
    let tensors: Vec<_> = backbone.tensors().map(|(n, t)| (n.to_owned(), t)).collect();
    let run_dir = scratch.path().join("run");
    let checkpoint = run_with(&run_dir, &tensors);
    for (flag, source) in [("--run", &run_dir), ("--checkpoint", &checkpoint)] {
        let output = scratch.path().join(format!("exported{flag}"));
        succeed(&["export", flag, show(source), "--output", show(&output)]);
        let exported = ScgptDirectory::open(&output).unwrap();
        assert_eq!(exported.fingerprint(), backbone.fingerprint());
        assert_eq!(
            exported.args(),
            &ScgptArgs::read(&published().join("args.json")).unwrap()
        );
        let vocabulary = Vocabulary::read(&published().join("vocab.json")).unwrap();
        assert_eq!(exported.vocabulary(), &vocabulary);
    }
    let json = succeed(&["inspect", "--json", show(&checkpoint)]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["step"], &json["verified"]),
        (&400.into(), &true.into())
    );
    assert!(succeed(&["verify", show(&run_dir)]).contains("ok, step 400"));
    std::fs::write(checkpoint.join("adapter/adapter_config.json"), "{}").unwrap();
    fail(
        &["verify", show(&checkpoint)],
        4,
        "adapter/adapter_config.json",
    );
    let output = scratch.path().join("never");
    fail(
        &["export", "--run", show(&run_dir), "--output", show(&output)],
        4,
        "checkpoint",
    );
    assert!(!output.exists());
}

#[test]
fn a_run_that_trained_adapters_only_cannot_be_exported() {
    let scratch = tempfile::tempdir().unwrap();
    let tensors = [(
        "cls_decoder.out_layer.bias".to_owned(),
        HostTensor::from_f32(vec![1], &[0.0]),
    )];
    run_with(scratch.path(), &tensors);
    let output = scratch.path().join("out");
    fail(
        &[
            "export",
            "--run",
            show(scratch.path()),
            "--output",
            show(&output),
        ],
        4,
        "only a run with `task.trainable = \"all\"` stores a whole backbone",
    );
    assert!(!output.exists());
}
