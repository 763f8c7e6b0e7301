//! Class weights against the reference. Scores are compared in `trainer/evaluation/tests`.

#![allow(clippy::unwrap_used)]

use scpeft_config::ClassWeights;
use scpeft_tests::fixture;
use scpeft_trainer::task::{LabelInfo, class_weights};
use tch::Tensor;

/// The published weights, which count all cells; the default counts training cells alone.
#[test]
fn class_weights_of_all_cells() {
    let dir = fixture("scgpt", "class_weights");
    let read = |file: &str, name: &str| {
        let tensors = Tensor::read_safetensors(dir.join(file)).unwrap();
        let found = tensors.into_iter().find(|(key, _)| key == name);
        Vec::<f64>::try_from(&found.unwrap().1.view([-1])).unwrap()
    };
    let codes = read("inputs.safetensors", "celltype_ids");
    let expected = read("expected.safetensors", "class_weight");
    let mut counts = vec![0; expected.len()];
    for code in codes {
        counts[code as usize] += 1;
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
