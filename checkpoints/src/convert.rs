//! `convert` and `export`: writing weights in the forms that scpeft reads.

use std::path::{Path, PathBuf};

use scpeft_checkpoint::published;
use scpeft_checkpoint::published::geneformer::genes::Pickles;
use scpeft_checkpoint::published::geneformer::{
    self, GeneDictionaries, GeneformerConfig, GeneformerWeights,
};
use scpeft_checkpoint::published::scbert::{self, ScbertWeights};
use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary, wanted_shapes};
use scpeft_checkpoint::run::verify_checkpoint;
use scpeft_checkpoint::{
    CheckpointStore, Error, GeneformerDirectory, HostTensor, ScbertDirectory, ScgptDirectory,
    TensorFile, fsx, peft, read_adapter, write_safetensors,
};

use crate::inspect::Kind;
use crate::scfoundation::{self, Choice};

/// Dictionaries and lists of genes that the command line names.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenPickles {
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) medians: Option<PathBuf>,
    pub(crate) other_names: Option<PathBuf>,
    pub(crate) panel: Option<PathBuf>,
}

/// Converts a tensor file to safetensors, or a published directory to our form.
pub(crate) fn convert(
    input: &Path,
    output: &Path,
    pickles: GivenPickles,
    choice: &Choice,
) -> Result<String, Error> {
    let kind = Kind::of(input)?;
    if kind != Kind::File || pickles.panel.is_some() {
        choice.require_unused(input)?;
    }
    let count = match kind {
        Kind::File if pickles.panel.is_some() => scbert_directory(input, output, pickles.panel)?,
        Kind::Scbert => scbert_directory(input, output, pickles.panel)?,
        Kind::File => {
            fsx::refuse_existing(output)?;
            let file = TensorFile::open(input)?;
            if !published::scfoundation::models(&file).is_empty() {
                return scfoundation::convert(&file, output, choice);
            }
            choice.require_unused(input)?;
            file.verify()?;
            let tensors = named(file.tensors());
            write_safetensors(output, &tensors)?;
            tensors.len()
        }
        Kind::Backbone => {
            let backbone = ScgptDirectory::open(input)?;
            backbone.require_complete()?;
            backbone.file().verify()?;
            let tensors = named(backbone.tensors());
            ScgptDirectory::write(output, backbone.args(), backbone.vocabulary(), &tensors)?;
            tensors.len()
        }
        Kind::Geneformer => geneformer_directory(input, output, pickles)?,
        Kind::Scfoundation => scfoundation::copy(input, output)?,
        Kind::Run | Kind::Checkpoint | Kind::Adapter => {
            return Err(Error::Format {
                path: input.to_owned(),
                reason: "it is a run, checkpoint or adapter directory".to_owned(),
                help: "these are in their final form; `export` writes the backbone of a run",
            });
        }
    };
    Ok(format!("{}: {count} tensors\n", output.display()))
}

/// Puts the weights of an scBERT and the genes of its panel into one directory; returns the number of
/// tensors. `input` is a file of weights, or a directory with one and perhaps the genes.
fn scbert_directory(input: &Path, output: &Path, panel: Option<PathBuf>) -> Result<usize, Error> {
    fsx::refuse_existing(output)?;
    let file = if input.is_file() {
        input.to_owned()
    } else {
        let names = ["model.safetensors", scbert::PUBLISHED];
        let mut found = names.map(|name| input.join(name)).into_iter();
        found
            .find(|path| path.is_file())
            .ok_or_else(|| Error::MissingFile {
                dir: input.to_owned(),
                wanted: names.join(" or "),
                help: "name the file of weights itself",
            })?
    };
    let panel = panel.unwrap_or_else(|| input.join(scbert::GENES));
    if !panel.is_file() {
        return Err(Error::MissingFile {
            dir: input.to_owned(),
            wanted: scbert::GENES.to_owned(),
            help: "the genes of the panel are no part of the weights: write the columns of \
                   panglao_human.h5ad in their order into a text, one a line, and name it with \
                   `--panel TEXT`",
        });
    }
    let weights = ScbertWeights::open(&file)?;
    weights.file().verify()?;
    let genes = scbert::read_genes(&panel)?;
    scbert::check_panel(&panel, &genes, weights.config())?;
    let tensors = named(weights.tensors());
    ScbertDirectory::write(output, weights.config(), &genes, &tensors)?;
    Ok(tensors.len())
}

/// Puts published weights and dictionaries into one directory; returns the number of tensors.
fn geneformer_directory(
    input: &Path,
    output: &Path,
    pickles: GivenPickles,
) -> Result<usize, Error> {
    fsx::refuse_existing(output)?;
    let config = GeneformerConfig::read(&input.join(geneformer::CONFIG))?;
    let weights = GeneformerWeights::open(input)?;
    weights.require_complete(&config)?;
    weights.file().verify()?;
    let GivenPickles {
        tokens,
        medians,
        other_names,
        ..
    } = pickles;
    let converted = tokens.is_none() && medians.is_none() && other_names.is_none();
    let genes = match GeneDictionaries::read(input) {
        Ok(genes) if converted => genes,
        _ => GeneDictionaries::from_pickles(&Pickles::find(input, tokens, medians, other_names)?)?,
    };
    geneformer::check_vocabulary(input, &config, &weights, &genes)?;
    let tensors = named(weights.tensors());
    GeneformerDirectory::write(output, &config, &genes, &tensors)?;
    Ok(tensors.len())
}

fn named<'a>(
    tensors: impl Iterator<Item = (&'a str, HostTensor<'a>)>,
) -> Vec<(String, HostTensor<'a>)> {
    tensors
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
}

/// The best checkpoint of a run, or the newest that verifies if none is marked best.
pub(crate) fn choose_checkpoint(run: &Path) -> Result<PathBuf, Error> {
    let store = CheckpointStore::new(run);
    let chosen = match store.best()? {
        Some(best) => Some(best),
        None => store.latest_verified()?,
    };
    chosen.ok_or_else(|| Error::MissingFile {
        dir: run.to_owned(),
        wanted: "checkpoint that verifies".to_owned(),
        help: "name a run directory that has saved at least one",
    })
}

/// Writes the backbone of a checkpoint that holds every parameter as a published directory.
pub(crate) fn export(checkpoint: &Path, output: &Path) -> Result<String, Error> {
    verify_checkpoint(checkpoint)?;
    let backbone = backbone_files(checkpoint)?;
    if backbone.join(published::scfoundation::CONFIG).is_file() {
        return scfoundation::export(checkpoint, &backbone, output);
    }
    if backbone.join(scbert::CONFIG).is_file() {
        return export_scbert(checkpoint, output);
    }
    if backbone.join(geneformer::CONFIG).is_file() {
        return export_geneformer(checkpoint, &backbone, output);
    }
    let args = ScgptArgs::read(&backbone.join("args.json"))?;
    let vocabulary = Vocabulary::read(&backbone.join("vocab.json"))?;
    let (_, tensors) = read_adapter(&checkpoint.join("adapter"))?;
    let wanted = wanted_shapes(&args, vocabulary.len());
    require_whole(checkpoint, &wanted, |name| {
        tensors.get(name).map(|tensor| tensor.shape.clone())
    })?;
    let tensors: Vec<_> = tensors.into_iter().collect();
    ScgptDirectory::write(output, &args, &vocabulary, &tensors)?;
    let opened = ScgptDirectory::open(output)?;
    Ok(format!(
        "{}: {} tensors, fingerprint {}\n",
        output.display(),
        tensors.len(),
        opened.fingerprint()
    ))
}

/// As [`export`], of a run on a Geneformer.
fn export_geneformer(checkpoint: &Path, backbone: &Path, output: &Path) -> Result<String, Error> {
    let config = GeneformerConfig::read(&backbone.join(geneformer::CONFIG))?;
    let genes = GeneDictionaries::read(backbone)?;
    let (_, tensors) = read_adapter(&checkpoint.join("adapter"))?;
    require_whole(checkpoint, &geneformer::wanted_shapes(&config), |name| {
        tensors.get(name).map(|tensor| tensor.shape.clone())
    })?;
    let tensors: Vec<_> = tensors.into_iter().collect();
    GeneformerDirectory::write(output, &config, &genes, &tensors)?;
    let opened = GeneformerDirectory::open(output)?;
    Ok(format!(
        "{}: {} tensors, fingerprint {}\n",
        output.display(),
        tensors.len(),
        opened.fingerprint()
    ))
}

/// Writes the model of a run on an scBERT, adapters and all, as one file with the names of the scPEFT
/// reference: vectors of genes and directions never train and come from the backbone.
fn export_scbert(checkpoint: &Path, output: &Path) -> Result<String, Error> {
    fsx::refuse_existing(output)?;
    let dir = checkpoint.join("adapter");
    let (config, tensors) = read_adapter(&dir)?;
    let record = config.scpeft.unwrap_or_default();
    let named = config.base_model_name_or_path.unwrap_or_default();
    let refuse = |reason: String| {
        Err(Error::Content {
            path: dir.clone(),
            reason,
            help: Some(
                "vectors of genes and random features never train and are in no checkpoint: only a \
                 run on a `backbone.path` that is still there can be exported",
            ),
        })
    };
    if !Path::new(&named).is_dir() {
        return refuse(format!("its backbone `{named}` is no directory"));
    }
    let backbone = ScbertDirectory::open(Path::new(&named))?;
    if backbone.fingerprint() != record.backbone_fingerprint {
        return refuse(format!("its backbone `{named}` has other weights now"));
    }
    let tensors = peft::from_file_layout(&record.adapters, tensors)?;
    let whole = scbert::tuned::whole(&backbone, tensors);
    let whole: Vec<_> = whole.into_iter().collect();
    write_safetensors(output, &whole)?;
    Ok(format!("{}: {} tensors\n", output.display(), whole.len()))
}

/// `backbone/` of the run that the checkpoint belongs to.
fn backbone_files(checkpoint: &Path) -> Result<PathBuf, Error> {
    let missing = |dir: &Path, wanted: &str| Error::MissingFile {
        dir: dir.to_owned(),
        wanted: wanted.to_owned(),
        help: "a checkpoint to export lies in `checkpoints/` of its run directory, which keeps backbone/args.json and backbone/vocab.json",
    };
    let absolute = std::path::absolute(checkpoint).map_err(|source| Error::Io {
        action: "locate",
        path: checkpoint.to_owned(),
        source,
    })?;
    let run = absolute
        .ancestors()
        .nth(2)
        .ok_or_else(|| missing(checkpoint, "run directory"))?;
    let marks = [
        geneformer::CONFIG,
        scbert::CONFIG,
        published::scfoundation::CONFIG,
    ];
    if marks
        .iter()
        .any(|name| run.join("backbone").join(name).is_file())
    {
        return Ok(run.join("backbone"));
    }
    for name in ["backbone/args.json", "backbone/vocab.json"] {
        if !run.join(name).is_file() {
            return Err(missing(run, name));
        }
    }
    Ok(run.join("backbone"))
}

/// Refuses a checkpoint that holds adapters and heads only.
pub(crate) fn require_whole(
    checkpoint: &Path,
    wanted: &[(String, Vec<usize>)],
    shape_of: impl Fn(&str) -> Option<Vec<usize>>,
) -> Result<(), Error> {
    for (name, shape) in wanted {
        if shape_of(name).as_ref() != Some(shape) {
            let found = shape_of(name).map_or("none".to_owned(), |shape| format!("{shape:?}"));
            return Err(Error::Content {
                path: checkpoint.join("adapter"),
                reason: format!("a backbone needs `{name}` of shape {shape:?}, found {found}"),
                help: Some("only a run with `task.trainable = \"all\"` stores a whole backbone"),
            });
        }
    }
    Ok(())
}
