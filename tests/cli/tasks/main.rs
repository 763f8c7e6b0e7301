//! Tasks as a user goes through them: embedding, and what comes after training.

#![allow(clippy::unwrap_used)]

mod embed;
mod markers;
mod presets;
mod report;
mod species;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_tests::train::{Lab, on_ranks, set};

/// Pretrains a backbone on the cells of the lab and exports it as a published one.
fn pretrain(lab: &Lab) -> std::path::PathBuf {
    let settings = [
        "task.kind=masked-expression",
        "task.trainable=all",
        "adapter.kind=none",
        "data.mask_ratio=0.4",
        "train.epochs=1",
    ];
    let pretrained = lab.train(1, "pretrained", &set(&settings));
    let backbone = lab.path("backbone");
    let export = std::process::Command::new(scpeft_tests::binary("scpeft-checkpoint"))
        .arg("export")
        .arg("--run")
        .arg(&pretrained)
        .arg("--output")
        .arg(&backbone)
        .status()
        .unwrap();
    assert!(export.success());
    backbone
}

/// Runs a command of `scpeft-train`, which must succeed.
fn succeed(ranks: usize, arguments: &[&str]) -> String {
    let output = on_ranks(ranks).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said + &String::from_utf8(output.stdout).unwrap()
}

/// The vectors of a table, by number of the cell.
fn vectors(path: &Path, column: &str) -> BTreeMap<u64, Vec<f32>> {
    let file = File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let mut found = BTreeMap::new();
    for batch in reader.build().unwrap().map(Result::unwrap) {
        let cells = batch.column_by_name("cell_index").unwrap();
        let cells = cells.as_primitive::<UInt64Type>();
        let lists = batch.column_by_name(column).unwrap().as_fixed_size_list();
        for row in 0..batch.num_rows() {
            let vector = lists.value(row);
            let vector = vector.as_primitive::<Float32Type>().values().to_vec();
            assert!(found.insert(cells.value(row), vector).is_none());
        }
    }
    found
}

/// The largest difference of a number.
fn distance(a: &BTreeMap<u64, Vec<f32>>, b: &BTreeMap<u64, Vec<f32>>) -> f32 {
    assert!(a.keys().eq(b.keys()), "the same cells");
    let pairs = a.values().flatten().zip(b.values().flatten());
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
