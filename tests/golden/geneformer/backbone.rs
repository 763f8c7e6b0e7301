//! Hidden states, outputs, losses and gradients of every case.

use scpeft_model::backbone::geneformer::{CellEmbedding, CellStyle, Geneformer, Head};
use scpeft_model::backbone::{Encoded, Inputs, Model};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::{Layout, loss};
use tch::{Kind, Tensor};

use crate::golden::{Golden, assert_close, training};

/// Mean of the (weighted) cross-entropy over labels that are not -100.
fn mean_loss(logits: &Tensor, labels: &Tensor, weight: Option<&Tensor>) -> Tensor {
    let (logits, labels) = (
        logits.view([-1, *logits.size().last().unwrap()]),
        labels.view([-1]),
    );
    let sum = loss::cross_entropy_sum(&logits, &labels, weight).unwrap();
    let used = labels.masked_select(&labels.ne(-100));
    match weight {
        Some(weight) => sum / weight.index_select(0, &used).sum(Kind::Float),
        None => sum / used.size()[0] as f64,
    }
}

fn check_hidden(golden: &Golden, model: &Geneformer, batch: &Inputs) {
    let states = tch::no_grad(|| model.hidden_states(batch)).unwrap();
    for (i, state) in states.iter().enumerate() {
        golden.close(&format!("hidden.{i}"), state, "forward");
    }
    let named = golden.expected.keys().filter(|k| k.starts_with("hidden."));
    assert_eq!(named.count(), states.len());
}

/// Outputs of one pass of a model that classifies cells.
fn check_outputs(golden: &Golden, model: &Geneformer, encoded: &Encoded, pass: Pass) {
    let logits = model.classify(encoded, pass).unwrap();
    golden.close("logits", &logits, "forward");
    golden.close("pooled", &model.pooled(encoded).unwrap(), "forward");
    let (labels, weight) = (&golden.inputs["labels"], &golden.inputs["class_weight"]);
    golden.close("loss", &mean_loss(&logits, labels, Some(weight)), "forward");
    let unweighted = mean_loss(&logits, labels, None);
    golden.close("loss_unweighted", &unweighted, "forward");
    if golden.expected.contains_key("last_hidden_state") {
        golden.close("last_hidden_state", &encoded.hidden, "forward");
    }
}

/// A case of a model that classifies cells, in both executors and in evaluation.
fn check_sequence(name: &str) -> Golden {
    let golden = Golden::load(name);
    let blueprint = golden.sequence();
    let batch = golden.batch();
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (mut params, model) = golden.model(&blueprint, executor);
        check_hidden(&golden, &model, &batch);
        let evaluated = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        check_outputs(&golden, &model, &evaluated, Pass::EVALUATION);
        params.zero_grad().unwrap();
        let mut encoded = model.encode(&batch, training()).unwrap();
        check_outputs(&golden, &model, &encoded, training());
        let logits = model.classify(&encoded, training()).unwrap();
        let weight = &golden.inputs["class_weight"];
        mean_loss(&logits, &golden.inputs["labels"], Some(weight)).backward();
        if let Some(tape) = encoded.tape.take() {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
    }
    golden
}

#[test]
fn backbone_seqcls() {
    let golden = check_sequence("backbone_seqcls");
    let mut blueprint = golden.sequence();
    let batch = golden.batch();
    for (second_to_last, name) in [(true, "second_to_last"), (false, "last")] {
        blueprint.cell = CellEmbedding {
            style: CellStyle::Mean,
            second_to_last,
        };
        let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
        let encoded = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        golden.close(&format!("emb_mean.{name}"), &encoded.cell, "forward");
        // Without a mask attention reaches padding.
        let unmasked = Inputs::new(
            batch.gene_ids.shallow_clone(),
            batch.values.shallow_clone(),
            None,
        );
        let encoded = tch::no_grad(|| model.encode(&unmasked, Pass::EVALUATION)).unwrap();
        let logits = model.classify(&encoded, Pass::EVALUATION).unwrap();
        golden.close("logits_no_mask", &logits, "forward");
    }
    let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
    let raw = tch::no_grad(|| model.raw_scores(&batch, 0)).unwrap();
    let width = (blueprint.shape.d_model / blueprint.shape.n_heads) as f64;
    let padding = batch.padding.unwrap().unsqueeze(1).unsqueeze(1);
    let scores = (raw / width.sqrt()).masked_fill(&padding, f64::from(f32::MIN));
    golden.close("attention.0", &scores.softmax(-1, Kind::Float), "forward");
}

#[test]
fn backbone_tokencls() {
    let golden = Golden::load("backbone_tokencls");
    let blueprint = golden.blueprint(Head::Tokens {
        classes: golden.classes(),
    });
    let (mut params, model) = golden.model(&blueprint, ExecutorKind::Plain);
    params.zero_grad().unwrap();
    let encoded = model.encode(&golden.batch(), training()).unwrap();
    let logits = model.classify_tokens(&encoded, training()).unwrap();
    golden.close("logits", &logits, "forward");
    let (labels, weight) = (&golden.inputs["labels"], &golden.inputs["class_weight"]);
    let weighted = mean_loss(&logits, labels, Some(weight));
    golden.close("loss_weighted", &weighted, "forward");
    // The script's objective: the square of all logits, those of padding too.
    let l2 = (&logits * &logits).mean(Kind::Float) * 0.001;
    golden.close("loss_weighted_plus_logit_l2", &(weighted + l2), "forward");
    let plain = mean_loss(&logits, labels, None);
    golden.close("loss", &plain, "forward");
    plain.backward();
    golden.check_gradients(&params);
    assert!(model.classify(&encoded, training()).is_err());
    assert!(model.predict_tokens(&encoded).is_err());
}

#[test]
fn backbone_mlm() {
    let golden = Golden::load("backbone_mlm");
    let blueprint = golden.blueprint(Head::MaskedTokens);
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (mut params, model) = golden.model(&blueprint, executor);
        let batch = golden.batch();
        check_hidden(&golden, &model, &batch);
        params.zero_grad().unwrap();
        let mut encoded = model.encode(&batch, training()).unwrap();
        let logits = model.predict_tokens(&encoded).unwrap();
        golden.close("logits", &logits, "forward");
        let loss = mean_loss(&logits, &golden.inputs["labels"], None);
        golden.close("loss", &loss, "forward");
        loss.backward();
        if let Some(tape) = encoded.tape.take() {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
    }
}

#[test]
fn encoder_adapter() {
    check_sequence("encoder_adapter");
}

#[test]
fn encoder_adapter_context() {
    check_sequence("encoder_adapter_context");
}

#[test]
fn encoder_adapter_mlp() {
    check_sequence("encoder_adapter_mlp");
}

#[test]
fn token_adapter() {
    check_sequence("token_adapter");
}

#[test]
fn prefix_deep() {
    check_sequence("prefix_deep");
}

#[test]
fn prefix_shallow() {
    check_sequence("prefix_shallow");
}

/// LoRA added to the weight gives the logits of the reference in evaluation mode.
fn check_merged(name: &str) {
    let golden = check_sequence(name);
    check_unmerged_weight(&golden);
    let mut blueprint = golden.sequence();
    let lora = |o: &scpeft_model::adapter::AdapterOptions| {
        matches!(o, scpeft_model::adapter::AdapterOptions::Lora(_))
    };
    blueprint.adapters.retain(|o| !lora(o));
    let mut merged = Golden::load(name);
    for (weight, value) in merged_weights(&golden) {
        merged.weights.insert(weight, value);
    }
    let params = merged.params(&blueprint, |_| false, Layout::cpu(0));
    let model = Geneformer::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
    let encoded = model.encode(&golden.batch(), Pass::EVALUATION).unwrap();
    let logits = model.classify(&encoded, Pass::EVALUATION).unwrap();
    golden.close("logits_eval_merged", &logits, "forward");
}

/// `W + B A alpha / r` of every projection with factors.
fn merged_weights(golden: &Golden) -> Vec<(String, Tensor)> {
    let number = |key: &str| golden.case["adapter"][key].as_f64().unwrap();
    let scale = number("lora_alpha") / number("lora_r");
    let modules = golden
        .weights
        .keys()
        .filter_map(|k| k.strip_suffix(".lora_A"));
    modules
        .map(|module| {
            let part = |end: &str| &golden.weights[&format!("{module}.{end}")];
            let update = part("lora_B").matmul(part("lora_A")) * scale;
            (format!("{module}.weight"), part("weight") + update)
        })
        .collect()
}

/// The fixture's `merged.*` is the weight after the update was taken out of it again: what a state
/// dict must hold, so that nobody adds the update twice.
fn check_unmerged_weight(golden: &Golden) {
    let mut compared = 0;
    for (name, expected) in &golden.expected {
        let Some(weight) = name.strip_prefix("merged.") else {
            continue;
        };
        assert_close(name, &golden.weights[weight], expected, 1e-6, 1e-5);
        compared += 1;
    }
    assert_eq!(compared, 1);
}

#[test]
fn lora() {
    check_merged("lora");
}

#[test]
fn token_plus_lora() {
    check_merged("token_plus_lora");
}
