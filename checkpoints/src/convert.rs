//! `convert` and `export`: writing weights in the forms that scpeft reads.

use std::path::{Path, PathBuf};

use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary, wanted_shapes};
use scpeft_checkpoint::run::verify_checkpoint;
use scpeft_checkpoint::{
    CheckpointStore, Error, HostTensor, ScgptDirectory, TensorFile, fsx, read_adapter,
    write_safetensors,
};

use crate::inspect::Kind;

/// Converts a tensor file to safetensors, or a published directory to our form.
pub(crate) fn convert(input: &Path, output: &Path) -> Result<String, Error> {
    let count = match Kind::of(input)? {
        Kind::File => {
            fsx::refuse_existing(output)?;
            let file = TensorFile::open(input)?;
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
    let args = ScgptArgs::read(&backbone.join("args.json"))?;
    let vocabulary = Vocabulary::read(&backbone.join("vocab.json"))?;
    let (_, tensors) = read_adapter(&checkpoint.join("adapter"))?;
    check_complete(checkpoint, &args, &vocabulary, |name| {
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
    for name in ["backbone/args.json", "backbone/vocab.json"] {
        if !run.join(name).is_file() {
            return Err(missing(run, name));
        }
    }
    Ok(run.join("backbone"))
}

/// Refuses a checkpoint that holds adapters and heads only.
fn check_complete(
    checkpoint: &Path,
    args: &ScgptArgs,
    vocabulary: &Vocabulary,
    shape_of: impl Fn(&str) -> Option<Vec<usize>>,
) -> Result<(), Error> {
    let wanted = wanted_shapes(args, vocabulary.len());
    for (name, shape) in wanted {
        if shape_of(&name).as_ref() != Some(&shape) {
            let found = shape_of(&name).map_or("none".to_owned(), |shape| format!("{shape:?}"));
            return Err(Error::Content {
                path: checkpoint.join("adapter"),
                reason: format!("a backbone needs `{name}` of shape {shape:?}, found {found}"),
                help: Some("only a run with `task.trainable = \"all\"` stores a whole backbone"),
            });
        }
    }
    Ok(())
}
