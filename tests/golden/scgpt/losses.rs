//! Losses on given predictions, with their gradients.

use scpeft_model::loss;
use tch::{Kind, Tensor};

use crate::golden::{Golden, Tensors, assert_close, read};
use scpeft_tests::{case, fixture};

struct Losses {
    inputs: Tensors,
    expected: Tensors,
    atol: f64,
    rtol: f64,
}

impl Losses {
    /// `value` and its gradient with respect to each leaf.
    fn check(&self, name: &str, value: &Tensor, gradients: &[(&str, &Tensor)]) {
        let close = |name: &str, found: &Tensor| {
            let expected = &self.expected[name];
            assert_close(
                name,
                &found.view_as(expected),
                expected,
                self.atol,
                self.rtol,
            );
        };
        close(name, value);
        if gradients.is_empty() {
            return;
        }
        value.backward();
        for (suffix, leaf) in gradients {
            close(&format!("{name}.{suffix}"), &leaf.grad());
        }
    }

    fn leaf(&self, name: &str) -> Tensor {
        self.inputs[name].copy().set_requires_grad(true)
    }
}

#[test]
fn losses_and_their_gradients() {
    let dir = fixture("scgpt", "losses");
    let tolerances = case(&dir)["tolerances"].clone();
    let fixture = Losses {
        inputs: read(&dir.join("inputs.safetensors")),
        expected: read(&dir.join("expected.safetensors")),
        atol: tolerances["atol"].as_f64().unwrap(),
        rtol: tolerances["rtol"].as_f64().unwrap(),
    };
    let target = &fixture.inputs["target"];
    let mask = fixture.inputs["mask"].to_kind(Kind::Float);
    let masked = mask.sum(Kind::Float);

    let pred = fixture.leaf("pred");
    let sum = loss::masked_squared_error_sum(&pred, target, &mask).unwrap();
    fixture.check("masked_mse", &(sum / &masked), &[("grad_pred", &pred)]);

    let prob = fixture.leaf("prob");
    let sum = loss::nonzero_nll_sum(&prob, target, &mask).unwrap();
    fixture.check(
        "neg_log_bernoulli",
        &(sum / &masked),
        &[("grad_prob", &prob)],
    );

    let logits = fixture.leaf("logits");
    let (labels, weight) = (&fixture.inputs["labels"], &fixture.inputs["class_weight"]);
    let sum = loss::cross_entropy_sum(&logits, labels, Some(weight)).unwrap();
    let divisor = weight.index_select(0, labels).sum(Kind::Float);
    fixture.check("weighted_ce", &(sum / divisor), &[("grad", &logits)]);

    let mut thresholds = 0;
    for name in fixture.expected.keys().filter(|n| !n.ends_with("grad")) {
        let Some(threshold) = name.strip_prefix("ecs_") else {
            continue;
        };
        let cells = fixture.leaf("emb");
        let value = loss::elastic_cell_similarity(&cells, threshold.parse().unwrap()).unwrap();
        fixture.check(name, &value, &[("grad", &cells)]);
        thresholds += 1;
    }
    assert!(thresholds >= 2);

    let (first, second) = (fixture.leaf("emb"), fixture.leaf("emb2"));
    let value = loss::contrastive_cell_embedding(&first, &second).unwrap();
    fixture.check("cce", &value, &[("grad1", &first), ("grad2", &second)]);

    let rtol = tolerances["masked_relative_error_rtol"].as_f64().unwrap();
    for (suffix, mask) in [("all", "mask"), ("pos", "mask_pos")] {
        let mask = fixture.inputs[mask].to_kind(Kind::Float);
        let sum = loss::masked_relative_error_sum(&pred.detach(), target, &mask).unwrap();
        let name = format!("masked_relative_error_{suffix}");
        let expected = &fixture.expected[&name];
        let found = (sum / mask.sum(Kind::Float)).view_as(expected);
        assert_close(&name, &found, expected, 0.0, rtol);
    }
}

/// Golden cases of whole models are loaded through the same reader.
#[test]
fn a_missing_case_is_an_error_and_not_a_skip() {
    assert!(std::panic::catch_unwind(|| Golden::load("no_such_case")).is_err());
}
