//! What can go wrong, grouped by whose fault it is.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a file of cells and a batch of tokens.
///
/// Messages name the file and the place in it; where there is a remedy they end with a `help:` line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The corpus on disk is malformed, or does not agree with its manifest.
    #[error("`{}`, {place}: {problem}", path.display())]
    Corpus {
        /// The file.
        path: PathBuf,
        /// Where in it: shard, row group, row, key.
        place: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A file cannot be had from where it is, or is no longer what it was. Unlike a damaged cell this is
    /// never skipped.
    #[error("`{}`, {place}: {problem}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        place: String,
        /// What went wrong.
        problem: String,
    },
    /// An obs column that does not exist was asked for.
    #[error("{whose} has no obs column `{column}`{}\nhelp: present are: {}", did_you_mean(nearest.as_deref()), listed(present))]
    MissingColumn {
        /// The file or folder, quoted.
        whose: String,
        /// What was asked for.
        column: String,
        /// The most similar name.
        nearest: Option<String>,
        /// All names.
        present: Vec<String>,
    },
    /// An obs column has the wrong kind for what it is asked for.
    #[error(
        "obs column `{column}` holds {kind}, but categories are needed here\nhelp: categorical columns are: {}",
        listed(present)
    )]
    NotCategorical {
        /// The column.
        column: String,
        /// What it holds.
        kind: &'static str,
        /// The categorical columns.
        present: Vec<String>,
    },
    /// Numbers are needed, but the column holds something else.
    #[error(
        "obs column `{column}` holds {kind}, but numbers are needed here\nhelp: numeric columns are: {}",
        listed(present)
    )]
    NotNumeric {
        /// The column.
        column: String,
        /// What it holds.
        kind: &'static str,
        /// The numeric columns.
        present: Vec<String>,
    },
    /// A cell lacks a value that every cell needs.
    #[error(
        "{cells} of the selected cells have no value of obs column `{column}`, the first is `{cell}`\nhelp: leave these cells out of the selection, fill the column in the source file, or choose another column"
    )]
    MissingValue {
        /// The column.
        column: String,
        /// The id of the first such cell.
        cell: String,
        /// How many they are.
        cells: usize,
    },
    /// No cell can have this value: it is not among the categories of the column.
    #[error("`{value}` is no category of obs column `{column}`{}\nhelp: present are: {}", did_you_mean(nearest.as_deref()), listed(present))]
    UnknownValue {
        /// The column.
        column: String,
        /// What was asked for.
        value: String,
        /// The most similar category.
        nearest: Option<String>,
        /// All categories.
        present: Vec<String>,
    },
    /// The genes of the corpus and the vocabulary of the backbone have nothing in common.
    #[error(
        "none of the {corpus_genes} genes of the corpus is in the vocabulary of {vocab_tokens} tokens (gene key: {key})\n  corpus: {}\n  vocabulary: {}\nhelp: choose the gene key that the vocabulary uses: `symbol` or `ensembl`",
        listed(corpus_names),
        listed(vocab_names)
    )]
    NoOverlap {
        /// Number of genes in the corpus.
        corpus_genes: usize,
        /// Number of tokens in the vocabulary.
        vocab_tokens: usize,
        /// The key that was used.
        key: &'static str,
        /// Some names of the corpus.
        corpus_names: Vec<String>,
        /// Some names of the vocabulary.
        vocab_names: Vec<String>,
    },
    /// A source file cannot be imported.
    #[error("`{}`{}: {problem}{}", path.display(), at(place), help_line(help))]
    Import {
        /// The source file.
        path: PathBuf,
        /// The object in it, or empty.
        place: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do, or empty.
        help: String,
    },
    /// Variable genes cannot be found among these cells.
    #[error("variable genes: {problem}{}", help_line(help))]
    Hvg {
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// The output is already there.
    #[error("`{}` exists already\nhelp: choose another output, or pass --overwrite to replace it", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// An option has a value that cannot work.
    #[error("{problem}{}", help_line(help))]
    Options {
        /// The option, what was expected and what was found.
        problem: String,
        /// What to do, or empty.
        help: String,
    },
    /// A split of perturbations cannot be made, or leaks.
    #[error(transparent)]
    Split(scpeft_evaluation::Error),
    /// An error that several waiting threads met at once.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// The system starts no more threads.
    #[error(
        "no loader thread could be started\nhelp: the machine is out of threads or memory; run fewer ranks or processes on it"
    )]
    Threads {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A defect of this program.
    #[error("internal error: {problem}\nhelp: please report this, with the command that led to it")]
    Internal {
        /// What happened.
        problem: String,
    },
}

impl Error {
    /// The exit code a binary ends with after this error.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Options { .. }
            | Self::OutputExists { .. }
            | Self::Split(
                scpeft_evaluation::Error::Setting { .. } | scpeft_evaluation::Error::Unknown { .. },
            ) => scpeft_protocol::exit::CONFIG,
            Self::Shared(inner) => inner.exit_code(),
            Self::Internal { .. } | Self::Threads { .. } => scpeft_protocol::exit::INTERNAL,
            _ => scpeft_protocol::exit::DATA,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn corpus(
        path: &Path,
        place: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Corpus {
            path: path.to_owned(),
            place: place.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn store(path: &Path, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Store {
            path: path.to_owned(),
            place: place.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn options(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Options {
            problem: problem.into(),
            help: help.into(),
        }
    }

    pub(crate) fn misuse(misuse: scpeft_store::Misuse) -> Self {
        Self::options(misuse.problem, misuse.help)
    }

    pub(crate) fn hvg(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Hvg {
            problem: problem.into(),
            help: help.into(),
        }
    }

    pub(crate) fn internal(problem: impl Into<String>) -> Self {
        Self::Internal {
            problem: problem.into(),
        }
    }

    pub(crate) fn missing_column(
        whose: impl Into<String>,
        column: &str,
        present: Vec<String>,
    ) -> Self {
        Self::MissingColumn {
            whose: whose.into(),
            column: column.to_owned(),
            nearest: nearest(column, &present),
            present,
        }
    }
}

/// The most similar of `names`, when it is similar enough to be meant.
pub(crate) fn nearest(name: &str, names: &[String]) -> Option<String> {
    let lower = name.to_lowercase();
    names
        .iter()
        .map(|n| (strsim::jaro_winkler(&lower, &n.to_lowercase()), n))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, n)| n.clone())
}

/// Joins names for a message, the first forty of them.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 40;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|n| format!("`{n}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |n| format!(", did you mean `{n}`?"))
}

fn help_line(help: &str) -> String {
    if help.is_empty() {
        String::new()
    } else {
        format!("\nhelp: {help}")
    }
}

fn at(place: &str) -> String {
    if place.is_empty() {
        String::new()
    } else {
        format!(", {place}")
    }
}
