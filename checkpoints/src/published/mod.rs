//! Published checkpoints: one module per family, and what they share: the report of a load and
//! the fingerprint of a set of tensors.

pub mod geneformer;
pub mod scbert;
pub mod scfoundation;
pub mod scgpt;
pub mod scpeft;

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::mapped::Mapping;
use crate::tensor::HostTensor;

/// Names listed of each kind before the report says how many more there are.
const LISTED_MAX: usize = 12;

/// The tensors of an opened backbone, under the names that its model has for them.
pub trait Weights: fmt::Debug {
    /// The directory that they come from.
    fn dir(&self) -> &Path;

    /// Names and shapes.
    fn shapes(&self) -> Vec<(&str, &[usize])>;

    /// One tensor.
    fn get(&self, name: &str) -> Option<HostTensor<'_>>;

    /// One tensor in place, where its file allows it.
    fn mapped(&self, name: &str) -> Option<Mapping>;
}

/// The files that tell what kind of backbone a directory holds, most telling first: kind, article
/// included, and the configuration's name of it.
const MARKS: [(&str, &str, &str); 4] = [
    (scfoundation::CONFIG, "an scFoundation", "scfoundation"),
    (scbert::CONFIG, "an scBERT", "scbert"),
    ("args.json", "an scGPT", "scgpt"),
    (geneformer::CONFIG, "a Geneformer", "geneformer"),
];

/// Refuses a directory that holds a backbone of another kind than that of `mark`, the telling file.
///
/// # Errors
/// Naming the kind that it is.
fn require_kind(dir: &Path, mark: &str) -> Result<()> {
    let there = MARKS.iter().find(|(file, ..)| dir.join(file).exists());
    let wanted = MARKS.iter().find(|(file, ..)| *file == mark);
    match (there, wanted) {
        (Some((file, found, architecture)), Some((_, wanted, _))) if *file != mark => {
            Err(Error::OtherBackbone {
                dir: dir.to_owned(),
                found,
                wanted,
                architecture,
            })
        }
        _ => Ok(()),
    }
}

/// What happened to each tensor of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// In the file and in the model, with the same shape.
    pub loaded: Vec<String>,
    /// In the model only: they keep their initial values.
    pub missing: Vec<String>,
    /// In the file only: ignored.
    pub extra: Vec<String>,
    /// In both with different shapes: not loaded.
    pub mismatched: Vec<Mismatch>,
}

/// A tensor whose shape differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// The shape in the model.
    pub model: Vec<usize>,
    /// The shape in the file.
    pub file: Vec<usize>,
}

impl LoadReport {
    /// Compares the model's tensors with those of a file; both by name and shape.
    pub fn compare<'a>(
        model: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        file: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Self {
        let mut in_file: indexmap::IndexMap<&str, &[usize]> = file.into_iter().collect();
        let mut report = Self::default();
        for (name, shape) in model {
            match in_file.shift_remove(name) {
                None => report.missing.push(name.to_owned()),
                Some(found) if found == shape => report.loaded.push(name.to_owned()),
                Some(found) => report.mismatched.push(Mismatch {
                    name: name.to_owned(),
                    model: shape.to_vec(),
                    file: found.to_vec(),
                }),
            }
        }
        report.extra = in_file.keys().map(|&name| name.to_owned()).collect();
        report
    }

    /// Fails when a tensor that `needed` selects is missing or has another shape.
    ///
    /// # Errors
    /// With a report of only the needed tensors that were not loaded.
    pub fn require_complete(&self, what: &str, needed: impl Fn(&str) -> bool) -> Result<()> {
        let missing: Vec<_> = self.missing.iter().filter(|n| needed(n)).cloned().collect();
        let mismatched: Vec<_> = self
            .mismatched
            .iter()
            .filter(|m| needed(&m.name))
            .cloned()
            .collect();
        if missing.is_empty() && mismatched.is_empty() {
            return Ok(());
        }
        let report = Self {
            missing,
            mismatched,
            ..self.clone()
        };
        Err(Error::Incomplete {
            what: what.to_owned(),
            report: Box::new(report),
        })
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} loaded, {} missing, {} with another shape, {} extra",
            self.loaded.len(),
            self.missing.len(),
            self.mismatched.len(),
            self.extra.len()
        )?;
        let mismatched: Vec<String> = self
            .mismatched
            .iter()
            .map(|m| {
                format!(
                    "{}: {:?} in the model, {:?} in the file",
                    m.name, m.model, m.file
                )
            })
            .collect();
        for (title, names) in [
            ("missing (keep their initial values)", &self.missing),
            ("with another shape (not loaded)", &mismatched),
            ("extra in the file (ignored)", &self.extra),
        ] {
            if names.is_empty() {
                continue;
            }
            write!(f, "\n  {title}:")?;
            for name in names.iter().take(LISTED_MAX) {
                write!(f, "\n    {name}")?;
            }
            if names.len() > LISTED_MAX {
                write!(f, "\n    … and {} more", names.len() - LISTED_MAX)?;
            }
        }
        Ok(())
    }
}

/// The identity of a set of tensors: BLAKE3 over names, types, shapes and bytes in the order of
/// the names, in hexadecimal. Independent of the file format and of the order in the file.
pub fn fingerprint<'a>(tensors: impl IntoIterator<Item = (&'a str, HostTensor<'a>)>) -> String {
    let mut sorted: Vec<_> = tensors.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    let mut hasher = blake3::Hasher::new();
    let length = |hasher: &mut blake3::Hasher, n: usize| {
        hasher.update(&(n as u64).to_le_bytes());
    };
    for (name, tensor) in &sorted {
        for text in [name, tensor.dtype.name()] {
            length(&mut hasher, text.len());
            hasher.update(text.as_bytes());
        }
        length(&mut hasher, tensor.shape.len());
        tensor.shape.iter().for_each(|&n| length(&mut hasher, n));
        length(&mut hasher, tensor.data.len());
        hasher.update(&tensor.data);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_first_and_shortens_long_lists() {
        let names: Vec<String> = (0..20).map(|i| format!("layer.{i:02}")).collect();
        let shape = [2, 3];
        let model: Vec<(&str, &[usize])> = names.iter().map(|n| (n.as_str(), &shape[..])).collect();
        let file: Vec<(&str, &[usize])> =
            vec![("layer.00", &[2, 3]), ("layer.01", &[3, 2]), ("flag", &[1])];
        let report = LoadReport::compare(model, file);
        assert_eq!(report.loaded, ["layer.00"]);
        let text = report.to_string();
        assert!(
            text.starts_with("1 loaded, 18 missing, 1 with another shape, 1 extra"),
            "{text}"
        );
        assert!(
            text.contains("layer.01: [2, 3] in the model, [3, 2] in the file"),
            "{text}"
        );
        assert!(
            text.contains("… and 6 more") && !text.contains("layer.19"),
            "{text}"
        );
        let error = report
            .require_complete("backbone `x`", |n| n == "layer.01")
            .unwrap_err();
        assert!(
            error.to_string().contains("backbone `x` is incomplete"),
            "{error}"
        );
        assert!(
            report
                .require_complete("backbone", |n| n == "layer.00")
                .is_ok()
        );
    }

    #[test]
    fn a_fingerprint_depends_on_everything_but_the_order() {
        let a = HostTensor::from_f32(vec![2], &[1.0, 2.0]);
        let b = HostTensor::from_f32(vec![1, 2], &[1.0, 2.0]);
        let forward = fingerprint([("a", a.clone()), ("b", b.clone())]);
        assert_eq!(forward, fingerprint([("b", b.clone()), ("a", a.clone())]));
        assert_ne!(forward, fingerprint([("a", b.clone()), ("b", a.clone())]));
        assert_ne!(forward, fingerprint([("a", a.clone()), ("c", b)]));
        let other = HostTensor::from_f32(vec![2], &[1.0, 2.5]);
        assert_ne!(fingerprint([("a", a)]), fingerprint([("a", other)]));
    }
}
