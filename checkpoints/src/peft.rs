//! Adapter directories in the file layout of HF PEFT: `adapter_config.json` and
//! `adapter_model.safetensors` with keys `base_model.model.<name>`.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::safetensors_file::{borrowed, write_safetensors};
use crate::tensor::{HostTensor, TensorFile};

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

/// What it takes to use an adapter again with the right backbone and labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScpeftRecord {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The adapter settings of the run.
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
    /// Every other field.
    #[serde(flatten)]
    pub others: Map<String, Value>,
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
    match &config.scpeft {
        Some(record) if record.format_version > FORMAT_VERSION => Err(Error::Content {
            path,
            reason: format!(
                "its format version is {}, this program reads up to {FORMAT_VERSION}",
                record.format_version
            ),
            help: Some("use the version that wrote it, or a newer one"),
        }),
        _ => Ok(config),
    }
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
