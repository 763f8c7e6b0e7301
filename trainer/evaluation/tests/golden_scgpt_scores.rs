//! What the reference of scGPT's tasks reports: scores of labels and of an embedding, correlations of
//! responses.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};

use golden::Golden;
use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::clustering::{
    adjusted_rand_index, calinski_harabasz, normalized_mutual_information,
};
use scpeft_evaluation::embedding::Labelled;
use scpeft_evaluation::identification::Confusion;
use scpeft_evaluation::scgpt::{Condition, response_scores};

/// The case `scgpt/<case>` below `SCPEFT_FIXTURES`, or below `tests/fixtures`, with its tolerance
/// and the number of its conditions.
fn read(case: &str) -> (Golden, f64, usize) {
    let root = std::env::var_os("SCPEFT_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"),
        PathBuf::from,
    );
    let dir = root.join("scgpt").join(case);
    let text = std::fs::read_to_string(dir.join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tolerance = case["tolerances"]["rtol"].as_f64().unwrap();
    let conditions = case["conditions"].as_array().map_or(0, Vec::len);
    (Golden::read(&dir), tolerance, conditions)
}

fn codes(golden: &Golden, name: &str) -> Vec<usize> {
    golden
        .inputs
        .get(name)
        .iter()
        .map(|&x| x as usize)
        .collect()
}

#[test]
fn golden_scores_of_types_and_embedding() {
    let (mut golden, tolerance, _) = read("metrics");
    let (labels, predictions) = (codes(&golden, "labels"), codes(&golden, "predictions"));
    let classes = labels.iter().chain(&predictions).max().unwrap() + 1;
    let mut confusion = Confusion::new(classes);
    for (&truth, &guess) in labels.iter().zip(&predictions) {
        confusion.add(truth, guess);
    }
    golden.close("confusion", confusion.counts(), 0.0);
    let names: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
    let scores = confusion.scores(&names);
    let batches = codes(&golden, "batch");
    let embedding = golden.inputs.f32("embedding");
    let width = golden.inputs.shape("embedding")[1];
    let embedding = Cells::new("embedding", &embedding, width).unwrap();
    let labelled = Labelled::new(embedding, &labels, &batches).unwrap();
    let silhouettes = labelled.pairs(5).silhouettes;
    for (name, found) in [
        ("accuracy", scores.accuracy),
        ("balanced_accuracy", scores.balanced_accuracy),
        ("macro_precision", scores.macro_precision),
        ("macro_recall", scores.macro_recall),
        ("macro_f1", scores.macro_f1),
        ("silhouette_label", silhouettes.mean().unwrap()),
        ("asw_label_scaled", silhouettes.asw_label().unwrap()),
        ("asw_label_batch", silhouettes.asw_batch().unwrap()),
        (
            "calinski_harabasz",
            calinski_harabasz(embedding, &labels).unwrap(),
        ),
        ("ari", adjusted_rand_index(&labels, &predictions).unwrap()),
        (
            "nmi_arithmetic",
            normalized_mutual_information(&labels, &predictions).unwrap(),
        ),
    ] {
        golden.close(name, &[found], tolerance);
    }
}

#[test]
fn golden_correlations_of_responses() {
    let (mut golden, tolerance, names) = read("perturbation_metrics");
    let own_codes = codes(&golden, "cond_id");
    let genes = golden.inputs.shape("ctrl")[1];
    let mean = |name: &str, keep: &dyn Fn(usize) -> bool| {
        let cells = golden.inputs.get(name);
        let kept: Vec<&[f64]> = cells
            .chunks(genes)
            .enumerate()
            .filter(|(cell, _)| keep(*cell))
            .map(|(_, row)| row)
            .collect();
        (0..genes)
            .map(|g| kept.iter().map(|row| row[g]).sum::<f64>() / kept.len() as f64)
            .collect::<Vec<f64>>()
    };
    let control = mean("ctrl", &|_| true);
    let profiles: Vec<_> = (0..names)
        .map(|condition| {
            let own = |cell: usize| own_codes[cell] == condition;
            let mut de = codes(&golden, &format!("de_order_{condition}"));
            de.truncate(20);
            (mean("truth", &own), mean("pred", &own), de)
        })
        .collect();
    let conditions: Vec<Condition<'_>> = profiles
        .iter()
        .map(|(truth, prediction, de_genes)| Condition {
            truth,
            prediction,
            de_genes,
        })
        .collect();
    let scores = response_scores(&conditions, &control);
    for (name, found) in [
        ("pearson", scores.pearson),
        ("pearson_nonzero", scores.pearson_nonzero),
        ("pearson_de", scores.pearson_de),
        // The reference masks zero genes everywhere but among the differentially expressed.
        ("pearson_de_nonzero", scores.pearson_de),
        ("pearson_delta", scores.pearson_delta),
        ("pearson_delta_nonzero", scores.pearson_delta_nonzero),
        ("pearson_de_delta", scores.pearson_de_delta),
        ("pearson_de_delta_nonzero", scores.pearson_de_delta),
    ] {
        golden.close(name, &[found.unwrap()], tolerance);
    }
    golden.all_compared();
}
