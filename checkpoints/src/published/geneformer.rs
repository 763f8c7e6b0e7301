//! The directory form of Geneformer backbones: `config.json`, weights, and the dictionaries of genes.
//!
//! The weights are published as Hugging Face writes them, `pytorch_model.bin` or
//! `model.safetensors`, the dictionaries apart from them as pickles. `scpeft-checkpoint convert` puts
//! both into one directory, with the dictionaries as JSON.

pub mod genes;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::mapped::Mapping;
use crate::published::{LoadReport, Weights, fingerprint};
use crate::safetensors_file::write_safetensors;
use crate::tensor::{HostTensor, TensorFile};

pub use genes::GeneDictionaries;

/// File with the sizes.
pub const CONFIG: &str = "config.json";
/// Weight files in the order in which they are looked for.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// A table of positions that old files hold: 0, 1, 2, and so on.
const POSITION_IDS: &str = "bert.embeddings.position_ids";
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
/// Second names of tensors, which some files hold too.
const TIED: [(&str, &str); 2] = [
    ("cls.predictions.decoder.weight", WORDS),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
];

/// What `config.json` says: the fields that matter, typed, and all others as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneformerConfig {
    /// Always `bert`.
    #[serde(default = "bert")]
    pub model_type: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// `relu` or `gelu`.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the table of token types; 2 when absent.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Epsilon of the norms; 1e-12 when absent.
    #[serde(default = "tiny")]
    pub layer_norm_eps: f64,
    /// Id of the padding token; 0 when absent.
    #[serde(default)]
    pub pad_token_id: usize,
    /// `absolute`, the only kind that is read.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
    /// Every other field.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

fn bert() -> String {
    "bert".to_owned()
}
fn gelu() -> String {
    "gelu".to_owned()
}
fn absolute() -> String {
    "absolute".to_owned()
}
fn two() -> usize {
    2
}
fn tiny() -> f64 {
    1e-12
}

impl GeneformerConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// When it is not a JSON object, a needed field is missing or of the wrong type, sizes do not
    /// fit each other, or it describes another architecture.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, e.to_string()))?;
        let refuse = |key: &str, found: &str, expected: &str| {
            Err(Error::content(
                path,
                format!("`{key}` is `{found}`, a Geneformer has {expected}"),
            ))
        };
        if config.model_type != "bert" {
            return refuse("model_type", &config.model_type, "`bert`");
        }
        if !["relu", "gelu"].contains(&config.hidden_act.as_str()) {
            return refuse("hidden_act", &config.hidden_act, "`relu` or `gelu`");
        }
        if config.position_embedding_type != "absolute" {
            let found = &config.position_embedding_type;
            return refuse("position_embedding_type", found, "`absolute`");
        }
        let sizes = [
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
            config.max_position_embeddings,
            config.type_vocab_size,
        ];
        let heads = config.num_attention_heads;
        if sizes.contains(&0) || !config.hidden_size.is_multiple_of(heads) {
            return Err(Error::content(
                path,
                format!(
                    "sizes must be above 0 and hidden_size a multiple of num_attention_heads; got \
                     vocab_size {}, hidden_size {}, num_hidden_layers {}, num_attention_heads \
                     {heads}, intermediate_size {}, max_position_embeddings {}, type_vocab_size {}",
                    sizes[0], sizes[1], sizes[2], sizes[4], sizes[5], sizes[6]
                ),
            ));
        }
        Ok(config)
    }
}

/// A Geneformer directory: opened and checked.
#[derive(Debug)]
pub struct GeneformerDirectory {
    dir: PathBuf,
    config: GeneformerConfig,
    genes: GeneDictionaries,
    weights: GeneformerWeights,
}

/// A published file of weights with its `config.json`, before any dictionary is known.
#[derive(Debug)]
pub struct GeneformerWeights {
    file: TensorFile,
    /// Names of the tensors that the model has.
    names: Vec<String>,
}

impl GeneformerWeights {
    /// Opens `model.safetensors` or `pytorch_model.bin` of a directory.
    ///
    /// # Errors
    /// When there is none, it is malformed, or a tensor differs from the one it is tied to.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut candidates = WEIGHTS.iter().map(|name| dir.join(name));
        let path = candidates.find(|path| path.exists());
        let path = path.ok_or_else(|| Error::MissingFile {
            dir: dir.to_owned(),
            wanted: WEIGHTS.join(" or "),
            help: "a Geneformer backbone is a directory of config.json, weights, and the \
                   dictionaries that `scpeft-checkpoint convert` adds",
        })?;
        let file = TensorFile::open(&path)?;
        for (second, first) in TIED {
            let held = |name: &str| file.info(name).map(|_| file.get(name)).transpose();
            if let (Some(one), Some(other)) = (held(first)?, held(second)?)
                && one != other
            {
                return Err(Error::Ambiguous {
                    path,
                    first: first.to_owned(),
                    second: second.to_owned(),
                    name: first.to_owned(),
                });
            }
        }
        let left_out =
            |name: &&str| *name != POSITION_IDS && TIED.iter().all(|(second, _)| second != name);
        let names = file.names().filter(left_out).map(str::to_owned).collect();
        Ok(Self { file, names })
    }

    /// The file with all its names.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Every tensor that the model has, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, HostTensor<'_>)> {
        self.names.iter().map(|name| {
            let tensor = self.file.get(name);
            (name.as_str(), tensor.expect("the name comes from the file"))
        })
    }

    fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.names.iter().map(|name| {
            let (_, shape) = self.file.info(name).expect("the name comes from the file");
            (name.as_str(), shape)
        })
    }

    /// Checks that every tensor of the encoder that `config` calls for is there with its shape.
    ///
    /// # Errors
    /// With a report of what is missing or has another shape.
    pub fn require_complete(&self, config: &GeneformerConfig) -> Result<()> {
        let wanted = wanted_shapes(config);
        let wanted = wanted
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]));
        let what = format!("backbone `{}`", self.file.path().display());
        LoadReport::compare(wanted, self.shapes()).require_complete(&what, |_| true)
    }
}

impl GeneformerDirectory {
    /// Opens a directory with `config.json`, weights and dictionaries.
    ///
    /// # Errors
    /// When it is a backbone of another kind, a file is missing or malformed, or weights, sizes and
    /// dictionaries do not belong together.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::content(dir, "is not a directory"));
        }
        if !dir.join(CONFIG).exists() {
            super::require_kind(dir, CONFIG)?;
        }
        if !dir.join(CONFIG).exists() {
            return Err(Error::MissingFile {
                dir: dir.to_owned(),
                wanted: CONFIG.to_owned(),
                help: "a Geneformer backbone is a directory of config.json, weights and dictionaries",
            });
        }
        let config = GeneformerConfig::read(&dir.join(CONFIG))?;
        let weights = GeneformerWeights::open(dir)?;
        let genes = GeneDictionaries::read(dir)?;
        let opened = Self {
            dir: dir.to_owned(),
            config,
            genes,
            weights,
        };
        opened.check_vocabulary()?;
        Ok(opened)
    }

    /// The rows of the embedding are the tokens of the dictionary; a difference would pair genes
    /// with the vectors of others.
    fn check_vocabulary(&self) -> Result<()> {
        check_vocabulary(&self.dir, &self.config, &self.weights, &self.genes)
    }

    /// As [`GeneformerWeights::require_complete`].
    ///
    /// # Errors
    /// With a report of what is missing or has another shape.
    pub fn require_complete(&self) -> Result<()> {
        self.weights.require_complete(&self.config)
    }

    /// The typed `config.json`.
    pub fn config(&self) -> &GeneformerConfig {
        &self.config
    }

    /// The dictionaries.
    pub fn genes(&self) -> &GeneDictionaries {
        &self.genes
    }

    /// The weights.
    pub fn weights(&self) -> &GeneformerWeights {
        &self.weights
    }

    /// The identity of the weights, whatever file they lie in.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.weights.tensors())
    }

    /// Writes a directory that [`open`](Self::open) reads: complete or not at all.
    ///
    /// # Errors
    /// When `dir` exists with content or a file cannot be written.
    pub fn write(
        dir: &Path,
        config: &GeneformerConfig,
        genes: &GeneDictionaries,
        tensors: &[(String, HostTensor<'_>)],
    ) -> Result<()> {
        fsx::publish_dir(dir, Existing::Refuse, |prepared| {
            let path = prepared.join(CONFIG);
            let text = serde_json::to_string_pretty(config)
                .map_err(|e| Error::content(&path, e.to_string()))?;
            fsx::write_atomic(&path, text.as_bytes())?;
            genes.write(prepared)?;
            write_safetensors(&prepared.join(WEIGHTS[0]), tensors)
        })
    }
}

/// Which models have so many tokens.
fn generation(tokens: usize) -> &'static str {
    match tokens {
        25_426 => " (first generation: V1-10M)",
        20_275 => " (second generation: V2-104M, V2-316M)",
        _ => "",
    }
}

/// Refuses weights, sizes and dictionaries that do not belong together.
///
/// # Errors
/// Naming the numbers of tokens of each, and the generation that these are of.
pub fn check_vocabulary(
    dir: &Path,
    config: &GeneformerConfig,
    weights: &GeneformerWeights,
    genes: &GeneDictionaries,
) -> Result<()> {
    let rows = weights.file.info(WORDS).map(|(_, shape)| shape);
    if let Some(shape) = rows.filter(|s| **s != [config.vocab_size, config.hidden_size]) {
        return Err(Error::Content {
            path: weights.file.path().to_owned(),
            reason: format!(
                "`{WORDS}` is {shape:?}, but config.json makes it {:?}",
                [config.vocab_size, config.hidden_size]
            ),
            help: Some("the files of a backbone belong together; do not mix models"),
        });
    }
    let (tokens, model) = (genes.len(), config.vocab_size);
    if tokens != model {
        return Err(Error::Content {
            path: dir.to_owned(),
            reason: format!(
                "the token dictionary has {tokens} tokens{}, the model {model}{}",
                generation(tokens),
                generation(model)
            ),
            help: Some(
                "convert the published files again with the dictionaries that belong to the \
                 weights: `scpeft-checkpoint convert DIR OUT --tokens token_dictionary….pkl \
                 --medians gene_median_dictionary….pkl` (those of the second generation are \
                 called `…_gc104M.pkl`)",
            ),
        });
    }
    Ok(())
}

impl Weights for GeneformerDirectory {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        self.weights.shapes().collect()
    }

    fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        let known = self.weights.names.iter().any(|n| n == name);
        known.then(|| {
            let tensor = self.weights.file.get(name);
            tensor.expect("the name comes from the file")
        })
    }

    fn mapped(&self, name: &str) -> Option<Mapping> {
        let known = self.weights.names.iter().any(|n| n == name);
        known.then(|| {
            let mapping = self.weights.file.mapped(name);
            mapping.expect("the name comes from the file")
        })
    }
}

/// Encoder tensors that a configuration calls for.
pub fn wanted_shapes(config: &GeneformerConfig) -> Vec<(String, Vec<usize>)> {
    let (d, h) = (config.hidden_size, config.intermediate_size);
    let mut wanted = vec![(WORDS.to_owned(), vec![config.vocab_size, d])];
    let mut add = |name: String, shape: Vec<usize>| wanted.push((name, shape));
    for (name, rows) in [
        ("position_embeddings", config.max_position_embeddings),
        ("token_type_embeddings", config.type_vocab_size),
    ] {
        add(format!("bert.embeddings.{name}.weight"), vec![rows, d]);
    }
    let mut norms = vec!["bert.embeddings.LayerNorm".to_owned()];
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        for (part, rows, columns) in [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", h, d),
            ("output.dense", d, h),
        ] {
            add(format!("{}.weight", name(part)), vec![rows, columns]);
            add(format!("{}.bias", name(part)), vec![rows]);
        }
        norms.push(name("attention.output.LayerNorm"));
        norms.push(name("output.LayerNorm"));
    }
    for norm in norms {
        add(format!("{norm}.weight"), vec![d]);
        add(format!("{norm}.bias"), vec![d]);
    }
    wanted
}

#[cfg(test)]
mod tests;
