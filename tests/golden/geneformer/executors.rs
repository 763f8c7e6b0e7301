//! What holds of every adapter whatever the numbers: executors and dropout agree, bf16 stays near.

use scpeft_model::backbone::Model;
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Precision, loss};
use tch::Tensor;

use crate::golden::{Golden, training};

const CASES: [&str; 4] = [
    "encoder_adapter_mlp",
    "prefix_deep",
    "lora",
    "token_plus_lora",
];

/// Flat gradient and logits of one training pass.
fn gradients(golden: &Golden, executor: ExecutorKind, pass: Pass) -> (Tensor, Tensor) {
    let (mut params, model) = golden.model(&golden.sequence(), executor);
    params.zero_grad().unwrap();
    let mut encoded = model.encode(&golden.batch(), pass).unwrap();
    let logits = model.classify(&encoded, pass).unwrap();
    let labels = &golden.inputs["labels"];
    let loss = loss::cross_entropy_sum(&logits, labels, None).unwrap();
    loss.backward();
    if let Some(tape) = encoded.tape.take() {
        tape.backward().unwrap();
    }
    (params.grad().copy(), logits.detach())
}

#[test]
fn recomputed_gradients_are_those_of_autograd_with_dropout_too() {
    let dropout = Dropout {
        residual: 0.2,
        attention: 0.0,
    };
    for name in CASES {
        let golden = Golden::load(name);
        let pass = |seed| Pass::training(dropout, seed);
        let (plain, logits) = gradients(&golden, ExecutorKind::Plain, pass(7));
        let (again, same) = gradients(&golden, ExecutorKind::Recompute, pass(7));
        assert!(plain.equal(&again) && logits.equal(&same), "{name}");
        let (_, other) = gradients(&golden, ExecutorKind::Plain, pass(8));
        assert!(!logits.equal(&other), "{name}: the seed changes nothing");
        let (_, without) = gradients(&golden, ExecutorKind::Plain, training());
        assert!(!logits.equal(&without), "{name}: dropout changes nothing");
    }
}

#[test]
fn bf16_computes_nearly_the_same_and_trains_in_full_precision() {
    for name in CASES {
        let golden = Golden::load(name);
        let blueprint = golden.sequence();
        let trainable = golden.trainable().unwrap();
        let layout = Layout {
            precision: Precision::Bf16,
            ..Layout::cpu(0)
        };
        let params = golden.params(&blueprint, |s| trainable.contains(&s.name), layout);
        let model = scpeft_model::backbone::geneformer::Geneformer::bind(
            &blueprint,
            &params,
            ExecutorKind::Plain,
        )
        .unwrap();
        let encoded = model.encode(&golden.batch(), training()).unwrap();
        assert_eq!(encoded.hidden.kind(), tch::Kind::BFloat16);
        assert_eq!(encoded.cell.kind(), tch::Kind::Float);
        let logits = model.classify(&encoded, training()).unwrap();
        let expected = &golden.expected["logits"];
        let off = (&logits - expected).abs().max().double_value(&[]);
        let scale = expected.abs().max().double_value(&[]);
        assert!(off < 0.06 * scale, "{name}: off by {off} of {scale}");
        logits.sum(tch::Kind::Float).backward();
        assert_eq!(params.grad().kind(), tch::Kind::Float);
        let some = params.grad().abs().max().double_value(&[]);
        assert!(some > 0.0 && some.is_finite(), "{name}");
    }
}
