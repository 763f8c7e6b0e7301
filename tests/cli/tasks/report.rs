//! `scpeft-train report`: one page and its files, for one run and for several.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use scpeft_tests::corpus::{Plan, TYPES};
use scpeft_tests::train::{Lab, assert_refused, on_ranks};

use crate::succeed;

/// Cells of the lab in a plane.
fn write_plane(path: &std::path::Path, cells: u64) {
    let at: Vec<f32> = (0..cells)
        .flat_map(|c| [(c % 11) as f32, (c % 7) as f32])
        .collect();
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let plane = FixedSizeListArray::new(item, 2, Arc::new(Float32Array::from(at)), None);
    let index: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..cells));
    let columns = [("cell_index", index), ("umap", Arc::new(plane) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_page_holds_all_of_a_run_and_needs_nothing_else() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    let run = run.to_str().unwrap();
    let at = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let predicted = at("predicted");
    succeed(
        1,
        &[
            "predict", "--run", run, "--split", "all", "--output", &predicted,
        ],
    );
    let plane = lab.path("plane.parquet");
    write_plane(&plane, 120);
    let output = at("report");
    let cells = plane.to_str().unwrap();
    let arguments = ["report", run, "--predictions", &predicted, "--cells", cells];
    succeed(
        1,
        &[
            &arguments[..],
            &[
                "--color-by",
                "cell_type",
                "--color-by",
                "donor",
                "--output",
                &output,
            ],
        ]
        .concat(),
    );
    let page = std::fs::read_to_string(lab.path("report/report.html")).unwrap();
    let heading = |text: &str| assert!(page.contains(text), "`{text}` is not on the page");
    heading("<h1>Run run</h1>");
    for text in [
        "trainable parameters",
        "balanced accuracy",
        "most frequent type",
        "Settings",
        "batch_cells = 12",
    ] {
        heading(text);
    }
    for title in [
        "UMAP by cell type",
        "UMAP by donor",
        "UMAP by predicted type",
        "Share of each true type",
    ] {
        heading(&format!("<title>{title}"));
    }
    // Nothing is fetched from anywhere.
    let without = page.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !without.contains("http") && !without.contains("<script") && !without.contains("@import")
    );
    for stem in [
        "curve-loss",
        "curve-macro_f1",
        "confusion",
        "umap-1",
        "umap-3",
    ] {
        let svg = std::fs::read_to_string(lab.path(&format!("report/figures/{stem}.svg"))).unwrap();
        assert!(svg.ends_with("</svg>\n"), "{stem}");
        let png = std::fs::read(lab.path(&format!("report/figures/{stem}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"), "{stem}");
    }
    let scores = std::fs::read_to_string(lab.path("report/tables/scores.csv")).unwrap();
    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.path("predicted/metrics.json")).unwrap())
            .unwrap();
    let accuracy = scores.lines().find(|l| l.starts_with("accuracy,")).unwrap();
    let fields: Vec<&str> = accuracy.split(',').collect();
    let number = |text: &str| text.parse::<f64>().unwrap();
    assert!((number(fields[1]) - metrics["accuracy"].as_f64().unwrap()).abs() < 1e-12);
    assert!((number(fields[2]) - metrics["majority_accuracy"].as_f64().unwrap()).abs() < 1e-12);
    let types = std::fs::read_to_string(lab.path("report/tables/types.csv")).unwrap();
    assert_eq!(types.lines().count(), 1 + TYPES.len());

    // Several runs stand side by side.
    let second = lab.train(1, "second", &["--set", "train.epochs=1"]);
    let both = at("both");
    succeed(
        1,
        &["report", run, second.to_str().unwrap(), "--output", &both],
    );
    let table = std::fs::read_to_string(lab.path("both/tables/runs.csv")).unwrap();
    let names: Vec<&str> = table
        .lines()
        .skip(1)
        .map(|l| l.split(',').next().unwrap())
        .collect();
    assert_eq!(names, ["run", "second"]);
    let refuse = |arguments: &[&str], words: &[&str]| {
        let output = on_ranks(1).arg("report").args(arguments).output().unwrap();
        assert_refused(&output, 2, words);
    };
    refuse(&[run, "--output", &both], &["exists", "--overwrite"]);
    refuse(
        &[&at("nowhere"), "--output", &at("x")],
        &["nowhere", "no run directory"],
    );
    refuse(
        &[run, "--output", &at("predicted"), "--overwrite"],
        &["report.html"],
    );
}
