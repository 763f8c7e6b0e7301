//! Values that are not finite, in a real run on two ranks: who is to blame, and how it ends.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, assert_refused, assert_same_curve, json_lines, loss_curve, metrics, set, text,
};
use serde_json::{Value, json};

/// A cell of the training split.
const CELL: usize = 7;

/// What the list of a run says: step and cells, without the rank.
fn listed(run: &Path) -> Vec<(u64, Value)> {
    let lines = json_lines(&run.join("non_finite.jsonl"));
    let entry = |line: &Value| {
        assert_eq!(
            (&line["cause"], &line["cells"]),
            (&json!("cell"), &json!(1))
        );
        assert!(line["rank"].as_u64().unwrap() < 2, "{line}");
        (line["step"].as_u64().unwrap(), line["cell_ids"].clone())
    };
    lines.iter().map(entry).collect()
}

/// Overwrites the embedding of a gene in a backbone's weights by NaN.
fn spoil(backbone: &Path, gene: &str) {
    let vocab = std::fs::read(backbone.join("vocab.json")).unwrap();
    let vocab: BTreeMap<String, usize> = serde_json::from_slice(&vocab).unwrap();
    let path = backbone.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let embedding = &header["encoder.embedding.weight"];
    let width = embedding["shape"][1].as_u64().unwrap() as usize;
    let begin = embedding["data_offsets"][0].as_u64().unwrap() as usize;
    let row = 8 + length + begin + vocab[gene] * width * 4;
    for value in bytes[row..row + 4 * width].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
}

/// A backbone that gives NaN for one gene, which only [`CELL`] expresses.
fn lab_with_a_poisoned_cell() -> Lab {
    let lab = Lab::new(&Plan {
        last_gene_in: Some(CELL),
        ..Plan::default()
    });
    let backbone = lab.pretrained_backbone();
    spoil(&backbone, "GENE29");
    lab.use_backbone(&backbone);
    lab
}

#[test]
fn a_cell_that_spoils_every_step_ends_the_run_on_all_ranks_and_is_named() {
    let lab = lab_with_a_poisoned_cell();
    // One step an epoch, with every training cell in it.
    let always = [
        "train.batch_cells=72",
        "train.micro_batch_cells=6",
        "train.non_finite_limit=2",
    ];
    let output = lab.command(2, &set(&always)).output().unwrap();
    let words = [
        "3 steps in a row had a gradient that is not finite, the last at step 3",
        "non_finite.jsonl",
        "1 cell(s) (`cell-7`, …)",
        "help:",
    ];
    assert_refused(&output, 86, &words);
    let cell = json!(["cell-7"]);
    let run = lab.path("run");
    let expected: Vec<_> = (1..=3).map(|step| (step, cell.clone())).collect();
    assert_eq!(listed(&run), expected);
    // Of no use to the next run there.
    let anew = [&always[..], &["train.max_steps=1"]].concat();
    let again = [set(&anew), vec!["--overwrite"]].concat();
    let output = lab.command(2, &again).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(listed(&run), expected[..1]);
}

/// One bad step an epoch never makes a row; it is skipped by all ranks, and does no harm.
#[test]
fn a_cell_that_spoils_one_step_an_epoch_is_skipped_by_all_ranks_alike() {
    let lab = lab_with_a_poisoned_cell();
    let sometimes = set(&["train.epochs=2", "train.non_finite_limit=1"]);
    let one = lab.train(1, "one", &sometimes);
    let two = lab.train(2, "two", &sometimes);
    let found = listed(&two);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!((1..=6).contains(&found[0].0) && (7..=12).contains(&found[1].0));
    assert_eq!(found, listed(&one));
    // A loss that is not finite is null in the log.
    let finite = |run: &Path| -> Vec<(u64, f64)> {
        let steps = metrics(run)
            .into_iter()
            .filter(|line| line["kind"] == "train");
        let entry = |line: Value| Some((line["step"].as_u64().unwrap(), line["loss"].as_f64()?));
        steps.filter_map(entry).collect()
    };
    assert_eq!(finite(&two).len(), 10);
    assert_same_curve(&finite(&two), &finite(&one), 1e-5);
}

#[test]
fn nan_among_the_values_of_a_cell_is_refused_or_left_out_before_it_reaches_a_step() {
    let lab = Lab::new(&Plan {
        not_a_number: Some(CELL),
        ..Plan::default()
    });
    let output = lab.command(2, &[]).output().unwrap();
    assert_refused(&output, 3, &["cell-7", "NaN", "help:"]);
    let settings = set(&["data.corrupt=skip", "train.epochs=2"]);
    let run = lab.train(2, "left-out", &settings);
    let skipped = json_lines(&run.join("skipped-cells.jsonl"));
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0]["cell"], json!(CELL));
    assert!(loss_curve(&run).iter().all(|(_, loss)| loss.is_finite()));
    assert!(!run.join("non_finite.jsonl").exists());
}
