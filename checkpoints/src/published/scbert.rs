//! scBERT as published: `panglao_pretrain.pth`, and the genes of its panel in their order, which the
//! authors publish as the columns of another file. Converted, a directory of `scbert.json`,
//! `genes.txt` and `model.safetensors`. All sizes follow from the tensors.

pub mod tuned;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::mapped::Mapping;
use crate::published::{LoadReport, Weights, fingerprint};
use crate::safetensors_file::write_safetensors;
use crate::tensor::{HostTensor, TensorFile};

/// File with the sizes, which tells that a directory is an scBERT.
pub const CONFIG: &str = "scbert.json";
/// File with the genes of the panel, one a line.
pub const GENES: &str = "genes.txt";
const WEIGHTS: &str = "model.safetensors";
/// What the authors' file is called.
pub const PUBLISHED: &str = "panglao_pretrain.pth";

const TOKENS: &str = "token_emb.weight";
const POSITIONS: &str = "pos_emb.emb.weight";
const BLOCKS: &str = "performer.net.layers";
/// A counter of the authors' training, which nothing is computed from.
const COUNTER: &str = "performer.calls_since_last_redraw";

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScbertConfig {
    /// Tokens: bins, and one for masks and padding.
    pub tokens: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the feed-forward layer.
    pub d_hid: usize,
    /// Layers.
    pub n_layers: usize,
    /// Random features of a head.
    pub n_features: usize,
    /// Places: genes of the panel and one more.
    pub positions: usize,
}

impl ScbertConfig {
    /// Reads an `scbert.json`.
    ///
    /// # Errors
    /// When it is malformed or a size is 0.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, e.to_string()))?;
        let sizes = [
            config.d_model,
            config.n_heads,
            config.d_head,
            config.d_hid,
            config.n_layers,
            config.n_features,
        ];
        if sizes.contains(&0) || config.tokens < 3 || config.positions < 2 {
            let reason = "sizes must be above 0, `tokens` at least 3 and `positions` at least 2";
            return Err(Error::content(path, reason));
        }
        Ok(config)
    }

    /// Writes it into a directory.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG);
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::content(&path, e.to_string()))?;
        fsx::write_atomic(&path, text.as_bytes())
    }

    /// The sizes of the tensors of a file.
    fn of(file: &TensorFile) -> Result<Self> {
        let sizes = |name: &str| match file.info(name) {
            Some((_, &[rows, columns])) if rows > 0 && columns > 0 => Ok((rows, columns)),
            Some((_, shape)) => Err(Error::content(
                file.path(),
                format!("`{name}` is {shape:?}, expected a matrix"),
            )),
            None => Err(Error::NoTensor {
                path: file.path().to_owned(),
                name: name.to_owned(),
            }),
        };
        let (tokens, d_model) = sizes(TOKENS)?;
        let (positions, _) = sizes(POSITIONS)?;
        let (inner, _) = sizes(&format!("{BLOCKS}.0.0.fn.to_q.weight"))?;
        let (n_features, d_head) = sizes(&directions(0))?;
        let (d_hid, _) = sizes(&format!("{BLOCKS}.0.1.fn.fn.w1.weight"))?;
        let mut n_layers = 0;
        while file.info(&directions(n_layers)).is_some() {
            n_layers += 1;
        }
        if !inner.is_multiple_of(d_head) || tokens < 3 || positions < 2 {
            let reason = format!(
                "its shapes contradict each other: {inner} queries in heads of {d_head}, {tokens} \
                 tokens, {positions} places"
            );
            return Err(Error::content(file.path(), reason));
        }
        Ok(Self {
            tokens,
            d_model,
            n_heads: inner / d_head,
            d_head,
            d_hid,
            n_layers,
            n_features,
            positions,
        })
    }

    /// Every tensor of the encoder with its shape.
    pub fn wanted_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, inner, hidden) = (self.d_model, self.n_heads * self.d_head, self.d_hid);
        let mut wanted = vec![
            (TOKENS.to_owned(), vec![self.tokens, d]),
            (POSITIONS.to_owned(), vec![self.positions, d]),
        ];
        for layer in 0..self.n_layers {
            wanted.push((directions(layer), vec![self.n_features, self.d_head]));
            let parts: [(&str, Vec<usize>); 13] = [
                ("0.norm.weight", vec![d]),
                ("0.norm.bias", vec![d]),
                ("0.fn.to_q.weight", vec![inner, d]),
                ("0.fn.to_k.weight", vec![inner, d]),
                ("0.fn.to_v.weight", vec![inner, d]),
                ("0.fn.to_out.weight", vec![d, inner]),
                ("0.fn.to_out.bias", vec![d]),
                ("1.norm.weight", vec![d]),
                ("1.norm.bias", vec![d]),
                ("1.fn.fn.w1.weight", vec![hidden, d]),
                ("1.fn.fn.w1.bias", vec![hidden]),
                ("1.fn.fn.w2.weight", vec![d, hidden]),
                ("1.fn.fn.w2.bias", vec![d]),
            ];
            let named = parts.map(|(part, shape)| (format!("{BLOCKS}.{layer}.{part}"), shape));
            wanted.extend(named);
        }
        wanted.push(("norm.weight".to_owned(), vec![d]));
        wanted.push(("norm.bias".to_owned(), vec![d]));
        wanted
    }
}

/// The name of the directions of the random features of a layer.
fn directions(layer: usize) -> String {
    format!("{BLOCKS}.{layer}.0.fn.fast_attention.projection_matrix")
}

/// Whether a file holds the weights of an scBERT, pretrained or fine-tuned.
pub fn is_scbert(file: &TensorFile) -> bool {
    [TOKENS, POSITIONS, &directions(0)]
        .iter()
        .all(|name| file.info(name).is_some())
}

/// A file of weights, before the panel is known.
#[derive(Debug)]
pub struct ScbertWeights {
    file: TensorFile,
    config: ScbertConfig,
    names: Vec<String>,
}

impl ScbertWeights {
    /// Opens a file of weights, the authors' or a converted one.
    ///
    /// # Errors
    /// When it is malformed, holds another model, or a tensor of the encoder is missing or of another
    /// shape.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        if !is_scbert(&file) {
            return Err(Error::Content {
                path: path.to_owned(),
                reason: format!(
                    "it holds no scBERT: `{TOKENS}`, `{POSITIONS}` and `{}` are its marks",
                    directions(0)
                ),
                help: Some(
                    "see what it is with `scpeft-checkpoint inspect`; a Geneformer or an scGPT is a \
                     directory, which `convert` takes as it is",
                ),
            });
        }
        let config = ScbertConfig::of(&file)?;
        let names = file.names().filter(|name| *name != COUNTER);
        let names = names.map(str::to_owned).collect();
        let opened = Self {
            file,
            config,
            names,
        };
        let wanted = opened.config.wanted_shapes();
        let wanted = wanted
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]));
        let what = format!("backbone `{}`", path.display());
        LoadReport::compare(wanted, opened.shapes()).require_complete(&what, |_| true)?;
        Ok(opened)
    }

    /// The sizes.
    pub fn config(&self) -> &ScbertConfig {
        &self.config
    }

    /// The file.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Every tensor of the model, in the order of the file.
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
}

/// Reads the genes of a panel, one a line: the first column where there are more.
///
/// # Errors
/// When the file cannot be read, a line is empty, or a gene comes twice.
pub fn read_genes(path: &Path) -> Result<Vec<String>> {
    let bytes = fsx::read(path)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::content(path, "is not UTF-8 text"))?;
    let mut seen = HashSet::new();
    let mut genes = Vec::new();
    for (line, row) in text.lines().enumerate() {
        let gene = row.split([',', '\t']).next().unwrap_or(row).trim();
        let wrong = if gene.is_empty() {
            Some("is empty".to_owned())
        } else if !seen.insert(gene) {
            Some(format!("names `{gene}` a second time"))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(Error::Content {
                path: path.to_owned(),
                reason: format!("line {} {wrong}", line + 1),
                help: Some("expected the genes of the panel in the order of the model, one a line"),
            });
        }
        genes.push(gene.to_owned());
    }
    Ok(genes)
}

/// Writes the genes of a panel into a directory.
///
/// # Errors
/// When the disk refuses.
pub fn write_genes(dir: &Path, genes: &[String]) -> Result<()> {
    let mut text = genes.join("\n");
    text.push('\n');
    fsx::write_atomic(&dir.join(GENES), text.as_bytes())
}

/// Refuses a panel of another length than the model's.
///
/// # Errors
/// Naming both numbers.
pub fn check_panel(path: &Path, genes: &[String], config: &ScbertConfig) -> Result<()> {
    if genes.len() + 1 == config.positions {
        return Ok(());
    }
    Err(Error::Content {
        path: path.to_owned(),
        reason: format!(
            "it names {} genes, the model has vectors of {} and one more",
            genes.len(),
            config.positions - 1
        ),
        help: Some(
            "the panel of the published weights is the columns of panglao_human.h5ad in their \
             order; convert again with the panel that belongs to the weights: `scpeft-checkpoint \
             convert panglao_pretrain.pth OUT --panel genes.txt`",
        ),
    })
}

/// A converted directory: opened and checked.
#[derive(Debug)]
pub struct ScbertDirectory {
    dir: PathBuf,
    genes: Vec<String>,
    weights: ScbertWeights,
}

impl ScbertDirectory {
    /// Opens a directory of `scbert.json`, `genes.txt` and `model.safetensors`.
    ///
    /// # Errors
    /// When it is a backbone of another kind, a file is missing or malformed, or they do not belong
    /// together.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::Content {
                path: dir.to_owned(),
                reason: "is not a directory".to_owned(),
                help: Some(
                    "`scpeft-checkpoint convert panglao_pretrain.pth DIR --panel genes.txt` makes one \
                     of the published weights",
                ),
            });
        }
        super::require_kind(dir, CONFIG)?;
        for name in [CONFIG, GENES, WEIGHTS] {
            if !dir.join(name).exists() {
                return Err(Error::MissingFile {
                    dir: dir.to_owned(),
                    wanted: name.to_owned(),
                    help: "an scBERT backbone is a directory of scbert.json, genes.txt and \
                           model.safetensors, as `scpeft-checkpoint convert panglao_pretrain.pth \
                           DIR --panel genes.txt` writes it",
                });
            }
        }
        let config = ScbertConfig::read(&dir.join(CONFIG))?;
        let weights = ScbertWeights::open(&dir.join(WEIGHTS))?;
        if weights.config != config {
            return Err(Error::Content {
                path: dir.join(CONFIG),
                reason: format!("it says {config:?}, the weights are {:?}", weights.config),
                help: Some("the files of a backbone belong together; do not mix models"),
            });
        }
        let genes = read_genes(&dir.join(GENES))?;
        check_panel(&dir.join(GENES), &genes, &config)?;
        Ok(Self {
            dir: dir.to_owned(),
            genes,
            weights,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &ScbertConfig {
        &self.weights.config
    }

    /// The genes of the panel, in the order of their vectors.
    pub fn genes(&self) -> &[String] {
        &self.genes
    }

    /// The weights.
    pub fn weights(&self) -> &ScbertWeights {
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
        config: &ScbertConfig,
        genes: &[String],
        tensors: &[(String, HostTensor<'_>)],
    ) -> Result<()> {
        fsx::publish_dir(dir, Existing::Refuse, |prepared| {
            config.write(prepared)?;
            write_genes(prepared, genes)?;
            write_safetensors(&prepared.join(WEIGHTS), tensors)
        })
    }
}

impl Weights for ScbertDirectory {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        self.weights.shapes().collect()
    }

    fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        self.weights.file.get(name).ok()
    }

    fn mapped(&self, name: &str) -> Option<Mapping> {
        self.weights.file.mapped(name).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ScbertConfig {
        ScbertConfig {
            tokens: 7,
            d_model: 4,
            n_heads: 2,
            d_head: 3,
            d_hid: 8,
            n_layers: 2,
            n_features: 5,
            positions: 4,
        }
    }

    fn tensors(config: &ScbertConfig) -> Vec<(String, HostTensor<'static>)> {
        let shapes = config.wanted_shapes().into_iter();
        shapes
            .map(|(name, shape)| {
                let n = shape.iter().product();
                (name, HostTensor::from_f32(shape, &vec![0.5; n]))
            })
            .collect()
    }

    fn genes(names: &[&str]) -> Vec<String> {
        names.iter().map(|g| (*g).to_owned()).collect()
    }

    #[test]
    fn a_written_directory_opens_with_the_sizes_of_its_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scbert");
        let panel = genes(&["A1BG", "A2M", "CD3E"]);
        ScbertDirectory::write(&path, &config(), &panel, &tensors(&config())).unwrap();
        let opened = ScbertDirectory::open(&path).unwrap();
        assert_eq!(opened.config(), &config());
        assert_eq!(opened.genes(), panel);
        assert_eq!(opened.shapes().len(), 2 + 2 * 14 + 2);
        assert_eq!(opened.get(TOKENS).unwrap().shape, [7, 4]);
    }

    #[test]
    fn panels_and_weights_that_do_not_belong_together_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scbert");
        let panel = genes(&["A1BG", "A2M"]);
        ScbertDirectory::write(&path, &config(), &panel, &tensors(&config())).unwrap();
        let text = ScbertDirectory::open(&path).unwrap_err().to_string();
        assert!(
            text.contains("names 2 genes") && text.contains("--panel"),
            "{text}"
        );

        write_genes(&path, &genes(&["A", "B", "A"])).unwrap();
        let text = ScbertDirectory::open(&path).unwrap_err().to_string();
        assert!(text.contains("line 3 names `A` a second time"), "{text}");

        write_genes(&path, &genes(&["A", "B", "C"])).unwrap();
        let other = ScbertConfig {
            n_heads: 1,
            ..config()
        };
        other.write(&path).unwrap();
        let text = ScbertDirectory::open(&path).unwrap_err().to_string();
        assert!(text.contains("do not mix models"), "{text}");

        let mut short = tensors(&config());
        short.retain(|(name, _)| !name.ends_with("1.1.fn.fn.w2.bias"));
        let path = dir.path().join("short");
        ScbertDirectory::write(&path, &config(), &genes(&["A", "B", "C"]), &short).unwrap();
        let text = ScbertDirectory::open(&path).unwrap_err().to_string();
        assert!(
            text.contains("performer.net.layers.1.1.fn.fn.w2.bias"),
            "{text}"
        );
    }

    #[test]
    fn backbones_of_other_kinds_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (file, words) in [
            (
                "config.json",
                ["a Geneformer", "architecture = \"geneformer\""],
            ),
            ("args.json", ["an scGPT", "architecture = \"scgpt\""]),
        ] {
            let path = dir.path().join(file.replace('.', "-"));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(file), "{}").unwrap();
            let text = ScbertDirectory::open(&path).unwrap_err().to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
