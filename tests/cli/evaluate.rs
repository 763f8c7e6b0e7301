//! `scpeft-train evaluate`: from a corpus of treated cells to a report, and back from its table of
//! predictions. The response is linear in the molecules' embeddings, so that the answer is known.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, DictionaryArray, Int32Array, ListArray, RecordBatch,
    StringArray,
};
use arrow::datatypes::{Float64Type, Int32Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_data::corpus::{
    CellBatch, CellValues, CorpusWriter, ObsColumn, ObsKind, Provenance, WriterOptions,
    obs_array_type,
};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{GeneTable, ValueKind};
use scpeft_tests::train::{assert_refused, on_ranks, text};
use serde_json::Value;

const GENES: usize = 40;
const FEATURES: usize = 3;
const DRUGS: usize = 20;
const LINES: [&str; 2] = ["A549", "K562"];
/// Cells of a drug, or of control, in a line.
const CELLS: usize = 12;

/// Uniform in -1 to 1.
fn noise(item: usize) -> f64 {
    2.0 * Rng::new(3, Purpose::Synthesis, 0, item as u64).uniform() - 1.0
}

fn features(drug: usize) -> Vec<f64> {
    (0..FEATURES).map(|f| noise(drug * FEATURES + f)).collect()
}

/// Drug 0 is the vehicle.
fn name(drug: usize) -> String {
    match drug {
        0 => "DMSO".into(),
        drug => format!("drug {drug:02}"),
    }
}

fn expression(drug: usize, line: usize, gene: usize, cell: usize) -> f64 {
    let base = 3.0 + noise(1_000 + line * GENES + gene);
    let weights = (0..FEATURES).map(|f| noise(2_000 + gene * FEATURES + f));
    let change: f64 = features(drug).iter().zip(weights).map(|(x, w)| x * w).sum();
    let change = if drug == 0 { 0.0 } else { 0.5 * change };
    base + change + 0.1 * noise(10_000 + cell * GENES + gene)
}

fn category(codes: Vec<i32>, names: &[String]) -> ArrayRef {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let names = Arc::new(StringArray::from(names));
    Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(codes), names).unwrap())
}

/// The corpus and the table of molecules, without `forgotten`.
fn write(dir: &Path, forgotten: Option<usize>) -> (PathBuf, PathBuf) {
    let path = dir.join("corpus");
    let names: Vec<String> = (0..DRUGS).map(name).collect();
    let lines: Vec<String> = LINES.map(String::from).into();
    let column = |name: &str, categories: &[String]| {
        let column = ObsColumn::new(name, ObsKind::Category, categories.to_vec());
        (column, obs_array_type(ObsKind::Category, false))
    };
    let genes = GeneTable {
        symbols: (0..GENES).map(|g| format!("GENE{g}")).collect(),
        ensembl: vec![None; GENES],
    };
    let obs = vec![column("product_name", &names), column("cell_type", &lines)];
    let options = WriterOptions {
        row_group_cells: 100,
        ..WriterOptions::default()
    };
    let mut writer = CorpusWriter::create(&path, options, ValueKind::Lognorm, &genes, obs).unwrap();
    let cells = DRUGS * LINES.len() * CELLS;
    // Cells of a condition lie apart, as they do in a corpus that was shuffled.
    let label = |cell: usize| (cell % DRUGS, cell / DRUGS % LINES.len());
    let values = (0..cells).flat_map(|cell| {
        let (drug, line) = label(cell);
        (0..GENES).map(move |gene| expression(drug, line, gene, cell) as f32)
    });
    let batch = CellBatch {
        cell_ids: (0..cells).map(|c| format!("cell-{c}")).collect(),
        offsets: (0..=cells).map(|c| (c * GENES) as i32).collect(),
        genes: (0..cells).flat_map(|_| 0..GENES as u32).collect(),
        values: CellValues::Lognorm(values.collect()),
        obs: vec![
            category((0..cells).map(|c| label(c).0 as i32).collect(), &names),
            category((0..cells).map(|c| label(c).1 as i32).collect(), &lines),
        ],
    };
    writer.write(&batch).unwrap();
    let provenance = Provenance {
        tool: "scpeft-tests".to_owned(),
        tool_version: String::new(),
        sources: Vec::new(),
        options: indexmap::IndexMap::default(),
    };
    writer.finish(None, None, provenance).unwrap();
    let molecules = dir.join("molecules.parquet");
    let known: Vec<usize> = (0..DRUGS).filter(|d| Some(*d) != forgotten).collect();
    let lists = known
        .iter()
        .map(|&d| Some(features(d).into_iter().map(Some).collect::<Vec<_>>()));
    let embedding: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists));
    let keys: ArrayRef = Arc::new(
        known
            .iter()
            .map(|&d| Some(name(d)))
            .collect::<StringArray>(),
    );
    let batch = RecordBatch::try_from_iter([("name", keys), ("embedding", embedding)]).unwrap();
    write_parquet(&molecules, &batch);
    (path, molecules)
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
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
