//! What holds of every adapter whatever the numbers: executors and dropout agree, bf16 stays near, and
//! layers below the first adapter have no graph.

use scpeft_model::backbone::scfoundation::Scfoundation;
use scpeft_model::backbone::{Architecture, Model};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Precision, Role, loss};
use tch::Tensor;

use crate::golden::{Golden, training};

const CASES: [&str; 6] = [
    "cls_encoder_max",
    "cls_encoder_all",
    "cls_token_max",
    "cls_prefix_max",
    "cls_lora_max",
    "cls_full_max",
];

/// Flat gradient and logits of one training pass.
fn gradients(golden: &Golden, executor: ExecutorKind, pass: Pass, head: f64) -> (Tensor, Tensor) {
    let mut blueprint = golden.blueprint();
    if let Some(head_of) = &mut blueprint.head {
        head_of.dropout = head;
    }
    let (mut params, model) = golden.model(&blueprint, executor);
    params.zero_grad().unwrap();
    let mut encoded = model.encode(&golden.annotated(), pass).unwrap();
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
        let (plain, logits) = gradients(&golden, ExecutorKind::Plain, pass(7), 0.0);
        let (again, same) = gradients(&golden, ExecutorKind::Recompute, pass(7), 0.0);
        assert!(plain.equal(&again) && logits.equal(&same), "{name}");
        let (_, other) = gradients(&golden, ExecutorKind::Plain, pass(8), 0.0);
        assert!(!logits.equal(&other), "{name}: the seed changes nothing");
        let (_, without) = gradients(&golden, ExecutorKind::Plain, training(), 0.0);
        assert!(!logits.equal(&without), "{name}: dropout changes nothing");
    }
}

#[test]
fn the_classifier_has_dropout_of_its_own_in_training_alone() {
    let golden = Golden::load("cls_encoder_max");
    let (_, without) = gradients(&golden, ExecutorKind::Plain, training(), 0.0);
    let (_, with) = gradients(&golden, ExecutorKind::Plain, training(), 0.5);
    let (_, again) = gradients(&golden, ExecutorKind::Recompute, training(), 0.5);
    assert!(with.equal(&again) && !with.equal(&without));
    let mut blueprint = golden.blueprint();
    blueprint.head.as_mut().unwrap().dropout = 0.5;
    let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
    let encoded = model.encode(&golden.annotated(), Pass::EVALUATION).unwrap();
    golden.close(
        "logits",
        &model.classify(&encoded, Pass::EVALUATION).unwrap(),
    );
}

#[test]
fn bf16_computes_nearly_the_same_and_trains_in_full_precision() {
    for name in CASES {
        let golden = Golden::load(name);
        let blueprint = golden.blueprint();
        let layout = Layout {
            precision: Precision::Bf16,
            ..Layout::cpu(0)
        };
        let params = golden.params(&blueprint, layout);
        let model = Scfoundation::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
        let encoded = model.encode(&golden.annotated(), training()).unwrap();
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

/// Adapters in the upper half: the lower half is run without a graph, and the description says so.
#[test]
fn layers_below_the_first_adapter_have_no_graph() {
    for (name, first) in [
        ("cls_encoder_max_upper_half", Some(2)),
        ("cls_lora_max_upper_half", Some(2)),
        ("cls_encoder_max", Some(0)),
        ("cls_token_max", Some(0)),
        ("cls_none_max", None),
    ] {
        let golden = Golden::load(name);
        let blueprint = golden.blueprint();
        let trainable = golden.trainable();
        let trains = |spec: &scpeft_model::TensorSpec| trainable.contains(&spec.name);
        let expected = first.unwrap_or(blueprint.shape.n_layers);
        assert_eq!(
            blueprint.first_in_backward(&trains).unwrap(),
            expected,
            "{name}"
        );
        let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
        let encoded = model.encode(&golden.annotated(), training()).unwrap();
        assert_eq!(encoded.hidden.requires_grad(), first.is_some(), "{name}");
        let on_embedding = name == "cls_token_max";
        assert_eq!(encoded.genes.requires_grad(), on_embedding, "{name}");
        assert!(
            blueprint
                .specs()
                .unwrap()
                .iter()
                .all(|s| { s.role != Role::Backbone || !trainable.contains(&s.name) })
        );
    }
}
