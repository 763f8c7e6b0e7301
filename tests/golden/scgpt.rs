//! The scGPT model against numbers of the reference: outputs, losses and every gradient, in
//! training mode without dropout, and outputs in evaluation mode.
//!
//! The cases name the shapes; nothing here depends on them.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Projection,
};
use scpeft_model::backbone::scgpt::{Blueprint, Encoded, Heads, Inputs, Scgpt, Shape};
use scpeft_model::exec::Dropout;
use scpeft_model::{Params, Role, loss};
use scpeft_tests::{case, fixture};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let tensors =
        Tensor::read_safetensors(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tensors.into_iter().collect()
}

struct Golden {
    case: Value,
    weights: Tensors,
    inputs: Tensors,
    expected: Tensors,
}

impl Golden {
    fn load(name: &str) -> Self {
        let dir = fixture("scgpt", name);
        let weights = read(&dir.join("weights.safetensors"));
        Self {
            case: case(&dir),
            // LoRA's projection is stored under two names in the reference.
            weights: weights
                .into_iter()
                .map(|(name, t)| {
                    (
                        name.replace("Wqkv.weight", "in_proj_weight")
                            .replace("Wqkv.bias", "in_proj_bias"),
                        t,
                    )
                })
                .collect(),
            inputs: read(&dir.join("inputs.safetensors")),
            expected: read(&dir.join("expected.safetensors")),
        }
    }

    fn int(&self, key: &str) -> i64 {
        self.case["config"][key]
            .as_i64()
            .unwrap_or_else(|| panic!("case.json: config.{key}"))
    }

    fn blueprint(&self) -> Blueprint {
        let args = &self.case["model_args"];
        let n_cls = args["n_cls"].as_i64().unwrap_or_else(|| self.int("n_cls"));
        Blueprint {
            shape: Shape {
                vocab: self.int("ntoken"),
                d_model: self.int("d_model"),
                n_heads: self.int("nhead"),
                d_hid: self.int("d_hid"),
                n_layers: self.int("nlayers") as usize,
                pad_id: self.int("pad_id"),
            },
            heads: Heads {
                classes: (n_cls > 1).then_some(n_cls),
                classifier_layers: self.int("nlayers_cls") as usize,
                mvc: args["do_mvc"] == true,
                explicit_zero: args["explicit_zero_prob"] == true,
            },
            adapters: adapters(&self.case["adapter_config"]),
        }
    }

    /// The model with the case's weights; exactly the tensors train that the case says train.
    fn model(&self) -> (Params, Scgpt) {
        let blueprint = self.blueprint();
        let trainable = self.case["trainable_parameters"].as_object().unwrap();
        let params = Params::build(
            &blueprint.specs().unwrap(),
            |spec| {
                let tensor = self.weights.get(&spec.name);
                assert!(
                    tensor.is_some(),
                    "the fixture has no tensor `{}`",
                    spec.name
                );
                Ok(tensor.map(Tensor::shallow_clone))
            },
            |spec| trainable.contains_key(&spec.name),
            0,
            Device::Cpu,
            0,
        )
        .unwrap();
        let count = self.case["trainable_count"].as_u64().unwrap() as usize;
        assert_eq!(params.trainable_count(), count, "trainable parameters");
        let total = self.case["total_count"].as_u64().unwrap() as usize;
        assert_eq!(params.total_count(), total, "all parameters");
        let model = Scgpt::bind(&blueprint, &params).unwrap();
        (params, model)
    }

    fn batch(&self) -> Inputs {
        let padding = self.inputs["src_key_padding_mask"].to_kind(Kind::Bool);
        Inputs {
            gene_ids: self.inputs["gene_ids"].shallow_clone(),
            values: self.inputs["values"].shallow_clone(),
            padding: padding.any().int64_value(&[]).eq(&1).then_some(padding),
        }
    }

    fn close(&self, name: &str, found: &Tensor, kind: &str) {
        let expected = self
            .expected
            .get(name)
            .unwrap_or_else(|| panic!("no expected tensor `{name}`"));
        let tolerance = |part: &str| {
            let key = format!("{kind}_{part}");
            self.case["tolerances"][&key].as_f64().unwrap_or(0.0)
        };
        assert_close(
            name,
            &found.view_as(expected),
            expected,
            tolerance("atol"),
            tolerance("rtol"),
        );
    }
}

fn assert_close(name: &str, found: &Tensor, expected: &Tensor, atol: f64, rtol: f64) {
    let excess = (found - expected).abs() - expected.abs() * rtol - atol;
    let worst = excess.max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "`{name}` is off by {worst:e} more than atol {atol:e} + rtol {rtol:e}"
    );
}

fn adapters(config: &Value) -> Vec<AdapterOptions> {
    let flags = config["adapter_layer_conf"].as_array();
    let layers = LayerSelection::Listed(
        flags
            .into_iter()
            .flatten()
            .enumerate()
            .filter(|(_, on)| **on == true)
            .map(|(i, _)| i)
            .collect(),
    );
    match config["peft_type"].as_str() {
        None => Vec::new(),
        Some("ENCODER") => vec![AdapterOptions::Encoder(EncoderOptions {
            layers,
            mlp_ratio: config["mlp_ratio"].as_f64().unwrap(),
            skip_connect: config["skip_connect"] == true,
            zero_init: false,
        })],
        Some("LORA") => vec![AdapterOptions::Lora(LoraOptions {
            layers,
            r: config["r"].as_i64().unwrap(),
            lora_alpha: config["lora_alpha"].as_f64().unwrap(),
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        })],
        Some(other) => panic!("case.json: adapter `{other}` has no test"),
    }
}

/// Every loss that the case weighs, as a mean, with its weight.
fn losses(golden: &Golden, model: &Scgpt, encoded: &Encoded) -> Vec<(String, f64, Tensor)> {
    let mask = golden.inputs["masked_positions"].to_kind(Kind::Float);
    let masked = mask.sum(Kind::Float);
    let target = &golden.inputs["target_values"];
    let expression = model.expression.forward(&encoded.hidden).unwrap();
    let mvc = model
        .mvc
        .as_ref()
        .map(|head| head.forward(&encoded.cell, &encoded.genes).unwrap());
    let mean = |sum: Tensor| sum / &masked;
    let weights = golden.case["loss_weights"].as_object().unwrap();
    weights
        .iter()
        .map(|(name, weight)| {
            let squared = |e: &scpeft_model::head::Expression| {
                mean(loss::masked_squared_error_sum(&e.prediction, target, &mask).unwrap())
            };
            let nll = |e: &scpeft_model::head::Expression| {
                let probability = e.nonzero_probability.as_ref().unwrap();
                mean(loss::nonzero_nll_sum(probability, target, &mask).unwrap())
            };
            let (name, value) = match name.as_str() {
                "gep" => ("gep", squared(&expression)),
                "nzlp" => ("gep_zero_log_prob", nll(&expression)),
                "gepc" => ("gepc", squared(mvc.as_ref().unwrap())),
                "mvc_nzlp" => ("gepc_zero_log_prob", nll(mvc.as_ref().unwrap())),
                "cls" => {
                    let logits = model
                        .classifier
                        .as_ref()
                        .unwrap()
                        .forward(&encoded.cell)
                        .unwrap();
                    let labels = &golden.inputs["celltype_labels"];
                    let class_weight = golden.inputs.get("class_weight");
                    let divisor = match class_weight {
                        Some(w) => w.index_select(0, labels).sum(Kind::Float),
                        None => Tensor::from(labels.size()[0] as f32),
                    };
                    (
                        "cls",
                        loss::cross_entropy_sum(&logits, labels, class_weight).unwrap() / divisor,
                    )
                }
                "ecs" => {
                    let threshold = golden.case["model_args"]["ecs_threshold"].as_f64().unwrap();
                    (
                        "ecs",
                        loss::elastic_cell_similarity(&encoded.cell, threshold).unwrap(),
                    )
                }
                "cce" => {
                    let second = model.encode(&golden.batch(), Dropout::OFF).unwrap();
                    (
                        "cce",
                        loss::contrastive_cell_embedding(&encoded.cell, &second.cell).unwrap(),
                    )
                }
                other => panic!("case.json: loss `{other}` has no test"),
            };
            (name.to_owned(), weight.as_f64().unwrap(), value)
        })
        .collect()
}

fn check_outputs(golden: &Golden, model: &Scgpt, encoded: &Encoded, prefix: &str) {
    let mut checked = 0;
    for name in golden.expected.keys() {
        let Some(output) = name.strip_prefix(prefix) else {
            continue;
        };
        let mvc = || {
            model
                .mvc
                .as_ref()
                .unwrap()
                .forward(&encoded.cell, &encoded.genes)
                .unwrap()
        };
        let expression = || model.expression.forward(&encoded.hidden).unwrap();
        let found = match output {
            "cell_emb" => encoded.cell.shallow_clone(),
            "cls_output" => model
                .classifier
                .as_ref()
                .unwrap()
                .forward(&encoded.cell)
                .unwrap(),
            "mlm_output" => expression().prediction,
            "mlm_zero_probs" => expression().nonzero_probability.unwrap(),
            "mvc_output" => mvc().prediction,
            "mvc_zero_probs" => mvc().nonzero_probability.unwrap(),
            // Compared as losses below.
            "loss_ecs" | "loss_cce" => continue,
            other => panic!("expected output `{other}` has no test"),
        };
        golden.close(name, &found, "forward");
        checked += 1;
    }
    assert!(
        checked >= 2,
        "`{prefix}`: only {checked} outputs in the fixture"
    );
}

fn check_case(name: &str) {
    let golden = Golden::load(name);
    let (params, model) = golden.model();
    let encoded = model.encode(&golden.batch(), Dropout::OFF).unwrap();
    if golden.expected.contains_key("transformer_output") {
        golden.close("transformer_output", &encoded.hidden, "forward");
    }
    check_outputs(&golden, &model, &encoded, "out.");
    check_losses_and_gradients(&golden, &params, &model, &encoded);
    check_evaluation(&golden, &model);
}

fn check_losses_and_gradients(golden: &Golden, params: &Params, model: &Scgpt, encoded: &Encoded) {
    let mut total = Tensor::from(0.0f32);
    for (name, weight, value) in losses(golden, model, encoded) {
        golden.close(&format!("loss.{name}"), &value, "loss");
        total += value * weight;
    }
    golden.close("loss.total", &total, "loss");
    total.backward();
    let mut norm_squared = 0.0;
    for slot in params.slots() {
        let grad = params
            .grad()
            .narrow(0, slot.offset as i64, slot.numel() as i64)
            .view(slot.shape.as_slice());
        let name = slot.name.replace("in_proj_", "Wqkv.");
        let expected = [format!("grad.{}", slot.name), format!("grad.{name}")]
            .into_iter()
            .find(|name| golden.expected.contains_key(name));
        match expected {
            Some(name) => golden.close(&name, &grad, "grad"),
            None => {
                let listed = golden.case["trainable_without_grad"].as_array().unwrap();
                assert!(
                    listed.iter().any(|n| n == slot.name.as_str()),
                    "no expected gradient of `{}`",
                    slot.name
                );
                assert_eq!(
                    grad.abs().max().double_value(&[]),
                    0.0,
                    "gradient of `{}`",
                    slot.name
                );
            }
        }
        norm_squared += (&grad * &grad).sum(Kind::Double).double_value(&[]);
    }
    let expected = golden.expected["grad_norm_total"].double_value(&[0]);
    assert!(
        (norm_squared.sqrt() - expected).abs() <= 2e-3 * expected,
        "norm {} vs {expected}",
        norm_squared.sqrt()
    );
    let gradients = golden
        .expected
        .keys()
        .filter(|k| k.starts_with("grad."))
        .count();
    assert!(gradients > 0 && gradients <= params.slots().len());
}

/// Adapters act in evaluation as in training; the reference drops or doubles them there.
fn check_evaluation(golden: &Golden, model: &Scgpt) {
    let encoded = tch::no_grad(|| model.encode(&golden.batch(), Dropout::OFF).unwrap());
    check_outputs(golden, model, &encoded, "eval.");
    let Some(wrong) = golden.case["max_abs_diff_of_refbug_vs_correct_eval"].as_object() else {
        return;
    };
    for (name, difference) in wrong.iter().filter(|(_, d)| d.as_f64().unwrap() > 1e-3) {
        let found = (&encoded.cell - &golden.expected[name])
            .abs()
            .max()
            .double_value(&[]);
        assert!(
            found > 0.5 * difference.as_f64().unwrap(),
            "reproduces the defect `{name}`"
        );
    }
}

#[test]
fn backbone_with_every_objective() {
    check_case("backbone_all_objectives");
}

#[test]
fn backbone_without_padding() {
    check_case("backbone_nopad");
}

#[test]
fn identification_with_the_encoder_adapter() {
    check_case("identification_encoder");
}

#[test]
fn identification_with_lora() {
    check_case("identification_lora");
}

/// The counts of the specification at the size of the published whole-human model.
#[test]
fn trainable_counts_at_full_size() {
    let with = |adapters: Vec<AdapterOptions>| {
        let blueprint = Blueprint {
            shape: Shape {
                vocab: 60_697,
                d_model: 512,
                n_heads: 8,
                d_hid: 512,
                n_layers: 12,
                pad_id: 60_694,
            },
            heads: Heads {
                classes: Some(18),
                classifier_layers: 3,
                ..Heads::default()
            },
            adapters,
        };
        let unfrozen = blueprint.unfreezes().unwrap();
        let specs = blueprint.specs().unwrap();
        let trains = |s: &&scpeft_model::TensorSpec| {
            s.role == Role::Adapter
                || unfrozen.contains(&s.name)
                || s.name.starts_with("cls_decoder")
        };
        let count = |it: &mut dyn Iterator<Item = usize>| it.sum::<usize>();
        (
            count(&mut specs.iter().map(scpeft_model::TensorSpec::numel)),
            count(
                &mut specs
                    .iter()
                    .filter(trains)
                    .map(scpeft_model::TensorSpec::numel),
            ),
        )
    };
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: LayerSelection::FirstHalf,
        mlp_ratio: 0.25,
        skip_connect: true,
        zero_init: false,
    });
    let lora = AdapterOptions::Lora(LoraOptions {
        layers: LayerSelection::FirstHalf,
        r: 8,
        lora_alpha: 1.0,
        targets: vec![Projection::Value, Projection::Query],
        train_qkv_bias: true,
    });
    assert_eq!(with(vec![]).0, 51_340_819);
    assert_eq!(with(vec![encoder]), (52_131_091, 1_326_866));
    assert_eq!(with(vec![lora]), (51_439_123, 644_114));
}
