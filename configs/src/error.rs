//! What can be wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// Where a faulty value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// A line of the configuration file, counted from 1.
    File {
        /// The file as it was named on the command line.
        path: PathBuf,
        /// Line of the key.
        line: usize,
    },
    /// A `--set` override, as it was typed.
    Override(String),
    /// Nowhere: the value is a default, or is missing.
    Unset,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}: ", path.display()),
            Self::Override(text) => write!(f, "--set {text}: "),
            Self::Unset => Ok(()),
        }
    }
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The text is not TOML.
    #[error("{at}not valid TOML: {reason}")]
    Syntax {
        /// Where.
        at: At,
        /// What the parser said.
        reason: String,
    },
    /// An override is not `key=value`.
    #[error("override `{text}` must have the form `section.key=value`")]
    Override {
        /// The override as typed.
        text: String,
    },
    /// A section that does not exist.
    #[error("{at}unknown section `[{section}]`{}", help(suggestion.as_ref()))]
    UnknownSection {
        /// Where.
        at: At,
        /// Its name.
        section: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A key that does not exist.
    #[error("{at}unknown key `{key}`{}", help(suggestion.as_ref()))]
    UnknownKey {
        /// Where.
        at: At,
        /// The full dotted key.
        key: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A value of the wrong type, or a name that is not among the choices.
    #[error("{at}`{key}` must be {expected}, got {found}{}", help(suggestion.as_ref()))]
    Type {
        /// Where.
        at: At,
        /// The full dotted key.
        key: String,
        /// The type, or the choices.
        expected: String,
        /// The value found.
        found: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A value of the right type outside its range.
    #[error("{at}`{key}` must be {expected}, got `{found}`")]
    Range {
        /// Where.
        at: At,
        /// The full dotted key.
        key: String,
        /// The range.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A required key is missing.
    #[error("`{key}` is required: {why}\nhelp: {help}")]
    Required {
        /// The full dotted key.
        key: String,
        /// What needs it.
        why: String,
        /// How to provide it.
        help: String,
    },
    /// Two values that do not go together.
    #[error("{at}{problem}\nhelp: {help}")]
    Conflict {
        /// Where the value that should change is.
        at: At,
        /// The key that should change.
        key: String,
        /// What does not fit.
        problem: String,
        /// What to do.
        help: String,
    },
}

fn help(suggestion: Option<&String>) -> String {
    suggestion.map_or_else(String::new, |text| format!("\nhelp: {text}"))
}

impl ConfigError {
    /// Where the mistake is.
    pub fn at(&self) -> &At {
        match self {
            Self::Syntax { at, .. }
            | Self::UnknownSection { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::Type { at, .. }
            | Self::Range { at, .. }
            | Self::Conflict { at, .. } => at,
            Self::Read { .. } | Self::Override { .. } | Self::Required { .. } => &At::Unset,
        }
    }
}

/// Every mistake found in a configuration, in the order of the file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The mistakes.
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// Sorts the mistakes by place: file lines, then overrides, then what is missing.
    pub(crate) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|a, b| a.at().cmp(b.at()));
        Self { errors }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.errors[..] {
            return write!(f, "{only}");
        }
        write!(f, "{} errors in the configuration", self.errors.len())?;
        for error in &self.errors {
            write!(f, "\n- {}", error.to_string().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
