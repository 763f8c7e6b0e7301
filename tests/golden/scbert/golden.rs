//! A fixture case of a whole model, and how outputs and gradients are compared with it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, MlpOptions, Placement,
    PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::performer::KeyMax;
use scpeft_model::backbone::scbert::{Blueprint, FreezeRule, Head, Scbert};
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
    let name = name.replace("performer.net.Encoder_", "performer.Encoder_");
    for (theirs, module) in [
        ("performer.Encoder_Space.", "space_adapter"),
        ("performer.Encoder_MLP.", "mlp_adapter"),
    ] {
        let Some((before, rest)) = name.split_once(theirs) else {
            continue;
        };
        let (layer, rest) = rest.split_once('.').unwrap();
        let rest = rest.replace("fn.D_fc", "fc");
        return format!("{before}performer.net.layers.{layer}.{module}.{rest}");
    }
    name.replace("Space_Adapter.D_fc", "token_emb.adapter.fc")
}

pub(crate) struct Golden {
    pub(crate) case: Value,
    pub(crate) weights: Tensors,
    pub(crate) inputs: Tensors,
    pub(crate) expected: Tensors,
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        let dir = fixture("scbert", name);
        let renamed = |file: &str| -> Tensors {
            let mut found = Tensors::new();
            for (name, tensor) in read(&dir.join(file)) {
                // The reference registers these tensors twice.
                if let Some(other) = found.insert(ours(&name), tensor.shallow_clone()) {
                    assert!(other.equal(&tensor), "two values of `{name}`");
                }
            }
            found
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

    /// The model that `config` and `adapter` describe, with the key maximum of the reference.
    pub(crate) fn blueprint(&self) -> Blueprint {
        let head = &self.case["head"];
        let width = |key: &str| head[key].as_i64();
        let adapters = adapters(&self.case);
        let lora = |o: &AdapterOptions| matches!(o, AdapterOptions::Lora(_));
        Blueprint {
            shape: Shape {
                vocab: self.int("num_tokens"),
                d_model: self.int("dim"),
                n_heads: self.int("heads"),
                d_hid: self.int("dim") * self.int("ff_mult"),
                n_layers: self.int("depth") as usize,
                pad_id: self.int("num_tokens") - 1,
            },
            d_head: self.int("dim_head"),
            features: self.int("nb_features"),
            positions: self.int("max_seq_len"),
            key_max: KeyMax::Batch,
            redrawn: false,
            qkv_bias: adapters.iter().any(lora),
            head: match (width("out"), width("fc1"), width("h_dim")) {
                (Some(classes), Some(first), Some(second)) => Head::Cell {
                    classes,
                    hidden: [first, second],
                },
                _ => Head::MaskedTokens,
            },
            freeze: FreezeRule::Published,
            adapters,
        }
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

    /// What trains; all tensors that may where the case says nothing.
    pub(crate) fn trainable(&self) -> Option<BTreeSet<String>> {
        let named = self.case["trainable"].as_array()?;
        Some(named.iter().map(|n| ours(n.as_str().unwrap())).collect())
    }

    /// The model, bound, with the case's weights and freeze rule, and both counts checked.
    pub(crate) fn model(&self, blueprint: &Blueprint, executor: ExecutorKind) -> (Params, Scbert) {
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
        let model = Scbert::bind(blueprint, &params, executor).unwrap();
        (params, model)
    }

    pub(crate) fn batch(&self) -> Inputs {
        let ids = self.inputs["input_ids"].shallow_clone();
        let values = ids.zeros_like().to_kind(Kind::Float);
        Inputs::new(ids, values, None)
    }

    pub(crate) fn close(&self, name: &str, found: &Tensor, kind: &str) {
        let expected = self.expected.get(name);
        let expected = expected.unwrap_or_else(|| panic!("no expected tensor `{name}`"));
        self.near(name, found, expected, kind);
    }

    pub(crate) fn near(&self, name: &str, found: &Tensor, expected: &Tensor, kind: &str) {
        let tolerance = |part: &str| self.case["tolerances"][kind][part].as_f64().unwrap();
        assert_eq!(found.size(), expected.size(), "shape of `{name}`");
        let finite = found.isfinite().all().int64_value(&[]) == 1;
        assert!(finite, "`{name}` is not finite");
        let (atol, rtol) = (tolerance("atol"), tolerance("rtol"));
        let excess = (found - expected).abs() - expected.abs() * rtol - atol;
        let worst = excess.max().double_value(&[]);
        assert!(
            worst <= 0.0,
            "`{name}` is off by {worst:e} more than atol {atol:e} + rtol {rtol:e}"
        );
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

/// The layers whose flag is set.
fn flagged(flags: &Value) -> Option<LayerSelection> {
    let flags = flags.as_array()?;
    let set: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == 1).collect();
    (!set.is_empty()).then_some(LayerSelection::Listed(set))
}

/// The adapters of a case.
fn adapters(case: &Value) -> Vec<AdapterOptions> {
    let config = &case["adapter"];
    match config["prompt_type"].as_str() {
        None | Some("") => Vec::new(),
        Some("Gene_token_prompt") => vec![AdapterOptions::Token(TokenOptions {
            mlp_ratio: config["mlp_ratio"].as_f64().unwrap(),
            zero_init: false,
        })],
        Some("prefix_prompt") => vec![AdapterOptions::Prefix(PrefixOptions {
            layers: LayerSelection::All,
            token_nums: config["tokens"].as_i64().unwrap(),
        })],
        Some("Gene_encoder_prompt") => {
            let space = flagged(&config["space_conf"]).map(|layers| {
                AdapterOptions::Encoder(EncoderOptions {
                    layers,
                    mlp_ratio: 0.5,
                    skip_connect: true,
                    placement: Placement::AfterNorm,
                    zero_init: false,
                })
            });
            let mlp = flagged(&config["mlp_conf"]).map(|layers| {
                AdapterOptions::Mlp(MlpOptions {
                    layers,
                    mlp_ratio: 0.5,
                    scale: 1.0,
                    zero_init: false,
                })
            });
            space.into_iter().chain(mlp).collect()
        }
        Some("LoRA") => vec![AdapterOptions::Lora(LoraOptions {
            layers: LayerSelection::All,
            r: case["lora"]["r"].as_i64().unwrap(),
            lora_alpha: case["lora"]["lora_alpha"].as_f64().unwrap(),
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        })],
        Some(other) => panic!("case.json: prompt_type `{other}` has no test"),
    }
}
