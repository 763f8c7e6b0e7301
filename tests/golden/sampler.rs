//! The weights of class-balanced sampling are those of the reference: case `class_weights`.

#![allow(clippy::unwrap_used)]

use safetensors::SafeTensors;
use scpeft_data::sampler::class_balanced_weights;
use scpeft_tests::{case, fixture};

#[test]
fn sampling_weights_match_the_reference() {
    let dir = fixture("scgpt", "class_weights");
    let rtol = case(&dir)["tolerances"]["rtol"].as_f64().expect("rtol");
    let inputs = std::fs::read(dir.join("inputs.safetensors")).unwrap();
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let labels: Vec<i32> = (inputs.tensor("celltype_ids").unwrap().data())
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b) as i32)
        .collect();
    let expected = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let wanted: Vec<f64> = (expected.tensor("sample_weight").unwrap().data())
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| f64::from_le_bytes(*b))
        .collect();
    let found = class_balanced_weights(&labels).expect("every cell has a class");
    assert!(!wanted.is_empty());
    assert_eq!(found.len(), wanted.len());
    for (cell, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert!(
            (found - wanted).abs() <= rtol * wanted,
            "cell {cell}: {found} {wanted}"
        );
    }
}
