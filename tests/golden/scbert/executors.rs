//! What holds of every adapter whatever the numbers: executors and dropout agree, bf16 stays near,
//! blocks below the first that trains have no graph, random features are drawn by seed and count.

use scpeft_model::adapter::{AdapterOptions, LayerSelection};
use scpeft_model::backbone::performer::KeyMax;
use scpeft_model::backbone::scbert::Scbert;
use scpeft_model::backbone::{Architecture, Model};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Precision, Role, loss};
use tch::{Kind, Tensor};

use crate::golden::{Golden, training};

const CASES: [&str; 4] = ["encoder_adapter_mlp", "prefix", "lora", "token_adapter"];

/// Flat gradient and logits of one training pass.
fn gradients(golden: &Golden, executor: ExecutorKind, pass: Pass) -> (Tensor, Tensor) {
    let (mut params, model) = golden.model(&golden.blueprint(), executor);
    params.zero_grad().unwrap();
    let mut encoded = model.encode(&golden.batch(), pass).unwrap();
    let logits = model.classify(&encoded, pass).unwrap();
    let labels = &golden.inputs["labels"];
    loss::cross_entropy_sum(&logits, labels, None)
        .unwrap()
        .backward();
    if let Some(tape) = encoded.tape.take() {
        tape.backward().unwrap();
    }
    (params.grad().copy(), logits.detach())
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
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
        let scale = plain.abs().max().double_value(&[]);
        assert!(logits.equal(&same), "{name}");
        // The stages of the backward pass add up in another order.
        assert!(
            off(&plain, &again) < 2e-6 * scale,
            "{name}: {}",
            off(&plain, &again)
        );
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
        let blueprint = golden.blueprint();
        let trainable = golden.trainable().unwrap();
        let layout = Layout {
            precision: Precision::Bf16,
            ..Layout::cpu(0)
        };
        let params = golden.params(&blueprint, |s| trainable.contains(&s.name), layout);
        for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
            let model = Scbert::bind(&blueprint, &params, executor).unwrap();
            let mut encoded = model.encode(&golden.batch(), training()).unwrap();
            assert_eq!(encoded.hidden.kind(), Kind::BFloat16);
            assert_eq!(encoded.cell.kind(), Kind::Float);
            let logits = model.classify(&encoded, training()).unwrap();
            let expected = &golden.expected["logits"];
            let scale = expected.abs().max().double_value(&[]);
            let found = off(&logits, expected);
            assert!(found < 0.06 * scale, "{name}: off by {found} of {scale}");
            logits.sum(Kind::Float).backward();
            if let Some(tape) = encoded.tape.take() {
                tape.backward().unwrap();
            }
            assert_eq!(params.grad().kind(), Kind::Float);
            let some = params.grad().abs().max().double_value(&[]);
            assert!(some > 0.0 && some.is_finite(), "{name}");
        }
    }
}

#[test]
fn blocks_below_the_first_adapter_need_no_backward_pass() {
    let golden = Golden::load("encoder_adapter");
    let mut blueprint = golden.blueprint();
    let last = blueprint.shape.n_layers - 1;
    for adapter in &mut blueprint.adapters {
        if let AdapterOptions::Encoder(options) = adapter {
            options.layers = LayerSelection::Listed(vec![last]);
        }
    }
    let trains = |s: &scpeft_model::TensorSpec| s.role == Role::Adapter;
    assert_eq!(blueprint.first_in_backward(&trains).unwrap(), last);
    let params = golden.params(&blueprint, trains, Layout::cpu(0));
    let model = Scbert::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
    let encoded = model.encode(&golden.batch(), training()).unwrap();
    assert!(encoded.hidden.requires_grad() && !encoded.genes.requires_grad());
}

#[test]
fn a_cell_alone_and_among_others_is_the_same_with_its_own_maximum() {
    let golden = Golden::load("encoder_adapter");
    let logits = |key_max, cells: i64| {
        let mut blueprint = golden.blueprint();
        blueprint.key_max = key_max;
        let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
        let mut batch = golden.batch();
        batch.gene_ids = batch.gene_ids.narrow(0, 0, cells);
        let encoded = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        model.classify(&encoded, Pass::EVALUATION).unwrap().get(0)
    };
    let cells = golden.inputs["labels"].size()[0];
    let of = |key_max| off(&logits(key_max, 1), &logits(key_max, cells));
    assert!(of(KeyMax::Cell) < 1e-5);
    assert!(of(KeyMax::Batch) > 1e-4);
    assert!(off(&logits(KeyMax::Cell, 1), &logits(KeyMax::Batch, 1)) < 1e-6);
}

#[test]
fn random_features_are_drawn_anew_by_seed_and_count() {
    let golden = Golden::load("none");
    let mut blueprint = golden.blueprint();
    blueprint.redrawn = true;
    let build = || {
        let params = golden.params(&blueprint, |_| false, Layout::cpu(0));
        let model = Scbert::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
        (params, model)
    };
    let drawn = |seed, draw| {
        let (params, model) = build();
        model.redraw(seed, draw).unwrap();
        let buffers: Vec<Tensor> = params.buffers().map(|(_, t)| t.reshape([-1])).collect();
        assert_eq!(buffers.len() as i64, golden.int("depth"));
        Tensor::cat(&buffers, 0)
    };
    let first = drawn(3, 1);
    assert!(first.equal(&drawn(3, 1)));
    assert!(off(&first, &drawn(3, 2)) > 0.1 && off(&first, &drawn(4, 1)) > 0.1);
    // Other features of the same kernel: nearly the same model.
    let (params, model) = build();
    let before = model.hidden_states(&golden.batch()).unwrap();
    let weights = &golden.weights["performer.net.layers.0.0.fn.fast_attention.projection_matrix"];
    model.redraw(3, 1).unwrap();
    let (_, now) = params.buffers().next().unwrap();
    assert!(
        off(now, weights) > 0.1,
        "the weights' own are overwritten in the copy"
    );
    let after = model.hidden_states(&golden.batch()).unwrap();
    assert!(off(before.last().unwrap(), after.last().unwrap()) > 1e-4);
}
