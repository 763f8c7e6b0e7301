//! Taking adapters and heads out of a fine-tuned file.

use std::fmt;
use std::path::Path;

use super::compare::{self, Differences};
use super::names::Group;
use super::{Assumptions, PartSize, PartSizes, Survey, count, group_name, module_of};
use crate::error::{Error, Result};
use crate::fsx;
use crate::peft::{self, AdapterConfig, AdapterSettings, ScpeftRecord, write_adapter};
use crate::published::LoadReport;
use crate::published::scgpt::ScgptDirectory;
use crate::tensor::{Dtype, HostTensor};

/// Parts of a backbone that a fine-tuned file must have.
const NEEDED: [&str; 2] = ["encoder.", "transformer_encoder."];

/// Adapters and heads of a fine-tuned file, under our names.
#[derive(Debug)]
pub struct Extraction<'a> {
    /// The adapters with what could be inferred of their settings.
    pub adapters: Vec<AdapterSettings>,
    /// Modules that were trained whole.
    pub heads: Vec<String>,
    /// Tensors in the model's layout.
    pub tensors: Vec<(String, HostTensor<'a>)>,
    /// The task that these heads belong to; empty when they tell none.
    pub task: &'static str,
    /// What is kept, part by part.
    pub kept: PartSizes,
    /// What is left out, by what it is.
    pub skipped: PartSizes,
    /// What was found or assumed on the way, for the user.
    pub notes: Vec<String>,
    source: String,
}

/// Takes adapters and heads out of a file by comparison with the backbone it was trained from.
///
/// # Errors
/// When the file and the backbone do not belong together, weights other than adapters and heads
/// were trained ([`Error::NotAnAdapter`]), LoRA was merged with another scale than assumed
/// ([`Error::LoraScale`]), or there is nothing to take.
pub fn extract<'a>(
    survey: &Survey<'a>,
    backbone: &ScgptDirectory,
    assumed: &Assumptions,
) -> Result<Extraction<'a>> {
    check_fit(survey, backbone)?;
    let mut adapters = survey.adapters(assumed)?;
    check_layers(survey, backbone, &adapters)?;
    let found = compare::differences(survey, backbone, &adapters)?;
    let value_encoder = trained_value_encoder(survey, backbone, &found);
    let mut differing = found.others.clone();
    if !value_encoder {
        differing.extend(found.value_encoder.iter().cloned());
    }
    if !differing.is_empty() {
        return Err(Error::NotAnAdapter {
            path: survey.file.path().to_owned(),
            backbone: backbone.dir().to_owned(),
            tensors: differing,
        });
    }
    let train_bias = !found.biases.is_empty();
    for adapter in &mut adapters {
        if let AdapterSettings::Lora { train_qkv_bias, .. } = adapter {
            *train_qkv_bias = train_bias;
        }
    }
    let heads = trained_heads(survey, backbone, value_encoder);
    let mut extraction = Extraction {
        task: task_of(&heads),
        notes: notes(survey, &adapters, assumed, &found),
        source: source(survey),
        adapters,
        heads,
        tensors: Vec::new(),
        kept: PartSizes::new(),
        skipped: PartSizes::new(),
    };
    extraction.collect(survey, train_bias)?;
    if extraction.tensors.is_empty() {
        let reason = format!(
            "holds no adapter and no head that is not in `{}` already",
            backbone.dir().display()
        );
        return Err(Error::content(survey.file.path(), reason));
    }
    Ok(extraction)
}

/// The whole model under our names, for a backbone directory beside the vocabulary of `backbone`.
/// Names that the reference does not have are kept as they are.
///
/// # Errors
/// When the file lacks tensors of the backbone or they have other shapes.
pub fn whole_model<'a>(
    survey: &Survey<'a>,
    backbone: &ScgptDirectory,
) -> Result<Vec<(String, HostTensor<'a>)>> {
    check_fit(survey, backbone)?;
    let ours = survey
        .tensors
        .iter()
        .map(|(name, named)| (name, &named.in_file));
    let unknown = survey.unknown.iter().map(|name| (name, name));
    ours.chain(unknown)
        .map(|(name, in_file)| Ok((name.clone(), survey.file.get(in_file)?)))
        .collect()
}

/// Vocabulary and shapes of the file must be those of the backbone.
fn check_fit(survey: &Survey<'_>, backbone: &ScgptDirectory) -> Result<()> {
    let path = survey.file.path();
    let rows = survey.shape("encoder.embedding.weight").map_or(0, |s| s[0]);
    let tokens = backbone.vocabulary().len();
    if rows != tokens {
        return Err(Error::Content {
            path: path.to_owned(),
            reason: format!(
                "its embedding has {rows} rows, but vocab.json of `{}` has {tokens} tokens",
                backbone.dir().display()
            ),
            help: Some("name with `--backbone` the backbone that it was trained from"),
        });
    }
    let is_backbone = |name: &str| {
        super::names::translate(name).is_some_and(|(_, group)| group == Group::Backbone)
    };
    let file = survey
        .names_of(|group| group == Group::Backbone)
        .filter_map(|name| Some((name, survey.shape(name)?)));
    let model = backbone.shapes().filter(|(name, _)| is_backbone(name));
    let report = LoadReport::compare(model, file);
    let needed = |name: &str| NEEDED.iter().any(|prefix| name.starts_with(prefix));
    let what = format!("`{}`, compared with its backbone,", path.display());
    let present = |name: &str| needed(name) || survey.shape(name).is_some();
    report.require_complete(&what, present)?;
    let extra: Vec<&String> = report.extra.iter().filter(|name| needed(name)).collect();
    if let Some(first) = extra.first() {
        let reason = format!(
            "`{first}` and {} more are not in the backbone `{}`",
            extra.len() - 1,
            backbone.dir().display()
        );
        return Err(Error::content(path, reason));
    }
    Ok(())
}

/// Adapters sit in layers that there are.
fn check_layers(
    survey: &Survey<'_>,
    backbone: &ScgptDirectory,
    adapters: &[AdapterSettings],
) -> Result<()> {
    let n_layers = backbone.args().nlayers;
    for adapter in adapters {
        let beyond = adapter
            .layers()
            .and_then(|list| list.iter().find(|&&i| i >= n_layers));
        if let Some(layer) = beyond {
            let reason = format!(
                "has a {} adapter in layer {layer}, the backbone has layers 0 to {}",
                adapter.kind(),
                n_layers - 1
            );
            return Err(Error::content(survey.file.path(), reason));
        }
    }
    Ok(())
}

/// Perturbation models train the whole value encoder; models with another style of input have one
/// that the backbone does not have.
fn trained_value_encoder(
    survey: &Survey<'_>,
    backbone: &ScgptDirectory,
    found: &Differences,
) -> bool {
    let perturbation = survey.shape("pert_encoder.weight").is_some();
    let own = survey
        .names_of(|group| group == Group::Backbone)
        .any(|name| name.starts_with("value_encoder.") && backbone.get(name).is_none());
    own || perturbation && !found.value_encoder.is_empty()
}

/// Modules outside the backbone with a tensor that the backbone does not have or that differs.
fn trained_heads(
    survey: &Survey<'_>,
    backbone: &ScgptDirectory,
    value_encoder: bool,
) -> Vec<String> {
    let mut heads: Vec<String> = Vec::new();
    if value_encoder {
        heads.push("value_encoder".to_owned());
    }
    for name in survey.names_of(|g| matches!(g, Group::Head | Group::Normalisation)) {
        let module = module_of(name);
        if heads.iter().any(|known| known == module) {
            continue;
        }
        let same = match (survey.tensor(name), backbone.get(name)) {
            (Some(ours), Some(theirs)) => compare::equal(&ours, &theirs),
            _ => false,
        };
        if !same {
            heads.push(module.to_owned());
        }
    }
    heads
}

fn task_of(heads: &[String]) -> &'static str {
    let has = |name: &str| heads.iter().any(|head| head == name);
    if has("pert_encoder") {
        "perturbation"
    } else if has("dsbn") || has("grad_reverse_discriminator") || has("batch_encoder") {
        "batch-correction"
    } else if has("cls_decoder") {
        "identification"
    } else if has("decoder") || has("mvc_decoder") {
        "masked-expression"
    } else {
        ""
    }
}

/// What the file is, for the record; without its folder.
fn source(survey: &Survey<'_>) -> String {
    let name = survey.file.path().file_name().unwrap_or_default();
    format!("scPEFT ({}) {}", survey.variant, name.to_string_lossy())
}

fn notes(
    survey: &Survey<'_>,
    adapters: &[AdapterSettings],
    assumed: &Assumptions,
    found: &Differences,
) -> Vec<String> {
    let mut notes = Vec::new();
    let lora = adapters.iter().find_map(|adapter| match adapter {
        AdapterSettings::Lora { targets, .. } => Some(targets),
        _ => None,
    });
    if let Some(targets) = lora {
        let parts: Vec<String> = targets.iter().map(ToString::to_string).collect();
        if found.merged.is_empty() {
            notes.push(format!(
                "lora_alpha is not in the file: {} is taken, on {}",
                assumed.lora_alpha,
                parts.join(", ")
            ));
        } else {
            notes.push(format!(
                "the projections of layers {:?} were saved with LoRA's update added (lora_alpha {} \
                 on {}): they are not stored, the factors are",
                found.merged,
                assumed.lora_alpha,
                parts.join(", ")
            ));
        }
        if !found.biases.is_empty() {
            notes.push(format!(
                "the projection bias was trained in layers {:?}: it is stored for all LoRA layers",
                found.biases
            ));
        }
    }
    let bottleneck = adapters.iter().any(|adapter| {
        matches!(
            adapter,
            AdapterSettings::Encoder { .. } | AdapterSettings::Token { .. }
        )
    });
    if bottleneck {
        let with = if assumed.skip_connect {
            "with"
        } else {
            "without"
        };
        notes.push(format!(
            "whether bottlenecks add their input is not in the file: {with} skip connection is taken"
        ));
    }
    if !survey.file.others().is_empty() {
        let others = survey.file.others().join(", ");
        notes.push(format!(
            "entries that are no tensors are left out: {others}"
        ));
    }
    notes
}

impl<'a> Extraction<'a> {
    /// Sorts every tensor of the file into what is kept and what is left out.
    fn collect(&mut self, survey: &Survey<'a>, train_bias: bool) -> Result<()> {
        let lora_layers: Vec<usize> = self
            .adapters
            .iter()
            .filter(|adapter| adapter.packed_layout().is_some())
            .flat_map(|adapter| adapter.layers().unwrap_or_default().to_vec())
            .collect();
        let bias_names: Vec<String> = lora_layers
            .iter()
            .map(|layer| format!("transformer_encoder.layers.{layer}.self_attn.in_proj_bias"))
            .collect();
        for (name, named) in &survey.tensors {
            let tensor = survey.file.get(&named.in_file)?;
            let is_bias = train_bias && bias_names.contains(name);
            let is_module = self.heads.iter().any(|head| head == module_of(name));
            let group = group_name(name, named.group);
            let (keep, what) = match named.group {
                Group::Adapter { .. } => (true, group),
                Group::Backbone if is_bias => (true, "lora adapter".to_owned()),
                Group::Backbone if is_module => (true, "head value_encoder".to_owned()),
                Group::Head | Group::Normalisation if is_module => (true, group),
                _ => (false, format!("{group}, as published")),
            };
            let sizes = if keep {
                &mut self.kept
            } else {
                &mut self.skipped
            };
            count(sizes, what, tensor.dtype, &tensor.shape);
            if keep {
                self.tensors.push((name.clone(), single(tensor)?));
            }
        }
        let second = survey.duplicates.iter().map(|name| (name, None));
        let unknown = survey.unknown.iter().map(|name| (name, Some(name)));
        for (name, shown) in second.chain(unknown) {
            let what = shown.map_or("second names of tensors".to_owned(), |name| {
                format!("unknown: {name}")
            });
            if let Some((dtype, shape)) = survey.file.info(name) {
                count(&mut self.skipped, what, dtype, shape);
            }
        }
        Ok(())
    }

    /// Writes the adapter directory, which must not exist.
    ///
    /// # Errors
    /// When it exists or cannot be written.
    pub fn write(&self, dir: &Path, backbone: &ScgptDirectory) -> Result<()> {
        fsx::refuse_existing(dir)?;
        let record = ScpeftRecord {
            backbone_fingerprint: backbone.fingerprint(),
            task: self.task.to_owned(),
            converted_from: Some(self.source.clone()),
            ..ScpeftRecord::default()
        };
        let config = AdapterConfig::of_adapters(self.adapters.clone(), self.heads.clone(), record)?;
        let config = AdapterConfig {
            base_model_name_or_path: Some(backbone.dir().display().to_string()),
            ..config
        };
        let tensors = peft::to_file_layout(&self.adapters, self.tensors.iter().cloned())?;
        write_adapter(dir, &config, &tensors)
    }
}

/// Floating types in single precision, as adapters are stored; counters as they are.
fn single(tensor: HostTensor<'_>) -> Result<HostTensor<'_>> {
    match tensor.dtype {
        Dtype::F16 | Dtype::BF16 | Dtype::F64 => {
            let values = tensor.to_f32()?;
            Ok(HostTensor::from_f32(tensor.shape, &values))
        }
        _ => Ok(tensor),
    }
}

impl fmt::Display for Extraction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.kept.keys().chain(self.skipped.keys());
        let width = parts
            .map(|part| part.chars().count())
            .max()
            .unwrap_or(0)
            .max(7);
        for (title, sizes) in [("stored", &self.kept), ("skipped", &self.skipped)] {
            if sizes.is_empty() {
                continue;
            }
            writeln!(f, "  {title:width$}  tensors  parameters        MB")?;
            for (part, size) in sizes {
                let megabytes = size.bytes as f64 / 1e6;
                let PartSize {
                    tensors,
                    parameters,
                    ..
                } = size;
                writeln!(
                    f,
                    "  {part:width$}  {tensors:7}  {parameters:10}  {megabytes:8.3}"
                )?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
