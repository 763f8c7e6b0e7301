//! The drug-conditional adapter, in every reading, against an independent PyTorch implementation:
//! hidden states, predictions, loss and the gradient of every trained tensor. Losses of sets of
//! cells against the golden metrics.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};

use scpeft_model::adapter::{
    AdapterOptions, DrugBias, DrugBottleneck, DrugOptions, DrugReading, DrugSite, Generator,
    LayerSelection,
};
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{Blueprint, Heads, InputOptions, Scgpt};
use scpeft_model::backbone::{Activation, Inputs, Purpose, Shape};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::head::AffineOptions;
use scpeft_model::{Layout, Params, loss};
use scpeft_tests::{case, fixture};
use serde_json::Value;
use tch::{Kind, Tensor};

type Tensors = HashMap<String, Tensor>;

struct Golden {
    case: Value,
    weights: Tensors,
    inputs: Tensors,
    expected: Tensors,
}

impl Golden {
    fn load(name: &str) -> Self {
        let dir = fixture("scdca", name);
        let read = |file: &str| -> Tensors {
            let path = dir.join(file);
            let tensors = Tensor::read_safetensors(&path);
            let tensors = tensors.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            tensors.into_iter().collect()
        };
        Self {
            case: case(&dir),
            weights: read("weights.safetensors"),
            inputs: read("inputs.safetensors"),
            expected: read("expected.safetensors"),
        }
    }

    fn int(&self, key: &str) -> i64 {
        self.case["config"][key].as_i64().unwrap()
    }

    fn reading(&self) -> DrugReading {
        let config = &self.case["config"];
        let bias = match config["mode"].as_str().unwrap() {
            "prefix" => {
                return DrugReading::Prefix {
                    tokens: self.int("prefix"),
                };
            }
            "input_add" => return DrugReading::InputAdd,
            "bias_down" => DrugBias::Down,
            "bias_both" => DrugBias::DownAndUp,
            "static" => DrugBias::Static,
            other => panic!("case.json: mode `{other}` has no test"),
        };
        DrugReading::Bottleneck(DrugBottleneck {
            site: match config["place"].as_str().unwrap() {
                "ffn" => DrugSite::FeedForward,
                "attn" => DrugSite::Attention,
                "both" => DrugSite::Both,
                other => panic!("case.json: place `{other}` has no test"),
            },
            bottleneck: self.int("b"),
            bias,
            generator: match config["hidden"].as_i64() {
                Some(hidden) => Generator::Mlp { hidden },
                None => Generator::Linear,
            },
            activation: Activation::Relu,
        })
    }

    /// The model of the first `layers` blocks.
    fn blueprint(&self, layers: usize) -> Blueprint {
        // The cases have no padding token: a gene that no cell has takes its place.
        let genes = Vec::<i64>::try_from(&self.inputs["genes"].view([-1])).unwrap();
        let used: BTreeSet<i64> = genes.into_iter().collect();
        let vocab = self.int("V");
        Blueprint {
            shape: Shape {
                vocab,
                d_model: self.int("d"),
                n_heads: self.int("h"),
                d_hid: self.int("ff"),
                n_layers: layers,
                pad_id: (0..vocab).find(|id| !used.contains(id)).unwrap(),
            },
            inputs: InputOptions::default(),
            heads: Heads {
                affine: (self.case["config"]["head"] == "affine").then(AffineOptions::default),
                ..Heads::default()
            },
            adapters: vec![AdapterOptions::Drug(DrugOptions {
                layers: LayerSelection::All,
                width: self.int("dm"),
                reading: self.reading(),
            })],
        }
    }

    fn model(
        &self,
        layers: usize,
        weight: impl Fn(&str) -> Tensor,
        executor: ExecutorKind,
    ) -> (Params, Scgpt) {
        let blueprint = self.blueprint(layers);
        let named = self.case["trainable"].as_array().unwrap().iter();
        let trainable: BTreeSet<&str> = named.map(|n| n.as_str().unwrap()).collect();
        let params = Params::build(
            &blueprint.specs().unwrap(),
            |spec| Ok(Some(weight(&spec.name))),
            |spec| trainable.contains(spec.name.as_str()),
            Layout::cpu(0),
        )
        .unwrap();
        let model = Scgpt::bind(&blueprint, &params, executor).unwrap();
        (params, model)
    }

    fn weight(&self, name: &str) -> Tensor {
        let tensor = self.weights.get(name);
        let tensor = tensor.unwrap_or_else(|| panic!("the fixture has no tensor `{name}`"));
        tensor.shallow_clone()
    }

    fn batch(&self) -> Inputs {
        let get = |name: &str| self.inputs[name].shallow_clone();
        let padding = get("padding_mask").to_kind(Kind::Bool);
        Inputs {
            treatment: Some(get("molecule_embedding")),
            ..Inputs::new(get("genes"), get("control_expression"), Some(padding))
        }
    }

    fn close(&self, name: &str, found: &Tensor, rtol: f64, atol: f64) {
        let expected = &self.expected[name];
        assert_eq!(found.size(), expected.size(), "{name}");
        let off = (found - expected).abs() - expected.abs() * rtol;
        let worst = off.max().double_value(&[]);
        assert!(worst <= atol, "{name}: {worst} beyond the tolerance");
    }
}

fn training() -> Pass {
    Pass::training(Dropout::OFF, 0)
}

fn check(name: &str, executor: ExecutorKind) {
    let golden = Golden::load(name);
    let inputs = golden.batch();
    // Padded positions have states too; nothing attends to them.
    let layers = golden.int("L") as usize;
    for depth in 1..=layers {
        let (_, model) = golden.model(depth, |n| golden.weight(n), executor);
        let encoded = model.encode(&inputs, training()).unwrap();
        let expected = format!("layer_{}", depth - 1);
        golden.close(&expected, &encoded.hidden, 1e-4, 2e-5);
    }
    let (params, model) = golden.model(layers, |n| golden.weight(n), executor);
    let count = golden.case["n_trainable"].as_u64().unwrap();
    assert_eq!(
        params.trainable_count() as u64,
        count,
        "trainable parameters"
    );
    let encoded = model.encode(&inputs, training()).unwrap();
    let prediction = model
        .heads
        .expression(&encoded, &inputs)
        .unwrap()
        .prediction;
    golden.close("prediction", &prediction, 1e-4, 2e-5);
    let target = &golden.inputs["target_expression"];
    let mask = inputs
        .padding
        .as_ref()
        .unwrap()
        .logical_not()
        .to_kind(Kind::Float);
    let sum = loss::masked_squared_error_sum(&prediction, target, &mask).unwrap();
    let mean = sum / mask.sum(Kind::Float);
    golden.close("loss", &mean, 1e-5, 0.0);
    mean.backward();
    if let Some(tape) = encoded.tape {
        tape.backward().unwrap();
    }
    let mut compared = 0;
    for slot in params.slots() {
        let flat = params
            .grad()
            .narrow(0, slot.offset as i64, slot.numel() as i64);
        let gradient = flat.view(slot.shape.as_slice());
        let expected = format!("grad.{}", slot.name);
        // Summed over many positions: what is small is only as exact as the largest.
        let scale = golden.expected[&expected].abs().max().double_value(&[]);
        golden.close(&expected, &gradient, 1e-3, 2e-5 * scale.max(1e-2));
        compared += 1;
    }
    let named = golden.expected.keys().filter(|k| k.starts_with("grad."));
    assert_eq!(compared, named.count(), "gradients compared");
}

/// With the up projection at zero the model is the frozen backbone, to the bit, and so is a model
/// without the adapter.
fn check_identity(name: &str) {
    let golden = Golden::load(name);
    let layers = golden.int("L") as usize;
    let up = |name: &str| name.contains(".up.") || name.contains(".f_up.");
    let zeroed = |name: &str| {
        let weight = golden.weight(name);
        if up(name) {
            weight.zeros_like()
        } else {
            weight
        }
    };
    let inputs = golden.batch();
    let predict = |model: &Scgpt| {
        let encoded = model.encode(&inputs, Pass::EVALUATION).unwrap();
        model
            .heads
            .expression(&encoded, &inputs)
            .unwrap()
            .prediction
    };
    let (_, adapted) = golden.model(layers, zeroed, ExecutorKind::Plain);
    let found = predict(&adapted);
    let blueprint = Blueprint {
        adapters: Vec::new(),
        ..golden.blueprint(layers)
    };
    let specs = blueprint.specs().unwrap();
    let weight = |spec: &scpeft_model::TensorSpec| Ok(Some(golden.weight(&spec.name)));
    let params = Params::build(&specs, weight, |_| false, Layout::cpu(0)).unwrap();
    let frozen = Scgpt::bind(&blueprint, &params, ExecutorKind::Plain).unwrap();
    assert_eq!(found, predict(&frozen), "{name}");
    // A generated bias of the up projection is no part of what the reference zeroes.
    if golden.case["config"]["mode"] != "bias_both" {
        golden.close("prediction_with_up_zero", &found, 1e-4, 2e-5);
    }
}

const BOTTLENECKS: [&str; 6] = [
    "bias_down_ffn_affine",
    "bias_down_attn_plain",
    "bias_down_both_affine",
    "bias_down_both_mlp",
    "bias_both_both_affine",
    "static_both_affine",
];

#[test]
fn bottlenecks_under_plain_execution() {
    for name in BOTTLENECKS {
        check(name, ExecutorKind::Plain);
    }
}

#[test]
fn bottlenecks_under_recomputation() {
    for name in BOTTLENECKS {
        check(name, ExecutorKind::Recompute);
    }
}

#[test]
fn prefix_of_the_molecule() {
    check("prefix_affine", ExecutorKind::Plain);
    check("prefix_affine", ExecutorKind::Recompute);
}

#[test]
fn molecule_added_to_the_input_and_everything_trained() {
    check("input_add_full_finetune", ExecutorKind::Plain);
}

#[test]
fn a_zero_up_projection_is_the_frozen_backbone() {
    for name in BOTTLENECKS {
        check_identity(name);
    }
}

#[test]
fn a_treatment_is_asked_for_and_has_the_adapters_width() {
    let golden = Golden::load("bias_down_ffn_affine");
    let (_, model) = golden.model(3, |n| golden.weight(n), ExecutorKind::Plain);
    let mut inputs = golden.batch();
    inputs.treatment = None;
    let error = model.encode(&inputs, training()).unwrap_err().to_string();
    assert_eq!(
        error,
        "the model needs the treatment of each cell, for the drug adapter and the micro-batch has none"
    );
    inputs.treatment = Some(Tensor::zeros([3, 4], (Kind::Float, tch::Device::Cpu)));
    let error = model.encode(&inputs, training()).unwrap_err().to_string();
    assert!(
        error.contains("has shape [3, 4], the model expects [3, 10]"),
        "{error}"
    );
}

/// Trained parameters at the size of the published scGPT: descriptions alone, no tensors.
#[test]
fn the_budget_at_full_size_stays_below_one_percent() {
    let counts = |site, bottleneck, width| {
        let blueprint = Blueprint {
            shape: Shape {
                vocab: 60_697,
                d_model: 512,
                n_heads: 8,
                d_hid: 512,
                n_layers: 12,
                pad_id: 0,
            },
            inputs: InputOptions::default(),
            heads: Heads {
                affine: Some(AffineOptions::default()),
                ..Heads::default()
            },
            adapters: vec![AdapterOptions::Drug(DrugOptions {
                layers: LayerSelection::All,
                width,
                reading: DrugReading::Bottleneck(DrugBottleneck {
                    site,
                    bottleneck,
                    ..DrugBottleneck::default()
                }),
            })],
        };
        let specs = blueprint.specs().unwrap();
        let numel = |s: &scpeft_model::TensorSpec| s.shape.iter().product::<i64>();
        let all: i64 = specs.iter().map(numel).sum();
        let trains = |s: &&scpeft_model::TensorSpec| blueprint.adapts(Purpose::Treatment, s, &[]);
        (specs.iter().filter(trains).map(numel).sum::<i64>(), all)
    };
    for (site, bottleneck, width, expected) in [
        (DrugSite::FeedForward, 16, 768, 350_400),
        (DrugSite::FeedForward, 16, 384, 276_672),
        (DrugSite::Both, 8, 768, 356_544),
        (DrugSite::Both, 8, 384, 282_816),
    ] {
        let (trained, all) = counts(site, bottleneck, width);
        assert_eq!(trained, expected);
        assert!(
            (trained as f64) < 0.01 * (all - trained) as f64,
            "{trained} of {all}"
        );
    }
    // Two sites of the default width are beyond it.
    let (trained, all) = counts(DrugSite::Both, 16, 768);
    assert!((trained as f64) > 0.01 * all as f64);
}

/// The losses of sets of cells are the metrics of that name.
#[test]
fn losses_of_sets_of_cells() {
    let dir = fixture("scdca", "metrics");
    let read = |file: &str| -> Tensors {
        let tensors = Tensor::read_safetensors(dir.join(file)).unwrap();
        tensors.into_iter().collect()
    };
    let (inputs, expected) = (read("inputs.safetensors"), read("expected.safetensors"));
    for i in 0..inputs["real"].size()[0] {
        let (x, y) = (inputs["pred"].get(i), inputs["real"].get(i));
        for (name, found) in [
            (
                "mmd_rbf_multigamma",
                loss::mmd_rbf(&x, &y, &loss::MMD_GAMMAS),
            ),
            ("edistance_euclid_pred_real", loss::energy_distance(&x, &y)),
        ] {
            let (found, expected) = (
                found.unwrap().double_value(&[]),
                expected[name].double_value(&[i]),
            );
            assert!(
                (found - expected).abs() <= 1e-7 * expected.abs(),
                "{name}: {found} {expected}"
            );
        }
    }
}
