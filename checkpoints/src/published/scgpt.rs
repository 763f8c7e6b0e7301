//! The directory form of scGPT backbones: weights, `args.json` and `vocab.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::mapped::Mapping;
use crate::published::{LoadReport, Weights, fingerprint};
use crate::safetensors_file::write_safetensors;
use crate::tensor::{HostTensor, TensorFile};

/// Weight files in the order in which they are looked for.
const WEIGHTS: [&str; 2] = ["model.safetensors", "best_model.pt"];
/// The token that pads sequences and stands for unknown genes.
pub const PAD: &str = "<pad>";
/// The token whose output represents the cell.
pub const CLS: &str = "<cls>";
/// The token that ends a cell in generative pretraining.
pub const EOC: &str = "<eoc>";

/// What a backbone's `args.json` says: the fields that matter, typed, and all others as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScgptArgs {
    /// Width of the hidden states.
    pub embsize: usize,
    /// Attention heads.
    pub nheads: usize,
    /// Width of the feed-forward layer.
    pub d_hid: usize,
    /// Transformer layers.
    pub nlayers: usize,
    /// Linear layers of the classification head; 3 when absent.
    #[serde(default = "three")]
    pub n_layers_cls: usize,
    /// Expression bins, the zero bin included; 51 when absent.
    #[serde(default = "fifty_one")]
    pub n_bins: usize,
    /// Name of the padding token; `<pad>` when absent.
    #[serde(default = "pad")]
    pub pad_token: String,
    /// Value fed at padding; -2 when absent.
    #[serde(default = "minus_two")]
    pub pad_value: f64,
    /// Value fed at masked positions; -1 when absent.
    #[serde(default = "minus_one")]
    pub mask_value: f64,
    /// Dropout in pretraining; 0.2 when absent.
    #[serde(default = "one_fifth")]
    pub dropout: f64,
    /// Every other field.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

fn three() -> usize {
    3
}
fn fifty_one() -> usize {
    51
}
fn pad() -> String {
    PAD.to_owned()
}
fn minus_two() -> f64 {
    -2.0
}
fn minus_one() -> f64 {
    -1.0
}
fn one_fifth() -> f64 {
    0.2
}

impl ScgptArgs {
    /// Reads an `args.json`.
    ///
    /// # Errors
    /// When it is not a JSON object, a needed field is missing or of the wrong type, or sizes do
    /// not fit each other.
    pub fn read(path: &Path) -> Result<Self> {
        let args: Self = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, e.to_string()))?;
        let sizes = [
            args.embsize,
            args.nheads,
            args.d_hid,
            args.nlayers,
            args.n_layers_cls,
        ];
        if sizes.contains(&0) || !args.embsize.is_multiple_of(args.nheads) || args.n_bins < 2 {
            return Err(Error::content(
                path,
                format!(
                    "sizes must be above 0, n_bins at least 2, embsize a multiple of nheads; got \
                     embsize {}, nheads {}, d_hid {}, nlayers {}, n_layers_cls {}, n_bins {}",
                    args.embsize,
                    args.nheads,
                    args.d_hid,
                    args.nlayers,
                    args.n_layers_cls,
                    args.n_bins
                ),
            ));
        }
        Ok(args)
    }
}

/// Tokens in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
}

impl Vocabulary {
    /// A vocabulary of `tokens`, whose ids are their positions.
    ///
    /// # Errors
    /// When a token repeats, or `<pad>` or `<cls>` is missing; `path` names the culprit.
    pub fn new(tokens: Vec<String>, path: &Path) -> Result<Self> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(Error::content(
                path,
                format!("token `{twice}` appears twice"),
            ));
        }
        if let Some(missing) = [PAD, CLS].iter().find(|token| !seen.contains(**token)) {
            return Err(Error::Content {
                path: path.to_owned(),
                reason: format!("has no token `{missing}`"),
                help: Some(
                    "the embedding has a row for each token, so special tokens cannot be added later; use the vocab.json that belongs to the weights",
                ),
            });
        }
        Ok(Self { tokens })
    }

    /// Reads a `vocab.json`: an object from token to id.
    ///
    /// # Errors
    /// When it is not such an object, ids are not 0 to V-1, or a special token is missing.
    pub fn read(path: &Path) -> Result<Self> {
        let ids: IndexMap<String, u64> = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, format!("must map tokens to ids: {e}")))?;
        let mut tokens: Vec<Option<String>> = vec![None; ids.len()];
        for (token, id) in ids {
            let count = tokens.len();
            let slot = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
            match slot {
                None => {
                    return Err(Error::content(
                        path,
                        format!(
                            "ids must be 0 to {} without gaps, but `{token}` has id {id}",
                            count - 1
                        ),
                    ));
                }
                Some(Some(other)) => {
                    return Err(Error::content(
                        path,
                        format!("`{other}` and `{token}` both have id {id}"),
                    ));
                }
                Some(free) => *free = Some(token),
            }
        }
        let tokens = tokens
            .into_iter()
            .map(|t| t.expect("V distinct ids below V fill V slots"));
        Self::new(tokens.collect(), path)
    }

    /// Tokens in the order of their ids.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The number of tokens, V.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens; never true for a vocabulary that was read.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of a token. Linear; build a map for many look-ups.
    pub fn id(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|t| t == token)
    }

    /// The `vocab.json` text.
    pub fn to_json(&self) -> String {
        let map: IndexMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        serde_json::to_string_pretty(&map).expect("strings and integers are always JSON")
    }
}

/// A published scGPT directory: opened, checked, its names converted.
#[derive(Debug)]
pub struct ScgptDirectory {
    dir: PathBuf,
    args: ScgptArgs,
    vocabulary: Vocabulary,
    file: TensorFile,
    /// Converted name to name in the file.
    names: IndexMap<String, String>,
}

impl ScgptDirectory {
    /// Opens a directory with `model.safetensors` or `best_model.pt`, `args.json` and
    /// `vocab.json`.
    ///
    /// # Errors
    /// When a file is missing or malformed, two names convert to one with different values, or the
    /// embedding does not have a row for each token.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::content(dir, "is not a directory"));
        }
        super::require_kind(dir, "args.json")?;
        let missing = |wanted: &str| Error::MissingFile {
            dir: dir.to_owned(),
            wanted: wanted.to_owned(),
            help: "a scGPT backbone is a directory of model.safetensors or best_model.pt, args.json and vocab.json",
        };
        let weights = WEIGHTS
            .iter()
            .map(|name| dir.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| missing("model.safetensors or best_model.pt"))?;
        for name in ["args.json", "vocab.json"] {
            if !dir.join(name).exists() {
                return Err(missing(name));
            }
        }
        let args = ScgptArgs::read(&dir.join("args.json"))?;
        let vocabulary = Vocabulary::read(&dir.join("vocab.json"))?;
        let file = TensorFile::open(&weights)?;
        let names = convert_names(&file)?;
        let opened = Self {
            dir: dir.to_owned(),
            args,
            vocabulary,
            file,
            names,
        };
        opened.check_embedding()?;
        Ok(opened)
    }

    /// The rows of the embedding are the tokens of the vocabulary; a difference would pair genes
    /// with the vectors of others.
    fn check_embedding(&self) -> Result<()> {
        const NAME: &str = "encoder.embedding.weight";
        let Some((_, shape)) = self.names.get(NAME).and_then(|name| self.file.info(name)) else {
            return Ok(());
        };
        let expected = [self.vocabulary.len(), self.args.embsize];
        if shape == expected {
            return Ok(());
        }
        Err(Error::Content {
            path: self.file.path().to_owned(),
            reason: format!(
                "`{NAME}` is {shape:?}, but vocab.json and args.json make it {expected:?}"
            ),
            help: Some("the three files of a backbone belong together; do not mix models"),
        })
    }

    /// Checks that every tensor that `args.json` and `vocab.json` call for is there with its shape:
    /// the embedding, the blocks, and the value encoder unless values enter another way. Heads may
    /// be absent.
    ///
    /// # Errors
    /// With a report of what is missing or has another shape.
    pub fn require_complete(&self) -> Result<()> {
        let wanted = wanted_shapes(&self.args, self.vocabulary.len());
        let wanted = wanted
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]));
        let what = format!("backbone `{}`", self.dir.display());
        LoadReport::compare(wanted, self.shapes()).require_complete(&what, |_| true)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The typed `args.json`.
    pub fn args(&self) -> &ScgptArgs {
        &self.args
    }

    /// The tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The weights file with its own names.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Every tensor under its converted name, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, HostTensor<'_>)> {
        self.names.iter().map(|(name, in_file)| {
            (
                name.as_str(),
                self.file
                    .get(in_file)
                    .expect("the name comes from the file"),
            )
        })
    }

    /// One tensor by its converted name.
    pub fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        let in_file = self.names.get(name)?;
        Some(
            self.file
                .get(in_file)
                .expect("the name comes from the file"),
        )
    }

    /// One tensor by its converted name, in place where the file allows it.
    pub fn mapped(&self, name: &str) -> Option<Mapping> {
        let in_file = self.names.get(name)?;
        let mapping = self.file.mapped(in_file);
        Some(mapping.expect("the name comes from the file"))
    }

    /// Converted names with shapes, as [`LoadReport::compare`](crate::LoadReport::compare) takes
    /// them.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.names.iter().map(|(name, in_file)| {
            let (_, shape) = self
                .file
                .info(in_file)
                .expect("the name comes from the file");
            (name.as_str(), shape)
        })
    }

    /// The identity of the weights, whatever file they lie in.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.tensors())
    }

    /// Writes a backbone directory that [`open`](Self::open) reads: complete or not at all.
    ///
    /// # Errors
    /// When `dir` exists with content or a file cannot be written.
    pub fn write(
        dir: &Path,
        args: &ScgptArgs,
        vocabulary: &Vocabulary,
        tensors: &[(String, HostTensor<'_>)],
    ) -> Result<()> {
        fsx::publish_dir(dir, Existing::Refuse, |prepared| {
            let args_path = prepared.join("args.json");
            let text = serde_json::to_string_pretty(args)
                .map_err(|e| Error::content(&args_path, e.to_string()))?;
            fsx::write_atomic(&args_path, text.as_bytes())?;
            let vocab = prepared.join("vocab.json");
            fsx::write_atomic(&vocab, vocabulary.to_json().as_bytes())?;
            write_safetensors(&prepared.join(WEIGHTS[0]), tensors)
        })
    }
}

impl Weights for ScgptDirectory {
    fn dir(&self) -> &Path {
        Self::dir(self)
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        Self::shapes(self).collect()
    }

    fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        Self::get(self, name)
    }

    fn mapped(&self, name: &str) -> Option<Mapping> {
        Self::mapped(self, name)
    }
}

/// Backbone tensors that arguments and vocabulary call for, by our names.
pub fn wanted_shapes(args: &ScgptArgs, n_tokens: usize) -> Vec<(String, Vec<usize>)> {
    let (d, h) = (args.embsize, args.d_hid);
    let mut wanted = vec![
        ("encoder.embedding.weight".to_owned(), vec![n_tokens, d]),
        ("encoder.enc_norm.weight".to_owned(), vec![d]),
        ("encoder.enc_norm.bias".to_owned(), vec![d]),
    ];
    let style = args.others.get("input_emb_style").and_then(|v| v.as_str());
    if style.unwrap_or("continuous") == "continuous" {
        for (name, shape) in [
            ("linear1.weight", vec![d, 1]),
            ("linear1.bias", vec![d]),
            ("linear2.weight", vec![d, d]),
            ("linear2.bias", vec![d]),
            ("norm.weight", vec![d]),
            ("norm.bias", vec![d]),
        ] {
            wanted.push((format!("value_encoder.{name}"), shape));
        }
    } else if style == Some("category") {
        // Rows for the bins, the pad value and the mask value.
        for (name, shape) in [
            ("embedding.weight", vec![args.n_bins + 2, d]),
            ("enc_norm.weight", vec![d]),
            ("enc_norm.bias", vec![d]),
        ] {
            wanted.push((format!("value_encoder.{name}"), shape));
        }
    }
    for layer in 0..args.nlayers {
        for (name, shape) in [
            ("self_attn.in_proj_weight", vec![3 * d, d]),
            ("self_attn.in_proj_bias", vec![3 * d]),
            ("self_attn.out_proj.weight", vec![d, d]),
            ("self_attn.out_proj.bias", vec![d]),
            ("linear1.weight", vec![h, d]),
            ("linear1.bias", vec![h]),
            ("linear2.weight", vec![d, h]),
            ("linear2.bias", vec![d]),
            ("norm1.weight", vec![d]),
            ("norm1.bias", vec![d]),
            ("norm2.weight", vec![d]),
            ("norm2.bias", vec![d]),
        ] {
            wanted.push((format!("transformer_encoder.layers.{layer}.{name}"), shape));
        }
    }
    wanted
}

/// The name that our model gives to a published tensor: the packed projection of flash attention
/// is that of ordinary attention, and wrapper prefixes are dropped.
pub fn convert_name(name: &str) -> String {
    name.replace("_impl.", "").replace("Wqkv.", "in_proj_")
}

fn convert_names(file: &TensorFile) -> Result<IndexMap<String, String>> {
    let mut names: IndexMap<String, String> = IndexMap::new();
    let mut equal: BTreeMap<String, String> = BTreeMap::new();
    for name in file.names() {
        let converted = convert_name(name);
        match names.get(&converted) {
            None => {
                names.insert(converted, name.to_owned());
            }
            Some(first) if file.get(first)? == file.get(name)? => {
                equal.insert(converted, name.to_owned());
            }
            Some(first) => {
                return Err(Error::Ambiguous {
                    path: file.path().to_owned(),
                    first: first.clone(),
                    second: name.to_owned(),
                    name: converted,
                });
            }
        }
    }
    for (name, duplicate) in equal {
        tracing::debug!(
            name,
            duplicate,
            "two names for one tensor with equal values"
        );
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
