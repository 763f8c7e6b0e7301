//! Whole models of the library variant under the losses of their tasks.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, PrefixOptions,
    Projection, TokenOptions,
};
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{
    BatchLabels, Blueprint, Classifier, Encoded, Heads, InputOptions, Mvc, Purpose, Scgpt, Shape,
};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::head::{AffineOptions, Expression};
use scpeft_model::norm::NormStyle;
use scpeft_model::{Role, TensorSpec, loss};
use tch::{Kind, Tensor};

use crate::golden::{Golden, training};

/// Every loss that the case weighs, as a mean, with its weight; and further passes it took.
fn losses(
    golden: &Golden,
    model: &Scgpt,
    encoded: &Encoded,
) -> (Vec<(String, f64, Tensor)>, Vec<Encoded>) {
    let inputs = golden.batch();
    let mask = golden.inputs["masked_positions"].to_kind(Kind::Float);
    let masked = mask.sum(Kind::Float);
    let target = &golden.inputs["target_values"];
    let squared = |e: &Expression| {
        loss::masked_squared_error_sum(&e.prediction, target, &mask).unwrap() / &masked
    };
    let nll = |e: &Expression| {
        let probability = e.nonzero_probability.as_ref().unwrap();
        loss::nonzero_nll_sum(probability, target, &mask).unwrap() / &masked
    };
    let expression = || model.heads.expression(encoded, &inputs).unwrap();
    let mvc = || model.heads.mvc(encoded, &inputs).unwrap();
    let mean_cross_entropy = |logits: &Tensor, labels: &Tensor, weight: Option<&Tensor>| {
        let divisor = match weight {
            Some(w) => w.index_select(0, labels).sum(Kind::Float),
            None => Tensor::from(labels.size()[0] as f32),
        };
        loss::cross_entropy_sum(logits, labels, weight).unwrap() / divisor
    };
    let mut passes = Vec::new();
    let weights = golden.case["loss_weights"].as_object().unwrap();
    let losses = weights
        .iter()
        .map(|(name, weight)| {
            let (name, value) = match name.as_str() {
                "gep" => ("gep", squared(&expression())),
                "nzlp" => ("gep_zero_log_prob", nll(&expression())),
                "gepc" => ("gepc", squared(&mvc())),
                "mvc_nzlp" => ("gepc_zero_log_prob", nll(&mvc())),
                "cls" => {
                    let logits = model.heads.classify(encoded).unwrap();
                    let labels = &golden.inputs["celltype_labels"];
                    let weight = golden.inputs.get("class_weight");
                    ("cls", mean_cross_entropy(&logits, labels, weight))
                }
                "dab" => {
                    let logits = model.heads.discriminate(encoded).unwrap();
                    let labels = &golden.inputs["batch_labels"];
                    ("dab", mean_cross_entropy(&logits, labels, None))
                }
                "ecs" => {
                    let threshold = golden.case["model_args"]["ecs_threshold"].as_f64().unwrap();
                    let value = loss::elastic_cell_similarity(&encoded.cell, threshold);
                    ("ecs", value.unwrap())
                }
                "cce" => {
                    let second = model.encode(&inputs, training()).unwrap();
                    let value = loss::contrastive_cell_embedding(&encoded.cell, &second.cell);
                    passes.push(second);
                    ("cce", value.unwrap())
                }
                other => panic!("case.json: loss `{other}` has no test"),
            };
            (name.to_owned(), weight.as_f64().unwrap(), value)
        })
        .collect();
    (losses, passes)
}

fn check_case(name: &str) {
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        check_with(name, executor);
    }
}

fn check_with(name: &str, executor: ExecutorKind) {
    let golden = Golden::load(name);
    let (params, model) = golden.model(&golden.blueprint(), executor);
    let inputs = golden.batch();
    check_evaluation(&golden, &model);
    let encoded = model.encode(&inputs, training()).unwrap();
    if golden.expected.contains_key("transformer_output") {
        golden.close("transformer_output", &encoded.hidden, "forward");
    }
    golden.check_outputs(&model, &inputs, &encoded, "out.");
    let (losses, passes) = losses(&golden, &model, &encoded);
    let mut total = Tensor::from(0.0f32);
    for (name, weight, value) in losses {
        golden.close(&format!("loss.{name}"), &value, "loss");
        total += value * weight;
    }
    golden.close("loss.total", &total, "loss");
    total.backward();
    golden.check_buffers(&params, &model, &encoded);
    for pass in passes.into_iter().chain([encoded]) {
        if let Some(tape) = pass.tape {
            tape.backward().unwrap();
        }
    }
    golden.check_gradients(&params);
}

/// Adapters act in evaluation as in training; the reference drops or doubles them there.
fn check_evaluation(golden: &Golden, model: &Scgpt) {
    let inputs = golden.batch();
    let encoded = tch::no_grad(|| model.encode(&inputs, Pass::EVALUATION).unwrap());
    golden.check_outputs(model, &inputs, &encoded, "eval.");
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

macro_rules! cases {
    ($($case:ident)*) => {
        $(#[test]
        fn $case() {
            check_case(stringify!($case));
        })*
    };
}

cases! {
    backbone_all_objectives
    backbone_nopad
    identification_encoder
    identification_encoder2
    identification_encoder_noskip
    identification_token
    identification_hybrid
    identification_prefix
    identification_prefix2
    identification_lora
    identification_lora_qkv
    identification_multi
    batchcorrection_encoder
    batchcorrection_prefix
    batchcorrection_lora
    cellpop_hybrid
    cellpop_prefix
    cellpop_token
}

/// The published adapters at their default settings, blocks 0 to 5.
fn published(kind: &str) -> Vec<AdapterOptions> {
    let layers = LayerSelection::FirstHalf;
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: layers.clone(),
        mlp_ratio: 0.25,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init: false,
    });
    let token = |mlp_ratio| {
        AdapterOptions::Token(TokenOptions {
            mlp_ratio,
            zero_init: false,
        })
    };
    let prefix = AdapterOptions::Prefix(PrefixOptions {
        layers: layers.clone(),
        token_nums: 8,
    });
    let lora = AdapterOptions::Lora(LoraOptions {
        layers,
        r: 8,
        lora_alpha: 1.0,
        targets: vec![Projection::Value, Projection::Query],
        train_qkv_bias: true,
    });
    match kind {
        "encoder" => vec![encoder],
        "token" => vec![token(1.0)],
        "hybrid" => vec![encoder, token(0.25)],
        "prefix" => vec![prefix],
        "lora" => vec![lora],
        "multi" => vec![token(0.25), prefix, lora, encoder],
        _ => Vec::new(),
    }
}

fn full_size(purpose: Purpose, kind: &str) -> (usize, usize) {
    let batches = Some(BatchLabels { batches: 2 });
    let mut inputs = InputOptions::default();
    let heads = match purpose {
        Purpose::Identification => Heads {
            classifier: Some(Classifier {
                classes: 18,
                layers: 3,
            }),
            ..Heads::default()
        },
        Purpose::BatchCorrection => {
            inputs.norm = NormStyle::Domain { domains: 2 };
            Heads {
                mvc: Some(Mvc::default()),
                explicit_zero: true,
                batch_labels: batches,
                discriminator: batches,
                ..Heads::default()
            }
        }
        Purpose::Population => Heads {
            mvc: Some(Mvc::default()),
            ..Heads::default()
        },
        Purpose::Perturbation => {
            inputs.perturbation_pad = Some(0);
            Heads {
                affine: Some(AffineOptions::default()),
                ..Heads::default()
            }
        }
        // Of scDCA: its counts are golden cases of their own.
        Purpose::Treatment | Purpose::TreatmentWithDecoder => Heads {
            affine: Some(AffineOptions::default()),
            ..Heads::default()
        },
    };
    let blueprint = Blueprint {
        shape: Shape {
            vocab: 60_697,
            d_model: 512,
            n_heads: 8,
            d_hid: 512,
            n_layers: 12,
            pad_id: 60_694,
        },
        inputs,
        heads,
        adapters: published(kind),
    };
    let unfrozen = blueprint.unfreezes().unwrap();
    let specs = blueprint.specs().unwrap();
    let count = |trains: &dyn Fn(&TensorSpec) -> bool| {
        let chosen = specs.iter().filter(|s| s.role != Role::Buffer && trains(s));
        chosen.map(TensorSpec::numel).sum::<usize>()
    };
    let trainable = count(&|s| blueprint.adapts(purpose, s, &unfrozen));
    (trainable, count(&|_| true))
}

/// The counts of the specification at the size of the published whole-human model: trainable and
/// all parameters, for every adapter and task.
#[test]
fn trainable_counts_at_full_size() {
    use Purpose::{BatchCorrection, Identification, Perturbation, Population};
    let expected = [
        (
            "encoder",
            [
                (1_326_866, 52_131_091),
                (4_208_900, 54_487_300),
                (1_840_897, 52_119_297),
                (2_108_162, 52_121_858),
            ],
        ),
        (
            "token",
            [
                (1_061_906, 51_866_131),
                (3_943_940, 54_222_340),
                (1_575_937, 51_854_337),
                (1_843_202, 51_856_898),
            ],
        ),
        (
            "hybrid",
            [
                (1_458_578, 52_262_803),
                (4_340_612, 54_619_012),
                (1_972_609, 52_251_009),
                (2_239_874, 52_253_570),
            ],
        ),
        (
            "prefix",
            [
                (561_170, 51_365_395),
                (3_443_204, 53_721_604),
                (1_075_201, 51_353_601),
                (1_342_466, 51_356_162),
            ],
        ),
        (
            "lora",
            [
                (644_114, 51_439_123),
                (3_526_148, 53_795_332),
                (1_158_145, 51_427_329),
                (1_425_410, 51_429_890),
            ],
        ),
        (
            "multi",
            [
                (1_590_674, 52_385_683),
                (4_472_708, 54_741_892),
                (2_104_705, 52_373_889),
                (2_371_970, 52_376_450),
            ],
        ),
    ];
    let purposes = [Identification, BatchCorrection, Population, Perturbation];
    for (kind, counts) in expected {
        for (purpose, count) in purposes.into_iter().zip(counts) {
            assert_eq!(full_size(purpose, kind), count, "{kind}, {purpose:?}");
        }
    }
    let totals = purposes.map(|purpose| full_size(purpose, "none").1);
    assert_eq!(totals, [51_340_819, 53_697_028, 51_329_025, 51_331_586]);
}
