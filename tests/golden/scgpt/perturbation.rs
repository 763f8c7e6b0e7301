//! The generator: perturbation flags, affine decoder, plain mean squared error over every gene.

use scpeft_model::backbone::scgpt::{Blueprint, Heads};
use scpeft_model::exec::ExecutorKind;
use scpeft_model::head::AffineOptions;
use scpeft_model::loss;
use tch::Kind;

use crate::golden::{Golden, training};

fn check_case(name: &str) {
    let golden = Golden::load(name);
    let mut blueprint: Blueprint = golden.blueprint();
    blueprint.inputs.perturbation_pad = golden.case["pert_pad_id"].as_i64();
    blueprint.heads = Heads {
        affine: Some(AffineOptions::default()),
        ..Heads::default()
    };
    let (params, model) = golden.model(&blueprint, ExecutorKind::Plain);
    let inputs = golden.batch();
    assert!(inputs.padding.is_none() && inputs.perturbation.is_some());
    let encoded = model.encode(&inputs, training()).unwrap();
    golden.check_outputs(&model, &inputs, &encoded, "out.");
    let prediction = model
        .heads
        .expression(&encoded, &inputs)
        .unwrap()
        .prediction;
    let target = &golden.inputs["target_values"];
    let mask = target.ones_like();
    let mean =
        loss::masked_squared_error_sum(&prediction, target, &mask).unwrap() / mask.sum(Kind::Float);
    golden.close("loss.mse", &mean, "loss");
    golden.close("loss.total", &mean, "loss");
    mean.backward();
    golden.check_gradients(&params);
}

#[test]
fn perturb_finetune() {
    check_case("perturb_finetune");
}

#[test]
fn perturb_encoder() {
    check_case("perturb_encoder");
}

#[test]
fn perturb_lora() {
    check_case("perturb_lora");
}

#[test]
fn perturb_prefix() {
    check_case("perturb_prefix");
}
