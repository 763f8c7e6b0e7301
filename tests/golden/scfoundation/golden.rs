//! A fixture case, and how outputs and gradients are compared with it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use scpeft_data::tokenize::{Cell, CellKey, Tokens};
use scpeft_data::{
    GeneKey, GeneTable, ScfoundationOptions, ScfoundationTokenizer, TargetDepth, Tokenizer, Vocab,
};
use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, PrefixOptions,
    Projection, TokenOptions,
};
use scpeft_model::backbone::scfoundation::{
    Blueprint, Head, Pool, PoolStyle, Scfoundation, Values,
};
use scpeft_model::backbone::{Inputs, Shape};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Params, TensorSpec};
use scpeft_tests::{case, fixture};
use serde_json::Value;
use tch::{Kind, Tensor};

pub(crate) type Tensors = HashMap<String, Tensor>;

/// What numbers may differ by, as the specification of the cases says: absolute and relative.
pub(crate) const TOLERANCE: [f64; 2] = [1e-5, 1e-4];

/// A training pass without dropout.
pub(crate) fn training() -> Pass {
    Pass::training(Dropout::OFF, 0)
}

pub(crate) fn read(path: &Path) -> Tensors {
    let tensors =
        Tensor::read_safetensors(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tensors.into_iter().collect()
}

/// The name that a tensor of the reference has here; `prefix` is that of the model in the case.
fn ours(prefix: &str, name: &str) -> String {
    let (grad, name) = match name.strip_prefix("grad.") {
        Some(name) => ("grad.", name),
        None => ("", name),
    };
    let name = name.strip_prefix(prefix).unwrap_or(name);
    let name = name.replace("D_fc", "fc");
    let name = match name.strip_prefix("Space_Adapter.") {
        Some(rest) => format!("encoder.adapter.{rest}"),
        None => name.replace("Space_Adapter", "space_adapter"),
    };
    format!(
        "{grad}{}",
        name.replace("prompt_embeddings", "adapter_embeddings")
    )
}

pub(crate) struct Golden {
    pub(crate) name: String,
    prefix: String,
    pub(crate) case: Value,
    pub(crate) weights: Tensors,
    pub(crate) inputs: Tensors,
    pub(crate) expected: Tensors,
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        Self::load_stripped(name, "")
    }

    /// A case whose names of the model's tensors begin with `prefix`.
    pub(crate) fn load_stripped(name: &str, prefix: &str) -> Self {
        let dir = fixture("scfoundation", name);
        let renamed = |file: &str| -> Tensors {
            let tensors = read(&dir.join(file)).into_iter();
            tensors.map(|(name, t)| (ours(prefix, &name), t)).collect()
        };
        let mut golden = Self {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            case: case(&dir),
            weights: renamed("weights.safetensors"),
            inputs: read(&dir.join("inputs.safetensors")),
            expected: renamed("expected.safetensors"),
        };
        // The reference saved its annotation models with LoRA's update in the weight, beside the update: a
        // model that adds both counts it twice. What was trained on is the weight without.
        if golden.case["n_classes"].is_i64() {
            for (weight, update) in golden.lora_updates() {
                let without = &golden.weights[&weight] - update;
                golden.weights.insert(weight, without);
            }
        }
        golden
    }

    /// What LoRA adds to weights of packed projections, by their names.
    pub(crate) fn lora_updates(&self) -> Vec<(String, Tensor)> {
        let names = self.weights.keys();
        let modules = names.filter_map(|name| name.strip_suffix(".Wqkv.lora_A"));
        let update = |module: &str| {
            let part = |end: &str| &self.weights[&format!("{module}.Wqkv.{end}")];
            let (a, b) = (part("lora_A"), part("lora_B"));
            let (r, d) = (a.size()[0] / 2, b.size()[0] / 2);
            // Query in the first rows, value in the last; the scale is 1/r.
            let of = |j: i64| b.narrow(0, j * d, d).matmul(&a.narrow(0, j * r, r)) / r as f64;
            let zeros = Tensor::zeros([d, d], (Kind::Float, a.device()));
            let update = Tensor::cat(&[of(0), zeros, of(1)], 0);
            (format!("{module}.in_proj_weight"), update)
        };
        modules.map(update).collect()
    }

    fn config(&self, path: &str) -> f64 {
        let value = self.case["config"].pointer(path).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{}: config{path}", self.name))
    }

    /// Genes of the model.
    pub(crate) fn genes(&self) -> i64 {
        self.config("/seq_len") as i64 - 2
    }

    /// The number that stands for padding.
    pub(crate) fn pad_value(&self) -> f64 {
        self.config("/pad_token_id")
    }

    /// The model that `config` and `adapter` describe, with the reference's pool of padding.
    pub(crate) fn blueprint(&self) -> Blueprint {
        let seq_len = self.config("/seq_len") as i64;
        let linear1 = &self.weights["encoder.transformer_encoder.0.linear1.weight"];
        let style = match self.case["pool"].as_str() {
            Some("all") => PoolStyle::All,
            Some("max") | None => PoolStyle::Max,
            other => panic!("{}: pool {other:?} has no test", self.name),
        };
        Blueprint {
            shape: Shape {
                vocab: seq_len + 1,
                d_model: self.config("/encoder/hidden_dim") as i64,
                n_heads: self.config("/encoder/heads") as i64,
                d_hid: linear1.size()[0],
                n_layers: self.config("/encoder/depth") as usize,
                pad_id: seq_len,
            },
            values: Values {
                bins: self.config("/bin_num") as i64,
                bin_alpha: self.config("/bin_alpha"),
                pad_value: self.pad_value(),
                mask_value: self.config("/mask_token_id"),
            },
            pool: Pool {
                style,
                padded: true,
            },
            pad_position: self.pad_value() as i64,
            head: self.case["n_classes"].as_i64().map(|classes| Head {
                classes,
                dropout: 0.0,
            }),
            decoder: None,
            adapters: self.adapters(),
        }
    }

    /// The adapters of the case.
    fn adapters(&self) -> Vec<AdapterOptions> {
        let settings = &self.case["prompt_settings"];
        let named = if settings.is_null() {
            &self.case["layer_conf"]
        } else {
            &settings["space_adapter_conf"]
        };
        let flags = named.as_array().map_or(&[][..], Vec::as_slice);
        let set = (0..flags.len()).filter(|&i| flags[i] == 1);
        let layers = LayerSelection::Listed(set.collect());
        let lora_a = self
            .weights
            .iter()
            .find(|(name, _)| name.ends_with(".lora_A"));
        vec![match self.case["adapter"].as_str() {
            Some("encoder") => AdapterOptions::Encoder(EncoderOptions {
                layers,
                mlp_ratio: 0.25,
                skip_connect: true,
                placement: Placement::AttentionOutput,
                zero_init: false,
            }),
            Some("token") => AdapterOptions::Token(TokenOptions {
                mlp_ratio: 0.25,
                zero_init: false,
            }),
            Some("prefix") => AdapterOptions::Prefix(PrefixOptions {
                layers,
                token_nums: {
                    let prompt =
                        |(name, _): &(&String, &Tensor)| name.ends_with("adapter_embeddings");
                    self.weights.iter().find(prompt).unwrap().1.size()[1]
                },
            }),
            Some("lora") => AdapterOptions::Lora(LoraOptions {
                layers,
                // Query and value side by side.
                r: lora_a.unwrap().1.size()[0] / 2,
                lora_alpha: 1.0,
                targets: vec![Projection::Query, Projection::Value],
                train_qkv_bias: false,
            }),
            _ => return Vec::new(),
        }]
    }

    /// What trains.
    pub(crate) fn trainable(&self) -> BTreeSet<String> {
        let named = self.case["trainable"].as_array().unwrap();
        let name = |n: &Value| ours(&self.prefix, n.as_str().unwrap());
        named.iter().map(name).collect()
    }

    /// Tensors with the case's weights and freeze rule.
    pub(crate) fn params(&self, blueprint: &Blueprint, layout: Layout) -> Params {
        let trainable = match self.case.get("trainable") {
            Some(_) => self.trainable(),
            None => BTreeSet::new(),
        };
        let specs = blueprint.specs().unwrap();
        let weights = |spec: &TensorSpec| {
            let tensor = self.weights.get(&spec.name);
            assert!(tensor.is_some(), "the fixture has no `{}`", spec.name);
            Ok(tensor.map(Tensor::shallow_clone))
        };
        let trains = |spec: &TensorSpec| trainable.contains(&spec.name);
        let params = Params::build(&specs, weights, trains, layout).unwrap();
        assert_eq!(params.slots().len(), trainable.len(), "trainable tensors");
        params
    }

    /// The model, bound, with the case's weights and freeze rule.
    pub(crate) fn model(
        &self,
        blueprint: &Blueprint,
        executor: ExecutorKind,
    ) -> (Params, Scfoundation) {
        let params = self.params(blueprint, Layout::cpu(0));
        let model = Scfoundation::bind(blueprint, &params, executor).unwrap();
        (params, model)
    }

    /// Tokens of cells `[B, G]`, made by the loader's tokeniser.
    pub(crate) fn tokens(
        &self,
        cells: &Tensor,
        normalize: Option<f32>,
        depth: Option<TargetDepth>,
    ) -> Tokens {
        let genes = self.genes() as usize;
        let table = GeneTable {
            symbols: (0..genes).map(|g| format!("G{g}")).collect(),
            ensembl: vec![None; genes],
        };
        let vocab = Vocab::from_tokens(table.symbols.clone());
        let map = vocab.match_genes(&table, GeneKey::Symbol).unwrap();
        let options = ScfoundationOptions {
            genes: genes as i32,
            max_len: genes + 2,
            normalize_total: normalize,
            log1p: normalize.is_some(),
            target_depth: depth,
            pad_value: self.pad_value() as f32,
            seed: 0,
        };
        let tokenizer = ScfoundationTokenizer::new(map, options).unwrap();
        let mut tokens = Tokens::default();
        for row in 0..cells.size()[0] {
            let values = Vec::<f32>::try_from(&cells.get(row)).unwrap();
            let expressed: Vec<u32> = (0..genes as u32)
                .filter(|&g| values[g as usize] > 0.0)
                .collect();
            let counts: Vec<f32> = expressed.iter().map(|&g| values[g as usize]).collect();
            let cell = Cell {
                genes: &expressed,
                values: &counts,
            };
            tokenizer
                .worker()
                .tokenize(cell, CellKey::new(row as u64, 0, 0), &mut tokens);
        }
        tokens
    }

    /// A micro-batch of tokens, padded to the longest cell and then to a multiple of `multiple`.
    pub(crate) fn batch(&self, tokens: &Tokens, multiple: usize) -> Inputs {
        let width = tokens.longest().next_multiple_of(multiple);
        let pad_id = self.genes() as i32 + 2;
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        for row in 0..tokens.rows() {
            ids.extend_from_slice(&tokens.ids[tokens.range(row)]);
            values.extend_from_slice(&tokens.values[tokens.range(row)]);
            ids.resize((row + 1) * width, pad_id);
            values.resize((row + 1) * width, self.pad_value() as f32);
        }
        let shape = [tokens.rows() as i64, width as i64];
        let ids = Tensor::from_slice(&ids).view(shape);
        let padding = ids.eq(i64::from(pad_id));
        let some = padding.any().int64_value(&[]) == 1;
        let values = Tensor::from_slice(&values).view(shape);
        Inputs::new(ids, values, some.then_some(padding))
    }

    /// The micro-batch of an annotation case: values are normalised, there are no read depths.
    pub(crate) fn annotated(&self) -> Inputs {
        self.batch(&self.tokens(&self.inputs["x"], None, None), 1)
    }

    pub(crate) fn close(&self, name: &str, found: &Tensor) {
        let expected = self.expected.get(name);
        let expected = expected.unwrap_or_else(|| panic!("no expected tensor `{name}`"));
        let [atol, rtol] = TOLERANCE;
        assert_close(
            &format!("{}: {name}", self.name),
            found,
            expected,
            atol,
            rtol,
        );
    }

    /// Compares the gradient of every trainable tensor.
    pub(crate) fn check_gradients(&self, params: &Params) {
        for slot in params.slots() {
            let (offset, len) = (slot.offset as i64, slot.numel() as i64);
            let grad = params.grad().narrow(0, offset, len);
            let name = format!("grad.{}", slot.name);
            self.close(&name, &grad.view(slot.shape.as_slice()));
        }
        let named = self.expected.keys().filter(|k| k.starts_with("grad."));
        assert_eq!(params.slots().len(), named.count(), "gradients compared");
    }
}

pub(crate) fn assert_close(name: &str, found: &Tensor, expected: &Tensor, atol: f64, rtol: f64) {
    assert_eq!(found.size(), expected.size(), "shape of `{name}`");
    let found = found.to_kind(Kind::Double);
    let finite = found.isfinite().all().int64_value(&[]) == 1;
    assert!(finite, "`{name}` is not finite");
    let expected = expected.to_kind(Kind::Double);
    let excess = (&found - &expected).abs() - expected.abs() * rtol - atol;
    let worst = excess.max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "`{name}` is off by {worst:e} more than atol {atol:e} + rtol {rtol:e}"
    );
}
