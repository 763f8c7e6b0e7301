//! A fixture case of a whole model, and how outputs and gradients are compared with it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, PrefixOptions,
    Projection, TokenOptions,
};
use scpeft_model::backbone::scgpt::{
    BatchLabels, Blueprint, CellStyle, Classifier, Encoded, Heads, InputOptions, Inputs, Mvc,
    Pooled, Scgpt, Shape, ValueStyle,
};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::norm::NormStyle;
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

/// The name that a tensor of the reference has here. It stores packed projections under a second
/// name, and its paper variant names adapters differently.
pub(crate) fn ours(name: &str) -> String {
    [
        ("Wqkv.OFT.weight", "in_proj_weight"),
        ("Wqkv.OFT.bias", "in_proj_bias"),
        ("Wqkv.weight", "in_proj_weight"),
        ("Wqkv.bias", "in_proj_bias"),
        ("value_encoder.Space_Adapter", "value_encoder.adapter"),
        ("Space_Adapter", "space_adapter"),
        ("MLP_Adapter", "mlp_adapter"),
        ("D_fc", "fc"),
        ("prompt_embeddings", "adapter_embeddings"),
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
        let dir = fixture("scgpt", name);
        let expected = read(&dir.join("expected.safetensors"));
        Self {
            case: case(&dir),
            weights: read(&dir.join("weights.safetensors"))
                .into_iter()
                .map(|(name, t)| (ours(&name), t))
                .collect(),
            inputs: read(&dir.join("inputs.safetensors")),
            expected: expected
                .into_iter()
                .map(|(name, t)| {
                    let gradient = name.starts_with("grad.") || name.starts_with("param_after");
                    (if gradient { ours(&name) } else { name }, t)
                })
                .collect(),
        }
    }

    pub(crate) fn int(&self, key: &str) -> i64 {
        self.case["config"][key]
            .as_i64()
            .unwrap_or_else(|| panic!("case.json: config.{key}"))
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape {
            vocab: self.int("ntoken"),
            d_model: self.int("d_model"),
            n_heads: self.int("nhead"),
            d_hid: self.int("d_hid"),
            n_layers: self.int("nlayers") as usize,
            pad_id: self.int("pad_id"),
        }
    }

    /// The model that `model_args` and `adapter_config` describe.
    pub(crate) fn blueprint(&self) -> Blueprint {
        let args = &self.case["model_args"];
        let classes = args["n_cls"].as_i64().unwrap_or(1);
        let batches = || BatchLabels {
            batches: args["num_batch_labels"].as_i64().unwrap(),
        };
        let norm = &args["domain_spec_batchnorm"];
        Blueprint {
            shape: self.shape(),
            inputs: InputOptions {
                values: match args["input_emb_style"].as_str() {
                    None | Some("continuous") => ValueStyle::Continuous,
                    Some("scaling") => ValueStyle::Scaling,
                    Some("category") => {
                        let table = &self.weights["value_encoder.embedding.weight"];
                        let rows = table.size()[0];
                        // Bins, then the pad value, then the mask value.
                        ValueStyle::Category {
                            n_input_bins: rows,
                            pad_value: rows - 2,
                        }
                    }
                    Some(other) => panic!("case.json: input_emb_style `{other}` has no test"),
                },
                norm: if *norm == true || *norm == "dsbn" {
                    NormStyle::Domain {
                        domains: batches().batches as usize,
                    }
                } else if *norm == "batchnorm" {
                    NormStyle::Batch
                } else {
                    NormStyle::None
                },
                perturbation_pad: None,
                cell: match args["cell_emb_style"].as_str() {
                    None | Some("cls") => CellStyle::Cls,
                    Some("avg-pool") => CellStyle::AveragePool(Pooled::Everything),
                    Some("w-pool") => CellStyle::WeightedPool(Pooled::Everything),
                    Some(other) => panic!("case.json: cell_emb_style `{other}` has no test"),
                },
            },
            heads: Heads {
                classifier: (classes > 1).then(|| Classifier {
                    classes,
                    layers: self.int("nlayers_cls") as usize,
                }),
                mvc: (args["do_mvc"] == true).then(Mvc::default),
                explicit_zero: args["explicit_zero_prob"] == true,
                batch_labels: (args["use_batch_labels"] == true).then(batches),
                discriminator: (args["do_dab"] == true).then(batches),
                affine: None,
            },
            adapters: adapters(&self.case["adapter_config"]),
        }
    }

    /// Tensors with the case's weights; exactly those train that `trains` says.
    pub(crate) fn params(
        &self,
        blueprint: &Blueprint,
        trains: impl Fn(&TensorSpec) -> bool,
        layout: Layout,
    ) -> Params {
        Params::build(
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
            trains,
            layout,
        )
        .unwrap()
    }

    pub(crate) fn trainable(&self) -> BTreeSet<String> {
        let named = self.case["trainable_parameters"].as_object().unwrap();
        named.keys().map(|name| ours(name)).collect()
    }

    /// The model, bound, with the case's weights and freeze rule, and both counts checked.
    pub(crate) fn model(&self, blueprint: &Blueprint, executor: ExecutorKind) -> (Params, Scgpt) {
        let trainable = self.trainable();
        let params = self.params(
            blueprint,
            |spec| trainable.contains(&spec.name),
            Layout::cpu(0),
        );
        let named: usize = self.case["trainable_parameters"]
            .as_object()
            .unwrap()
            .values()
            .map(|shape| {
                let shape = shape.as_array().unwrap();
                shape
                    .iter()
                    .map(|n| n.as_u64().unwrap() as usize)
                    .product::<usize>()
            })
            .sum();
        assert_eq!(params.trainable_count(), named, "trainable parameters");
        if let Some(count) = self.case["trainable_count"].as_u64() {
            assert_eq!(params.trainable_count() as u64, count);
        }
        let total = self.case["total_count"].as_u64().unwrap() as usize;
        assert_eq!(params.total_count(), total, "all parameters");
        let model = Scgpt::bind(blueprint, &params, executor).unwrap();
        (params, model)
    }

    pub(crate) fn batch(&self) -> Inputs {
        self.batch_named("")
    }

    /// The micro-batch whose tensors have names that start with `prefix`.
    pub(crate) fn batch_named(&self, prefix: &str) -> Inputs {
        let get = |name: &str| self.inputs.get(&format!("{prefix}{name}"));
        let padding = get("src_key_padding_mask").unwrap().to_kind(Kind::Bool);
        let labels = get("batch_labels");
        Inputs {
            gene_ids: get("gene_ids").unwrap().shallow_clone(),
            values: get("values").unwrap().shallow_clone(),
            padding: (padding.any().int64_value(&[]) == 1).then_some(padding),
            batch_labels: labels.map(Tensor::shallow_clone),
            // The reference normalises a whole micro-batch as the domain of its first cell.
            domain: labels.map(|labels| labels.int64_value(&[0]) as usize),
            perturbation: get("pert_flags").map(Tensor::shallow_clone),
            treatment: None,
        }
    }

    pub(crate) fn close(&self, name: &str, found: &Tensor, kind: &str) {
        let expected = self
            .expected
            .get(name)
            .unwrap_or_else(|| panic!("no expected tensor `{name}`"));
        let tolerance = |part: &str| {
            let key = format!("{kind}_{part}");
            self.case["tolerances"][&key].as_f64()
        };
        assert_close(
            name,
            &found.view_as(expected),
            expected,
            tolerance("atol").unwrap_or(0.0),
            // Cases without a tolerance of their own for losses: as for outputs.
            tolerance("rtol").unwrap_or(1e-5),
        );
    }

    /// Compares the gradient of every trainable tensor, and their norm.
    pub(crate) fn check_gradients(&self, params: &Params) {
        let mut norm_squared = 0.0;
        let mut compared = 0;
        let silent = self.case["trainable_without_grad"].as_array();
        for slot in params.slots() {
            let grad = params
                .grad()
                .narrow(0, slot.offset as i64, slot.numel() as i64)
                .view(slot.shape.as_slice());
            let name = format!("grad.{}", slot.name);
            if self.expected.contains_key(&name) {
                self.close(&name, &grad, "grad");
                compared += 1;
            } else {
                let listed = silent.into_iter().flatten();
                let names: Vec<String> = listed.map(|n| ours(n.as_str().unwrap())).collect();
                assert!(
                    names.contains(&slot.name),
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
            norm_squared += (&grad * &grad).sum(Kind::Double).double_value(&[]);
        }
        let gradients: BTreeSet<_> = self
            .expected
            .keys()
            .filter(|k| k.starts_with("grad."))
            .collect();
        assert_eq!(compared, gradients.len(), "gradients compared");
        if let Some(expected) = self.expected.get("grad_norm_total") {
            let expected = expected.double_value(&[0]);
            assert!(
                (norm_squared.sqrt() - expected).abs() <= 2e-3 * expected,
                "norm {} vs {expected}",
                norm_squared.sqrt()
            );
        }
    }

    /// Compares every expected output whose name starts with `prefix`.
    pub(crate) fn check_outputs(
        &self,
        model: &Scgpt,
        inputs: &Inputs,
        encoded: &Encoded,
        prefix: &str,
    ) {
        let mut checked = 0;
        for name in self.expected.keys() {
            let Some(output) = name.strip_prefix(prefix) else {
                continue;
            };
            let heads = &model.heads;
            let expression = || heads.expression(encoded, inputs).unwrap();
            let mvc = || heads.mvc(encoded, inputs).unwrap();
            let found = match output {
                "cell_emb" => encoded.cell.shallow_clone(),
                "cls_output" => heads.classify(encoded).unwrap(),
                "dab_output" => heads.discriminate(encoded).unwrap(),
                "mlm_output" => expression().prediction,
                "mlm_zero_probs" => expression().nonzero_probability.unwrap(),
                "mvc_output" => mvc().prediction,
                "mvc_zero_probs" => mvc().nonzero_probability.unwrap(),
                // Compared as losses.
                "loss_ecs" | "loss_cce" => continue,
                other => panic!("expected output `{other}` has no test"),
            };
            self.close(name, &found, "forward");
            checked += 1;
        }
        assert!(
            checked >= 1,
            "`{prefix}`: no outputs of that name in the fixture"
        );
    }

    /// Applies what the norm saw, as the trainer does, and compares the running statistics.
    pub(crate) fn check_buffers(&self, params: &Params, model: &Scgpt, encoded: &Encoded) {
        let expected = |name: &str| self.expected.get(&format!("buffer_after.{name}"));
        let Some(observed) = &encoded.observed else {
            assert!(params.buffers().next().is_none());
            return;
        };
        let norm = model.norm().unwrap();
        norm.update(observed.domain, 1, &observed.mean, &observed.variance)
            .unwrap();
        for (name, found) in params.buffers() {
            match expected(name) {
                Some(tensor) => assert_close(
                    name,
                    &found.to_kind(Kind::Double),
                    &tensor.to_kind(Kind::Double),
                    2e-5,
                    1e-4,
                ),
                // Some cases store the statistics without the counter.
                None => assert!(name.ends_with("num_batches_tracked"), "no `{name}`"),
            }
        }
    }
}

pub(crate) fn assert_close(name: &str, found: &Tensor, expected: &Tensor, atol: f64, rtol: f64) {
    assert_eq!(found.size(), expected.size(), "shape of `{name}`");
    assert!(
        found.isfinite().all().int64_value(&[]) == 1,
        "`{name}` is not finite"
    );
    let excess = (found - expected).abs() - expected.abs() * rtol - atol;
    let worst = excess.max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "`{name}` is off by {worst:e} more than atol {atol:e} + rtol {rtol:e}"
    );
}

/// The blocks whose flag is set.
pub(crate) fn selected(flags: &Value) -> LayerSelection {
    let on = |flag: &Value| *flag == true || *flag == 1;
    LayerSelection::Listed(
        flags
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .filter(|(_, flag)| on(flag))
            .map(|(i, _)| i)
            .collect(),
    )
}

/// The adapters of a library configuration, by its flags.
pub(crate) fn adapters(config: &Value) -> Vec<AdapterOptions> {
    let layers = || selected(&config["adapter_layer_conf"]);
    let mlp_ratio = || config["mlp_ratio"].as_f64().unwrap();
    let mut adapters = Vec::new();
    if config["TOKEN_FLAG"] == true {
        adapters.push(AdapterOptions::Token(TokenOptions {
            mlp_ratio: mlp_ratio(),
            zero_init: false,
        }));
    }
    if config["PREFIX_FLAG"] == true {
        adapters.push(AdapterOptions::Prefix(PrefixOptions {
            layers: layers(),
            token_nums: config["token_nums"].as_i64().unwrap(),
        }));
    }
    if config["LoRA_FLAG"] == true {
        let enabled = config["enable_lora"].as_array();
        let all = [Projection::Query, Projection::Key, Projection::Value];
        adapters.push(AdapterOptions::Lora(LoraOptions {
            layers: layers(),
            r: config["r"].as_i64().unwrap(),
            lora_alpha: config["lora_alpha"].as_f64().unwrap(),
            targets: match enabled {
                None => vec![Projection::Query, Projection::Value],
                Some(flags) => all
                    .into_iter()
                    .zip(flags)
                    .filter(|(_, flag)| **flag == true)
                    .map(|(part, _)| part)
                    .collect(),
            },
            train_qkv_bias: true,
        }));
    }
    if config["ENCODER_FLAG"] == true || config["ENCODER"] == true {
        adapters.push(AdapterOptions::Encoder(EncoderOptions {
            layers: layers(),
            mlp_ratio: mlp_ratio(),
            skip_connect: config["skip_connect"] == true,
            placement: Placement::AfterNorm,
            zero_init: false,
        }));
    }
    let named = config["peft_type"].as_str();
    assert!(
        named.is_none() || !adapters.is_empty(),
        "case.json: adapter {named:?} has no test"
    );
    adapters
}
