//! A fixture case of a whole model, and how outputs and gradients are compared with it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, MlpOptions, Placement,
    PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::geneformer::{
    Activation, Blueprint, CellEmbedding, CellStyle, FreezeRule, Geneformer, Head,
};
use scpeft_model::backbone::{Inputs, Shape};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Params, TensorSpec};
use scpeft_tests::{case, fixture};
use serde_json::Value;
use tch::{Kind, Tensor};

pub(crate) type Tensors = HashMap<String, Tensor>;

/// A training pass without dropout.
pub(crate) fn training() -> Pass {
    Pass::training(Dropout::OFF, 0)
}

pub(crate) fn read(path: &Path) -> Tensors {
    let tensors =
        Tensor::read_safetensors(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tensors.into_iter().collect()
}

/// The name that a tensor of the reference has here.
pub(crate) fn ours(name: &str) -> String {
    [
        ("attention.Space_Adapter", "space_adapter"),
        ("MLP_Adapter", "mlp_adapter"),
        ("D_fc", "fc"),
        (
            "bert.prompt_embeddings",
            "bert.encoder.layer.0.adapter_embeddings",
        ),
        ("prompt_embeddings", "adapter_embeddings"),
        ("lora_query", "query"),
        ("lora_key", "key"),
        ("lora_value", "value"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

pub(crate) struct Golden {
    pub(crate) case: Value,
    pub(crate) weights: Tensors,
    pub(crate) inputs: Tensors,
    pub(crate) expected: Tensors,
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        let dir = fixture("geneformer", name);
        let renamed = |file: &str| -> Tensors {
            let tensors = read(&dir.join(file)).into_iter();
            tensors.map(|(name, t)| (ours(&name), t)).collect()
        };
        Self {
            case: case(&dir),
            weights: renamed("weights.safetensors"),
            inputs: read(&dir.join("inputs.safetensors")),
            expected: renamed("expected.safetensors"),
        }
    }

    pub(crate) fn int(&self, key: &str) -> i64 {
        let value = self.case["config"][key].as_i64();
        value.unwrap_or_else(|| panic!("case.json: config.{key}"))
    }

    pub(crate) fn classes(&self) -> i64 {
        self.case["num_labels"].as_i64().unwrap()
    }

    /// The model that `config` and `adapter` describe, with another head.
    pub(crate) fn blueprint(&self, head: Head) -> Blueprint {
        Blueprint {
            shape: Shape {
                vocab: self.int("vocab_size"),
                d_model: self.int("hidden_size"),
                n_heads: self.int("num_attention_heads"),
                d_hid: self.int("intermediate_size"),
                n_layers: self.int("num_hidden_layers") as usize,
                pad_id: self.int("pad_token_id"),
            },
            positions: self.int("max_position_embeddings"),
            token_types: self.int("type_vocab_size"),
            activation: match self.case["config"]["hidden_act"].as_str() {
                Some("relu") => Activation::Relu,
                Some("gelu") => Activation::Gelu,
                other => panic!("case.json: hidden_act {other:?} has no test"),
            },
            norm_eps: self.case["config"]["layer_norm_eps"].as_f64().unwrap(),
            special: Vec::new(),
            cell: CellEmbedding {
                style: CellStyle::Mean,
                second_to_last: true,
            },
            head,
            freeze: FreezeRule::Tutorial,
            adapters: adapters(&self.case["adapter"]),
        }
    }

    pub(crate) fn sequence(&self) -> Blueprint {
        self.blueprint(Head::Sequence {
            classes: self.classes(),
        })
    }

    /// Tensors with the case's weights; exactly those train that `trains` says.
    pub(crate) fn params(
        &self,
        blueprint: &Blueprint,
        trains: impl Fn(&TensorSpec) -> bool,
        layout: Layout,
    ) -> Params {
        let specs = blueprint.specs().unwrap();
        let weights = |spec: &TensorSpec| {
            let tensor = self.weights.get(&spec.name);
            assert!(tensor.is_some(), "the fixture has no `{}`", spec.name);
            Ok(tensor.map(Tensor::shallow_clone))
        };
        Params::build(&specs, weights, trains, layout).unwrap()
    }

    /// What trains; all tensors where the case says nothing.
    pub(crate) fn trainable(&self) -> Option<BTreeSet<String>> {
        let named = self.case["trainable"].as_array()?;
        Some(named.iter().map(|n| ours(n.as_str().unwrap())).collect())
    }

    /// The model, bound, with the case's weights and freeze rule, and both counts checked.
    pub(crate) fn model(
        &self,
        blueprint: &Blueprint,
        executor: ExecutorKind,
    ) -> (Params, Geneformer) {
        let trainable = self.trainable();
        let trains = |spec: &TensorSpec| trainable.as_ref().is_none_or(|t| t.contains(&spec.name));
        let params = self.params(blueprint, trains, Layout::cpu(0));
        if let Some(named) = &trainable {
            assert_eq!(params.slots().len(), named.len(), "trainable tensors");
        }
        for (key, found) in [
            ("trainable_params", params.trainable_count()),
            ("total_params", params.total_count()),
        ] {
            if let Some(expected) = self.case[key].as_u64() {
                assert_eq!(found as u64, expected, "{key}");
            }
        }
        let model = Geneformer::bind(blueprint, &params, executor).unwrap();
        (params, model)
    }

    pub(crate) fn batch(&self) -> Inputs {
        let ids = self.inputs["input_ids"].shallow_clone();
        let padding = self.inputs["attention_mask"].eq(0);
        let values = ids.zeros_like().to_kind(Kind::Float);
        let some = padding.any().int64_value(&[]) == 1;
        Inputs::new(ids, values, some.then_some(padding))
    }

    pub(crate) fn close(&self, name: &str, found: &Tensor, kind: &str) {
        let expected = self.expected.get(name);
        let expected = expected.unwrap_or_else(|| panic!("no expected tensor `{name}`"));
        let tolerance = |part: &str| self.case["tolerances"][kind][part].as_f64().unwrap();
        let (atol, rtol) = (tolerance("atol"), tolerance("rtol"));
        assert_close(name, found, expected, atol, rtol);
    }

    /// Compares the gradient of every trainable tensor.
    pub(crate) fn check_gradients(&self, params: &Params) {
        for slot in params.slots() {
            let (offset, len) = (slot.offset as i64, slot.numel() as i64);
            let grad = params.grad().narrow(0, offset, len);
            let name = format!("grad.{}", slot.name);
            self.close(&name, &grad.view(slot.shape.as_slice()), "grad");
        }
        let named = self.expected.keys().filter(|k| k.starts_with("grad."));
        assert_eq!(params.slots().len(), named.count(), "gradients compared");
    }
}

pub(crate) fn assert_close(name: &str, found: &Tensor, expected: &Tensor, atol: f64, rtol: f64) {
    assert_eq!(found.size(), expected.size(), "shape of `{name}`");
    let finite = found.isfinite().all().int64_value(&[]) == 1;
    assert!(finite, "`{name}` is not finite");
    let excess = (found - expected).abs() - expected.abs() * rtol - atol;
    let worst = excess.max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "`{name}` is off by {worst:e} more than atol {atol:e} + rtol {rtol:e}"
    );
}

/// The layers whose flag is set.
fn flagged(flags: &Value) -> Option<LayerSelection> {
    let flags = flags.as_array()?;
    let set: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == 1).collect();
    (!set.is_empty()).then_some(LayerSelection::Listed(set))
}

/// The adapters of a case.
fn adapters(config: &Value) -> Vec<AdapterOptions> {
    let Some(kinds) = config["prompt_type"].as_str() else {
        return Vec::new();
    };
    let number = |key: &str| config[key].as_f64().unwrap();
    kinds
        .split(',')
        .flat_map(|kind| match kind {
            "lora" => vec![AdapterOptions::Lora(LoraOptions {
                layers: LayerSelection::All,
                r: number("lora_r") as i64,
                lora_alpha: number("lora_alpha"),
                targets: vec![Projection::Query, Projection::Value],
                train_qkv_bias: true,
            })],
            "Gene_token_prompt" => vec![AdapterOptions::Token(TokenOptions {
                mlp_ratio: number("mlp_ratio"),
                zero_init: false,
            })],
            "prefix_prompt" => vec![AdapterOptions::Prefix(PrefixOptions {
                layers: match config["prefix_style"].as_str() {
                    Some("deep") => LayerSelection::All,
                    Some("shallow") => LayerSelection::Listed(vec![0]),
                    other => panic!("case.json: prefix_style {other:?} has no test"),
                },
                token_nums: config["num_token"].as_i64().unwrap(),
            })],
            "encoder_prompt" => {
                let space = flagged(&config["space_adapter_conf"]).map(|layers| {
                    AdapterOptions::Encoder(EncoderOptions {
                        layers,
                        mlp_ratio: number("mlp_ratio"),
                        skip_connect: true,
                        placement: match config["space_placement"].as_str() {
                            Some("post_norm") => Placement::AfterNorm,
                            Some("context") => Placement::Context,
                            other => panic!("case.json: placement {other:?} has no test"),
                        },
                        zero_init: false,
                    })
                });
                let mlp = flagged(&config["mlp_adapter_conf"]).map(|layers| {
                    AdapterOptions::Mlp(MlpOptions {
                        layers,
                        mlp_ratio: number("mlp_ratio"),
                        scale: number("mlp_scale"),
                        zero_init: false,
                    })
                });
                space.into_iter().chain(mlp).collect()
            }
            other => panic!("case.json: prompt_type `{other}` has no test"),
        })
        .collect()
}
