//! What can go wrong with weights on disk. Every variant names the file.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure to read or write weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file is not of a known kind.
    #[error("`{}` is not a tensor file: {reason}\nhelp: {help}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
        /// What to do.
        help: &'static str,
    },
    /// A file is of a known kind, but damaged.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not add up.
        reason: String,
    },
    /// A file asks for more memory, time or disk than any file of tensors needs.
    #[error("`{}` is refused: {reason}\nhelp: no file of tensors needs this; if it is trusted, save its `state_dict()` again with torch.save", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What there is too much of, and how much is allowed.
        reason: String,
    },
    /// A pickle asks for a class that tensors do not need.
    #[error(
        "`{}` refers to the Python class `{class}`, which no tensor needs\nhelp: only plain tensors are read; if the file is trusted, save its `state_dict()` again with torch.save", path.display()
    )]
    ForbiddenClass {
        /// The file.
        path: PathBuf,
        /// Module and name of the class.
        class: String,
    },
    /// A tensor is not in the file.
    #[error("`{}` holds no tensor `{name}`", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is of another type than needed.
    #[error("tensor of type {found} where {expected} is needed")]
    Dtype {
        /// What is needed.
        expected: &'static str,
        /// What was found.
        found: crate::Dtype,
    },
    /// A JSON file does not say what it must.
    #[error("`{}`: {reason}{}", path.display(), help.map(|h| format!("\nhelp: {h}")).unwrap_or_default())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: Option<&'static str>,
    },
    /// Adapter settings contradict each other.
    #[error("adapter settings: {reason}")]
    Settings {
        /// What is wrong, and with which entry.
        reason: String,
    },
    /// A directory lacks a file that it must have.
    #[error("`{}` has no {wanted}\nhelp: {help}", dir.display())]
    MissingFile {
        /// The directory.
        dir: PathBuf,
        /// The file or files.
        wanted: String,
        /// What to do.
        help: &'static str,
    },
    /// A backbone is of another kind than the one that was asked for.
    #[error("`{}` is {found} backbone, not {wanted}\nhelp: set `backbone.architecture = \"{architecture}\"`", dir.display())]
    OtherBackbone {
        /// The directory.
        dir: PathBuf,
        /// What it is, with its article.
        found: &'static str,
        /// What it should be, with its article.
        wanted: &'static str,
        /// The configuration's name of what it is.
        architecture: &'static str,
    },
    /// Two names in a file become one after conversion, with different values.
    #[error("`{}`: `{first}` and `{second}` both stand for `{name}` but differ", path.display())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// One name in the file.
        first: String,
        /// The other.
        second: String,
        /// The converted name.
        name: String,
    },
    /// Tensors that are needed were not loaded.
    #[error("{what} is incomplete\n{report}")]
    Incomplete {
        /// What was to be loaded.
        what: String,
        /// What happened to each tensor.
        report: Box<crate::LoadReport>,
    },
    /// A fine-tuned file has other weights than adapters and heads that were trained.
    #[error("`{}` is no adapter checkpoint: {} tensors of its backbone are not those of `{}`: {}\nhelp: if every parameter was trained, `--full` keeps the whole model as a backbone; otherwise name with `--backbone` the weights that it was trained from", path.display(), tensors.len(), backbone.display(), some(tensors))]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// The backbone directory that it was compared with.
        backbone: PathBuf,
        /// The tensors that differ.
        tensors: Vec<String>,
    },
    /// LoRA's update was added to a weight with another scale than the one named.
    #[error("`{}`: `{name}` is that of the backbone with LoRA's update added for `lora_alpha` = {found:.4}, not {assumed}\nhelp: give the value it was trained with as `--lora-alpha`", path.display())]
    LoraScale {
        /// The file.
        path: PathBuf,
        /// The weight.
        name: String,
        /// The numerator that fits the file.
        found: f64,
        /// The numerator that was named.
        assumed: f64,
    },
    /// A LoRA tensor cannot be converted.
    #[error("LoRA tensors of `{name}`: {reason}")]
    Lora {
        /// The module.
        name: String,
        /// Why.
        reason: String,
    },
    /// The destination exists.
    #[error("`{}` exists already\nhelp: choose another path or remove it", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// A checkpoint does not verify.
    #[error("checkpoint `{}` does not verify: {reason}", path.display())]
    Unverified {
        /// The checkpoint.
        path: PathBuf,
        /// The first mismatch.
        reason: String,
    },
    /// An object store failed.
    #[error("`{address}`: {problem}")]
    Store {
        /// The object.
        address: String,
        /// What happened, and what to do if anything helps.
        problem: String,
        /// Whether it may go well another time.
        passing: bool,
    },
    /// An object store is named or set up in a way that cannot work.
    #[cfg(feature = "mirror")]
    #[error(transparent)]
    Misuse(#[from] scpeft_store::Misuse),
    /// A run has no checkpoint of the step.
    #[error("`{}` has no checkpoint of step {step}", run.display())]
    NoStep {
        /// The run directory.
        run: PathBuf,
        /// The step.
        step: u64,
    },
}

/// The first names of a list and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{rest}", shown.join(", "))
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            reason: reason.into(),
            help: None,
        }
    }
}
