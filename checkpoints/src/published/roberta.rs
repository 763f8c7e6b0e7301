//! The directory form of RoBERTa encoders, such as ChemBERTa's: `config.json` and weights as Hugging Face
//! writes them.
//!
//! A RoBERTa is a BERT whose positions begin after the id of the padding token. So its tensors get the names
//! of a BERT here, and the rows of the table of positions that no token uses are left out.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;

use super::geneformer::{CONFIG, GeneformerConfig, wanted_shapes};
use super::{LoadReport, fingerprint};
use crate::error::{Error, Result};
use crate::fsx;
use crate::tensor::{HostTensor, TensorFile};

/// Weight files in the order in which they are looked for.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// What names begin with in files of models with a head.
const PREFIX: &str = "roberta.";
const POSITIONS: &str = "embeddings.position_embeddings.weight";

/// What `config.json` says of an encoder; absent fields have the values of Hugging Face's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct RobertaConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "tiny")]
    layer_norm_eps: f64,
    #[serde(default = "one")]
    pad_token_id: usize,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn gelu() -> String {
    "gelu".to_owned()
}
fn absolute() -> String {
    "absolute".to_owned()
}
fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn tiny() -> f64 {
    1e-12
}

impl RobertaConfig {
    fn read(path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, e.to_string()))?;
        for (key, found, expected) in [
            ("model_type", &config.model_type, &["roberta"][..]),
            ("hidden_act", &config.hidden_act, &["gelu", "relu"]),
            (
                "position_embedding_type",
                &config.position_embedding_type,
                &["absolute"],
            ),
        ] {
            if !expected.contains(&found.as_str()) {
                let expected = expected.join("` or `");
                let reason = format!("`{key}` is `{found}`, expected `{expected}`");
                return Err(Error::content(path, reason));
            }
        }
        let heads = config.num_attention_heads;
        let sizes = [config.vocab_size, config.num_hidden_layers, heads];
        if sizes.contains(&0)
            || config.hidden_size == 0
            || !config.hidden_size.is_multiple_of(heads)
        {
            let reason = format!(
                "sizes must be above 0 and hidden_size ({}) a multiple of num_attention_heads ({heads})",
                config.hidden_size
            );
            return Err(Error::content(path, reason));
        }
        if config.max_position_embeddings <= config.pad_token_id + 1 {
            let reason = format!(
                "max_position_embeddings is {}, of which the first {} are never used",
                config.max_position_embeddings,
                config.pad_token_id + 1
            );
            return Err(Error::content(path, reason));
        }
        Ok(config)
    }

    /// The same encoder as a BERT.
    fn bert(self) -> GeneformerConfig {
        GeneformerConfig {
            model_type: "bert".into(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            max_position_embeddings: self.max_position_embeddings - self.pad_token_id - 1,
            type_vocab_size: self.type_vocab_size,
            layer_norm_eps: self.layer_norm_eps,
            pad_token_id: self.pad_token_id,
            position_embedding_type: self.position_embedding_type,
            others: serde_json::Map::new(),
        }
    }
}

/// A RoBERTa directory, opened and checked, as the BERT that it is.
#[derive(Debug)]
pub struct RobertaDirectory {
    dir: PathBuf,
    config: GeneformerConfig,
    tensors: IndexMap<String, HostTensor<'static>>,
}

impl RobertaDirectory {
    /// Opens a directory with `config.json` and `model.safetensors` or `pytorch_model.bin`; heads are left
    /// alone.
    ///
    /// # Errors
    /// When a file is missing or malformed, it is a model of another kind, or tensors of the encoder are
    /// missing or have another shape: all of them are listed.
    pub fn open(dir: &Path) -> Result<Self> {
        let missing = |wanted: String| Error::MissingFile {
            dir: dir.to_owned(),
            wanted,
            help: "a RoBERTa, such as ChemBERTa, is a directory of config.json, weights, and vocab.json \
                   with merges.txt or tokenizer.json",
        };
        if !dir.join(CONFIG).exists() {
            return Err(missing(CONFIG.to_owned()));
        }
        let config = RobertaConfig::read(&dir.join(CONFIG))?;
        let first_position = config.pad_token_id + 1;
        let config = config.bert();
        let path = WEIGHTS
            .iter()
            .map(|name| dir.join(name))
            .find(|p| p.exists());
        let file = TensorFile::open(&path.ok_or_else(|| missing(WEIGHTS.join(" or ")))?)?;
        let with_head = file.names().any(|name| name.starts_with(PREFIX));
        let prefix = if with_head { PREFIX } else { "" };
        let wanted = wanted_shapes(&config);
        let mut tensors = IndexMap::new();
        for (name, _) in &wanted {
            let own = name.strip_prefix("bert.").unwrap_or(name);
            let theirs = format!("{prefix}{own}");
            if file.info(&theirs).is_none() {
                continue;
            }
            let tensor = file.get(&theirs)?;
            let values = tensor.to_f32()?;
            let tensor = if own == POSITIONS {
                without_rows(&tensor, &values, first_position)
            } else {
                HostTensor::from_f32(tensor.shape.clone(), &values)
            };
            tensors.insert(name.clone(), tensor);
        }
        let opened = Self {
            dir: dir.to_owned(),
            config,
            tensors,
        };
        let wanted = wanted
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]));
        let held = opened.tensors.iter();
        let held = held.map(|(name, tensor)| (name.as_str(), &tensor.shape[..]));
        let what = format!("encoder `{}`", file.path().display());
        LoadReport::compare(wanted, held).require_complete(&what, |_| true)?;
        Ok(opened)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The encoder as a BERT: positions are those that tokens can have.
    pub fn config(&self) -> &GeneformerConfig {
        &self.config
    }

    /// A tensor of the encoder in f32, by its name in a BERT.
    pub fn get(&self, name: &str) -> Option<&HostTensor<'static>> {
        self.tensors.get(name)
    }

    /// The identity of the weights, whatever file they lie in.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.tensors.iter().map(|(n, t)| (n.as_str(), t.clone())))
    }
}

/// A table less its first rows; as it is when it has no more.
fn without_rows(tensor: &HostTensor<'_>, values: &[f32], first: usize) -> HostTensor<'static> {
    match tensor.shape[..] {
        [rows, width] if rows > first => {
            HostTensor::from_f32(vec![rows - first, width], &values[first * width..])
        }
        _ => HostTensor::from_f32(tensor.shape.clone(), values),
    }
}
