//! `scpeft-train evaluate`: from a corpus of treated cells to a report, and back from its table of
//! predictions. The response is linear in the molecules' embeddings, so that the answer is known.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Output;

use arrow::array::{AsArray, BooleanArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_tests::responses::{Planted, write_parquet};
use scpeft_tests::train::{assert_refused, on_ranks, text};
use serde_json::Value;

/// The corpus and the table of molecules, without `forgotten`.
fn write(dir: &Path, forgotten: Option<usize>) -> (PathBuf, PathBuf) {
    let planted = Planted {
        forgotten,
        ..Planted::default()
    };
    planted.write(dir)
}

fn evaluate(dir: &Path, output: &str, more: &[&str]) -> Output {
    on_ranks(1)
        .arg("evaluate")
        .arg("--corpus")
        .arg(dir.join("corpus"))
        .args(["--perturbation", "product_name", "--context", "cell_type"])
        .arg("--output")
        .arg(dir.join(output))
        .args(more)
        .output()
        .unwrap()
}

fn report(dir: &Path, output: &str) -> Value {
    let text = std::fs::read_to_string(dir.join(output).join("report.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn score(report: &Value, model: &str, metric: &str) -> f64 {
    let models = report["models"].as_array().unwrap();
    let found = models.iter().find(|m| m["model"] == model);
    let found = found.unwrap_or_else(|| panic!("no `{model}` in the report"));
    found["metrics"][metric]["mean"].as_f64().unwrap()
}

#[test]
fn a_report_and_its_predictions_read_back_as_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let (_, molecules) = write(dir.path(), None);
    let molecules = molecules.to_str().unwrap();
    let common = ["--control", "DMSO", "--molecules", molecules, "--seed", "2"];
    let output = evaluate(dir.path(), "first", &common);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(
        said.contains("8 conditions held out (unseen_drug, seed 2), 30 in training"),
        "{said}"
    );
    let first = report(dir.path(), "first");
    let ridge = score(&first, "ridge_molecule_to_delta", "r2_delta_all");
    assert!(ridge > 0.9, "{ridge}");
    assert!(score(&first, "mean_delta", "r2_delta_all") < 0.5);
    let page = std::fs::read_to_string(dir.path().join("first/report.html")).unwrap();
    assert!(page.contains("split_half_ceiling") && !page.contains("http"));
    let split = std::fs::read_to_string(dir.path().join("first/split.json")).unwrap();
    let split: Value = serde_json::from_str(&split).unwrap();
    assert_eq!(split["conditions"].as_array().unwrap().len(), 38);

    // All rows at once hold a condition more than once; those of one baseline are a model.
    let table = dir.path().join("first/predictions.parquet");
    let file = File::open(&table).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap();
    let all = reader.into_iter().next().unwrap().unwrap();
    let models = all.column_by_name("model").unwrap().as_string::<i32>();
    let ridge_rows: BooleanArray = (0..all.num_rows())
        .map(|r| Some(models.value(r) == "ridge_molecule_to_delta"))
        .collect();
    let own = arrow::compute::filter_record_batch(&all, &ridge_rows).unwrap();
    assert_eq!(own.num_rows(), 8);
    let mine = dir.path().join("mine.parquet");
    write_parquet(&mine, &own);
    let mut again = common.to_vec();
    again.extend(["--predictions", mine.to_str().unwrap()]);
    let output = evaluate(dir.path(), "second", &again);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let second = report(dir.path(), "second");
    assert_eq!(second["models"][0]["role"], "model");
    assert_eq!(score(&second, "mine", "r2_delta_all"), ridge);
    again.pop();
    again.push(table.to_str().unwrap());
    let twice = evaluate(dir.path(), "third", &again);
    assert_refused(&twice, 3, &["predictions.parquet", "twice"]);
    assert!(!dir.path().join("third").exists());
}

#[test]
fn what_does_not_fit_is_refused_with_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_, molecules) = write(dir.path(), Some(7));
    let molecules = molecules.to_str().unwrap();
    let control = evaluate(dir.path(), "out", &["--control", "vehicle"]);
    assert_refused(
        &control,
        2,
        &[
            "`vehicle` is no category of obs column `product_name`",
            "`DMSO`",
        ],
    );
    let missing = evaluate(
        dir.path(),
        "out",
        &["--control", "DMSO", "--molecules", molecules],
    );
    assert_refused(&missing, 3, &["has no embedding of 1 molecules: `drug 07`"]);
    let more = [
        "--control",
        "DMSO",
        "--hold-out",
        "context",
        "--name",
        "MCF7",
    ];
    let context = evaluate(dir.path(), "out", &more);
    assert_refused(
        &context,
        2,
        &["context unknown: `MCF7`", "known are `A549`, `K562`"],
    );
    let chemcpa = evaluate(
        dir.path(),
        "out",
        &["--control", "DMSO", "--hold-out", "chemcpa"],
    );
    assert_refused(&chemcpa, 2, &["drugs to hold out unknown: `Dacinostat`"]);
    std::fs::create_dir(dir.path().join("out")).unwrap();
    std::fs::write(dir.path().join("out/other"), "mine").unwrap();
    let occupied = evaluate(dir.path(), "out", &["--control", "DMSO", "--overwrite"]);
    assert_refused(&occupied, 2, &["holds no evaluation"]);
    assert!(dir.path().join("out/other").exists());
}
