//! The adapter directory of a checkpoint: everything that was trained, and the running statistics
//! of norms, in the layout of `scpeft_checkpoint::peft`.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use scpeft_checkpoint::peft::{AdapterSettings, Naming, ScpeftRecord, Target, drug};
use scpeft_checkpoint::{AdapterConfig, HostTensor, peft, read_adapter, write_adapter};
use scpeft_config::Config;
use scpeft_model::adapter::{
    AdapterOptions, DrugBias, DrugReading, DrugSite, Generator, LayerSelection, Placement,
    Projection,
};
use scpeft_model::backbone::Activation;
use scpeft_model::{Params, Role};
use serde_json::json;

use crate::assembly::Assembly;
use crate::backbone::{self, to_tensor};
use crate::failure::{Failure, Result};
use crate::settings;

const ADAPTER: &str = "adapter";
/// Blocks of a rotation.
const OFT_BLOCKS: usize = 4;

/// The adapter directory of a checkpoint.
pub(crate) fn directory(checkpoint: &Path) -> PathBuf {
    checkpoint.join(ADAPTER)
}

/// How the tensors of a run are stored; the same at every checkpoint.
#[derive(Debug)]
pub(crate) struct AdapterForm {
    adapters: Vec<AdapterSettings>,
    settings: AdapterConfig,
}

impl AdapterForm {
    /// The form for what `config` trains.
    ///
    /// # Errors
    /// When the adapters contradict each other.
    pub(crate) fn of(config: &Config, assembly: &Assembly) -> Result<Self> {
        let adapters = describe(config, assembly.backbone.shape.n_layers)?;
        Ok(Self {
            settings: adapter_config(config, assembly, adapters.clone())?,
            adapters,
        })
    }

    /// Writes the adapter directory of a checkpoint, reads it again as a resumption would, and
    /// compares names, shapes and bytes.
    ///
    /// # Errors
    /// When it cannot be written, or does not read back as it was given.
    pub(crate) fn write(
        &self,
        checkpoint: &Path,
        tensors: &[(String, HostTensor<'_>)],
    ) -> Result<()> {
        let dir = directory(checkpoint);
        let stored = peft::to_file_layout(&self.adapters, tensors.iter().cloned())?;
        write_adapter(&dir, &self.settings, &stored)?;
        let (_, read) = read_adapter(&dir)?;
        require_equal(
            &dir,
            tensors,
            &peft::from_file_layout(&self.adapters, read)?,
        )
    }
}

/// Refuses an adapter directory that does not hold what was written.
fn require_equal(
    dir: &Path,
    written: &[(String, HostTensor<'_>)],
    read: &IndexMap<String, HostTensor<'_>>,
) -> Result<()> {
    let differs = |reason: String| {
        Failure::new(
            scpeft_protocol::exit::INTERNAL,
            format!(
                "`{}` does not read back as it was written: {reason}",
                dir.display()
            ),
        )
    };
    for (name, expected) in written {
        match read.get(name) {
            None => return Err(differs(format!("`{name}` is missing"))),
            Some(found) if found.shape != expected.shape || found.dtype != expected.dtype => {
                return Err(differs(format!(
                    "`{name}` is {} {:?}, expected {} {:?}",
                    found.dtype, found.shape, expected.dtype, expected.shape
                )));
            }
            Some(found) if found.data != expected.data => {
                return Err(differs(format!("values of `{name}` differ")));
            }
            Some(_) => {}
        }
    }
    match read
        .keys()
        .find(|name| !written.iter().any(|(n, _)| n == *name))
    {
        Some(extra) => Err(differs(format!("`{extra}` was never written"))),
        None => Ok(()),
    }
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
        .filter_map(|(name, ..)| head_module(name).map(str::to_owned))
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

/// The module of a head's tensor: what comes first in its name, below the encoder where it is there.
fn head_module(name: &str) -> Option<&str> {
    name.strip_prefix("bert.").unwrap_or(name).split('.').next()
}

/// The adapters of a run as files name them.
fn describe(config: &Config, n_layers: usize) -> Result<Vec<AdapterSettings>> {
    let modules = backbone::names(config.backbone.architecture).projections;
    settings::adapters(config)
        .iter()
        .map(|options| one(options, n_layers, modules))
        .collect()
}

fn one(
    options: &AdapterOptions,
    n_layers: usize,
    modules: Option<[&'static str; 3]>,
) -> Result<AdapterSettings> {
    let resolve = |layers: &LayerSelection| Ok::<_, Failure>(layers.resolve(n_layers)?);
    Ok(match options {
        AdapterOptions::Encoder(o) => AdapterSettings::Encoder {
            layers: resolve(&o.layers)?,
            mlp_ratio: o.mlp_ratio,
            skip_connect: o.skip_connect,
            placement: match o.placement {
                Placement::AfterNorm => peft::Placement::AfterNorm,
                Placement::Context => peft::Placement::Context,
                Placement::AttentionOutput => peft::Placement::AttentionOutput,
            },
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
            separate: modules.is_some(),
            naming: if modules.is_some_and(|[q, ..]| q == Naming::Performer.module(Target::Q)) {
                Naming::Performer
            } else {
                Naming::Bert
            },
        },
        AdapterOptions::Hra(o) => AdapterSettings::Hra {
            layers: resolve(&o.layers)?,
            r: o.r as usize,
        },
        AdapterOptions::Oft(o) => AdapterSettings::Oft {
            layers: resolve(&o.layers)?,
            blocks: OFT_BLOCKS,
        },
        AdapterOptions::Drug(o) => AdapterSettings::Drug {
            layers: match o.reading {
                DrugReading::InputAdd => Vec::new(),
                _ => resolve(&o.layers)?,
            },
            width: o.width as usize,
            reading: drug_reading(&o.reading),
        },
    })
}

fn drug_reading(reading: &DrugReading) -> drug::DrugReading {
    match reading {
        DrugReading::Prefix { tokens } => drug::DrugReading::Prefix {
            token_nums: *tokens as usize,
        },
        DrugReading::InputAdd => drug::DrugReading::InputAdd {},
        DrugReading::Bottleneck(own) => drug::DrugReading::Bottleneck {
            site: match own.site {
                DrugSite::FeedForward => drug::DrugSite::FeedForward,
                DrugSite::Attention => drug::DrugSite::Attention,
                DrugSite::Both => drug::DrugSite::Both,
            },
            bottleneck: own.bottleneck as usize,
            bias: match own.bias {
                DrugBias::Down => drug::DrugBias::Down,
                DrugBias::DownAndUp => drug::DrugBias::DownAndUp,
                DrugBias::Static => drug::DrugBias::Static,
            },
            generator_hidden: match own.generator {
                Generator::Linear => None,
                Generator::Mlp { hidden } => Some(hidden as usize),
            },
            activation: match own.activation {
                Activation::Relu => drug::DrugActivation::Relu,
                Activation::Gelu => drug::DrugActivation::Gelu,
            },
        },
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_after_reading_back_is_named() {
        let tensor = |values: &[f32]| HostTensor::from_f32(vec![values.len()], values);
        let written = [
            ("a".to_owned(), tensor(&[1.0, 2.0])),
            ("b".to_owned(), tensor(&[0.0])),
        ];
        let good: IndexMap<String, HostTensor<'_>> = written.iter().cloned().collect();
        let check = |read: &IndexMap<String, HostTensor<'_>>| {
            require_equal(Path::new("x"), &written, read).map_err(|f| f.message)
        };
        check(&good).unwrap();
        let changed = |name: &str, value| {
            let mut map = good.clone();
            map.insert(name.to_owned(), value);
            check(&map).unwrap_err()
        };
        // Bytes, not numbers: -0 is not 0.
        assert!(changed("b", tensor(&[-0.0])).contains("values of `b` differ"));
        assert!(changed("b", tensor(&[0.0, 0.0])).contains("`b` is F32 [2], expected F32 [1]"));
        assert!(changed("c", tensor(&[0.0])).contains("`c` was never written"));
        let mut fewer = good.clone();
        fewer.shift_remove("a");
        assert!(check(&fewer).unwrap_err().contains("`a` is missing"));
    }
}
