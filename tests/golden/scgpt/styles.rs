//! The other input encoders, cell embeddings and the plain batch norm, in whole models.

use scpeft_model::backbone::scgpt::Classifier;
use scpeft_model::exec::ExecutorKind;
use scpeft_model::loss;

use crate::golden::{Golden, training};

/// These cases store the gradients of the parts under test only, and no classes in `model_args`.
fn check_case(name: &str) {
    let golden = Golden::load(name);
    let mut blueprint = golden.blueprint();
    blueprint.heads.classifier = Some(Classifier {
        classes: golden.int("n_cls"),
        layers: golden.int("nlayers_cls") as usize,
    });
    let (params, model) = golden.model(&blueprint, ExecutorKind::Plain);
    let mut inputs = golden.batch();
    if golden.case["model_args"]["domain_spec_batchnorm"].is_null() {
        inputs.batch_labels = None;
    }
    let encoded = model.encode(&inputs, training()).unwrap();
    golden.check_outputs(&model, &inputs, &encoded, "out.");
    let labels = &golden.inputs["celltype_labels"];
    let logits = model.heads.classify(&encoded).unwrap();
    let mean = loss::cross_entropy_sum(&logits, labels, None).unwrap() / labels.size()[0] as f64;
    golden.close("loss.total", &mean, "loss");
    mean.backward();
    golden.check_buffers(&params, &model, &encoded);
    let stored: Vec<String> = golden
        .expected
        .keys()
        .filter_map(|name| name.strip_prefix("grad.").map(str::to_owned))
        .collect();
    assert!(stored.len() >= 2, "gradients in the fixture: {stored:?}");
    for name in stored {
        let slot = params.slots().iter().find(|s| s.name == name).unwrap();
        let grad = params
            .grad()
            .narrow(0, slot.offset as i64, slot.numel() as i64)
            .view(slot.shape.as_slice());
        golden.close(&format!("grad.{name}"), &grad, "grad");
    }
}

#[test]
fn style_cell_avgpool() {
    check_case("style_cell_avgpool");
}

#[test]
fn style_cell_wpool() {
    check_case("style_cell_wpool");
}

#[test]
fn style_input_category() {
    check_case("style_input_category");
}

#[test]
fn style_input_scaling() {
    check_case("style_input_scaling");
}

#[test]
fn style_simple_batchnorm() {
    check_case("style_simple_batchnorm");
}
