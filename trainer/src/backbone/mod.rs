//! The backbone of a run: a published directory, or random weights of a configured shape.
//!
//! Each family is a file here and a line in [`family`]: it opens a backbone, makes the tokeniser that
//! goes with it, and says which architecture it is. All else asks [`Backbone`].

mod geneformer;
mod scbert;
mod scfoundation;
mod scgpt;

use std::path::Path;
use std::sync::Arc;

use scpeft_checkpoint::published::Weights;
use scpeft_checkpoint::{Dtype, HostTensor, Mapping, fsx};
use scpeft_config::{Config, Trainable};
use scpeft_data::{Corpus, Overlap, Tokenizer};
use scpeft_model::adapter::Names;
use scpeft_model::backbone::{Architecture, Heads, Shape};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::failure::Result;

/// Sub-directory of a run directory that holds what it takes to use the run's checkpoints without
/// the original backbone directory.
const IN_RUN_DIR: &str = "backbone";

/// The registry of families.
fn family(architecture: scpeft_config::Architecture) -> &'static dyn Family {
    match architecture {
        scpeft_config::Architecture::Scgpt => &scgpt::Scgpt,
        scpeft_config::Architecture::Geneformer => &geneformer::Geneformer,
        scpeft_config::Architecture::Scbert => &scbert::Scbert,
        scpeft_config::Architecture::Scfoundation => &scfoundation::Scfoundation,
    }
}

/// How the model of an architecture names its tensors.
pub(crate) fn names(architecture: scpeft_config::Architecture) -> Names {
    family(architecture).names()
}

/// A kind of backbone: how it is opened.
trait Family {
    /// How the model names its tensors.
    fn names(&self) -> Names;

    /// The backbone that the configuration names.
    fn for_training(&self, config: &Config, corpus: &Corpus) -> Result<Backbone>;

    /// The backbone of a run that trained, from what [`Opened::record`] wrote and, where there are
    /// some, the weights it was trained on.
    fn of_run(&self, config: &Config, run_dir: &Path) -> Result<Backbone>;
}

/// An opened backbone: everything but its weights.
trait Opened: std::fmt::Debug {
    /// What its files say, for the identity of a run.
    fn args(&self) -> Value;

    /// Writes these files into a directory.
    fn record(&self, dir: &Path) -> Result<()>;

    /// The tokeniser of a corpus, and how well their genes fit.
    fn tokenizer(&self, config: &Config, corpus: &Corpus) -> Result<(Arc<dyn Tokenizer>, Overlap)>;

    /// What a user should know of how well the genes fit, beyond the numbers of the corpus.
    fn coverage(&self, _overlap: &Overlap) -> Option<String> {
        None
    }

    /// The value that stands for a masked one.
    fn mask_value(&self) -> f32;

    /// The model of a configuration, with the heads of its task and told of so many batches.
    fn architecture(&self, config: &Config, heads: Heads, batches: usize) -> Box<dyn Architecture>;
}

/// Architecture, vocabulary and, for published backbones, weights.
#[derive(Debug)]
pub struct Backbone {
    /// Where it came from, for the record.
    pub origin: String,
    /// Identity of the weights.
    pub fingerprint: String,
    /// Dimensions of the encoder.
    pub shape: Shape,
    /// Layers of the classifier, output included.
    pub classifier_layers: usize,
    /// The opened weights; `None` when they start random or come whole from a checkpoint.
    pub weights: Option<Box<dyn Weights>>,
    opened: Box<dyn Opened>,
}

impl Backbone {
    /// The backbone that the configuration names.
    ///
    /// # Errors
    /// When its files are missing or malformed.
    pub fn for_training(config: &Config, corpus: &Corpus) -> Result<Self> {
        family(config.backbone.architecture).for_training(config, corpus)
    }

    /// The backbone of a run that trained, from what the run recorded and, unless every tensor was
    /// trained, the weights it was trained on.
    ///
    /// # Errors
    /// When files are missing or malformed.
    pub fn of_run(config: &Config, run_dir: &Path) -> Result<Self> {
        family(config.backbone.architecture).of_run(config, run_dir)
    }

    /// The tokeniser of a corpus, and how well their genes fit.
    ///
    /// # Errors
    /// No gene in the vocabulary, or settings that do not suit the backbone.
    pub fn tokenizer(
        &self,
        config: &Config,
        corpus: &Corpus,
    ) -> Result<(Arc<dyn Tokenizer>, Overlap)> {
        self.opened.tokenizer(config, corpus)
    }

    /// What a user should know of how well the genes fit, beyond the numbers of the corpus.
    pub(crate) fn coverage(&self, overlap: &Overlap) -> Option<String> {
        self.opened.coverage(overlap)
    }

    /// The value that stands for a masked one.
    pub fn mask_value(&self) -> f32 {
        self.opened.mask_value()
    }

    /// The model of a configuration, with the heads of its task and told of so many batches.
    pub fn architecture(
        &self,
        config: &Config,
        heads: Heads,
        batches: usize,
    ) -> Box<dyn Architecture> {
        self.opened.architecture(config, heads, batches)
    }

    /// What the files of the backbone say, for the identity of a run.
    pub(crate) fn args(&self) -> Value {
        self.opened.args()
    }

    /// Writes these files into a run directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn record(&self, run_dir: &Path) -> Result<()> {
        let dir = run_dir.join(IN_RUN_DIR);
        fsx::create_dir_all(&dir)?;
        self.opened.record(&dir)
    }
}

/// Where the weights lie that a run was trained on; `None` when its checkpoints hold all of them.
fn weights_of_run(config: &Config) -> Option<&Path> {
    let path = config.backbone.path.as_deref();
    path.filter(|_| config.task.trainable != Trainable::All)
}

/// A tensor of opened weights, in place where the file has it in f32: a view of the mapped
/// file, without a copy. The view is valid as long as `weights` live.
///
/// # Errors
/// When its type is no floating type.
pub(crate) fn load(weights: &dyn Weights, name: &str) -> Result<Option<Tensor>> {
    let mapped = weights.mapped(name).and_then(Mapping::in_place);
    let Some(mapped) = mapped.filter(|m| m.dtype() == Dtype::F32) else {
        return weights.get(name).map(|host| to_tensor(&host)).transpose();
    };
    let shape: Vec<i64> = mapped.shape().iter().map(|&n| n as i64).collect();
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    // SAFETY: aligned, row-major f32 elements of the map, which `weights` keep; the map is
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

/// A tensor from its bytes, on the CPU: as f64 where it is stored so, else as f32.
///
/// # Errors
/// When its type is no floating type.
pub fn to_tensor(host: &HostTensor<'_>) -> Result<Tensor> {
    let shape: Vec<i64> = host.shape.iter().map(|&n| n as i64).collect();
    let kept = match host.dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    };
    if let Some(kind) = kept {
        return Ok(Tensor::f_from_data_size(&host.data, &shape, kind)?);
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
