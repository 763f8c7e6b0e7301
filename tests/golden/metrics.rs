//! Scores, class weights and response correlations against scikit-learn, scib and the reference.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use scpeft_config::ClassWeights;
use scpeft_evaluation::clustering::{
    adjusted_rand_index, batch_silhouette, calinski_harabasz, normalized_mutual_information,
    silhouette,
};
use scpeft_evaluation::identification::Confusion;
use scpeft_evaluation::scgpt::{Condition, response_scores};
use scpeft_tests::{case, fixture};
use scpeft_trainer::task::{LabelInfo, class_weights};
use serde_json::Value;
use tch::Tensor;

struct Golden {
    case: Value,
    inputs: HashMap<String, Tensor>,
    expected: HashMap<String, Tensor>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let dir = fixture("scgpt", name);
        let read = |file: &str| {
            let tensors = Tensor::read_safetensors(dir.join(file)).unwrap();
            tensors.into_iter().collect()
        };
        Self {
            case: case(&dir),
            inputs: read("inputs.safetensors"),
            expected: read("expected.safetensors"),
        }
    }

    fn codes(&self, name: &str) -> Vec<usize> {
        let codes = Vec::<i64>::try_from(&self.inputs[name]).unwrap();
        codes.into_iter().map(|c| c as usize).collect()
    }

    fn floats(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(&tensor.view([-1])).unwrap()
    }

    fn close(&self, name: &str, found: f64) {
        let expected = self.expected[name].double_value(&[0]);
        let rtol = self.case["tolerances"]["rtol"].as_f64().unwrap();
        assert!(
            (found - expected).abs() <= rtol * expected.abs(),
            "{name}: {found}, expected {expected}"
        );
    }
}

#[test]
fn metrics() {
    let golden = Golden::load("metrics");
    let (labels, predictions) = (golden.codes("labels"), golden.codes("predictions"));
    let classes = labels.iter().chain(&predictions).max().unwrap() + 1;
    let mut confusion = Confusion::new(classes);
    for (&truth, &guess) in labels.iter().zip(&predictions) {
        confusion.add(truth, guess);
    }
    let expected = Vec::<i64>::try_from(&golden.expected["confusion"].view([-1])).unwrap();
    let counts: Vec<i64> = confusion.counts().iter().map(|&n| n as i64).collect();
    assert_eq!(counts, expected);
    let names: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
    let scores = confusion.scores(&names);
    golden.close("accuracy", scores.accuracy);
    golden.close("balanced_accuracy", scores.balanced_accuracy);
    golden.close("macro_precision", scores.macro_precision);
    golden.close("macro_recall", scores.macro_recall);
    golden.close("macro_f1", scores.macro_f1);

    let batches = golden.codes("batch");
    let embedding = Golden::floats(&golden.inputs["embedding"]);
    let width = golden.inputs["embedding"].size()[1] as usize;
    let of_labels = silhouette(&embedding, width, &labels).unwrap();
    golden.close("silhouette_label", of_labels);
    golden.close("asw_label_scaled", f64::midpoint(of_labels, 1.0));
    let mixed = batch_silhouette(&embedding, width, &labels, &batches).unwrap();
    golden.close("asw_label_batch", mixed);
    let dispersion = calinski_harabasz(&embedding, width, &labels).unwrap();
    golden.close("calinski_harabasz", dispersion);
    golden.close("ari", adjusted_rand_index(&labels, &predictions).unwrap());
    let shared = normalized_mutual_information(&labels, &predictions).unwrap();
    golden.close("nmi_arithmetic", shared);
}

#[test]
fn perturbation_metrics() {
    let golden = Golden::load("perturbation_metrics");
    let names = golden.case["conditions"].as_array().unwrap().len();
    let codes = golden.codes("cond_id");
    let genes = golden.inputs["ctrl"].size()[1] as usize;
    let mean = |name: &str, keep: &dyn Fn(usize) -> bool| {
        let cells = Golden::floats(&golden.inputs[name]);
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
            let own = |cell: usize| codes[cell] == condition;
            let mut de = golden.codes(&format!("de_order_{condition}"));
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
        golden.close(name, found.unwrap());
    }
    assert_eq!(golden.expected.len(), 8);
}

/// The published weights, which count all cells; the default counts training cells alone.
#[test]
fn class_weights_of_all_cells() {
    let golden = Golden::load("class_weights");
    let codes = golden.codes("celltype_ids");
    let expected = Golden::floats(&golden.expected["class_weight"]);
    let mut counts = vec![0; expected.len()];
    for code in codes {
        counts[code] += 1;
    }
    let known: Vec<usize> = (0..counts.len()).collect();
    let labels = LabelInfo {
        train_counts: vec![1; counts.len()],
        all_counts: counts,
        ..LabelInfo::default()
    };
    let rule = ClassWeights::SquaredComplementOfAll;
    let found = class_weights(rule, &known, &labels).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        // Weights are used in f32.
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= 1e-7 * expected.abs(), "{found} {expected}");
    }
    let train = class_weights(ClassWeights::SquaredComplement, &known, &labels).unwrap();
    assert!(train.windows(2).all(|w| w[0].to_bits() == w[1].to_bits()));
}
