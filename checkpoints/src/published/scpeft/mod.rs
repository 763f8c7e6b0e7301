//! Fine-tuned checkpoints of the scPEFT reference: the whole model in one `torch.save` file, 209 MB
//! of which one or two per cent were trained. [`extract`] takes adapters and heads out of one, by
//! comparing it with the backbone that it was trained from.
//!
//! The library and the scripts of the paper name their tensors differently ([`Variant`]), and LoRA
//! layers hold their projection under two names. Files written after an evaluation hold LoRA's
//! update twice: as factors and added to the projection ("merged"); only the factors are kept.

mod compare;
mod extract;
mod infer;
mod names;

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::peft::{AdapterSettings, Target};
use crate::tensor::{Dtype, HostTensor, TensorFile};
use names::{Group, Part};

pub use extract::{Extraction, extract, whole_model};
pub use names::Variant;

/// What a file does not say of its adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Assumptions {
    /// Numerator of the LoRA scale; 1 in the reference.
    pub lora_alpha: f64,
    /// Parts that LoRA updates; `None` for the reference's: query and value where there are two.
    pub targets: Option<Vec<Target>>,
    /// Whether bottlenecks add their input; true in the reference.
    pub skip_connect: bool,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            lora_alpha: 1.0,
            targets: None,
            skip_connect: true,
        }
    }
}

/// A tensor of the file under our name.
#[derive(Debug)]
struct Named {
    in_file: String,
    group: Group,
}

/// The tensors of a file sorted by what they are part of.
#[derive(Debug)]
pub struct Survey<'a> {
    file: &'a TensorFile,
    variant: Variant,
    /// Width D.
    d_model: usize,
    tensors: IndexMap<String, Named>,
    /// Second names of tensors, with equal values.
    duplicates: Vec<String>,
    /// Names that neither variant gives.
    unknown: Vec<String>,
}

/// How much one part of a file is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartSize {
    /// Tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// Sizes by part: `backbone`, the kind of an adapter, the module of a head, or another heading.
pub type PartSizes = IndexMap<String, PartSize>;

fn count(sizes: &mut PartSizes, part: String, dtype: Dtype, shape: &[usize]) {
    let size = sizes.entry(part).or_default();
    let parameters: usize = shape.iter().product();
    size.tensors += 1;
    size.parameters += parameters;
    size.bytes += parameters * dtype.size();
}

/// Whether a file has tensors that only adapters of the reference have.
pub fn is_fine_tuned(file: &TensorFile) -> bool {
    file.names()
        .any(|name| matches!(names::translate(name), Some((_, Group::Adapter { .. }))))
}

impl<'a> Survey<'a> {
    /// Sorts the tensors of a file.
    ///
    /// # Errors
    /// When two names of one tensor have different values, names of both variants are mixed, or
    /// there is no embedding, which tells the width.
    pub fn of(file: &'a TensorFile) -> Result<Self> {
        let mut survey = Self {
            file,
            variant: Variant::Either,
            d_model: 0,
            tensors: IndexMap::new(),
            duplicates: Vec::new(),
            unknown: Vec::new(),
        };
        for in_file in file.names() {
            match names::translate(in_file) {
                None => survey.unknown.push(in_file.to_owned()),
                Some((name, group)) => survey.add(in_file, name, group)?,
            }
        }
        let embedding = "encoder.embedding.weight";
        let shape = survey.shape(embedding).ok_or_else(|| Error::NoTensor {
            path: file.path().to_owned(),
            name: embedding.to_owned(),
        })?;
        survey.d_model = match *shape {
            [_, width] if width > 0 => width,
            _ => {
                let reason = format!("`{embedding}` is {shape:?}, expected [V, D]");
                return Err(Error::content(file.path(), reason));
            }
        };
        Ok(survey)
    }

    fn add(&mut self, in_file: &str, name: String, group: Group) -> Result<()> {
        if let Some(first) = self.tensors.get(&name) {
            if self.file.get(&first.in_file)? != self.file.get(in_file)? {
                return Err(Error::Ambiguous {
                    path: self.file.path().to_owned(),
                    first: first.in_file.clone(),
                    second: in_file.to_owned(),
                    name,
                });
            }
            self.duplicates.push(in_file.to_owned());
            return Ok(());
        }
        if let Group::Adapter { variant, .. } = group {
            self.variant = match (self.variant, variant) {
                (known, Variant::Either) => known,
                (Variant::Either, new) => new,
                (known, new) if known == new => known,
                (known, new) => {
                    let reason = format!(
                        "`{in_file}` is a name of the {new} variant, but names before it are of \
                         the {known} variant"
                    );
                    return Err(Error::content(self.file.path(), reason));
                }
            };
        }
        let in_file = in_file.to_owned();
        self.tensors.insert(name, Named { in_file, group });
        Ok(())
    }

    /// The code that wrote the file.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Names of tensors that neither variant of the reference has.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// Second names of tensors in the file.
    pub fn duplicates(&self) -> &[String] {
        &self.duplicates
    }

    /// The adapters of the file.
    ///
    /// # Errors
    /// When an adapter lacks a tensor or has one of an impossible shape.
    pub fn adapters(&self, assumed: &Assumptions) -> Result<Vec<AdapterSettings>> {
        infer::adapters(self, assumed)
    }

    /// Sizes of the backbone, each kind of adapter and each module of a head, without second names.
    pub fn sizes(&self) -> PartSizes {
        let mut sizes = PartSizes::new();
        for (name, named) in &self.tensors {
            if let Some((dtype, shape)) = self.file.info(&named.in_file) {
                count(&mut sizes, group_name(name, named.group), dtype, shape);
            }
        }
        sizes
    }

    /// Adapter tensors: our name, kind, layer, shape.
    fn adapter_tensors(&self) -> impl Iterator<Item = (&str, Part, Option<usize>, &[usize])> {
        self.tensors.iter().filter_map(|(name, named)| {
            let Group::Adapter { part, layer, .. } = named.group else {
                return None;
            };
            let shape = self.shape(name).expect("the name comes from the file");
            Some((name.as_str(), part, layer, shape))
        })
    }

    fn names_of(&self, wanted: impl Fn(Group) -> bool) -> impl Iterator<Item = &str> {
        self.tensors
            .iter()
            .filter(move |(_, named)| wanted(named.group))
            .map(|(name, _)| name.as_str())
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let named = self.tensors.get(name)?;
        self.file.info(&named.in_file).map(|(_, shape)| shape)
    }

    /// A tensor by our name.
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        let named = self.tensors.get(name)?;
        self.file.get(&named.in_file).ok()
    }
}

/// The first part of a name.
fn module_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn group_name(name: &str, group: Group) -> String {
    match group {
        Group::Backbone => "backbone".to_owned(),
        Group::Adapter { part, .. } => format!("{} adapter", part.name()),
        Group::Head => format!("head {}", module_of(name)),
        Group::Normalisation => format!("normalisation {}", module_of(name)),
    }
}
