/// Why a score has no value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Undefined {
    /// A quotient by a spread that is zero.
    #[error("{what} does not vary")]
    Constant {
        /// Whose spread is zero.
        what: &'static str,
    },
    /// Fewer things than the definition needs.
    #[error("{found} {what}, at least {needed} are needed")]
    TooFew {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many the definition needs.
        needed: usize,
    },
    /// Something that the score compares with was not given.
    #[error("{what} was not given")]
    NotGiven {
        /// What is missing.
        what: &'static str,
    },
    /// A curve over labels that are all alike.
    #[error("all genes are {what}")]
    OneClass {
        /// The one label.
        what: &'static str,
    },
    /// A logarithm of a profile that is negative.
    #[error("a profile is negative and has no fold change")]
    Negative,
    /// A score of single cells, and the prediction is a mean profile.
    #[error("the prediction is a mean profile without cells")]
    NoCells,
}

/// A score, or why it is not defined.
pub type Score = std::result::Result<f64, Undefined>;

/// Why an evaluation, a baseline or a split could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two things that must have the same length have not.
    #[error("{what}: {found}, expected {expected}")]
    Length {
        /// What is counted, and of whom.
        what: String,
        /// The length found.
        found: usize,
        /// The length expected.
        expected: usize,
    },
    /// A value is NaN or infinite.
    #[error("{whom}: value {gene} of cell {cell} is {value}, expected a finite number")]
    NotFinite {
        /// Whose cells.
        whom: String,
        /// Row.
        cell: usize,
        /// Column.
        gene: usize,
        /// The value.
        value: f32,
    },
    /// Nothing to work on.
    #[error("{whom} has no {what}")]
    Empty {
        /// Who lacks something.
        whom: String,
        /// What is missing.
        what: &'static str,
    },
    /// A setting out of range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A system of equations without one solution.
    #[error(
        "{what}: the system of equations is singular\nhelp: use a penalty above 0, or fewer directions"
    )]
    Singular {
        /// Who solves it.
        what: &'static str,
    },
    /// The parts of a split share what they must not share.
    #[error("the split `{rule}` leaks: {what} in training and held out: {}", list(.shared))]
    Leak {
        /// The rule of the split.
        rule: String,
        /// What is shared.
        what: &'static str,
        /// The shared ones.
        shared: Vec<String>,
    },
    /// Names that are not among the known ones.
    #[error("{what} unknown: {}\nhelp: known are {}", list(.names), list(.known))]
    Unknown {
        /// What they name.
        what: &'static str,
        /// The names.
        names: Vec<String>,
        /// The known ones.
        known: Vec<String>,
    },
}

/// The first twenty names, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
