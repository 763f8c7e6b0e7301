//! Responses to drugs, end to end: what is trained on one rank and on two, resumed, refused,
//! predicted and scored.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_tests::responses::{Planted, write_molecules};
use scpeft_tests::train::{
    adapter_bytes, assert_refused, assert_same_curve, loss_curve, on_ranks, set, text,
};
use serde_json::Value;

/// A folder with a corpus of drugs, a table of molecules and a configuration.
struct Lab {
    dir: tempfile::TempDir,
}

/// Of every ten drugs the last is for the test, the one before for validation.
fn by_drug(drug: usize, _line: usize, _cell: usize) -> &'static str {
    match drug % 10 {
        9 => "test",
        8 => "valid",
        _ => "train",
    }
}

impl Lab {
    fn new(planted: &Planted) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, molecules) = planted.write(dir.path());
        let config = format!(
            r#"
[run]
dir = "{run}"
seed = 3
threads = 1
[data]
corpus = "{corpus}"
[backbone]
init = "random"
dropout = 0.0
[backbone.shape]
d_model = 32
n_heads = 2
d_hid = 32
n_layers = 2
[adapter]
kind = "drug"
[task]
kind = "perturbation"
[perturbation]
column = "product_name"
control = "DMSO"
context = "cell_type"
molecules = "{molecules}"
output = "change"
[train]
epochs = 3
batch_cells = 8
micro_batch_cells = 4
lr = 1e-2
[log]
every_steps = 1
[metrics]
port = 0
"#,
            run = dir.path().join("run").display(),
            corpus = corpus.display(),
            molecules = molecules.display(),
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, ranks: usize, settings: &[&str], more: &[&str]) -> Command {
        let mut command = on_ranks(ranks);
        command.arg("--config").arg(self.path("config.toml"));
        command.args(set(settings)).args(more);
        command
    }

    /// Trains into `dir`, and asserts success.
    fn train(&self, ranks: usize, dir: &str, settings: &[&str], more: &[&str]) -> PathBuf {
        let run = self.path(dir);
        let place = format!("run.dir={}", run.display());
        let settings = [&[place.as_str()], settings].concat();
        let output = self.command(ranks, &settings, more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        run
    }

    fn refused(&self, code: i32, settings: &[&str], words: &[&str]) {
        let output = self.command(1, settings, &[]).output().unwrap();
        assert_refused(&output, code, words);
        assert!(!self.path("run/checkpoints").exists());
    }
}

fn planted() -> Planted {
    Planted {
        split: by_drug,
        ..Planted::default()
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_losses_in_every_kind_of_row() {
    let lab = Lab::new(&planted());
    let cells = "perturbation.unit=cells";
    let short = "train.max_steps=4";
    for (name, settings) in [
        ("bulk", &[short, "perturbation.loss=adaptive"][..]),
        (
            "cells",
            &[cells, short, "perturbation.match_by=[\"plate\"]"],
        ),
        ("sets", &[cells, short, "perturbation.loss=energy"]),
    ] {
        let one = lab.train(1, &format!("{name}-1"), settings, &[]);
        let two = lab.train(2, &format!("{name}-2"), settings, &[]);
        let (one, two) = (loss_curve(&one), loss_curve(&two));
        assert_eq!(one.len(), 4, "{name}");
        assert_same_curve(&two, &one, 1e-4);
    }
}

#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let lab = Lab::new(&planted());
    let cells = ["perturbation.unit=cells", "train.max_steps=8"];
    let whole = lab.train(1, "whole", &cells, &[]);
    let parts = lab.train(1, "parts", &[cells[0], "train.max_steps=5"], &[]);
    assert_ne!(adapter_bytes(&parts), adapter_bytes(&whole));
    lab.train(
        1,
        "parts",
        &cells,
        &["--resume", "--allow-change", "schedule"],
    );
    assert_eq!(adapter_bytes(&parts), adapter_bytes(&whole));
    assert_eq!(loss_curve(&parts), loss_curve(&whole));
}

/// Whole numbers without a unit, once.
fn one_bare_dose(drug: usize) -> &'static str {
    if drug == 3 { "10" } else { "10 nM" }
}

#[test]
fn what_the_data_lack_is_refused_with_what_there_is() {
    let forgetful = Lab::new(&Planted {
        forgotten: Some(4),
        ..planted()
    });
    forgetful.refused(3, &[], &["has no embedding of 1 molecules: `drug 04`"]);
    let control = ["perturbation.control=vehicle"];
    let named = [
        "`vehicle` is no category of obs column `product_name`",
        "`DMSO`",
    ];
    forgetful.refused(2, &control, &named);
    let apart = Lab::new(&Planted {
        split: |_, _, cell| ["train", "valid"][cell % 2],
        ..Planted::default()
    });
    let both = [
        "38 condition(s) have cells in two splits",
        "`drug 01 | A549`",
    ];
    apart.refused(3, &[], &both);
    let bare = Lab::new(&Planted {
        without_vehicle: Some(1),
        dose: one_bare_dose,
        ..planted()
    });
    bare.refused(3, &[], &["no control cells in 1 context(s): `K562`"]);
    let fewest = ["perturbation.min_cells=13"];
    let few = [
        "no treated cells",
        "12 cells, `perturbation.min_cells` is 13",
    ];
    bare.refused(3, &fewest, &few);
    let unitless = [
        "perturbation.context=plate",
        "perturbation.dose=dose",
        "perturbation.dose_input=true",
    ];
    bare.refused(
        3,
        &unitless,
        &["`10` has no unit", "perturbation.dose_unit"],
    );
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let lab = Lab::new(&planted());
    for (code, settings, words) in [
        (
            3,
            &["perturbation.molecule_key=cell_type"][..],
            &[
                "two keys of a molecule in obs column `cell_type`",
                "`A549` and `K562`",
            ][..],
        ),
        (
            2,
            &["data.max_len=39"],
            &["40 genes with a token, `data.max_len` is 39"],
        ),
        (
            2,
            &["adapter.budget_percent=1"],
            &["parameters train", "`adapter.budget_percent` is 1"],
        ),
        (
            3,
            &["adapter.drug.width=7"],
            &["treatments have 3 numbers, the adapter is made for 7"],
        ),
        (
            2,
            &["perturbation.loss=mmd"],
            &["compares sets of cells", "pseudobulk"],
        ),
        (
            2,
            &["adapter.drug.reading=input-add"],
            &["`task.trainable` is not `all`"],
        ),
        (
            2,
            &["task.kind=masked-expression", "data.mask_ratio=0.4"],
            &[
                "has no effect on `masked-expression`",
                "the `drug` adapter is told of molecules",
            ],
        ),
    ] {
        lab.refused(code, settings, words);
    }
}

/// The one batch of a small Parquet file.
fn table(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    reader.build().unwrap().next().unwrap().unwrap()
}

fn number(table: &RecordBatch, column: &str, row: usize) -> f64 {
    let column = table.column_by_name(column).unwrap();
    column.as_primitive::<Float64Type>().value(row)
}

/// Enough drugs, and a model wide enough, to learn three directions from.
fn learned() -> (Lab, Planted, PathBuf) {
    let planted = Planted {
        drugs: 40,
        cells: 8,
        ..planted()
    };
    let lab = Lab::new(&planted);
    let settings = [
        "backbone.shape.d_model=64",
        "train.epochs=50",
        "train.batch_cells=4",
        "train.schedule=cosine",
        "train.select=pearson_delta",
        "checkpoint.keep_last=1",
        "log.every_steps=100",
    ];
    let run = lab.train(1, "learned", &settings, &[]);
    (lab, planted, run)
}

#[test]
fn a_planted_response_is_found_for_drugs_never_seen_and_lost_with_the_wrong_molecule() {
    let (lab, planted, run) = learned();
    let output = on_ranks(1)
        .arg("evaluate")
        .arg("--run")
        .arg(&run)
        .arg("--output")
        .arg(lab.path("evaluation"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = std::fs::read_to_string(lab.path("evaluation/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(
        [&report["rule"], &report["test"]],
        [&Value::from("as_trained"), &8.into()]
    );
    let score = |model: &str| -> f64 {
        let models = report["models"].as_array().unwrap();
        let found = models.iter().find(|m| m["model"] == model);
        let found = found.unwrap_or_else(|| panic!("no `{model}` in the report"));
        found["metrics"]["r2_delta_all"]["mean"].as_f64().unwrap()
    };
    let (own, mean) = (score("learned"), score("mean_delta"));
    assert!(own > 0.9, "{own}");
    assert!(mean < 0.5, "{mean}");
    for ablation in ["learned_shuffled_drug", "learned_zero_drug"] {
        let found = score(ablation);
        assert!(
            found < mean + 0.1,
            "{ablation}: {found}, mean change {mean}"
        );
    }
    predicts_what_is_in_no_corpus(&lab, &planted, &run);
}

/// Predictions of a drug that no cell had and no table of the run knows.
fn predicts_what_is_in_no_corpus(lab: &Lab, planted: &Planted, run: &Path) {
    const NEW: usize = 77;
    write_molecules(&lab.path("more.parquet"), &[0, NEW]);
    let list = "context,drug\nK562,drug 77\nA549,drug 77\n";
    std::fs::write(lab.path("wanted.csv"), list).unwrap();
    let predict = |ranks: usize, name: &str, more: &[&str]| {
        let mut command = on_ranks(ranks);
        command.arg("predict").arg("--run").arg(run);
        command.arg("--conditions").arg(lab.path("wanted.csv"));
        command.arg("--output").arg(lab.path(name)).args(more);
        command.output().unwrap()
    };
    let more = lab.path("more.parquet");
    let more = [
        "--molecules",
        more.to_str().unwrap(),
        "--cells",
        "3",
        "--top-genes",
        "4",
    ];
    for (ranks, name) in [(1, "one"), (2, "two")] {
        let output = predict(ranks, name, &more);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let read = |name: &str, file: &str| std::fs::read(lab.path(name).join(file)).unwrap();
    for file in ["predictions.parquet", "top_genes.csv", "conditions.json"] {
        assert_eq!(read("one", file), read("two", file), "{file}");
    }
    let found = table(&lab.path("one/predictions.parquet"));
    let contexts = found.column_by_name("context").unwrap().as_string::<i32>();
    assert_eq!([contexts.value(0), contexts.value(1)], ["K562", "A549"]);
    let top = text(&read("one", "top_genes.csv"));
    let rows: Vec<Vec<&str>> = top.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + 2 * 4);
    assert_eq!(rows[1][..4], ["drug 77", "K562", "", "1"]);
    // The gene that is said to change most is one that does, in the planted direction.
    let gene: usize = rows[1][4].strip_prefix("GENE").unwrap().parse().unwrap();
    let (said, true_change) = (
        rows[1][7].parse::<f64>().unwrap(),
        planted.change(NEW, gene),
    );
    assert!(
        (said - true_change).abs() < 0.3 * true_change.abs(),
        "{said} {true_change}"
    );
    let shown: f64 = rows[1][6].parse().unwrap();
    assert!((shown - number(&found, rows[1][4], 0)).abs() < 1e-5);
    let cells = table(&lab.path("one/cells.parquet"));
    assert_eq!(
        (cells.num_rows(), cells.num_columns()),
        (6, 3 + planted.genes)
    );
    assert_eq!(cells.column_by_name("dose").unwrap().null_count(), 6);

    let unknown = predict(1, "out", &[]);
    assert_refused(&unknown, 3, &["has no embedding of 1 molecules: `drug 77`"]);
    std::fs::write(lab.path("wanted.csv"), "drug,context\nDMSO,HeLa\n").unwrap();
    let place = predict(1, "out", &[]);
    assert_refused(
        &place,
        3,
        &["does not have: `HeLa`", "it has `A549`, `K562`"],
    );
    std::fs::write(
        lab.path("wanted.csv"),
        "drug,context,dose\nDMSO,A549,1 nM\n",
    )
    .unwrap();
    assert_refused(
        &predict(1, "out", &[]),
        3,
        &["`dose`, of which the run knows nothing"],
    );
    assert!(!lab.path("out").exists());
}

#[test]
fn the_preset_runs_on_a_small_backbone() {
    let lab = Lab::new(&planted());
    let preset = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../configs/presets/scgpt-perturbation-drug.toml");
    let preset = std::fs::read_to_string(preset).unwrap();
    let path = "path = \"scgpt-human\"";
    assert!(preset.contains(path));
    let small = "init = \"random\"\n[backbone.shape]\nd_model = 16\nn_heads = 2\nd_hid = 16\nn_layers = 2\n";
    let preset = preset
        .replace(path, "")
        .replace("dropout = 0.0\n", &format!("dropout = 0.0\n{small}"));
    std::fs::write(lab.path("config.toml"), preset).unwrap();
    let corpus = format!("data.corpus={}", lab.path("corpus").display());
    let molecules = format!(
        "perturbation.molecules={}",
        lab.path("molecules.parquet").display()
    );
    let own = [
        &corpus,
        &molecules,
        "perturbation.control=DMSO",
        "train.epochs=1",
        "metrics.port=0",
    ];
    let budget = [&own[..], &["run.dir=never"]].concat();
    let over = lab.command(1, &budget, &[]).output().unwrap();
    assert_refused(&over, 2, &["`adapter.budget_percent` is 1"]);
    let settings = [&own[..], &["adapter.budget_percent=50"]].concat();
    let run = lab.train(2, "preset", &settings, &[]);
    let record = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(record.contains("\"pearson_delta\""), "{record}");
}
