//! `scpeft-data import` on small `.h5ad` files: every encoding gives the same corpus, value by value, and
//! every fault gives its exit code and a message with the remedy, and leaves nothing behind.
//!
//! The files are written by `fixtures/h5ad/make.py`.

#![allow(clippy::unwrap_used)]

#[path = "import/genes.rs"]
mod genes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scpeft_data::{Corpus, ValueKind};
use serde_json::Value;
use tempfile::TempDir;

const COUNTS: [[f32; 4]; 6] = [
    [3.0, 0.0, 1.0, 0.0],
    [0.0, 5.0, 0.0, 2.0],
    [7.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 9.0, 70_000.0],
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 2.0, 3.0, 4.0],
];
const GENES: [&str; 4] = ["CD3E", "MS4A1", "NKG7", "LYZ"];
const IDS: [&str; 4] = [
    "ENSG00000198851",
    "ENSG00000156738",
    "ENSG00000105374",
    "ENSG00000090382",
];

fn run(args: &[&str]) -> Output {
    Command::new(scpeft_tests::binary("scpeft-data"))
        .args(args)
        .output()
        .unwrap()
}

fn source(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/h5ad")
        .join(format!("{name}.h5ad"));
    path.to_str().unwrap().to_owned()
}

struct Imported {
    dir: TempDir,
    output: Output,
}

impl Imported {
    fn path(&self) -> PathBuf {
        self.dir.path().join("corpus")
    }

    fn corpus(&self) -> Corpus {
        assert!(self.output.status.success(), "{}", self.stderr());
        let checked = run(&["verify", self.path().to_str().unwrap()]);
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
        Corpus::open(&self.path()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    fn stdout(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).unwrap()
    }
}

fn import(name: &str, args: &[&str]) -> Imported {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("corpus");
    let mut all = vec!["import", "--output", output.to_str().unwrap()];
    let input = source(name);
    all.extend(["--input", &input]);
    all.extend(args);
    let output = run(&all);
    Imported { dir, output }
}

/// Asserts an exit code, parts of the message, and that the output folder's parent stayed empty.
fn assert_fails(imported: &Imported, code: i32, parts: &[&str]) {
    let text = imported.stderr();
    assert_eq!(imported.output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(text.starts_with("error: "), "{text}");
    let left: Vec<_> = imported.dir.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn dense(corpus: &Corpus) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for group in 0..corpus.row_groups().len() {
        let block = corpus.read_block(group, None).unwrap();
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            let mut line = vec![0.0; corpus.genes().len()];
            for (&gene, &value) in genes.iter().zip(values) {
                line[gene as usize] = value;
            }
            rows.push(line);
        }
    }
    rows
}

fn texts(corpus: &Corpus, column: &str) -> Vec<String> {
    let names = corpus.categories(column).unwrap();
    let codes = corpus.obs_codes(column).unwrap();
    let text =
        |&code: &i32| usize::try_from(code).map_or_else(|_| "-".to_owned(), |c| names[c].clone());
    codes.iter().map(text).collect()
}

fn assert_the_corpus(corpus: &Corpus, name: &str) {
    assert_eq!(dense(corpus), COUNTS.map(|row| row.to_vec()), "{name}");
    assert_eq!(corpus.value_kind(), ValueKind::Counts, "{name}");
    assert_eq!(corpus.genes().symbols, GENES, "{name}");
    assert_eq!(
        corpus.genes().ensembl,
        IDS.map(|id| Some(id.to_owned())),
        "{name}"
    );
    assert_eq!(
        corpus.categories("cell_type").unwrap(),
        ["B", "NK", "T"],
        "{name}"
    );
    assert_eq!(
        texts(corpus, "cell_type"),
        ["T", "B", "T", "NK", "-", "B"],
        "{name}"
    );
    assert_eq!(
        texts(corpus, "batch"),
        ["b1", "b1", "b2", "b2", "b1", "b2"],
        "{name}"
    );
    let ids = corpus.cell_ids(&[5, 0, 3]).unwrap();
    assert_eq!(ids, ["c5", "c0", "c3"], "{name}");
    assert_eq!(
        corpus.manifest().label.as_deref(),
        Some("cell_type"),
        "{name}"
    );
    assert_eq!(corpus.manifest().batch.as_deref(), Some("batch"), "{name}");
}

#[test]
fn every_encoding_gives_the_same_corpus() {
    for name in [
        "csr",
        "csc",
        "dense",
        "integers",
        "lzf",
        "legacy_records",
        "legacy_categories",
        "nullable",
        "unsorted",
    ] {
        let imported = import(name, &["--label", "cell_type", "--batch", "batch"]);
        assert_the_corpus(&imported.corpus(), name);
        let line = imported.stdout();
        assert_eq!(
            (&line["cells"], &line["genes"], &line["nonzeros"]),
            (&6.into(), &4.into(), &11.into()),
            "{name}"
        );
        assert!(line["cells_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn symbols_are_found_next_to_ensembl_ids() {
    let imported = import("ensembl", &["--label", "cell_type", "--batch", "batch"]);
    assert_the_corpus(&imported.corpus(), "ensembl");
}

#[test]
fn layers_and_raw_are_chosen_by_option() {
    let args = ["--label", "cell_type", "--batch", "batch"];
    let layer = import("layers", &[&args[..], &["--layer", "counts"]].concat());
    assert_the_corpus(&layer.corpus(), "layers");
    let legacy = import("legacy_raw", &[&args[..], &["--raw"]].concat());
    assert_the_corpus(&legacy.corpus(), "legacy_raw");

    let imported = import("raw", &["--raw"]);
    let raw = imported.corpus();
    assert_eq!(
        raw.genes().symbols,
        ["CD3E", "MS4A1", "NKG7", "LYZ", "XIST"]
    );
    let wanted: Vec<Vec<f32>> = COUNTS
        .iter()
        .map(|row| [&row[..], &[1.0]].concat())
        .collect();
    assert_eq!(dense(&raw), wanted);
}

#[test]
fn fractions_are_taken_as_lognorm_with_a_notice() {
    let imported = import("layers", &[]);
    let corpus = imported.corpus();
    assert_eq!(corpus.value_kind(), ValueKind::Lognorm);
    for (found, counts) in dense(&corpus).iter().zip(COUNTS) {
        for (found, count) in found.iter().zip(counts) {
            assert!((found - count.ln_1p()).abs() < 1e-6, "{found} {count}");
        }
    }
    let text = imported.stderr();
    assert!(
        text.contains("log-normalised") && text.contains("--layer counts"),
        "{text}"
    );
}

#[test]
fn obs_columns_of_every_kind_are_kept() {
    let imported = import("nullable", &["--label", "integer"]);
    let corpus = imported.corpus();
    assert_eq!(corpus.categories("integer").unwrap(), ["9", "10"]);
    assert_eq!(texts(&corpus, "integer"), ["10", "-", "9", "9", "10", "9"]);
    assert_eq!(
        texts(&corpus, "boolean"),
        ["true", "-", "false", "true", "true", "true"]
    );
    assert_eq!(texts(&corpus, "text"), ["x", "-", "y", "y", "x", "é"]);
    assert_eq!(
        texts(&corpus, "flag"),
        ["true", "true", "false", "false", "true", "false"]
    );
    let shown = run(&["inspect", "--json", imported.path().to_str().unwrap()]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let kind = |name: &str| {
        let columns = shown["obs"].as_array().unwrap();
        columns
            .iter()
            .find(|c| c["name"] == name)
            .map(|c| c["kind"].as_str().unwrap().to_owned())
    };
    assert_eq!(kind("plain").as_deref(), Some("number"));
    assert_eq!(kind("score").as_deref(), Some("number"));
    assert_eq!(kind("free").as_deref(), Some("string"));
    assert_eq!(kind("odd"), None);
    let text = imported.stderr();
    assert!(
        text.contains("obs/odd") && text.contains("from-the-future"),
        "{text}"
    );
    let labels = shown["obs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "cell_type")
        .unwrap();
    assert_eq!(
        labels["counts"],
        serde_json::json!({"B": 2, "NK": 1, "T": 2})
    );
    assert_eq!(labels["missing"], 1);

    let few = import("nullable", &["--label", "cell_type", "--obs", "text"]);
    let names: Vec<String> = few
        .corpus()
        .manifest()
        .obs
        .iter()
        .map(|c| c.name.clone())
        .collect();
    assert_eq!(names, ["cell_type", "text"]);
    let odd = import("nullable", &["--obs", "odd"]);
    assert_fails(&odd, 3, &["obs/odd", "from-the-future"]);
}

#[test]
fn splits_are_seeded_and_stratified() {
    let split = |seed: &str| {
        let args = [
            "--label",
            "batch",
            "--split",
            "train=0.67,test=0.33",
            "--split-seed",
            seed,
        ];
        let imported = import("csr", &args);
        let corpus = imported.corpus();
        (texts(&corpus, "batch"), texts(&corpus, "split"))
    };
    let (batches, parts) = split("1");
    for batch in ["b1", "b2"] {
        let trained = batches
            .iter()
            .zip(&parts)
            .filter(|(b, p)| *b == batch && *p == "train")
            .count();
        assert_eq!(trained, 2, "{batches:?} {parts:?}");
    }
    assert_eq!(split("1").1, parts);
    assert!((2..12).any(|seed| split(&seed.to_string()).1 != parts));
}

#[test]
fn shards_and_row_groups_have_the_size_asked_for() {
    let cut = ["--row-group-cells", "2", "--shard-cells", "4"];
    let imported = import(
        "csr",
        &[&["--label", "cell_type", "--batch", "batch"][..], &cut].concat(),
    );
    let corpus = imported.corpus();
    assert_the_corpus(&corpus, "small shards");
    let rows: Vec<_> = corpus
        .manifest()
        .shards
        .iter()
        .map(|s| s.row_group_rows.clone())
        .collect();
    assert_eq!(rows, [vec![2, 2], vec![2]]);
}

#[test]
fn an_existing_output_is_kept_unless_told_otherwise() {
    let first = import("csr", &[]);
    let path = first.path();
    let path = path.to_str().unwrap();
    let again = |extra: &[&str]| {
        run(&[
            &["import", "--input", &source("csc"), "--output", path][..],
            extra,
        ]
        .concat())
    };
    let refused = again(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--overwrite"));
    assert_eq!(
        first.corpus().manifest().provenance.sources[0].name,
        "csr.h5ad"
    );
    assert!(again(&["--overwrite"]).status.success());
    assert_eq!(
        first.corpus().manifest().provenance.sources[0].name,
        "csc.h5ad"
    );
    assert_eq!(first.dir.path().read_dir().unwrap().count(), 1);

    std::fs::remove_file(first.path().join("manifest.json")).unwrap();
    let foreign = again(&["--overwrite"]);
    assert_eq!(foreign.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("is not a corpus"));
}

#[test]
fn faults_of_the_source_are_named_with_a_remedy() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        (
            "negative",
            &[],
            &[
                "cell `c0`",
                "gene `MS4A1`",
                "`-0.5`",
                "negative",
                "help:",
                "--layer counts",
            ],
        ),
        ("nan", &[], &["cell `c3`", "gene `MS4A1`", "NaN", "help:"]),
        (
            "nan",
            &["--values", "lognorm"],
            &["cell `c3`", "gene `MS4A1`", "NaN"],
        ),
        (
            "late_fraction",
            &[],
            &["cell `c2090`", "gene `NKG7`", "`1.25`", "help:", "--values"],
        ),
        (
            "layers",
            &["--values", "counts"],
            &["no integer", "--values lognorm", "--layer counts"],
        ),
        ("no_x", &[], &["`X`", "missing", "--layer counts"]),
        ("csr", &["--raw"], &["`raw/X`", "missing", "X (no option)"]),
        ("csr", &["--layer", "count"], &["`layers/count`", "missing"]),
        (
            "csr",
            &["--label", "celltype"],
            &[
                "no obs column `celltype`",
                "did you mean `cell_type`",
                "`batch`",
                "`score`",
            ],
        ),
        (
            "csr",
            &["--batch", "x"],
            &["no obs column `x`", "`cell_type`, `batch`, `score`"],
        ),
        ("bad_index", &[], &["`X`", "index 4", "0 to 3", "damaged"]),
        ("blosc", &[], &["`X`", "blosc (HDF5 filter 32001)", "gzip"]),
        ("not_anndata", &[], &["neither an AnnData", "10x"]),
        ("not_hdf5", &[], &["is not an HDF5 file"]),
        ("truncated", &[], &["truncated", "help:"]),
        ("absent", &[], &["cannot open", "absent.h5ad"]),
    ];
    for (name, args, parts) in cases {
        assert_fails(&import(name, args), 3, parts);
    }
}

#[test]
fn faulty_options_are_refused() {
    assert_fails(
        &import("csr", &["--split", "train=0.5,test=0.6"]),
        2,
        &["1.1", "help:"],
    );
    assert_fails(
        &import("csr", &["--row-group-cells", "0"]),
        2,
        &["--row-group-cells"],
    );
    assert_fails(&import("csr", &["--layer", "a", "--raw"]), 2, &["--raw"]);
}
