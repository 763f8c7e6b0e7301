//! Six optimizer steps: losses, learning rates, norms and final parameters.

use scpeft_model::backbone::Model;
use scpeft_model::exec::ExecutorKind;
use scpeft_model::loss;
use scpeft_trainer::optim::{Adam, AdamOptions, Schedule, Shape, clip_grad_norm};
use tch::Kind;

use crate::golden::{Golden, training};

#[test]
fn trajectory_encoder_adapter() {
    let golden = Golden::load("trajectory_encoder_adapter");
    let settings = &golden.case["optimizer"];
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let steps = settings["total_steps"].as_u64().unwrap();
    let (mut params, model) = golden.model(&golden.sequence(), ExecutorKind::Plain);
    let mut adam = Adam::new(
        AdamOptions {
            beta1: number(&settings["betas"][0]),
            beta2: number(&settings["betas"][1]),
            eps: number(&settings["eps"]),
            // The reference spares biases; over so few steps that is below the tolerance.
            weight_decay: number(&settings["weight_decay"]),
            decoupled: true,
        },
        params.flat(),
    )
    .unwrap();
    let schedule = Schedule {
        lr: number(&settings["lr"]),
        warmup_steps: settings["warmup_steps"].as_u64().unwrap(),
        shape: Shape::Linear { min_ratio: 0.0 },
        steps_per_epoch: steps,
        planned_steps: steps,
    };
    let (labels, weight) = (&golden.inputs["labels"], &golden.inputs["class_weight"]);
    let divisor = weight.index_select(0, labels).sum(Kind::Float);
    let tolerance = |part: &str| number(&golden.case["tolerances"]["losses"][part]);
    for step in 0..steps {
        let at = |name: &str| golden.expected[name].double_value(&[step as i64]);
        params.zero_grad().unwrap();
        let encoded = model.encode(&golden.batch(), training()).unwrap();
        let logits = model.classify(&encoded, training()).unwrap();
        let loss = loss::cross_entropy_sum(&logits, labels, Some(weight)).unwrap() / &divisor;
        let (found, expected) = (loss.double_value(&[]), at("losses"));
        assert!(
            (found - expected).abs() <= tolerance("atol") + tolerance("rtol") * expected.abs(),
            "step {step}: loss {found}, expected {expected}"
        );
        loss.backward();
        let mut grad = params.grad().shallow_clone();
        let norm = clip_grad_norm(&mut grad, number(&settings["max_grad_norm"])).unwrap();
        let expected = at("grad_norms");
        assert!(
            (norm - expected).abs() <= 2e-3 * expected,
            "step {step}: norm {norm}, expected {expected}"
        );
        let lr = if step < schedule.warmup_steps {
            // The reference's warm-up starts at 0, ours one step later.
            schedule.lr * step as f64 / schedule.warmup_steps as f64
        } else {
            schedule.lr(step)
        };
        assert!((lr - at("lrs")).abs() <= 1e-9, "step {step}: lr {lr}");
        let mut flat = params.flat().shallow_clone();
        tch::no_grad(|| adam.step(&mut flat, &grad, lr)).unwrap();
    }
    for slot in params.slots() {
        let found = params.get(&slot.name).unwrap().detach();
        golden.close(&format!("final.{}", slot.name), &found, "final");
    }
    let named = golden.expected.keys().filter(|k| k.starts_with("final."));
    assert_eq!(named.count(), params.slots().len());
}
