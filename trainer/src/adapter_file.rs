//! The adapter directory of a checkpoint: everything that was trained, and the running statistics
//! of norms, in the layout of `scpeft_checkpoint::peft`.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use scpeft_checkpoint::peft::{AdapterSettings, ScpeftRecord, Target};
use scpeft_checkpoint::{AdapterConfig, HostTensor, peft, read_adapter, write_adapter};
use scpeft_config::Config;
use scpeft_model::adapter::{AdapterOptions, LayerSelection, Projection};
use scpeft_model::{Params, Role};
use serde_json::json;

use crate::assembly::Assembly;
use crate::backbone::{to_host, to_tensor};
use crate::failure::{Failure, Result};
use crate::settings;

const ADAPTER: &str = "adapter";
/// Blocks of a rotation.
const OFT_BLOCKS: usize = 4;

/// The adapter directory of a checkpoint.
pub(crate) fn directory(checkpoint: &Path) -> PathBuf {
    checkpoint.join(ADAPTER)
}

/// Writes the adapter directory of a checkpoint.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(checkpoint: &Path, config: &Config, assembly: &Assembly) -> Result<()> {
    let adapters = describe(config, assembly.backbone.shape.n_layers)?;
    let params = &assembly.params;
    let trained = params.slots().iter().map(|slot| slot.name.as_str());
    let statistics = params.buffers().map(|(name, _)| name);
    let tensors: Vec<(String, HostTensor<'static>)> = trained
        .chain(statistics)
        .map(|name| Ok((name.to_owned(), to_host(&params.get(name)?)?)))
        .collect::<Result<_>>()?;
    let stored = peft::to_file_layout(&adapters, tensors)?;
    let settings = adapter_config(config, assembly, adapters)?;
    Ok(write_adapter(&directory(checkpoint), &settings, &stored)?)
}

/// `adapter_config.json`.
fn adapter_config(
    config: &Config,
    assembly: &Assembly,
    adapters: Vec<AdapterSettings>,
) -> Result<AdapterConfig> {
    let mut heads: Vec<String> = assembly
        .params
        .iter()
        .filter(|(_, _, role, trainable)| *trainable && *role == Role::Head)
        .filter_map(|(name, ..)| name.split('.').next().map(str::to_owned))
        .collect();
    heads.dedup();
    let batches = assembly.staging.batches.as_ref();
    let record = ScpeftRecord {
        adapter: json!(config.adapter),
        backbone_fingerprint: assembly.backbone.fingerprint.clone(),
        task: config.task.kind.as_str().to_owned(),
        label: config.data.label.clone(),
        categories: assembly.task.classes().to_vec(),
        batches: batches.map_or_else(Vec::new, |b| b.names().to_vec()),
        ..ScpeftRecord::default()
    };
    let base = AdapterConfig::of_adapters(adapters, heads, record)?;
    let peft_type = match config.task.trainable {
        scpeft_config::Trainable::All => "SCPEFT_FULL".to_owned(),
        _ => base.peft_type.clone(),
    };
    Ok(AdapterConfig {
        peft_type,
        base_model_name_or_path: Some(assembly.backbone.origin.clone()),
        ..base
    })
}

/// The adapters of a run as files name them.
fn describe(config: &Config, n_layers: usize) -> Result<Vec<AdapterSettings>> {
    settings::adapters(config)
        .iter()
        .map(|options| one(options, n_layers))
        .collect()
}

fn one(options: &AdapterOptions, n_layers: usize) -> Result<AdapterSettings> {
    let resolve = |layers: &LayerSelection| Ok::<_, Failure>(layers.resolve(n_layers)?);
    Ok(match options {
        AdapterOptions::Encoder(o) => AdapterSettings::Encoder {
            layers: resolve(&o.layers)?,
            mlp_ratio: o.mlp_ratio,
            skip_connect: o.skip_connect,
        },
        AdapterOptions::Mlp(o) => AdapterSettings::Mlp {
            layers: resolve(&o.layers)?,
            mlp_ratio: o.mlp_ratio,
            scale: o.scale,
        },
        AdapterOptions::Token(o) => AdapterSettings::Token {
            mlp_ratio: o.mlp_ratio,
            skip_connect: true,
        },
        AdapterOptions::Prefix(o) => AdapterSettings::Prefix {
            layers: resolve(&o.layers)?,
            token_nums: o.token_nums as usize,
        },
        AdapterOptions::Lora(o) => AdapterSettings::Lora {
            layers: resolve(&o.layers)?,
            r: o.r as usize,
            lora_alpha: o.lora_alpha,
            targets: targets(&o.targets),
            train_qkv_bias: o.train_qkv_bias,
        },
        AdapterOptions::Hra(o) => AdapterSettings::Hra {
            layers: resolve(&o.layers)?,
            r: o.r as usize,
        },
        AdapterOptions::Oft(o) => AdapterSettings::Oft {
            layers: resolve(&o.layers)?,
            blocks: OFT_BLOCKS,
        },
    })
}

fn targets(parts: &[Projection]) -> Vec<Target> {
    let mut targets: Vec<Target> = parts
        .iter()
        .map(|part| match part {
            Projection::Query => Target::Q,
            Projection::Key => Target::K,
            Projection::Value => Target::V,
        })
        .collect();
    targets.sort_unstable();
    targets
}

/// Overwrites the trainable tensors and running statistics by those of an adapter directory; both
/// must name the same.
///
/// # Errors
/// When a tensor is missing, has another shape, or is not one of the model's.
pub(crate) fn restore(dir: &Path, config: &Config, n_layers: usize, params: &Params) -> Result<()> {
    let (_, tensors) = read_adapter(dir)?;
    let tensors = peft::from_file_layout(&describe(config, n_layers)?, tensors)?;
    require_same_names(dir, &tensors, params)?;
    for (name, host) in &tensors {
        let value = to_tensor(host)?;
        if params.buffers().any(|(buffer, _)| buffer == name) {
            params.set_buffer(name, &value)?;
        } else {
            params.set_trainable(name, &value)?;
        }
    }
    Ok(())
}

fn require_same_names(
    dir: &Path,
    tensors: &IndexMap<String, HostTensor<'_>>,
    params: &Params,
) -> Result<()> {
    let wanted: Vec<&str> = params
        .slots()
        .iter()
        .map(|slot| slot.name.as_str())
        .chain(params.buffers().map(|(name, _)| name))
        .collect();
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !tensors.contains_key(*name))
        .collect();
    let extra: Vec<&str> = tensors
        .keys()
        .map(String::as_str)
        .filter(|name| !wanted.contains(name))
        .collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(Failure::weights(format!(
        "`{}` does not fit the model: {} trainable tensor(s) missing [{}], {} unknown [{}]\n\
         help: use the configuration that the adapter was trained with",
        dir.display(),
        missing.len(),
        missing.join(", "),
        extra.len(),
        extra.join(", ")
    )))
}

/// The record of the adapter in a checkpoint: classes and label column.
///
/// # Errors
/// When the file is missing or was written by something else.
pub(crate) fn read_record(checkpoint: &Path) -> Result<ScpeftRecord> {
    let dir = directory(checkpoint);
    let config = peft::read_adapter_config(&dir)?;
    config.scpeft.ok_or_else(|| {
        Failure::weights(format!(
            "`{}` was not written by scpeft: it does not say what was learned",
            dir.display()
        ))
    })
}
