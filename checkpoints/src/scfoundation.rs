//! The commands on scFoundation's files: the published one of three models, and converted directories.

use std::path::{Path, PathBuf};

use clap::Args;
use scpeft_checkpoint::published::scfoundation::{
    self, GeneList, LICENCE, PUBLISHED_GENES, Published, ScfoundationConfig, StackConfig,
};
use scpeft_checkpoint::{Error, ScfoundationDirectory, TensorFile, fsx, read_adapter};

use crate::convert::require_whole;
use crate::inspect::Found;

/// What `convert` is told of a published `models.ckpt`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Choice {
    /// Of scFoundation's models.ckpt: which model, `gene` (the one that scPEFT adapts), `cell` or `rde`.
    /// Default `gene`.
    #[arg(long, value_name = "MODEL", conflicts_with = "from_scpeft")]
    variant: Option<String>,
    /// Of scFoundation: the list of its genes, OS_scRNA_gene_index.19264.tsv. Default: the one beside the
    /// weights.
    #[arg(long, value_name = "TSV", conflicts_with = "from_scpeft")]
    genes: Option<PathBuf>,
}

impl Choice {
    /// Refuses options that `input`, of another kind, has no use for.
    pub(crate) fn require_unused(&self, input: &Path) -> Result<(), Error> {
        if self.variant.is_none() && self.genes.is_none() {
            return Ok(());
        }
        Err(Error::Format {
            path: input.to_owned(),
            reason: "`--variant` and `--genes` are for scFoundation's models.ckpt, and it is another file"
                .to_owned(),
            help: "leave them out, or name models.ckpt",
        })
    }
}

/// Takes one model out of a published file; returns what to tell the user.
pub(crate) fn convert(file: &TensorFile, output: &Path, choice: &Choice) -> Result<String, Error> {
    fsx::refuse_existing(output)?;
    let variant = choice.variant.as_deref().unwrap_or("gene");
    let published = Published::of(file, variant)?;
    let beside = file.path().with_file_name(PUBLISHED_GENES);
    let genes = match &choice.genes {
        Some(path) => path.clone(),
        None if beside.exists() => beside,
        None => {
            return Err(Error::MissingFile {
                dir: file.path().parent().unwrap_or(Path::new(".")).to_owned(),
                wanted: PUBLISHED_GENES.to_owned(),
                help: "the weights do not name their genes: name the list with `--genes`",
            });
        }
    };
    let genes = GeneList::read(&genes)?;
    file.verify()?;
    let tensors = published.tensors(file)?;
    ScfoundationDirectory::write(output, published.config(), &genes, &tensors)?;
    let skipped = match published.skipped.as_slice() {
        [] => String::new(),
        names => format!("left out: {}\n", names.join(", ")),
    };
    Ok(format!(
        "{}: model `{variant}`, {} tensors, {} genes\n{skipped}notice: {LICENCE}\n",
        output.display(),
        tensors.len(),
        genes.len(),
    ))
}

/// Writes a converted directory again.
pub(crate) fn copy(input: &Path, output: &Path) -> Result<usize, Error> {
    let backbone = ScfoundationDirectory::open(input)?;
    backbone.require_complete()?;
    backbone.file().verify()?;
    let named = backbone.file().tensors();
    let tensors: Vec<_> = named.map(|(name, t)| (name.to_owned(), t)).collect();
    ScfoundationDirectory::write(output, backbone.config(), backbone.genes(), &tensors)?;
    Ok(tensors.len())
}

/// Writes the backbone of a checkpoint that holds every parameter: the encoder, which is what trains.
pub(crate) fn export(checkpoint: &Path, backbone: &Path, output: &Path) -> Result<String, Error> {
    let mut config = ScfoundationConfig::read(&backbone.join(scfoundation::CONFIG))?;
    let genes = GeneList::read(&backbone.join(scfoundation::GENES))?;
    let (_, tensors) = read_adapter(&checkpoint.join("adapter"))?;
    if !tensors.contains_key("decoder_embed.weight") {
        config.decoder = None;
    }
    require_whole(checkpoint, &scfoundation::wanted_shapes(&config), |name| {
        tensors.get(name).map(|tensor| tensor.shape.clone())
    })?;
    let tensors: Vec<_> = tensors.into_iter().collect();
    ScfoundationDirectory::write(output, &config, &genes, &tensors)?;
    Ok(format!(
        "{}: {} tensors, fingerprint {}\n",
        output.display(),
        tensors.len(),
        ScfoundationDirectory::open(output)?.fingerprint()
    ))
}

fn sizes(found: &mut Found, config: &ScfoundationConfig) {
    let stack = |stack: &StackConfig| {
        serde_json::json!({
            "layers": stack.depth,
            "width": stack.hidden_dim,
            "heads": stack.heads,
            "feed_forward": stack.feed_forward(),
        })
    };
    found.fact("genes", config.seq_len - 2);
    found.fact("bins", config.bin_num);
    found.fact("encoder", stack(&config.encoder));
    match &config.decoder {
        Some(decoder) => found.fact("decoder", stack(decoder)),
        None => found.fact("decoder", "none"),
    }
    found.fact("licence", LICENCE);
}

pub(crate) fn inspect(path: &Path) -> Result<Found, Error> {
    let backbone = ScfoundationDirectory::open(path)?;
    backbone.require_complete()?;
    let mut found = Found::new("scFoundation backbone", path);
    found.fact("weights", backbone.file().path().display().to_string());
    sizes(&mut found, backbone.config());
    found.fact("fingerprint", backbone.fingerprint());
    found.add_file("", backbone.file());
    Ok(found)
}

/// A published file: what models it has, and their tensors.
pub(crate) fn inspect_published(path: &Path, file: &TensorFile) -> Result<Found, Error> {
    let mut found = Found::new("scFoundation checkpoint as published", path);
    let models = scfoundation::models(file);
    found.fact("models", models.clone());
    if let Some(model) = models.first() {
        sizes(&mut found, Published::of(file, model)?.config());
    }
    found.add_file("", file);
    Ok(found)
}
