//! `scpeft-train` as a user meets it: what it writes, what it refuses, and how it says so.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Output;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, Int32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_tests::corpus::{Plan, TYPES};
use scpeft_tests::train::{Lab, adapter_bytes, assert_refused, metrics, on_ranks, text};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(
        &std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
    )
    .unwrap()
}

fn refused(lab: &Lab, arguments: &[&str], code: i32, words: &[&str]) {
    let output = lab.command(1, arguments).output().unwrap();
    assert_refused(&output, code, words);
    assert!(
        !lab.path("run/checkpoints").exists(),
        "nothing is left behind"
    );
}

fn predict(run: &Path, output: &Path, arguments: &[&str]) -> Output {
    on_ranks(1)
        .arg("predict")
        .arg("--run")
        .arg(run)
        .arg("--output")
        .arg(output)
        .args(arguments)
        .output()
        .unwrap()
}

/// The small corpus is separable: ten epochs of LoRA and a head find the types of unseen cells.
#[test]
fn a_run_learns_and_leaves_everything_it_should() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(
        1,
        "run",
        &["--set", "train.epochs=25", "--set", "train.select=macro_f1"],
    );
    let record = json(&run.join("run.json"));
    assert_eq!(record["status"], "done");
    // 2 blocks x (lora_A 8 x 16 + lora_B 32 x 4 + qkv bias 48) + head 2 x (16 x 16 + 16 + 2 x 16) + 16 x 3 + 3.
    assert_eq!(
        record["trainable_parameters"],
        2 * (128 + 128 + 48) + 2 * (256 + 16 + 32) + 51
    );
    assert_eq!(record["model"]["classes"], serde_json::json!(TYPES));
    assert_eq!(record["data"]["train_cells"], 72);
    assert!(record["peak_rss_bytes_per_rank"][0].as_u64().unwrap() > 50_000_000);
    for file in [
        "config.toml",
        "metrics.jsonl",
        "LATEST",
        "BEST",
        "backbone/args.json",
        "backbone/vocab.json",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let last = metrics(&run)
        .into_iter()
        .rfind(|r| r["kind"] == "eval")
        .unwrap();
    assert_eq!(
        (&last["split"], &last["step"]),
        (&"valid".into(), &150.into())
    );

    let output = lab.path("predicted");
    let done = predict(&run, &output, &[]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let scores = json(&output.join("metrics.json"));
    assert_eq!(scores["cells"], 24);
    assert!(scores["accuracy"].as_f64().unwrap() >= 0.9, "{scores}");
    check_predictions(&output, &scores);
    let picture = std::fs::read_to_string(output.join("confusion_matrix.svg")).unwrap();
    for label in TYPES.iter().chain(&["true type", "predicted type"]) {
        assert!(picture.contains(label), "{label}");
    }
}

/// The table agrees with the scores, and its columns are what readers expect.
fn check_predictions(output: &Path, scores: &Value) {
    let file = std::fs::File::open(output.join("predictions.parquet")).unwrap();
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let (mut rows, mut right) = (0, 0);
    for batch in &batches {
        let names = |column: &str| -> Vec<String> {
            let dictionary = batch
                .column_by_name(column)
                .unwrap()
                .as_dictionary::<Int32Type>();
            let values = dictionary.values().as_string::<i32>();
            dictionary
                .keys()
                .iter()
                .map(|k| values.value(k.unwrap() as usize).to_owned())
                .collect()
        };
        let (predicted, truth) = (names("predicted_type"), names("true_type"));
        let ids = batch.column_by_name("cell_id").unwrap().as_string::<i32>();
        let indices = batch
            .column_by_name("cell_index")
            .unwrap()
            .as_primitive::<UInt64Type>();
        let embedding = batch
            .column_by_name("embedding")
            .unwrap()
            .as_fixed_size_list();
        assert_eq!(embedding.value_length(), 16);
        for row in 0..batch.num_rows() {
            let cell = indices.value(row) as usize;
            assert_eq!(ids.value(row), format!("cell-{cell}"));
            assert_eq!(truth[row], TYPES[cell % 3]);
            let probabilities: Vec<f32> = TYPES
                .iter()
                .map(|t| {
                    let column = batch.column_by_name(&format!("probability:{t}")).unwrap();
                    column.as_primitive::<Float32Type>().value(row)
                })
                .collect();
            assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let best = (0..3)
                .max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]))
                .unwrap();
            assert_eq!(predicted[row], TYPES[best]);
            right += usize::from(predicted[row] == truth[row]);
            rows += 1;
        }
    }
    assert_eq!(rows, 24);
    assert!((scores["accuracy"].as_f64().unwrap() - right as f64 / 24.0).abs() < 1e-12);
}

/// Pretrain, export, and train an adapter on the exported directory: the frozen backbone is loaded,
/// reported, and the same predictions come back from the stored adapter.
#[test]
fn an_exported_backbone_carries_an_adapter() {
    let lab = Lab::new(&Plan::default());
    let pretrained = lab.train(
        1,
        "pretrained",
        &[
            "--set",
            "task.kind=masked-expression",
            "--set",
            "task.trainable=all",
            "--set",
            "adapter.kind=none",
            "--set",
            "data.mask_ratio=0.4",
            "--set",
            "train.epochs=2",
        ],
    );
    let backbone = lab.path("backbone");
    let export = std::process::Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .arg("export")
        .arg("--run")
        .arg(&pretrained)
        .arg("--output")
        .arg(&backbone)
        .output()
        .unwrap();
    assert!(export.status.success(), "{}", text(&export.stderr));
    lab.use_backbone(&backbone);
    let output = lab
        .command(1, &["--set", "train.epochs=1"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("loaded") && said.contains("cls_decoder.out_layer.weight"),
        "{said}"
    );
    let run = lab.path("run");
    let adapter = adapter_bytes(&run);
    assert!(
        adapter.len() < 20_000,
        "the adapter file holds adapters and heads only: {} bytes",
        adapter.len()
    );

    // A backbone that changed under the adapter is refused.
    let weights = backbone.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let refused = predict(&run, &lab.path("predicted"), &[]);
    assert_refused(&refused, 4, &["fingerprint", "help:"]);
    assert!(!lab.path("predicted").exists());
}

#[test]
fn configuration_mistakes_are_reported_together_with_the_nearest_name() {
    let lab = Lab::new(&Plan::default());
    refused(
        &lab,
        &["--set", "adapter.rnak=4", "--set", "train.lr=-1"],
        2,
        &["rnak", "train.lr"],
    );
    let output = lab
        .command(1, &["--set", "train.clip_nrom=4"])
        .output()
        .unwrap();
    assert_refused(&output, 2, &["clip_nrom", "clip_norm"]);
}

#[test]
fn data_that_does_not_fit_is_refused_with_the_remedy() {
    let lab = Lab::new(&Plan::default());
    refused(
        &lab,
        &["--set", "data.corpus=/nowhere/corpus"],
        3,
        &["/nowhere/corpus"],
    );
    refused(
        &lab,
        &["--set", "data.label=cell_typ"],
        3,
        &["cell_typ", "cell_type", "split"],
    );
    refused(
        &lab,
        &["--set", "data.train=trian"],
        3,
        &["trian", "train", "help:"],
    );
    let vocab = lab.path("vocab.json");
    std::fs::write(&vocab, r#"{"<pad>": 0, "<cls>": 1, "MS4A1": 2}"#).unwrap();
    let set = format!("backbone.vocab={}", vocab.display());
    refused(&lab, &["--set", &set], 3, &["GENE0", "MS4A1", "help:"]);
}

#[test]
fn a_type_unseen_in_training_is_refused_in_validation_and_in_prediction() {
    let unseen = Plan {
        split: |cell, kind| {
            if kind == 2 {
                "valid"
            } else if cell % 2 == 0 {
                "train"
            } else {
                "test"
            }
        },
        ..Plan::default()
    };
    let lab = Lab::new(&unseen);
    refused(
        &lab,
        &[],
        3,
        &["unseen in training", "`T cell` (40 cells)", "help:"],
    );

    let tested = Plan {
        split: |cell, kind| {
            if kind == 2 {
                "test"
            } else if cell % 4 == 0 {
                "valid"
            } else {
                "train"
            }
        },
        ..Plan::default()
    };
    let lab = Lab::new(&tested);
    let run = lab.train(1, "run", &["--set", "train.epochs=1"]);
    let output = lab.path("predicted");
    assert_refused(
        &predict(&run, &output, &[]),
        3,
        &["`T cell` (40 cells)", "--no-labels"],
    );
    assert!(!output.exists());
    let unlabelled = predict(&run, &output, &["--no-labels"]);
    assert!(unlabelled.status.success(), "{}", text(&unlabelled.stderr));
    assert!(output.join("predictions.parquet").is_file() && !output.join("metrics.json").exists());
}

#[test]
fn a_backbone_that_lacks_a_tensor_is_refused_by_name() {
    let lab = Lab::new(&Plan::default());
    let dir = lab.path("backbone");
    std::fs::create_dir(&dir).unwrap();
    let fixture = scpeft_tests::fixture("scgpt", "checkpoint_flash");
    for file in ["args.json", "vocab.json", "best_model.pt"] {
        std::fs::copy(fixture.join(file), dir.join(file)).unwrap();
    }
    let args = std::fs::read_to_string(dir.join("args.json")).unwrap();
    let layers = json(&dir.join("args.json"))["nlayers"].as_u64().unwrap();
    let more = args.replace(
        &format!("\"nlayers\": {layers}"),
        &format!("\"nlayers\": {}", layers + 1),
    );
    std::fs::write(dir.join("args.json"), more).unwrap();
    lab.use_backbone(&dir);
    refused(
        &lab,
        &[],
        4,
        &[&format!("transformer_encoder.layers.{layers}."), "missing"],
    );
}

/// Every rank serves what it did; `promtool` finds nothing to complain about.
#[test]
fn a_rank_serves_prometheus_metrics_while_it_trains() {
    use std::io::{Read, Write};
    let lab = Lab::new(&Plan::default());
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let set = format!("metrics.port={port}");
    let mut child = lab
        .command(1, &["--set", &set, "--set", "train.epochs=100000"])
        .spawn()
        .unwrap();
    let scrape = || -> Option<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(
            head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"),
            "{head}"
        );
        Some(body.to_owned())
    };
    let value = |body: &str, name: &str| -> f64 {
        let line = body
            .lines()
            .find(|l| l.split(' ').next() == Some(name))
            .unwrap_or_else(|| panic!("{name}: {body}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let mut body = String::new();
    scpeft_tests::train::wait_until("an evaluation was exported", || {
        body = scrape().unwrap_or_default();
        body.contains("scpeft_eval_metric{name=\"macro_f1\"}")
    });
    assert!(value(&body, "scpeft_step") >= 6.0);
    assert_eq!(
        value(&body, "scpeft_cells_total") % 72.0,
        value(&body, "scpeft_step") % 6.0 * 12.0
    );
    assert_eq!(value(&body, "scpeft_world_size"), 1.0);
    assert!(value(&body, "scpeft_learning_rate") > 0.0);
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool; `make setup-test` installs it");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(body.as_bytes())
        .unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    assert!(
        verdict.status.success(),
        "{}{}",
        text(&verdict.stdout),
        text(&verdict.stderr)
    );
    scpeft_tests::train::signal(child.id(), "TERM");
    assert_eq!(scpeft_tests::train::wait(&mut child).code(), Some(85));
}

/// What would be lost or silently wrong is refused: folders of others, settings that were trained,
/// batches that do not exist.
#[test]
fn nothing_of_the_user_is_overwritten_and_nothing_trained_is_overridden() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=1"]);
    let mine = lab.path("mine");
    std::fs::create_dir(&mine).unwrap();
    std::fs::write(mine.join("notes.txt"), "mine").unwrap();
    let replaced = predict(&run, &mine, &["--overwrite"]);
    assert_refused(&replaced, 2, &["holds no `predictions.parquet`"]);
    assert_eq!(
        std::fs::read_to_string(mine.join("notes.txt")).unwrap(),
        "mine"
    );
    let overridden = predict(
        &run,
        &lab.path("p"),
        &["--set", "adapter.lora_alpha=99", "--set", "run.threads=1"],
    );
    assert_refused(&overridden, 2, &["adapter.lora_alpha", "help:"]);

    let foreign = lab.path("project");
    std::fs::create_dir_all(foreign.join("checkpoints/src")).unwrap();
    std::fs::write(foreign.join("checkpoints/src/lib.rs"), "mine").unwrap();
    lab.train(1, "project", &["--set", "train.epochs=1", "--overwrite"]);
    assert!(foreign.join("checkpoints/src/lib.rs").is_file());

    let set = format!("run.dir={}", lab.path("none").display());
    let empty = lab
        .command(
            1,
            &[
                "--set",
                &set,
                "--set",
                "train.drop_last=true",
                "--set",
                "train.batch_cells=120",
            ],
        )
        .output()
        .unwrap();
    assert_refused(&empty, 2, &["72 training cells", "help:"]);
    assert!(!lab.path("none").exists(), "a refused run leaves no folder");
}

/// A mistake in the new configuration costs nothing of the earlier run.
#[test]
fn a_refused_overwrite_keeps_the_earlier_run() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=1"]);
    let before = adapter_bytes(&run);
    let output = lab
        .command(1, &["--overwrite", "--set", "data.corpus=/nowhere"])
        .output()
        .unwrap();
    assert_refused(&output, 3, &["/nowhere"]);
    assert_eq!(adapter_bytes(&run), before);
}

/// Steps that cannot update anything are skipped, counted and said; too many of the bad kind end
/// the run.
#[test]
fn steps_without_a_usable_gradient_are_skipped_aloud() {
    let lab = Lab::new(&Plan::default());
    let diverged = lab
        .command(1, &["--set", "train.lr=1e38", "--set", "train.clip_norm=0"])
        .output()
        .unwrap();
    assert_refused(&diverged, 86, &["not finite", "help:"]);
    let set = format!("run.dir={}", lab.path("sparse").display());
    let sparse = lab
        .command(
            1,
            &[
                "--set",
                &set,
                "--set",
                "task.kind=masked-expression",
                "--set",
                "task.trainable=all",
                "--set",
                "adapter.kind=none",
                "--set",
                "data.mask_ratio=0.06",
                "--set",
                "train.batch_cells=3",
                "--set",
                "train.epochs=1",
            ],
        )
        .output()
        .unwrap();
    let said = text(&sparse.stderr);
    assert!(sparse.status.success(), "{said}");
    assert!(
        said.contains("no update") && said.contains("data.mask_ratio"),
        "{said}"
    );
}
