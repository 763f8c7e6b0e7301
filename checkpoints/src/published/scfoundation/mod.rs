//! scFoundation backbones: the published `models.ckpt`, and the directory form that a conversion makes
//! of one of its models.
//!
//! `models.ckpt` holds three trained models, `gene`, `cell` and `rde`, each with its settings. It is
//! mapped and never loaded as a whole. The list of genes is a file of its own.

mod config;
mod genes;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fsx::{self, Existing};
use crate::mapped::Mapping;
use crate::published::{LoadReport, Weights, fingerprint, require_kind};
use crate::safetensors_file::write_safetensors;
use crate::tensor::{HostTensor, TensorFile};

pub use config::{ScfoundationConfig, StackConfig};
pub use genes::GeneList;

/// File with the sizes in a converted directory.
pub const CONFIG: &str = "scfoundation.json";
/// File with the genes in a converted directory.
pub const GENES: &str = "genes.tsv";
const WEIGHTS: &str = "model.safetensors";
/// The list of genes as published.
pub const PUBLISHED_GENES: &str = "OS_scRNA_gene_index.19264.tsv";
/// What a user must know of the published weights.
pub const LICENCE: &str = "the published weights of scFoundation are licensed for non-commercial use only \
                           (MODEL_LICENSE of its authors), and so is what is trained on them";
/// Counts forward passes of the pretraining; no parameter.
const COUNTER: &str = "decoder.performer.calls_since_last_redraw";
/// What precedes names in the published file.
const PREFIX: &str = "model.";
const POSITIONS: &str = "pos_emb.weight";

/// The models of a published file, by name; none when it is another kind of file.
pub fn models(file: &TensorFile) -> Vec<&str> {
    let settings = file.metadata().iter();
    settings
        .filter(|(_, settings)| settings.contains("mae_autobin"))
        .filter_map(|(name, _)| name.strip_suffix("/config"))
        .collect()
}

/// One model of a published file.
#[derive(Debug)]
pub struct Published {
    config: ScfoundationConfig,
    /// Names of the model's tensors, and in the file.
    names: Vec<(String, String)>,
    /// Tensors that the model has no use for.
    pub skipped: Vec<String>,
}

impl Published {
    /// Takes the model called `name` out of a file.
    ///
    /// # Errors
    /// When there is none of this name, or its settings or tensors are not those of a model.
    pub fn of(file: &TensorFile, name: &str) -> Result<Self> {
        let path = file.path();
        let settings = file.metadata().get(&format!("{name}/config"));
        let Some(settings) = settings else {
            return Err(Error::Content {
                path: path.to_owned(),
                reason: format!("has no model `{name}`, only {}", models(file).join(", ")),
                help: Some("name one with `--variant`; `gene` is the one that scPEFT adapts"),
            });
        };
        let settings =
            serde_json::from_str(settings).map_err(|e| Error::content(path, e.to_string()))?;
        let mut config = ScfoundationConfig::from_published(&settings, path)?;
        let (mut names, mut skipped) = (Vec::new(), Vec::new());
        let own = format!("{name}/");
        for in_file in file.names().filter(|n| n.starts_with(&own)) {
            let full = &in_file[own.len()..];
            // Up to and with the first one, as the reference does.
            match full.split_once(PREFIX) {
                Some((_, ours)) if ours != COUNTER => {
                    names.push((ours.to_owned(), in_file.to_owned()));
                }
                _ => skipped.push(in_file.to_owned()),
            }
        }
        let rows = |name: &str| {
            let (_, in_file) = names.iter().find(|(ours, _)| ours == name)?;
            file.info(in_file)
                .and_then(|(_, shape)| shape.first().copied())
        };
        config.encoder.ff_dim = rows("encoder.transformer_encoder.0.linear1.weight");
        if let Some(decoder) = &mut config.decoder {
            decoder.ff_dim = rows("decoder.performer.net.layers.0.1.fn.fn.w1.weight");
        }
        let found = Self {
            config,
            names,
            skipped,
        };
        let shapes = found.names.iter().map(|(ours, in_file)| {
            let (_, shape) = file.info(in_file).expect("the name comes from the file");
            (ours.as_str(), shape)
        });
        let what = format!("model `{name}` of `{}`", path.display());
        require(&found.config, shapes.collect(), &what)?;
        Ok(found)
    }

    /// The sizes.
    pub fn config(&self) -> &ScfoundationConfig {
        &self.config
    }

    /// Every tensor under the name that the model has for it.
    ///
    /// # Errors
    /// When `file` is another one than this was taken from.
    pub fn tensors<'a>(&self, file: &'a TensorFile) -> Result<Vec<(String, HostTensor<'a>)>> {
        let named = self.names.iter();
        named
            .map(|(ours, in_file)| Ok((ours.clone(), file.get(in_file)?)))
            .collect()
    }
}

/// A converted directory: opened and checked.
#[derive(Debug)]
pub struct ScfoundationDirectory {
    dir: PathBuf,
    config: ScfoundationConfig,
    genes: GeneList,
    file: TensorFile,
}

impl ScfoundationDirectory {
    /// Opens a directory with `scfoundation.json`, `genes.tsv` and `model.safetensors`.
    ///
    /// # Errors
    /// When it is a backbone of another kind or not converted yet, a file is missing or malformed, or
    /// the files do not belong together.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.is_file() || (dir.join("models.ckpt").exists() && !dir.join(CONFIG).exists()) {
            return Err(Error::Content {
                path: dir.to_owned(),
                reason: "is as published; a backbone is a directory made from it".to_owned(),
                help: Some(
                    "convert it once: `scpeft-checkpoint convert models.ckpt scfoundation \
                     --variant gene --genes OS_scRNA_gene_index.19264.tsv`",
                ),
            });
        }
        if !dir.is_dir() {
            return Err(Error::content(dir, "is not a directory"));
        }
        require_kind(dir, CONFIG)?;
        for name in [CONFIG, GENES, WEIGHTS] {
            if !dir.join(name).exists() {
                return Err(Error::MissingFile {
                    dir: dir.to_owned(),
                    wanted: name.to_owned(),
                    help: "`scpeft-checkpoint convert models.ckpt DIR` makes a directory of \
                           scfoundation.json, genes.tsv and model.safetensors",
                });
            }
        }
        let opened = Self {
            dir: dir.to_owned(),
            config: ScfoundationConfig::read(&dir.join(CONFIG))?,
            genes: GeneList::read(&dir.join(GENES))?,
            file: TensorFile::open(&dir.join(WEIGHTS))?,
        };
        check_genes(&opened.config, &opened.genes, dir)?;
        Ok(opened)
    }

    /// Checks that every tensor that the sizes call for is there with its shape.
    ///
    /// # Errors
    /// With a report of what is missing or has another shape.
    pub fn require_complete(&self) -> Result<()> {
        let what = format!("backbone `{}`", self.dir.display());
        require(&self.config, self.file_shapes().collect(), &what)
    }

    /// The sizes.
    pub fn config(&self) -> &ScfoundationConfig {
        &self.config
    }

    /// The genes.
    pub fn genes(&self) -> &GeneList {
        &self.genes
    }

    /// The weights.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// The identity of the weights.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.file.tensors())
    }

    fn file_shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.file.names().map(|name| {
            let (_, shape) = self.file.info(name).expect("the name comes from the file");
            (name, shape)
        })
    }

    /// Writes a directory that [`open`](Self::open) reads: complete or not at all.
    ///
    /// # Errors
    /// When the genes are not as many as the model's, `dir` exists with content, or a file cannot be
    /// written.
    pub fn write(
        dir: &Path,
        config: &ScfoundationConfig,
        genes: &GeneList,
        tensors: &[(String, HostTensor<'_>)],
    ) -> Result<()> {
        check_genes(config, genes, dir)?;
        fsx::publish_dir(dir, Existing::Refuse, |prepared| {
            write_description(prepared, config, genes)?;
            write_safetensors(&prepared.join(WEIGHTS), tensors)
        })
    }
}

/// Writes sizes and genes into a directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write_description(dir: &Path, config: &ScfoundationConfig, genes: &GeneList) -> Result<()> {
    let path = dir.join(CONFIG);
    let text =
        serde_json::to_string_pretty(config).map_err(|e| Error::content(&path, e.to_string()))?;
    fsx::write_atomic(&path, text.as_bytes())?;
    fsx::write_atomic(&dir.join(GENES), genes.to_tsv().as_bytes())
}

/// Refuses a list of genes that is not the model's.
fn check_genes(config: &ScfoundationConfig, genes: &GeneList, path: &Path) -> Result<()> {
    let wanted = config.seq_len - 2;
    if genes.len() == wanted {
        return Ok(());
    }
    Err(Error::Content {
        path: path.to_owned(),
        reason: format!("the list has {} genes, the model {wanted}", genes.len()),
        help: Some("name the list that belongs to the weights with `--genes`"),
    })
}

fn require(config: &ScfoundationConfig, found: Vec<(&str, &[usize])>, what: &str) -> Result<()> {
    let wanted = wanted_shapes(config);
    let wanted = wanted
        .iter()
        .map(|(name, shape)| (name.as_str(), &shape[..]));
    LoadReport::compare(wanted, found).require_complete(what, |_| true)
}

impl Weights for ScfoundationDirectory {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        self.file_shapes().collect()
    }

    fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        self.file.get(name).ok()
    }

    fn mapped(&self, name: &str) -> Option<Mapping> {
        self.file.mapped(name).ok()
    }
}

/// Tensors that the sizes call for, of the encoder and, where there is one, of the decoder.
pub fn wanted_shapes(config: &ScfoundationConfig) -> Vec<(String, Vec<usize>)> {
    let (n, d) = (config.bin_num, config.encoder.hidden_dim);
    let mut wanted = Vec::new();
    for (part, shape) in [
        ("mlp.weight", vec![n, 1]),
        ("mlp.bias", vec![n]),
        ("mlp2.weight", vec![n, n]),
        ("mlp2.bias", vec![n]),
        ("emb.weight", vec![n, d]),
        ("emb_mask.weight", vec![1, d]),
        ("emb_pad.weight", vec![1, d]),
    ] {
        wanted.push((format!("token_emb.{part}"), shape));
    }
    wanted.push((POSITIONS.to_owned(), vec![config.seq_len + 1, d]));
    let h = config.encoder.feed_forward();
    for layer in 0..config.encoder.depth {
        let name = |part: &str| format!("encoder.transformer_encoder.{layer}.{part}");
        wanted.push((name("self_attn.in_proj_weight"), vec![3 * d, d]));
        wanted.push((name("self_attn.in_proj_bias"), vec![3 * d]));
        linear(&mut wanted, &name("self_attn.out_proj"), d, d);
        linear(&mut wanted, &name("linear1"), h, d);
        linear(&mut wanted, &name("linear2"), d, h);
        norm(&mut wanted, &name("norm1"), d);
        norm(&mut wanted, &name("norm2"), d);
    }
    norm(&mut wanted, "encoder.norm", d);
    if let Some(decoder) = &config.decoder {
        decoder_shapes(&mut wanted, decoder, d);
    }
    wanted
}

type Shapes = Vec<(String, Vec<usize>)>;

fn linear(wanted: &mut Shapes, name: &str, rows: usize, columns: usize) {
    wanted.push((format!("{name}.weight"), vec![rows, columns]));
    wanted.push((format!("{name}.bias"), vec![rows]));
}

fn norm(wanted: &mut Shapes, name: &str, width: usize) {
    wanted.push((format!("{name}.weight"), vec![width]));
    wanted.push((format!("{name}.bias"), vec![width]));
}

fn decoder_shapes(wanted: &mut Shapes, decoder: &StackConfig, encoder_width: usize) {
    let (d, h) = (decoder.hidden_dim, decoder.feed_forward());
    let head = decoder.head_width();
    // m ln m features of a head of width m, cut off.
    let features = (head as f64 * (head as f64).ln()) as usize;
    let inner = decoder.heads * head;
    linear(wanted, "decoder_embed", d, encoder_width);
    for layer in 0..decoder.depth {
        let name = |part: &str| format!("decoder.performer.net.layers.{layer}.{part}");
        norm(wanted, &name("0.norm"), d);
        let projection = name("0.fn.fast_attention.projection_matrix");
        wanted.push((projection, vec![features, head]));
        for part in ["to_q", "to_k", "to_v"] {
            linear(wanted, &name(&format!("0.fn.{part}")), inner, d);
        }
        linear(wanted, &name("0.fn.to_out"), d, inner);
        norm(wanted, &name("1.norm"), d);
        linear(wanted, &name("1.fn.fn.w1"), h, d);
        linear(wanted, &name("1.fn.fn.w2"), d, h);
    }
    norm(wanted, "decoder.norm", d);
    norm(wanted, "norm", d);
    linear(wanted, "to_final", 1, d);
}

#[cfg(test)]
mod tests;
