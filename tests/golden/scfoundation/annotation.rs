//! Cell types: every adapter and pool, in both executors and in evaluation.

use scpeft_model::adapter::AdapterOptions;
use scpeft_model::backbone::scfoundation::Scfoundation;
use scpeft_model::backbone::{Encoded, Inputs, Model};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::{Layout, loss};
use tch::Tensor;

use crate::golden::{Golden, training};

fn mean_loss(golden: &Golden, logits: &Tensor) -> Tensor {
    let labels = &golden.inputs["labels"];
    loss::cross_entropy_sum(logits, labels, None).unwrap() / labels.size()[0] as f64
}

/// What the tokeniser made of the cells, and what the model makes of the numbers.
fn check_tokens(golden: &Golden, model: &Scfoundation, batch: &Inputs) {
    let padding = batch.padding.as_ref().unwrap();
    golden.close("gathered_values", &batch.values);
    // The reference gives padding the number of padding for a gene.
    let pad = golden.pad_value() as i64;
    golden.close(
        "gathered_gene_ids",
        &batch.gene_ids.masked_fill(padding, pad),
    );
    golden.close("padding_mask", padding);
    let embedded = model.embed_values(&batch.values).unwrap();
    golden.close("value_embedding", &embedded);
}

fn check_outputs(golden: &Golden, model: &Scfoundation, encoded: &Encoded, pass: Pass) {
    golden.close("encoder_output", &encoded.hidden);
    golden.close("pooled", &encoded.cell);
    let logits = model.classify(encoded, pass).unwrap();
    golden.close("logits", &logits);
    golden.close("loss", &mean_loss(golden, &logits));
}

/// Outputs in training and in evaluation, and gradients, in both executors.
fn check(name: &str) -> Golden {
    let golden = Golden::load(name);
    let blueprint = golden.blueprint();
    let batch = golden.annotated();
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (mut params, model) = golden.model(&blueprint, executor);
        check_tokens(&golden, &model, &batch);
        // Adapters act in evaluation as they do in training.
        let evaluated = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        check_outputs(&golden, &model, &evaluated, Pass::EVALUATION);
        params.zero_grad().unwrap();
        let mut encoded = model.encode(&batch, training()).unwrap();
        check_outputs(&golden, &model, &encoded, training());
        // TOKEN is part of the embedding here; the reference shows it before.
        if !matches!(blueprint.adapters[..], [AdapterOptions::Token(_)]) {
            golden.close("encoder_input", &encoded.genes);
        }
        mean_loss(&golden, &model.classify(&encoded, training()).unwrap()).backward();
        if let Some(tape) = encoded.tape.take() {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
    }
    golden
}

/// The reference leaves these adapters out in evaluation; the case says what it then predicts.
fn check_that_evaluation_is_not_the_references(golden: &Golden) {
    let theirs = &golden.expected["reference_eval_no_grad_logits"];
    let (_, model) = golden.model(&golden.blueprint(), ExecutorKind::Plain);
    let encoded = tch::no_grad(|| model.encode(&golden.annotated(), Pass::EVALUATION)).unwrap();
    let logits = model.classify(&encoded, Pass::EVALUATION).unwrap();
    let off = (logits - theirs).abs().max().double_value(&[]);
    let expected = golden.case["eval_vs_train_max_abs_logit_difference"]
        .as_f64()
        .unwrap();
    assert!(
        expected > 1e-3,
        "{}: the case shows no difference",
        golden.name
    );
    assert!(
        (off - expected).abs() < 1e-4,
        "{}: {off} of {expected}",
        golden.name
    );
}

#[test]
fn head_alone() {
    check("cls_none_max");
}

#[test]
fn encoder_adapter() {
    for name in [
        "cls_encoder_max",
        "cls_encoder_all",
        "cls_encoder_max_upper_half",
    ] {
        check_that_evaluation_is_not_the_references(&check(name));
    }
}

#[test]
fn token_adapter() {
    check("cls_token_max");
}

#[test]
fn prefix_adapter() {
    check_that_evaluation_is_not_the_references(&check("cls_prefix_max"));
}

#[test]
fn every_parameter() {
    check("cls_full_max");
}

/// LoRA added to the weight gives the same logits, and is added once.
#[test]
fn lora_adapter() {
    for name in ["cls_lora_max", "cls_lora_max_upper_half"] {
        let mut golden = check(name);
        let updates = golden.lora_updates();
        assert!(!updates.is_empty());
        for (weight, update) in updates {
            let merged = &golden.weights[&weight] + update;
            golden.weights.insert(weight, merged);
        }
        let mut blueprint = golden.blueprint();
        blueprint.adapters.clear();
        golden.case["trainable"] = serde_json::json!([]);
        let params = golden.params(&blueprint, Layout::cpu(0));
        let model = Scfoundation::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
        let encoded = model.encode(&golden.annotated(), Pass::EVALUATION).unwrap();
        golden.close(
            "logits",
            &model.classify(&encoded, Pass::EVALUATION).unwrap(),
        );
    }
}

/// Without padding in the pool, a cell's logits are its own.
#[test]
fn a_masked_pool_does_not_see_the_cells_beside_it() {
    for name in ["cls_encoder_max", "cls_encoder_all", "cls_prefix_max"] {
        let golden = Golden::load(name);
        let tokens = golden.tokens(&golden.inputs["x"], None, None);
        let logits = |padded: bool, multiple: usize| {
            let mut blueprint = golden.blueprint();
            blueprint.pool.padded = padded;
            let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
            let batch = golden.batch(&tokens, multiple);
            let encoded = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
            model.classify(&encoded, Pass::EVALUATION).unwrap()
        };
        let off = |padded| {
            let difference = logits(padded, 1) - logits(padded, 32);
            difference.abs().max().double_value(&[])
        };
        assert!(off(false) < 1e-6, "{name}: {}", off(false));
        if name == "cls_encoder_all" {
            assert!(off(true) > 1e-4, "{name}: padding does not count");
        }
    }
}
