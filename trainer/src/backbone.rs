//! The backbone of a run: a published directory, or random weights of a configured shape.

use std::path::Path;

use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary};
use scpeft_checkpoint::{Dtype, HostTensor, Mapping, ScgptDirectory, fsx};
use scpeft_config::{Config, Trainable};
use scpeft_data::{Corpus, Vocab};
use scpeft_model::backbone::scgpt::{Shape, ValueStyle};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::failure::{Failure, Result};
use crate::feed::TokenConventions;

/// Sub-directory of a run directory that holds `args.json` and `vocab.json`: what it takes to use
/// the run's checkpoints without the original backbone directory.
const IN_RUN_DIR: &str = "backbone";

/// Architecture, vocabulary and, for published backbones, weights.
#[derive(Debug)]
pub struct Backbone {
    /// Where it came from, for the record.
    pub origin: String,
    /// Identity of the weights.
    pub fingerprint: String,
    /// Gene tokens.
    pub vocab: Vocab,
    /// Dimensions of the encoder.
    pub shape: Shape,
    /// What an expression value becomes.
    pub values: ValueStyle,
    /// Layers of the classifier, output included.
    pub classifier_layers: usize,
    /// The opened weights; `None` when they start random or come whole from a checkpoint.
    pub directory: Option<ScgptDirectory>,
    args: ScgptArgs,
    vocabulary: Vocabulary,
}

impl Backbone {
    /// The backbone that the configuration names.
    ///
    /// # Errors
    /// When its files are missing or malformed.
    pub fn for_training(config: &Config, corpus: &Corpus) -> Result<Self> {
        if let Some(path) = &config.backbone.path {
            let backbone = Self::published(path)?;
            require_style(config, &backbone.args, path)?;
            return Ok(backbone);
        }
        let vocabulary = match &config.backbone.vocab {
            scpeft_config::Vocab::Corpus => {
                let vocab =
                    Vocab::from_genes(corpus.genes(), crate::feed::gene_key(config.data.gene_key));
                Vocabulary::new(vocab.tokens().to_vec(), &config.data.corpus)?
            }
            scpeft_config::Vocab::Path(path) => Vocabulary::read(path)?,
        };
        let args = random_args(config);
        let fingerprint = format!("random-{}", config.run.seed);
        Self::assemble("random".into(), fingerprint, args, vocabulary, None)
    }

    fn published(path: &Path) -> Result<Self> {
        let directory = ScgptDirectory::open(path)?;
        let (args, vocabulary) = (directory.args().clone(), directory.vocabulary().clone());
        let origin = path.display().to_string();
        let fingerprint = directory.fingerprint();
        Self::assemble(origin, fingerprint, args, vocabulary, Some(directory))
    }

    /// The backbone of a run that trained, from what the run recorded and, unless every tensor was
    /// trained, the weights it was trained on.
    ///
    /// # Errors
    /// When files are missing or malformed.
    pub fn of_run(config: &Config, run_dir: &Path) -> Result<Self> {
        let dir = run_dir.join(IN_RUN_DIR);
        let args = ScgptArgs::read(&dir.join("args.json"))?;
        let vocabulary = Vocabulary::read(&dir.join("vocab.json"))?;
        match &config.backbone.path {
            Some(path) if config.task.trainable != Trainable::All => {
                let backbone = Self::published(path)?;
                if backbone.args != args {
                    return Err(Failure::weights(format!(
                        "`{}`: its args.json is not the one the run was trained with\n\
                         help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
                        path.display()
                    )));
                }
                if backbone.vocabulary != vocabulary {
                    return Err(Failure::weights(format!(
                        "`{}`: its vocabulary is not the one the run was trained with\n\
                         help: put back the backbone of the run, or name it with `--set backbone.path=DIR`",
                        path.display()
                    )));
                }
                Ok(backbone)
            }
            _ => Self::assemble("run".into(), String::new(), args, vocabulary, None),
        }
    }

    fn assemble(
        origin: String,
        fingerprint: String,
        args: ScgptArgs,
        vocabulary: Vocabulary,
        directory: Option<ScgptDirectory>,
    ) -> Result<Self> {
        let vocab = Vocab::from_tokens(vocabulary.tokens().to_vec());
        let shape = Shape {
            vocab: vocab.len() as i64,
            d_model: args.embsize as i64,
            n_heads: args.nheads as i64,
            d_hid: args.d_hid as i64,
            n_layers: args.nlayers,
            pad_id: i64::from(vocab.pad_id()),
        };
        let classifier_layers = args.n_layers_cls;
        Ok(Self {
            origin,
            fingerprint,
            vocab,
            shape,
            values: value_style(&args)?,
            classifier_layers,
            directory,
            args,
            vocabulary,
        })
    }

    /// What the backbone fixes about its input.
    pub fn conventions(&self) -> TokenConventions {
        let n_bins = self.args.n_bins;
        match self.values {
            ValueStyle::Category { .. } => {
                let style = scpeft_data::ValueStyle::Category;
                TokenConventions {
                    n_bins,
                    value_style: style,
                    pad_value: style.pad_value(n_bins),
                    mask_value: style.mask_value(n_bins),
                }
            }
            ValueStyle::Continuous | ValueStyle::Scaling => TokenConventions {
                n_bins,
                value_style: scpeft_data::ValueStyle::Continuous,
                pad_value: self.args.pad_value as f32,
                mask_value: self.args.mask_value as f32,
            },
        }
    }

    /// What `args.json` says, for the identity of a run.
    pub(crate) fn args(&self) -> Value {
        serde_json::to_value(&self.args).unwrap_or_default()
    }

    /// Writes `args.json` and `vocab.json` into a run directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn record(&self, run_dir: &Path) -> Result<()> {
        let dir = run_dir.join(IN_RUN_DIR);
        fsx::create_dir_all(&dir)?;
        let args = serde_json::to_string_pretty(&self.args).unwrap_or_default();
        fsx::write_atomic(&dir.join("args.json"), args.as_bytes())?;
        fsx::write_atomic(
            &dir.join("vocab.json"),
            self.vocabulary.to_json().as_bytes(),
        )?;
        Ok(())
    }
}

/// The key of `args.json` that says what a value becomes.
const VALUE_STYLE: &str = "input_emb_style";

fn value_style(args: &ScgptArgs) -> Result<ValueStyle> {
    let n_bins = args.n_bins as i64;
    match args.others.get(VALUE_STYLE).map(Value::as_str) {
        None | Some(Some("continuous")) => Ok(ValueStyle::Continuous),
        Some(Some("scaling")) => Ok(ValueStyle::Scaling),
        Some(Some("category")) => Ok(ValueStyle::Category {
            n_input_bins: n_bins + 2,
            pad_value: n_bins,
        }),
        Some(other) => Err(Failure::weights(format!(
            "args.json: `{VALUE_STYLE}` is {other:?}, expected `continuous`, `category` or `scaling`"
        ))),
    }
}

/// The keys of `args.json` that say what else the encoder computes.
const CELL_STYLE: &str = "cell_emb_style";
const NORM: &str = "embedding_norm";

/// A backbone that was pretrained in one style computes something else in another.
fn require_style(config: &Config, args: &ScgptArgs, path: &Path) -> Result<()> {
    let backbone = &config.backbone;
    for (key, setting, now) in [
        (
            CELL_STYLE,
            "backbone.cell_style",
            backbone.cell_style.as_str(),
        ),
        (NORM, "backbone.norm", backbone.norm.as_str()),
    ] {
        let then = args.others.get(key).and_then(Value::as_str);
        if let Some(then) = then.filter(|then| *then != now) {
            return Err(Failure::config(format!(
                "`{setting}` is `{now}`, the backbone `{}` was trained with `{then}`\n\
                 help: set `{setting} = \"{then}\"`",
                path.display()
            )));
        }
    }
    Ok(())
}

/// `args.json` of a backbone that starts random.
fn random_args(config: &Config) -> ScgptArgs {
    let shape = &config.backbone.shape;
    let mut others = Map::new();
    others.insert("max_seq_len".into(), Value::from(config.data.max_len));
    others.insert(VALUE_STYLE.into(), shape.value_style.as_str().into());
    let backbone = &config.backbone;
    others.insert(CELL_STYLE.into(), backbone.cell_style.as_str().into());
    others.insert(NORM.into(), backbone.norm.as_str().into());
    ScgptArgs {
        embsize: shape.d_model,
        nheads: shape.n_heads,
        d_hid: shape.d_hid,
        nlayers: shape.n_layers,
        n_layers_cls: shape.n_layers_cls,
        n_bins: shape.n_bins,
        pad_token: scpeft_data::vocab::PAD.to_owned(),
        pad_value: -2.0,
        mask_value: -1.0,
        dropout: config.backbone.dropout,
        others,
    }
}

/// A tensor of an opened directory, in place where the file has it in f32: a view of the mapped
/// file, without a copy. The view is valid as long as `directory` lives.
///
/// # Errors
/// When its type is no floating type.
pub(crate) fn load(directory: &ScgptDirectory, name: &str) -> Result<Option<Tensor>> {
    let mapped = directory.mapped(name).and_then(Mapping::in_place);
    let Some(mapped) = mapped.filter(|m| m.dtype() == Dtype::F32) else {
        return directory.get(name).map(|host| to_tensor(&host)).transpose();
    };
    let shape: Vec<i64> = mapped.shape().iter().map(|&n| n as i64).collect();
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    // SAFETY: aligned, row-major f32 elements of the map, which `directory` keeps; the map is
    // private to this process, and frozen tensors are never written to.
    let view = unsafe {
        Tensor::f_from_blob(
            mapped.as_mut_ptr().cast_const(),
            &shape,
            &strides,
            Kind::Float,
            tch::Device::Cpu,
        )
    }?;
    Ok(Some(view))
}

/// A tensor from its bytes, as f32 on the CPU.
///
/// # Errors
/// When its type is no floating type.
pub fn to_tensor(host: &HostTensor<'_>) -> Result<Tensor> {
    let shape: Vec<i64> = host.shape.iter().map(|&n| n as i64).collect();
    if host.dtype == scpeft_checkpoint::Dtype::F32 {
        return Ok(Tensor::f_from_data_size(&host.data, &shape, Kind::Float)?);
    }
    Ok(Tensor::f_from_slice(&host.to_f32()?)?.f_view(shape.as_slice())?)
}

/// The bytes of a tensor, as f32.
///
/// # Errors
/// Only if libtorch fails.
pub fn to_host(tensor: &Tensor) -> Result<HostTensor<'static>> {
    let shape = tensor.size().iter().map(|&n| n as usize).collect();
    let flat = tensor
        .f_detach()?
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_reshape([-1])?;
    Ok(HostTensor::from_f32(shape, &Vec::<f32>::try_from(&flat)?))
}
