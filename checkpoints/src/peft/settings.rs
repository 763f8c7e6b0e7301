//! The adapters of a file, typed: the list `scpeft.adapters` of `adapter_config.json`.
//!
//! PEFT knows one kind of adapter a file and, of ours, LoRA alone. The list holds any number of
//! kinds. A kind may stand in it more than once, for other layers with other settings; the list of
//! a file with LoRA on two layers and a bottleneck on one is
//!
//! ```
//! use scpeft_checkpoint::peft::AdapterSettings;
//!
//! let list: Vec<AdapterSettings> = serde_json::from_str(r#"[
//!     {"kind": "lora", "layers": [0, 1], "r": 8, "lora_alpha": 1.0, "targets": ["q", "v"],
//!      "train_qkv_bias": true},
//!     {"kind": "encoder", "layers": [0], "mlp_ratio": 0.25, "skip_connect": true}
//! ]"#).unwrap();
//! assert_eq!(list[1].layers(), Some(&[0][..]));
//! ```

use serde::{Deserialize, Serialize};

use super::drug::DrugReading;
use crate::lora::PackedLayout;

/// A part of the packed projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
}

impl Target {
    /// All parts in the order of their rows.
    pub const ALL: [Self; 3] = [Self::Q, Self::K, Self::V];
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
        })
    }
}

/// One kind of adapter with its settings and the layers that carry it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdapterSettings {
    /// Bottleneck after the first norm: `…layers.{i}.space_adapter.fc1|fc2.weight|bias`.
    Encoder {
        /// Layers that carry it, ascending.
        layers: Vec<usize>,
        /// Width of the bottleneck as a share of D, rounded down; see [`bottleneck_width`].
        mlp_ratio: f64,
        /// Whether the input is added to the output.
        skip_connect: bool,
        /// Where in the layer it acts.
        #[serde(default, skip_serializing_if = "is_default")]
        placement: Placement,
    },
    /// Bottleneck in parallel with the feed-forward half, added after the second norm:
    /// `…layers.{i}.mlp_adapter.fc1|fc2.weight|bias`.
    Mlp {
        /// Layers that carry it, ascending.
        layers: Vec<usize>,
        /// Width of the bottleneck as a share of D, rounded down.
        mlp_ratio: f64,
        /// Factor of its output; 0.5 as published when absent.
        #[serde(default = "half")]
        scale: f64,
    },
    /// Bottleneck in the value encoder: `value_encoder.adapter.fc1|fc2.weight|bias`.
    Token {
        /// Width of the bottleneck as a share of D, rounded down.
        mlp_ratio: f64,
        /// Whether the input is added to the output.
        skip_connect: bool,
    },
    /// Deep prompts: `…layers.{i}.adapter_embeddings [1, T, D]`.
    Prefix {
        /// Layers that own prompts, ascending.
        layers: Vec<usize>,
        /// Prompts of a layer, T.
        token_nums: usize,
    },
    /// Low-rank update of the packed projection: `…layers.{i}.self_attn.Wqkv.lora_A|lora_B`, in the
    /// file as PEFT has it (see [`lora`](crate::lora)).
    Lora {
        /// Layers that carry it, ascending.
        layers: Vec<usize>,
        /// Rank of each part.
        r: usize,
        /// Numerator of the scale `lora_alpha / r`.
        lora_alpha: f64,
        /// Parts that are updated, in the order q, k, v.
        targets: Vec<Target>,
        /// Whether the bias of the packed projection was trained and is in the file.
        train_qkv_bias: bool,
        /// Whether query, key and value have a module each, `query`, `key` and `value`: then factors
        /// are those of each module, in the file and in the model.
        #[serde(default, skip_serializing_if = "is_default")]
        separate: bool,
        /// What these modules are called.
        #[serde(default, skip_serializing_if = "is_default")]
        naming: Naming,
    },
    /// Householder reflections of the packed weight: `…layers.{i}.self_attn.Wqkv.hra_u [D, r]`.
    Hra {
        /// Layers that carry it, ascending.
        layers: Vec<usize>,
        /// Reflections.
        r: usize,
    },
    /// Block-diagonal rotation of the packed weight:
    /// `…layers.{i}.self_attn.Wqkv.R [blocks, D/blocks, D/blocks]`.
    Oft {
        /// Layers that carry it, ascending.
        layers: Vec<usize>,
        /// Blocks of the rotation; 4 as published.
        blocks: usize,
    },
    /// What the treatment of a cell generates: `drug_adapters.{i}.…` or `drug_proj`.
    Drug {
        /// Layers that carry it, ascending; empty when it is added to the embedding.
        layers: Vec<usize>,
        /// Numbers that describe a treatment.
        width: usize,
        /// Where they enter.
        reading: DrugReading,
    },
}

/// Where in a layer the bottleneck after the attention acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// On the output of the first norm.
    #[default]
    AfterNorm,
    /// On what the attention heads found.
    Context,
    /// On the projected output of the attention.
    AttentionOutput,
}

/// What the modules of query, key and value are called, where they have one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Naming {
    /// `query`, `key`, `value`, as in BERT.
    #[default]
    Bert,
    /// `to_q`, `to_k`, `to_v`, as in `performer-pytorch`.
    Performer,
}

impl Naming {
    /// The module of a part.
    pub fn module(self, part: Target) -> &'static str {
        match (self, part) {
            (Self::Bert, Target::Q) => "query",
            (Self::Bert, Target::K) => "key",
            (Self::Bert, Target::V) => "value",
            (Self::Performer, Target::Q) => "to_q",
            (Self::Performer, Target::K) => "to_k",
            (Self::Performer, Target::V) => "to_v",
        }
    }
}

/// Whether a field need not be written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn half() -> f64 {
    0.5
}

impl AdapterSettings {
    /// The kind as the file names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Encoder { .. } => "encoder",
            Self::Mlp { .. } => "mlp",
            Self::Token { .. } => "token",
            Self::Prefix { .. } => "prefix",
            Self::Lora { .. } => "lora",
            Self::Hra { .. } => "hra",
            Self::Oft { .. } => "oft",
            Self::Drug { .. } => "drug",
        }
    }

    /// The layers that carry it; `None` for what is in no layer.
    pub fn layers(&self) -> Option<&[usize]> {
        match self {
            Self::Token { .. } => None,
            Self::Drug { reading, .. } if !reading.in_layers() => None,
            Self::Encoder { layers, .. }
            | Self::Mlp { layers, .. }
            | Self::Prefix { layers, .. }
            | Self::Lora { layers, .. }
            | Self::Hra { layers, .. }
            | Self::Oft { layers, .. }
            | Self::Drug { layers, .. } => Some(layers),
        }
    }

    pub(crate) fn layers_mut(&mut self) -> Option<&mut Vec<usize>> {
        match self {
            Self::Token { .. } => None,
            Self::Drug { reading, .. } if !reading.in_layers() => None,
            Self::Encoder { layers, .. }
            | Self::Mlp { layers, .. }
            | Self::Prefix { layers, .. }
            | Self::Lora { layers, .. }
            | Self::Hra { layers, .. }
            | Self::Oft { layers, .. }
            | Self::Drug { layers, .. } => Some(layers),
        }
    }

    /// How its LoRA factors are packed; `None` for other kinds, and where modules are separate.
    pub fn packed_layout(&self) -> Option<PackedLayout> {
        match self {
            Self::Lora {
                r,
                targets,
                separate: false,
                ..
            } => Some(PackedLayout {
                enabled: Target::ALL.map(|part| targets.contains(&part)),
                r: *r,
            }),
            _ => None,
        }
    }

    /// The modules that LoRA updates, where each of query, key and value is one.
    pub(crate) fn separate_modules(&self) -> Option<Vec<&'static str>> {
        match self {
            Self::Lora {
                targets,
                separate: true,
                naming,
                ..
            } => Some(
                targets
                    .iter()
                    .map(|target| naming.module(*target))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// What is wrong with the settings themselves, if anything.
    fn problem(&self) -> Option<String> {
        let positive = |name: &str, value: f64| {
            (!value.is_finite() || value <= 0.0)
                .then(|| format!("`{name}` must be above 0, got {value}"))
        };
        let at_least_one =
            |name: &str, value: usize| (value == 0).then(|| format!("`{name}` must be at least 1"));
        let layers = self.layers().and_then(|layers| {
            let ascending = layers.windows(2).all(|pair| pair[0] < pair[1]);
            (layers.is_empty() || !ascending)
                .then(|| format!("`layers` must be ascending and not empty, got {layers:?}"))
        });
        layers.or_else(|| match self {
            Self::Encoder { mlp_ratio, .. } | Self::Token { mlp_ratio, .. } => {
                positive("mlp_ratio", *mlp_ratio)
            }
            Self::Mlp {
                mlp_ratio, scale, ..
            } => positive("mlp_ratio", *mlp_ratio).or_else(|| positive("scale", *scale)),
            Self::Prefix { token_nums, .. } => at_least_one("token_nums", *token_nums),
            Self::Lora {
                r,
                lora_alpha,
                targets,
                ..
            } => {
                let ordered = targets.windows(2).all(|pair| pair[0] < pair[1]);
                at_least_one("r", *r)
                    .or_else(|| positive("lora_alpha", *lora_alpha))
                    .or_else(|| {
                        (targets.is_empty() || !ordered)
                            .then(|| "`targets` must be some of q, k, v, in this order".to_owned())
                    })
            }
            Self::Hra { r, .. } => at_least_one("r", *r),
            Self::Oft { blocks, .. } => at_least_one("blocks", *blocks),
            Self::Drug { width, reading, .. } => {
                at_least_one("width", *width).or_else(|| reading.problem())
            }
        })
    }
}

/// Width of a bottleneck: `mlp_ratio * D` rounded down, as the reference computes it.
pub fn bottleneck_width(mlp_ratio: f64, d_model: usize) -> usize {
    (mlp_ratio * d_model as f64) as usize
}

/// The ratio that [`bottleneck_width`] turns into `width`. The quotient alone may be rounded to
/// just below it.
pub fn mlp_ratio(width: usize, d_model: usize) -> f64 {
    let quotient = width as f64 / d_model as f64;
    if bottleneck_width(quotient, d_model) == width {
        quotient
    } else {
        quotient.next_up()
    }
}

/// Checks a list of adapters: each by itself, and that no kind has a layer twice.
///
/// # Errors
/// With what is wrong and with which entry.
pub fn check(adapters: &[AdapterSettings]) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for (index, adapter) in adapters.iter().enumerate() {
        let at = |problem: String| format!("adapter {index} ({}): {problem}", adapter.kind());
        if let Some(problem) = adapter.problem() {
            return Err(at(problem));
        }
        let layers: Vec<Option<usize>> = match adapter.layers() {
            None => vec![None],
            Some(layers) => layers.iter().copied().map(Some).collect(),
        };
        for layer in layers {
            if !seen.insert((adapter.kind(), layer)) {
                let place = layer.map_or("the embedding".to_owned(), |i| format!("layer {i}"));
                return Err(at(format!("{place} has an adapter of this kind already")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::drug::{DrugActivation, DrugBias, DrugSite};
    use super::*;

    /// One of each kind.
    pub(crate) fn all_kinds() -> Vec<AdapterSettings> {
        vec![
            AdapterSettings::Lora {
                layers: vec![0, 1],
                r: 8,
                lora_alpha: 1.0,
                targets: vec![Target::Q, Target::V],
                train_qkv_bias: true,
                separate: false,
                naming: crate::peft::Naming::Bert,
            },
            AdapterSettings::Hra {
                layers: vec![2],
                r: 8,
            },
            AdapterSettings::Oft {
                layers: vec![3],
                blocks: 4,
            },
            AdapterSettings::Encoder {
                layers: vec![0, 1],
                mlp_ratio: 0.25,
                skip_connect: true,
                placement: Placement::AfterNorm,
            },
            AdapterSettings::Mlp {
                layers: vec![0],
                mlp_ratio: 0.25,
                scale: 0.5,
            },
            AdapterSettings::Prefix {
                layers: vec![0, 2],
                token_nums: 8,
            },
            AdapterSettings::Drug {
                layers: vec![0, 1],
                width: 768,
                reading: DrugReading::Bottleneck {
                    site: DrugSite::FeedForward,
                    bottleneck: 16,
                    bias: DrugBias::Down,
                    generator_hidden: None,
                    activation: DrugActivation::Relu,
                },
            },
            AdapterSettings::Token {
                mlp_ratio: 1.0,
                skip_connect: false,
            },
        ]
    }

    #[test]
    fn every_kind_reads_back_and_unknown_fields_are_refused() {
        for adapter in all_kinds() {
            let json = serde_json::to_value(&adapter).unwrap();
            assert_eq!(json["kind"], adapter.kind());
            let back: AdapterSettings = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(back, adapter);
            let mut more = json;
            more["colour"] = "red".into();
            let message = serde_json::from_value::<AdapterSettings>(more)
                .unwrap_err()
                .to_string();
            assert!(message.contains("unknown field `colour`"), "{message}");
        }
        let unknown = serde_json::from_str::<AdapterSettings>(r#"{"kind": "ia3"}"#);
        assert!(unknown.unwrap_err().to_string().contains("ia3"));
        let json = r#"{"kind": "mlp", "layers": [0], "mlp_ratio": 0.25}"#;
        let back: AdapterSettings = serde_json::from_str(json).unwrap();
        assert_eq!(back, all_kinds()[4]);
    }

    #[test]
    fn lists_that_contradict_themselves_are_refused() {
        assert_eq!(check(&all_kinds()), Ok(()));
        let prefix = |layers: &[usize], token_nums| AdapterSettings::Prefix {
            layers: layers.to_vec(),
            token_nums,
        };
        assert_eq!(check(&[prefix(&[0], 8), prefix(&[1], 4)]), Ok(()));
        let lora = |targets: &[Target], lora_alpha| AdapterSettings::Lora {
            layers: vec![0],
            r: 1,
            lora_alpha,
            targets: targets.to_vec(),
            train_qkv_bias: false,
            separate: false,
            naming: crate::peft::Naming::Bert,
        };
        let added = AdapterSettings::Drug {
            layers: Vec::new(),
            width: 4,
            reading: DrugReading::InputAdd {},
        };
        assert_eq!(check(&[added]), Ok(()));
        let token = all_kinds().pop().unwrap();
        for (list, expected) in [
            (vec![prefix(&[0, 1], 8), prefix(&[1], 4)], "layer 1 has"),
            (vec![token.clone(), token], "the embedding has"),
            (vec![prefix(&[1, 0], 8)], "ascending"),
            (vec![prefix(&[], 8)], "not empty"),
            (
                vec![AdapterSettings::Drug {
                    layers: vec![0],
                    width: 4,
                    reading: DrugReading::Prefix { token_nums: 0 },
                }],
                "`token_nums` must be at least 1",
            ),
            (vec![prefix(&[0], 0)], "`token_nums` must be at least 1"),
            (vec![lora(&[], 1.0)], "some of q, k, v"),
            (vec![lora(&[Target::V, Target::Q], 1.0)], "in this order"),
            (
                vec![lora(&[Target::Q], f64::NAN)],
                "`lora_alpha` must be above 0",
            ),
        ] {
            let message = check(&list).unwrap_err();
            assert!(
                message.contains(expected),
                "expected `{expected}`, got `{message}`"
            );
        }
    }

    #[test]
    fn a_ratio_gives_back_the_width_it_came_from() {
        for d_model in 1..200 {
            for width in 1..=2 * d_model {
                let ratio = mlp_ratio(width, d_model);
                assert_eq!(bottleneck_width(ratio, d_model), width, "{width}/{d_model}");
            }
        }
        assert_eq!(mlp_ratio(128, 512), 0.25);
    }
}
