//! What commands share that use a trained model: which checkpoint, with which settings, and where the
//! results go.

use std::path::{Path, PathBuf};

use scpeft_checkpoint::fsx::{self, Existing};
use scpeft_checkpoint::peft::ScpeftRecord;
use scpeft_collective::Collective;
use scpeft_config::Config;
use tch::{Device, Kind, Tensor};

use crate::adapter_file;
use crate::assembly::Assembly;
use crate::checkpointing::{RunDir, broadcast_path};
use crate::consensus::agree;
use crate::failure::{Failure, Result};

/// Where results go: a directory that appears when it is complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<'a> {
    /// The directory.
    pub(crate) path: &'a Path,
    /// Replace an earlier one.
    pub(crate) overwrite: bool,
    /// The file by which an earlier one is known.
    pub(crate) table: &'static str,
}

impl Output<'_> {
    /// Refuses a directory that exists and may not be replaced.
    ///
    /// # Errors
    /// When it holds something else than earlier results, or the user did not say `--overwrite`.
    pub(crate) fn require_free(&self) -> Result<()> {
        let output = self.path.display();
        let occupied = fsx::refuse_existing(self.path).is_err();
        if occupied && !self.overwrite {
            return Err(Failure::config(format!(
                "`{output}` exists\nhelp: choose another `--output`; `--overwrite` replaces earlier results"
            )));
        }
        if occupied && !self.path.join(self.table).is_file() {
            return Err(Failure::config(format!(
                "`{output}` holds no `{}`, so `--overwrite` does not replace it\nhelp: choose another `--output`",
                self.table
            )));
        }
        Ok(())
    }

    /// Runs `work` on every rank. Rank 0 is given the directory to fill, which is then published, and
    /// says what `work` returned.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When `work` fails, or the directory cannot be written.
    pub(crate) fn publish(
        &self,
        world: &dyn Collective,
        work: impl FnOnce(Option<&Path>) -> Result<String>,
    ) -> Result<()> {
        if !world.topology().is_root() {
            return work(None).map(|_| ());
        }
        let existing = if self.overwrite {
            Existing::Replace
        } else {
            Existing::Refuse
        };
        let summary = fsx::publish_dir(self.path, existing, |dir| work(Some(dir)))?;
        tracing::info!("{summary}; results in `{}`", self.path.display());
        Ok(())
    }
}

/// The checkpoint that a user names, chosen by rank 0, which also checks that results have a place.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// No such checkpoint, or no room for the output.
pub(crate) fn choose(
    world: &dyn Collective,
    run: &Path,
    which: &str,
    output: &Output<'_>,
) -> Result<PathBuf> {
    let chosen = if world.topology().is_root() {
        let found = output
            .require_free()
            .and_then(|()| RunDir::new(run).checkpoint(which));
        found.map(Some)
    } else {
        Ok(None)
    };
    let chosen = agree(world, chosen)?;
    Ok(broadcast_path(world, chosen)?.unwrap_or_default())
}

/// The configuration of the run with overrides.
///
/// # Errors
/// An override of what the run was trained with, or a run without a configuration.
pub(crate) fn configuration(run: &Path, overrides: &[String]) -> Result<Config> {
    require_harmless(overrides)?;
    Ok(scpeft_config::load(&run.join("config.toml"), overrides)?.config)
}

/// Refuses overrides of what the adapter was trained with: they would predict with another
/// function than the one that was trained, and say nothing.
fn require_harmless(overrides: &[String]) -> Result<()> {
    const MAY_CHANGE: [&str; 16] = [
        "run.deterministic",
        "run.device",
        "run.threads",
        "run.name",
        "data.corpus",
        "data.label",
        "data.batch",
        "data.split_column",
        "data.test",
        "data.gene_key",
        "data.loader_threads",
        "data.prefetch_steps",
        "backbone.path",
        "backbone.shard",
        "train.batch_cells",
        "train.micro_batch_cells",
    ];
    let key = |text: &String| text.split('=').next().unwrap_or_default().trim().to_owned();
    match overrides
        .iter()
        .map(key)
        .find(|key| !MAY_CHANGE.contains(&key.as_str()))
    {
        None => Ok(()),
        Some(key) => Err(Failure::config(format!(
            "`--set {key}`: a prediction uses what the run was trained with\nhelp: only these may change: {}",
            MAY_CHANGE.join(", ")
        ))),
    }
}

/// Puts the trained tensors of a checkpoint into a model on the backbone that it was trained on.
///
/// # Errors
/// Another backbone, or tensors that do not fit.
pub(crate) fn restore(
    assembly: &Assembly,
    config: &Config,
    record: &ScpeftRecord,
    checkpoint: &Path,
) -> Result<()> {
    let backbone = &assembly.backbone;
    if !backbone.fingerprint.is_empty() && backbone.fingerprint != record.backbone_fingerprint {
        return Err(Failure::weights(format!(
            "backbone `{}` is not the one the adapter was trained on: fingerprint {} instead of {}\n\
             help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
            backbone.origin, backbone.fingerprint, record.backbone_fingerprint
        )));
    }
    adapter_file::restore(
        &adapter_file::directory(checkpoint),
        config,
        backbone.shape.n_layers,
        &assembly.params,
    )?;
    Ok(assembly.model.constrain()?)
}

/// The values of a tensor, row by row.
///
/// # Errors
/// Only if libtorch fails.
pub(crate) fn host_values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_reshape([-1])?;
    Ok(Vec::<f32>::try_from(&flat)?)
}
