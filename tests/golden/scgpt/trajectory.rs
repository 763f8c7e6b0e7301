//! Six optimizer steps over two epochs: losses, learning rates, norms and final parameters.

use scpeft_model::exec::ExecutorKind;
use scpeft_model::loss;
use scpeft_trainer::optim::{Adam, AdamOptions, Schedule, Shape, clip_grad_norm};
use tch::{Kind, Tensor};

use crate::golden::{Golden, assert_close, training};

fn check_case(name: &str) {
    let golden = Golden::load(name);
    let settings = &golden.case["optimizer"];
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let batches = golden.case["batches_per_epoch"].as_u64().unwrap();
    let steps = golden.case["epochs"].as_u64().unwrap() * batches;
    let (mut params, model) = golden.model(&golden_blueprint(&golden), ExecutorKind::Plain);
    let mut adam = Adam::new(
        AdamOptions {
            beta1: number(&settings["betas"][0]),
            beta2: number(&settings["betas"][1]),
            eps: number(&settings["eps"]),
            weight_decay: number(&settings["weight_decay"]),
            decoupled: false,
        },
        params.flat(),
    )
    .unwrap();
    let schedule = Schedule {
        lr: number(&settings["lr"]),
        warmup_steps: 0,
        // As the case's scheduler says: StepLR, one epoch, gamma 0.9.
        shape: Shape::Step { gamma: 0.9 },
        steps_per_epoch: batches,
        planned_steps: steps,
    };
    let at = |name: &str, step: u64| golden.expected[name].double_value(&[step as i64]);
    let tolerance = |key: &str| number(&golden.case["trajectory_tolerances"][key]);
    for step in 0..steps {
        let prefix = format!("batch{}.", step % batches);
        params.zero_grad().unwrap();
        let encoded = model
            .encode(&golden.batch_named(&prefix), training())
            .unwrap();
        let labels = &golden.inputs[&format!("{prefix}celltype_labels")];
        let logits = model.heads.classify(&encoded).unwrap();
        let mean =
            loss::cross_entropy_sum(&logits, labels, None).unwrap() / labels.size()[0] as f64;
        let (found, expected) = (mean.double_value(&[]), at("losses", step));
        assert!(
            (found - expected).abs() <= tolerance("loss_atol"),
            "step {step}: loss {found}, expected {expected}"
        );
        mean.backward();
        let mut grad = params.grad().shallow_clone();
        let norm = clip_grad_norm(&mut grad, number(&golden.case["clip_grad_norm"])).unwrap();
        let expected = at("grad_norms_before_clip", step);
        assert!(
            (norm - expected).abs() <= 2e-3 * expected,
            "step {step}: norm {norm}, expected {expected}"
        );
        let lr = schedule.lr(step);
        assert!((lr - at("lrs", step)).abs() <= 1e-9, "step {step}: lr {lr}");
        let mut flat = params.flat().shallow_clone();
        tch::no_grad(|| adam.step(&mut flat, &grad, lr)).unwrap();
    }
    let mut compared = 0;
    for slot in params.slots() {
        let found = params.get(&slot.name).unwrap().detach();
        let expected = &golden.expected[&format!("final.{}", slot.name)];
        for (found, expected) in comparable(&slot.name, &found, expected) {
            let atol = tolerance("param_atol");
            assert_close(&slot.name, &found, &expected, atol, 0.0);
        }
        compared += 1;
    }
    assert!(compared > 0);
}

/// The key third of the packed bias has a gradient of rounding noise alone, which Adam turns into
/// steps of its own: it moves no output and is not compared.
fn comparable(name: &str, found: &Tensor, expected: &Tensor) -> Vec<(Tensor, Tensor)> {
    if !name.ends_with("in_proj_bias") {
        return vec![(found.shallow_clone(), expected.shallow_clone())];
    }
    let third = found.size()[0] / 3;
    [0, 2]
        .map(|part| {
            let cut = |x: &Tensor| x.narrow(0, part * third, third);
            (cut(found), cut(expected))
        })
        .into()
}

fn golden_blueprint(golden: &Golden) -> scpeft_model::backbone::scgpt::Blueprint {
    let mut blueprint = golden.blueprint();
    blueprint.heads.classifier = Some(scpeft_model::backbone::scgpt::Classifier {
        classes: golden.int("n_cls"),
        layers: golden.int("nlayers_cls") as usize,
    });
    assert_eq!(golden.expected["losses"].kind(), Kind::Float);
    blueprint
}

#[test]
fn trajectory_encoder() {
    check_case("trajectory_encoder");
}

#[test]
fn trajectory_lora() {
    check_case("trajectory_lora");
}

#[test]
fn trajectory_prefix() {
    check_case("trajectory_prefix");
}
