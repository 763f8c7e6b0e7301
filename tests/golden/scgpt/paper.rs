//! The adapters of the paper's variant.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, HraOptions, LayerSelection, LoraOptions, MlpOptions,
    OftOptions, Placement, PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::scgpt::{Blueprint, Classifier, Heads, InputOptions};
use scpeft_model::exec::ExecutorKind;
use scpeft_model::loss;

use crate::golden::{Golden, assert_close, selected, training};

/// Columns that a tensor of the case has: widths and ranks are read off the weights.
fn size(golden: &Golden, suffix: &str, dim: usize) -> i64 {
    let (_, tensor) = golden
        .weights
        .iter()
        .find(|(name, _)| name.ends_with(suffix))
        .unwrap_or_else(|| panic!("no tensor `{suffix}`"));
    tensor.size()[dim]
}

fn adapters(golden: &Golden) -> Vec<AdapterOptions> {
    let config = &golden.case["config"];
    let layers = || selected(&config["space"]);
    let ratio = |suffix: &str| size(golden, suffix, 0) as f64 / golden.int("d_model") as f64;
    match golden.case["adapter"].as_str().unwrap() {
        "encoder-prompt" => vec![
            AdapterOptions::Encoder(EncoderOptions {
                layers: layers(),
                mlp_ratio: ratio("space_adapter.fc1.weight"),
                skip_connect: true,
                placement: Placement::AfterNorm,
                zero_init: false,
            }),
            AdapterOptions::Mlp(MlpOptions {
                layers: selected(&config["mlp"]),
                mlp_ratio: ratio("mlp_adapter.fc1.weight"),
                scale: 0.5,
                zero_init: false,
            }),
        ],
        "head-prompt" => vec![AdapterOptions::Token(TokenOptions {
            mlp_ratio: ratio("value_encoder.adapter.fc1.weight"),
            zero_init: false,
        })],
        "prefix-prompt" => vec![AdapterOptions::Prefix(PrefixOptions {
            layers: LayerSelection::All,
            token_nums: config["num_tokens"].as_i64().unwrap(),
        })],
        "LoRA" => vec![AdapterOptions::Lora(LoraOptions {
            layers: layers(),
            r: size(golden, "lora_B", 1),
            lora_alpha: 1.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        })],
        "HRA" => vec![AdapterOptions::Hra(HraOptions {
            layers: layers(),
            r: size(golden, "hra_u", 1),
        })],
        "OFT" => vec![AdapterOptions::Oft(OftOptions { layers: layers() })],
        other => panic!("case.json: adapter `{other}` has no test"),
    }
}

fn check_case(name: &str) {
    let golden = Golden::load(name);
    let blueprint = Blueprint {
        shape: golden.shape(),
        inputs: InputOptions::default(),
        heads: Heads {
            classifier: Some(Classifier {
                classes: golden.int("n_cls"),
                layers: 3,
            }),
            ..Heads::default()
        },
        adapters: adapters(&golden),
    };
    for executor in [ExecutorKind::Plain, ExecutorKind::Recompute] {
        let (params, model) = golden.model(&blueprint, executor);
        // The reference projects in its forward pass; here binding and every update do.
        for name in golden.expected.keys() {
            if let Some(parameter) = name.strip_prefix("param_after_forward.") {
                let found = params.get(parameter).unwrap().detach();
                assert_close(name, &found, &golden.expected[name], 1e-7, 1e-5);
            }
        }
        let inputs = golden.batch();
        let encoded = model.encode(&inputs, training()).unwrap();
        golden.check_outputs(&model, &inputs, &encoded, "out.");
        let labels = &golden.inputs["celltype_labels"];
        let logits = model.heads.classify(&encoded).unwrap();
        let mean =
            loss::cross_entropy_sum(&logits, labels, None).unwrap() / labels.size()[0] as f64;
        golden.close("loss.total", &mean, "loss");
        mean.backward();
        if let Some(tape) = encoded.tape {
            tape.backward().unwrap();
        }
        golden.check_gradients(&params);
    }
}

#[test]
fn paper_encoder() {
    check_case("paper_encoder");
}

#[test]
fn paper_head() {
    check_case("paper_head");
}

#[test]
fn paper_prefix() {
    check_case("paper_prefix");
}

#[test]
fn paper_lora() {
    check_case("paper_lora");
}

#[test]
fn paper_hra() {
    check_case("paper_hra");
}

#[test]
fn paper_oft() {
    check_case("paper_oft");
}
