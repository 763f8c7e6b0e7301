//! What encodes cells: a trained model of any task, or a backbone as it is.

use std::path::{Path, PathBuf};

use scpeft_collective::Collective;
use scpeft_config::{
    AdapterKind, AdapterKinds, Config, EmbeddingNorm, TaskKind, TaskSection, Trainable,
};

use crate::adapter_file;
use crate::args::EncoderArgs;
use crate::assembly::Assembly;
use crate::consensus::agree;
use crate::failure::{Failure, Result};
use crate::run;
use crate::shard;
use crate::trained::{self, Output};

/// What a backbone alone needs besides the corpus and its own name.
const ALONE: &str =
    "[run]\ndir = \"embedding\"\n[data]\nlabel = \"none\"\n[task]\ntrainable = \"head\"\n";

/// A model that encodes cells of a corpus; nothing is masked.
pub(crate) struct Encoder {
    /// Model and cells.
    pub(crate) assembly: Assembly,
    /// What it was trained with, and where its cells are.
    pub(crate) config: Config,
    /// The checkpoint; `None` for a backbone alone.
    pub(crate) checkpoint: Option<PathBuf>,
}

impl Encoder {
    /// Opens what `args` name; `change` may alter how cells become tokens.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// Whatever is wrong with run or backbone, corpus or output directory.
    pub(crate) fn open(
        world: &dyn Collective,
        args: &EncoderArgs,
        output: &Output<'_>,
        change: impl FnOnce(&mut Config) -> Result<()>,
    ) -> Result<Self> {
        let checkpoint = match &args.run {
            Some(run) => Some(trained::choose(world, run, &args.checkpoint, output)?),
            None => {
                agree(world, output.require_free())?;
                None
            }
        };
        let config = configuration(args).and_then(|mut config| {
            change(&mut config)?;
            Ok(config)
        });
        let config = agree(world, config)?;
        let gather = shard::gather(world, config.backbone.shard)?;
        let encoder = Self::load(world, args, config, gather, checkpoint);
        agree(world, encoder)
    }

    fn load(
        world: &dyn Collective,
        args: &EncoderArgs,
        mut config: Config,
        gather: Option<std::rc::Rc<dyn scpeft_model::shard::Gather>>,
        checkpoint: Option<PathBuf>,
    ) -> Result<Self> {
        let topology = world.topology();
        let assembly = match (&args.run, &checkpoint) {
            (Some(run), Some(checkpoint)) => {
                let record = adapter_file::read_record(checkpoint)?;
                let trained = config.clone();
                let assembly =
                    Assembly::for_embedding(&mut config, topology, gather, run, &record)?;
                trained::restore(&assembly, &trained, &record, checkpoint)?;
                assembly
            }
            _ => Assembly::of_backbone(&config, topology, gather)?,
        };
        Ok(Self {
            assembly,
            config,
            checkpoint,
        })
    }
}

/// The configuration of a run, or of a backbone alone.
fn configuration(args: &EncoderArgs) -> Result<Config> {
    let mut config = match &args.run {
        Some(run) => trained::configuration(run, &args.overrides)?,
        None => backbone_alone(args)?,
    };
    if let Some(corpus) = &args.corpus {
        config.data.corpus.clone_from(corpus);
    }
    Ok(config)
}

/// What a configuration says of cells and backbone, without what it says of training.
fn backbone_alone(args: &EncoderArgs) -> Result<Config> {
    let mut overrides = args.overrides.clone();
    if let Some(corpus) = &args.corpus {
        overrides.push(format!("data.corpus={}", corpus.display()));
    }
    let mut config = match &args.config {
        Some(_) => run::load_config(args.config.as_deref(), &overrides)?.config,
        None => {
            let file = (Path::new("a backbone alone"), ALONE);
            scpeft_config::resolve(Some(file), &overrides)?.config
        }
    };
    if config.backbone.path.is_none() {
        return Err(Failure::config(
            "the backbone has no weights: its embeddings would be random\n\
             help: name a directory with `--set backbone.path=DIR`, or a trained run with `--run DIR`",
        ));
    }
    config.adapter.kind = AdapterKinds::one(AdapterKind::None);
    config.task = TaskSection {
        kind: TaskKind::MaskedExpression,
        trainable: Trainable::Head,
        ..TaskSection::default()
    };
    if config.backbone.norm == EmbeddingNorm::Domain {
        // Its statistics belong to batches that no run has seen.
        config.backbone.norm = EmbeddingNorm::None;
    }
    config.data.label = None;
    config.data.batch = None;
    config.data.mask_ratio = 0.0;
    Ok(config)
}
