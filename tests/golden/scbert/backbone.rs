//! Hidden states, outputs, losses and gradients of every case.

use scpeft_model::adapter::AdapterOptions;
use scpeft_model::backbone::performer::KeyMax;
use scpeft_model::backbone::scbert::Scbert;
use scpeft_model::backbone::{Inputs, Model};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::{Layout, loss};
use tch::{Kind, Tensor};

use crate::golden::{Golden, training};

/// Mean of the (weighted) cross-entropy over labels that are not `ignored`.
fn mean_loss(logits: &Tensor, labels: &Tensor, weight: Option<&Tensor>) -> Tensor {
    let sum = loss::cross_entropy_sum(logits, labels, weight).unwrap();
    match weight {
        Some(weight) => sum / weight.index_select(0, labels).sum(Kind::Float),
        None => sum / labels.size()[0] as f64,
    }
}

/// Without the places of a prefix behind the first, where there are more than `places`.
fn stripped(states: &Tensor, places: i64) -> Tensor {
    let more = states.size()[1] - places;
    let (first, rest) = (
        states.narrow(1, 0, 1),
        states.narrow(1, 1 + more, places - 1),
    );
    Tensor::cat(&[first, rest], 1)
}

fn check_hidden(golden: &Golden, model: &Scbert, batch: &Inputs) {
    let states = tch::no_grad(|| model.hidden_states(batch)).unwrap();
    let places = golden.int("max_seq_len");
    let blocks = golden.int("depth");
    for (i, state) in (0..blocks).zip(&states) {
        let name = format!("hidden.block{i}.input");
        let expected = stripped(&golden.expected[&name], places);
        golden.near(&name, &stripped(state, places), &expected, "forward");
    }
    let [.., last, normed] = &states[..] else {
        panic!("no states");
    };
    golden.close("hidden.final_norm.input", last, "forward");
    golden.close("hidden.final_norm.output", normed, "forward");
}

/// A case of a model that classifies cells, in both executors and in evaluation.
fn check(name: &str) -> Golden {
    let golden = Golden::load(name);
    let blueprint = golden.blueprint();
    let batch = golden.batch();
    let (labels, weight) = (&golden.inputs["labels"], golden.inputs.get("class_weight"));
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (mut params, model) = golden.model(&blueprint, executor);
        check_hidden(&golden, &model, &batch);
        let evaluated = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        let logits = model.classify(&evaluated, Pass::EVALUATION).unwrap();
        golden.close("logits", &logits, "forward");
        params.zero_grad().unwrap();
        let mut encoded = model.encode(&batch, training()).unwrap();
        let logits = model.classify(&encoded, training()).unwrap();
        golden.close("logits", &logits, "forward");
        let loss = mean_loss(&logits, labels, weight);
        golden.close("loss", &loss, "forward");
        if golden.expected.contains_key("loss_unweighted") {
            let unweighted = mean_loss(&logits, labels, None);
            golden.close("loss_unweighted", &unweighted, "forward");
        }
        loss.backward();
        if let Some(tape) = encoded.tape.take() {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
    }
    golden
}

#[test]
fn no_adapter() {
    check("none");
}

#[test]
fn token_adapter() {
    check("token_adapter");
}

#[test]
fn encoder_adapter() {
    check("encoder_adapter");
}

#[test]
fn encoder_adapter_mlp() {
    check("encoder_adapter_mlp");
}

#[test]
fn prefix() {
    check("prefix");
}

#[test]
fn finetune_official_and_cells_one_by_one() {
    let golden = check("finetune_official");
    let mut blueprint = golden.blueprint();
    blueprint.key_max = KeyMax::Cell;
    let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
    let encoded = tch::no_grad(|| model.encode(&golden.batch(), Pass::EVALUATION)).unwrap();
    let logits = model.classify(&encoded, Pass::EVALUATION).unwrap();
    golden.close("logits_one_by_one", &logits, "forward");
    let together = &golden.expected["logits"];
    assert!((&logits - together).abs().max().double_value(&[]) > 1e-3);
}

#[test]
fn lora_and_its_update_in_the_weights() {
    let golden = check("lora");
    let number = |key: &str| golden.case["lora"][key].as_f64().unwrap();
    let scale = number("lora_alpha") / number("r");
    let mut merged = Golden::load("lora");
    for (name, a) in &golden.weights {
        let Some(module) = name.strip_suffix(".lora_A") else {
            continue;
        };
        let update = golden.weights[&format!("{module}.lora_B")].matmul(a) * scale;
        let weight = merged.weights.get_mut(&format!("{module}.weight")).unwrap();
        *weight = &*weight + update;
    }
    let mut blueprint = golden.blueprint();
    let lora = |o: &AdapterOptions| matches!(o, AdapterOptions::Lora(_));
    blueprint.adapters.retain(|o| !lora(o));
    let params = merged.params(&blueprint, |_| false, Layout::cpu(0));
    let model = Scbert::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
    let encoded = model.encode(&golden.batch(), Pass::EVALUATION).unwrap();
    let logits = model.classify(&encoded, Pass::EVALUATION).unwrap();
    golden.close("logits_eval_merged", &logits, "forward");
    let mut compared = 0;
    for (name, expected) in &golden.expected {
        if let Some(weight) = name.strip_prefix("merged.") {
            golden.near(name, &merged.weights[weight], expected, "forward");
            compared += 1;
        }
    }
    assert_eq!(compared, 1);
}

#[test]
fn backbone_mlm() {
    let golden = Golden::load("backbone_mlm");
    let blueprint = golden.blueprint();
    let batch = golden.batch();
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (mut params, model) = golden.model(&blueprint, executor);
        check_hidden(&golden, &model, &batch);
        params.zero_grad().unwrap();
        let mut encoded = model.encode(&batch, training()).unwrap();
        golden.close("encodings", &encoded.hidden, "forward");
        let mapping = model.mapping(&encoded).unwrap();
        golden.close("pooled_mapping", &mapping, "forward");
        let logits = model.predict_tokens(&encoded).unwrap();
        golden.close("logits", &logits, "forward");
        let labels = golden.inputs["labels"].view([-1]);
        let ignored = golden.int("num_tokens") - 1;
        let masked = labels.ne(ignored).nonzero().view([-1]);
        let logits = logits.view([-1, golden.int("num_tokens")]);
        let loss = mean_loss(
            &logits.index_select(0, &masked),
            &labels.index_select(0, &masked),
            None,
        );
        golden.close("loss", &loss, "forward");
        loss.backward();
        if let Some(tape) = encoded.tape.take() {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
        assert!(model.classify(&encoded, training()).is_err());
    }
}

#[test]
fn tokens_beyond_the_vocabulary_and_cells_of_another_panel_are_named() {
    let golden = Golden::load("none");
    let (_, model) = golden.model(&golden.blueprint(), ExecutorKind::Plain);
    let refused = |batch: &Inputs| {
        let error = model.encode(batch, Pass::EVALUATION).unwrap_err();
        error.to_string()
    };
    let mut batch = golden.batch();
    let tokens = golden.int("num_tokens");
    let _ = batch.gene_ids.get(0).get(3).fill_(tokens);
    let text = refused(&batch);
    assert!(text.contains(&format!("to {tokens} in a cell")), "{text}");
    batch = golden.batch();
    batch.gene_ids = batch.gene_ids.narrow(1, 0, 5);
    let text = refused(&batch);
    let places = golden.int("max_seq_len");
    assert!(
        text.contains(&format!("5 tokens, this scBERT reads {places}")),
        "{text}"
    );
}
