//! The run directory: what is written into it, and how a run continues from it.

pub(crate) mod mirroring;
mod saver;
mod snapshot;
mod writer;

use std::path::{Path, PathBuf};

use scpeft_checkpoint::{CheckpointStore, Mirror, TensorFile, fsx};
use scpeft_collective::Collective;
use scpeft_config::{Config, Resolved};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter_file;
use crate::args::RunArgs;
use crate::assembly::Assembly;
use crate::backbone::to_tensor;
use crate::failure::{Failure, Result};
use crate::identity::{Allowed, Identity};
use crate::optim::{Adam, Ema};
use crate::selection::ModelSelection;

pub(crate) use saver::{Finished, Saver};
pub(crate) use writer::Evaluated;

const STATE_VERSION: u32 = 1;
const TRAINER: &str = "trainer.safetensors";
const STATE: &str = "state.json";
const FIRST_MOMENT: &str = "adam.first_moment";
const SECOND_MOMENT: &str = "adam.second_moment";
const EMA_MEAN: &str = "ema.mean";
/// The trained values, where the adapter directory holds their moving averages instead.
const PARAMETERS: &str = "parameters";

/// Where the run stands: what is next, not what was last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Steps done.
    pub(crate) step: u64,
    /// The epoch of the next batch.
    pub(crate) epoch: u64,
    /// The next batch in the epoch.
    pub(crate) batch: u64,
    /// Steps done at the last evaluation.
    #[serde(default)]
    pub(crate) evaluated: u64,
}

/// What a checkpoint says of the run, besides tensors.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    pub(crate) cursor: &'a Cursor,
    pub(crate) selection: &'a ModelSelection,
    pub(crate) world_size: usize,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format_version: u32,
    cursor: Cursor,
    updates: u64,
    /// Of a run with a moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema: Option<EmaState>,
    selection: ModelSelection,
    world_size: usize,
    identity: Identity,
}

/// The moving average in `state.json`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct EmaState {
    /// Updates that it is over.
    updates: u64,
    /// The adapter directory holds the averages; the trained values are in the trainer's file.
    in_adapter: bool,
}

/// A run directory.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
    store: CheckpointStore,
}

impl RunDir {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            store: CheckpointStore::new(path),
        }
    }

    /// Returns the checkpoint to continue from. Deletes nothing: whatever else is wrong with the
    /// run shall cost nothing of an earlier one. What the mirror has beyond the run directory is
    /// fetched on resumption. Only rank 0 calls this.
    ///
    /// # Errors
    /// When it or the mirror holds an earlier run and the user said neither to resume nor to
    /// overwrite, and when the mirror does not answer: it may hold the newer state.
    pub(crate) fn resume_point(
        &self,
        args: &RunArgs,
        mirror: Option<&Mirror>,
    ) -> Result<Option<PathBuf>> {
        if let Some(mirror) = mirror.filter(|_| args.resume) {
            for step in mirror.fetch_newer(&self.store)? {
                tracing::info!("fetched the checkpoint of step {step} from the mirror");
            }
        }
        let here = !self.store.list()?.is_empty();
        let found =
            here || mirror.map_or(Ok(false), |m| m.list().map(|found| !found.is_empty()))?;
        if found && !args.resume && !args.overwrite {
            let place = if here { "" } else { "the mirror of " };
            return Err(Failure::config(format!(
                "{place}`{}` holds checkpoints of an earlier run\n\
                 help: `--resume` continues it, `--overwrite` deletes them, `--set run.dir=DIR` goes elsewhere",
                self.path.display()
            )));
        }
        if !args.resume {
            return Ok(None);
        }
        let latest = self.store.latest_verified()?;
        if latest.is_none() {
            if found {
                return Err(Failure::weights(format!(
                    "`{}`: no checkpoint verifies\nhelp: `scpeft-checkpoint verify` says what is damaged; `--overwrite` starts anew",
                    self.path.display()
                )));
            }
            tracing::info!(
                "`{}` has no checkpoint yet: starting anew",
                self.path.display()
            );
        }
        Ok(latest)
    }

    /// Removes what an earlier run left; what is not of a run stays.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn clear(&self, mirror: Option<&Mirror>) -> Result<()> {
        if let Some(mirror) = mirror {
            mirror.clear()?;
        }
        for listed in self.store.list()? {
            fsx::remove(&listed.path)?;
        }
        for name in [
            "LATEST",
            "BEST",
            "metrics.jsonl",
            "run.json",
            crate::non_finite::FILE,
        ] {
            let path = self.path.join(name);
            if path.exists() {
                fsx::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Writes what describes the run: the resolved configuration, architecture and vocabulary.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn describe(&self, resolved: &Resolved, assembly: &Assembly) -> Result<()> {
        fsx::create_dir_all(&self.path)?;
        fsx::write_atomic(
            &self.path.join("config.toml"),
            resolved.to_toml().as_bytes(),
        )?;
        assembly.backbone.record(&self.path)
    }

    /// The checkpoint that a user names: `best`, `latest` or a step.
    ///
    /// # Errors
    /// When there is no such checkpoint or it does not verify.
    pub(crate) fn checkpoint(&self, which: &str) -> Result<PathBuf> {
        if !self.path.is_dir() {
            return Err(Failure::config(format!(
                "`{}` is no run directory: it does not exist",
                self.path.display()
            )));
        }
        let none = || {
            Failure::weights(format!(
                "`{}` has no checkpoint\nhelp: train first",
                self.path.display()
            ))
        };
        let path = match which {
            "best" => match self.store.best()? {
                Some(path) => path,
                None => {
                    let latest = self.store.latest_verified()?.ok_or_else(none)?;
                    tracing::warn!(
                        "no checkpoint was marked best: taking the latest, `{}`",
                        latest.display()
                    );
                    latest
                }
            },
            "latest" => self.store.latest_verified()?.ok_or_else(none)?,
            step => {
                let step: u64 = step.parse().map_err(|_| {
                    Failure::config(format!(
                        "`--checkpoint` must be `best`, `latest` or a step number, got `{step}`"
                    ))
                })?;
                let listed = self.store.list()?;
                match listed.iter().find(|c| c.step == step) {
                    Some(found) => found.path.clone(),
                    None => {
                        let steps: Vec<String> =
                            listed.iter().map(|c| c.step.to_string()).collect();
                        return Err(Failure::config(format!(
                            "`{}` has no checkpoint of step {step}; it has {}",
                            self.path.display(),
                            steps.join(", ")
                        )));
                    }
                }
            }
        };
        self.store.verify(&path)?;
        Ok(path)
    }
}

/// Gives every rank the path that rank 0 chose.
///
/// # Collective
/// Must be called by all ranks.
pub(crate) fn broadcast_path(
    world: &dyn Collective,
    path: Option<PathBuf>,
) -> Result<Option<PathBuf>> {
    let text = path.map_or(String::new(), |p| p.to_string_lossy().into_owned());
    let bytes = world.broadcast(text.into_bytes())?;
    Ok((!bytes.is_empty()).then(|| PathBuf::from(String::from_utf8_lossy(&bytes).into_owned())))
}

/// Puts a run back to where a checkpoint was written; returns its cursor, and what changed since
/// with the user's leave.
///
/// # Errors
/// When a file is malformed, or the run would become another one.
pub(crate) fn restore(
    path: &Path,
    config: &Config,
    assembly: &mut Assembly,
    adam: &mut Adam,
    ema: Option<&mut Ema>,
    selection: &mut ModelSelection,
    allowed: &Allowed,
) -> Result<(Cursor, Vec<String>)> {
    let file = path.join(STATE);
    let malformed = |e: serde_json::Error| {
        Failure::weights(format!("`{}`, line {}: {e}", file.display(), e.line()))
    };
    let raw: Value = serde_json::from_slice(&fsx::read(&file)?).map_err(malformed)?;
    if raw["format_version"] != STATE_VERSION {
        return Err(Failure::weights(format!(
            "`{}`: format version {}, this program reads {STATE_VERSION}",
            file.display(),
            raw["format_version"]
        )));
    }
    let state: State = serde_json::from_value(raw).map_err(malformed)?;
    let now = Identity::of(config, assembly);
    let changed = state.identity.require_same(&now, path, allowed)?;
    adapter_file::restore(
        &adapter_file::directory(path),
        config,
        assembly.backbone.shape.n_layers,
        &assembly.params,
    )?;
    let stored = TensorFile::open(&path.join(TRAINER))?;
    let flat = |name: &str| -> Result<tch::Tensor> {
        Ok(to_tensor(&stored.get(name)?)?.f_to_device(assembly.params.device())?)
    };
    if state.ema.is_some_and(|ema| ema.in_adapter) {
        let mut own = assembly.params.flat().shallow_clone();
        own.f_copy_(&flat(PARAMETERS)?)?;
    }
    assembly.model.constrain()?;
    adam.restore(&flat(FIRST_MOMENT)?, &flat(SECOND_MOMENT)?, state.updates)?;
    if let (Some(ema), Some(state)) = (ema, state.ema) {
        ema.restore(&flat(EMA_MEAN)?, state.updates)?;
    }
    selection.resume(&state.selection);
    Ok((state.cursor, changed))
}
