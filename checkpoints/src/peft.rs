//! Adapter directories in the file layout of HF PEFT: `adapter_config.json` and
//! `adapter_model.safetensors` with keys `base_model.model.<name>`.

pub mod drug;
mod layout;
pub mod settings;

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::safetensors_file::{borrowed, write_safetensors};
use crate::tensor::{HostTensor, TensorFile};

pub use layout::{from_file_layout, to_file_layout};
pub use settings::{AdapterSettings, Naming, Placement, Target};

/// File with the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File with the tensors.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of a tensor in the wrapped model.
pub const PREFIX: &str = "base_model.model.";
/// Version of the `scpeft` object in the settings.
pub const FORMAT_VERSION: u32 = 1;

/// `adapter_config.json`: the fields that PEFT knows, ours under `scpeft`, and all others as they
/// are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// Kind of adapter in PEFT's words, `LORA` for instance.
    pub peft_type: String,
    /// Task in PEFT's words; PEFT accepts null.
    pub task_type: Option<String>,
    /// The backbone: a path or a name.
    pub base_model_name_or_path: Option<String>,
    /// Always true in a stored file: PEFT loads it frozen.
    pub inference_mode: bool,
    /// Rank of LoRA as PEFT sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<usize>,
    /// Numerator of the LoRA scale as PEFT sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Modules that carry an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<String>>,
    /// Layers that carry an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// `none`, `all` or `lora_only`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
    /// Modules stored whole: the heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules_to_save: Option<Vec<String>>,
    /// What PEFT does not know; absent in files of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scpeft: Option<ScpeftRecord>,
    /// Every other field.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The object `scpeft` of the settings: what it takes to use an adapter again with the right
/// backbone and labels. A field that is not listed here is refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScpeftRecord {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The adapters with their settings; empty where only heads, or all parameters, were trained.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterSettings>,
    /// The `[adapter]` section of the run, for the reader: nothing is decided by it.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub adapter: Value,
    /// Identity of the backbone, by [`fingerprint`](crate::fingerprint).
    pub backbone_fingerprint: String,
    /// The task of the run.
    pub task: String,
    /// The obs column that was learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Names of the classes in the order of the head's outputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Names of the batches that the model was told of, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<String>,
    /// What it was converted from, where it was not trained here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub converted_from: Option<String>,
}

impl AdapterConfig {
    /// The settings of a file with `adapters` and the modules `heads`. PEFT's own fields are those
    /// of its LoRA when LoRA with the same settings in all its layers is the only kind, so that PEFT
    /// reads the file; otherwise `peft_type` is `SCPEFT_` and the kind, or `SCPEFT_MULTI`, or
    /// `SCPEFT_HEAD` without adapters.
    ///
    /// # Errors
    /// When the list contradicts itself.
    pub fn of_adapters(
        adapters: Vec<AdapterSettings>,
        heads: Vec<String>,
        record: ScpeftRecord,
    ) -> Result<Self> {
        settings::check(&adapters).map_err(|reason| Error::Settings { reason })?;
        let base = Self {
            inference_mode: true,
            modules_to_save: Some(heads),
            ..Self::default()
        };
        let base = match &adapters[..] {
            [] => Self {
                peft_type: "SCPEFT_HEAD".to_owned(),
                ..base
            },
            [
                one @ AdapterSettings::Lora {
                    layers,
                    r,
                    lora_alpha,
                    train_qkv_bias,
                    ..
                },
            ] => {
                let bias = if *train_qkv_bias { "lora_only" } else { "none" };
                let (r, alpha, modules) = match one.packed_layout() {
                    Some(layout) => (
                        layout.peft_r(),
                        layout.peft_alpha(*lora_alpha),
                        vec![crate::lora::MODULE],
                    ),
                    None => (*r, *lora_alpha, one.separate_modules().unwrap_or_default()),
                };
                Self {
                    peft_type: "LORA".to_owned(),
                    r: Some(r),
                    lora_alpha: Some(alpha),
                    target_modules: Some(modules.into_iter().map(str::to_owned).collect()),
                    layers_to_transform: Some(layers.clone()),
                    bias: Some(bias.to_owned()),
                    ..base
                }
            }
            [first, rest @ ..] => {
                let single = rest.iter().all(|other| other.kind() == first.kind());
                let kind = if single { first.kind() } else { "multi" };
                let layers = rest.is_empty().then(|| first.layers()).flatten();
                Self {
                    peft_type: format!("SCPEFT_{}", kind.to_uppercase()),
                    layers_to_transform: layers.map(<[usize]>::to_vec),
                    ..base
                }
            }
        };
        Ok(Self {
            scpeft: Some(ScpeftRecord {
                format_version: FORMAT_VERSION,
                adapters,
                ..record
            }),
            ..base
        })
    }
}

/// Writes an adapter directory, replacing an earlier one as a whole. Names get the PEFT prefix.
///
/// # Errors
/// When it cannot be written.
pub fn write_adapter(
    dir: &Path,
    config: &AdapterConfig,
    tensors: &[(String, HostTensor<'_>)],
) -> Result<()> {
    let prefixed: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (format!("{PREFIX}{name}"), borrowed(tensor)))
        .collect();
    fsx::publish_dir(dir, Existing::Replace, |prepared| {
        write_safetensors(&prepared.join(TENSOR_FILE), &prefixed)?;
        let path = prepared.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(config)
            .map_err(|e| Error::content(&path, e.to_string()))?;
        fsx::write_atomic(&path, text.as_bytes())
    })
}

/// Reads an adapter directory; names come without the PEFT prefix.
///
/// # Errors
/// When a file is missing or malformed, a key lacks the prefix, or the file was written by a newer
/// version.
pub fn read_adapter(dir: &Path) -> Result<(AdapterConfig, IndexMap<String, HostTensor<'static>>)> {
    for name in [CONFIG_FILE, TENSOR_FILE] {
        if !dir.join(name).is_file() {
            return Err(Error::MissingFile {
                dir: dir.to_owned(),
                wanted: name.to_owned(),
                help: "an adapter is a directory of adapter_config.json and adapter_model.safetensors",
            });
        }
    }
    let config = read_adapter_config(dir)?;
    let path = dir.join(TENSOR_FILE);
    let file = TensorFile::open(&path)?;
    let mut tensors = IndexMap::new();
    for (key, tensor) in file.tensors() {
        let name = key.strip_prefix(PREFIX).ok_or_else(|| {
            Error::content(&path, format!("key `{key}` does not begin with `{PREFIX}`"))
        })?;
        tensors.insert(name.to_owned(), tensor.into_owned());
    }
    Ok((config, tensors))
}

/// Reads only the settings of an adapter directory.
///
/// # Errors
/// When they are missing, malformed, or written by a newer version.
pub fn read_adapter_config(dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(CONFIG_FILE);
    let config: AdapterConfig = serde_json::from_slice(&fsx::read(&path)?)
        .map_err(|e| Error::content(&path, e.to_string()))?;
    let Some(record) = &config.scpeft else {
        return Ok(config);
    };
    if !(1..=FORMAT_VERSION).contains(&record.format_version) {
        return Err(Error::Content {
            path,
            reason: format!(
                "its format version is {}, this program reads 1 to {FORMAT_VERSION}",
                record.format_version
            ),
            help: Some("use the version that wrote it, or a newer one"),
        });
    }
    settings::check(&record.adapters).map_err(|reason| Error::content(&path, reason))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AdapterConfig {
        AdapterConfig {
            peft_type: "LORA".to_owned(),
            inference_mode: true,
            r: Some(16),
            lora_alpha: Some(2.0),
            target_modules: Some(vec!["Wqkv".to_owned()]),
            bias: Some("lora_only".to_owned()),
            scpeft: Some(ScpeftRecord {
                format_version: FORMAT_VERSION,
                task: "identification".to_owned(),
                categories: vec!["B".to_owned(), "T".to_owned()],
                ..ScpeftRecord::default()
            }),
            others: serde_json::from_str(r#"{"use_dora": false}"#).unwrap(),
            ..AdapterConfig::default()
        }
    }

    #[test]
    fn an_adapter_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter");
        let tensors = vec![
            (
                "cls.bias".to_owned(),
                HostTensor::from_f32(vec![2], &[1.0, 2.0]),
            ),
            (
                "a.weight".to_owned(),
                HostTensor::from_f32(vec![1, 2], &[3.0, 4.0]),
            ),
        ];
        write_adapter(&path, &config(), &tensors).unwrap();
        let file = TensorFile::open(&path.join(TENSOR_FILE)).unwrap();
        assert_eq!(file.metadata()["format"], "pt");
        let mut names: Vec<_> = file.names().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["base_model.model.a.weight", "base_model.model.cls.bias"]
        );
        let (read, map) = read_adapter(&path).unwrap();
        assert_eq!(read, config());
        assert_eq!(map, tensors.into_iter().collect::<IndexMap<_, _>>());
    }

    fn lora(layers: &[usize]) -> AdapterSettings {
        AdapterSettings::Lora {
            layers: layers.to_vec(),
            r: 8,
            lora_alpha: 2.0,
            targets: vec![Target::Q, Target::V],
            train_qkv_bias: true,
            separate: false,
            naming: crate::peft::Naming::Bert,
        }
    }

    fn encoder(layers: &[usize]) -> AdapterSettings {
        AdapterSettings::Encoder {
            layers: layers.to_vec(),
            mlp_ratio: 0.25,
            skip_connect: true,
            placement: Placement::AfterNorm,
        }
    }

    fn configured(adapters: &[AdapterSettings]) -> AdapterConfig {
        let record = ScpeftRecord {
            task: "identification".to_owned(),
            ..ScpeftRecord::default()
        };
        let heads = vec!["cls_decoder".to_owned()];
        AdapterConfig::of_adapters(adapters.to_vec(), heads, record).unwrap()
    }

    #[test]
    fn lora_alone_is_peft_s_lora_and_everything_else_says_that_it_is_not() {
        let config = configured(&[lora(&[0, 1])]);
        assert_eq!(config.peft_type, "LORA");
        // Two parts of rank 8 are rank 16 to PEFT, and alpha / r stays.
        assert_eq!((config.r, config.lora_alpha), (Some(16), Some(4.0)));
        assert_eq!(config.layers_to_transform, Some(vec![0, 1]));
        assert_eq!(config.bias.as_deref(), Some("lora_only"));
        for (list, peft_type, layers) in [
            (vec![encoder(&[0, 2])], "SCPEFT_ENCODER", Some(vec![0, 2])),
            (vec![lora(&[0]), encoder(&[0])], "SCPEFT_MULTI", None),
            (vec![encoder(&[0]), encoder(&[1])], "SCPEFT_ENCODER", None),
            (vec![], "SCPEFT_HEAD", None),
        ] {
            let config = configured(&list);
            assert_eq!(config.peft_type, peft_type);
            assert_eq!(config.layers_to_transform, layers);
            assert_eq!((config.r, config.target_modules.as_ref()), (None, None));
            assert_eq!(config.scpeft.unwrap().adapters, list);
        }
        let twice = vec![lora(&[0]), lora(&[0])];
        let error = AdapterConfig::of_adapters(twice, vec![], ScpeftRecord::default());
        assert!(matches!(error, Err(Error::Settings { .. })), "{error:?}");
    }

    #[test]
    fn a_list_of_kinds_reads_back_and_a_field_too_many_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter");
        let config = configured(&[lora(&[0, 1]), encoder(&[0])]);
        write_adapter(&path, &config, &[]).unwrap();
        assert_eq!(read_adapter(&path).unwrap().0, config);
        let file = path.join(CONFIG_FILE);
        let json: Value = serde_json::from_slice(&fsx::read(&file).unwrap()).unwrap();
        assert_eq!(json["scpeft"]["format_version"], 1);
        assert_eq!(json["scpeft"]["adapters"][1]["kind"], "encoder");
        for (pointer, expected) in [
            ("/scpeft", "unknown field `colour`"),
            ("/scpeft/adapters/1", "unknown field `colour`"),
        ] {
            let mut more = json.clone();
            more.pointer_mut(pointer).unwrap()["colour"] = "red".into();
            std::fs::write(&file, more.to_string()).unwrap();
            let error = read_adapter(&path).unwrap_err();
            assert!(
                matches!(&error, Error::Content { reason, .. } if reason.contains(expected)),
                "{error:?}"
            );
        }
        for (pointer, value, expected) in [
            (
                "/scpeft/adapters/1/layers",
                serde_json::json!([]),
                "not empty",
            ),
            ("/scpeft/format_version", 0.into(), "format version is 0"),
        ] {
            let mut other = json.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            std::fs::write(&file, other.to_string()).unwrap();
            let message = read_adapter(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn newer_versions_and_foreign_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = config();
        newer.scpeft.as_mut().unwrap().format_version = FORMAT_VERSION + 1;
        write_adapter(&dir.path().join("a"), &newer, &[]).unwrap();
        let message = read_adapter(&dir.path().join("a")).unwrap_err().to_string();
        assert!(message.contains("format version is 2"), "{message}");

        let other = dir.path().join("b");
        write_adapter(&other, &config(), &[]).unwrap();
        let tensor = [("w".to_owned(), HostTensor::from_f32(vec![1], &[0.0]))];
        write_safetensors(&other.join(TENSOR_FILE), &tensor).unwrap();
        let message = read_adapter(&other).unwrap_err().to_string();
        assert!(message.contains("key `w` does not begin with"), "{message}");
        let message = read_adapter(dir.path()).unwrap_err().to_string();
        assert!(message.contains("has no adapter_config.json"), "{message}");
    }
}
