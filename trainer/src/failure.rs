//! How anything that goes wrong becomes a message and a documented exit code.

use scpeft_collective::nccl::NcclError;
use scpeft_protocol::exit;

use crate::Outcome;

/// What ends a command: the exit code and the paragraph for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of [`scpeft_protocol::exit`].
    pub code: i32,
    /// What is wrong and what to do.
    pub message: String,
}

/// Result of the trainer's parts.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with an exit code of its own.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// A configuration failure.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(exit::CONFIG, message)
    }

    /// A data failure.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(exit::DATA, message)
    }

    /// A failure of backbone or adapter files.
    pub fn weights(message: impl Into<String>) -> Self {
        Self::new(exit::WEIGHTS, message)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The message of an error with those of its sources that it does not repeat itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = inner.source();
    }
    message
}

impl From<scpeft_config::ConfigErrors> for Failure {
    fn from(errors: scpeft_config::ConfigErrors) -> Self {
        Self::config(errors.to_string())
    }
}

impl From<scpeft_data::Error> for Failure {
    fn from(error: scpeft_data::Error) -> Self {
        Self::new(error.exit_code(), chain(&error))
    }
}

impl From<scpeft_evaluation::Error> for Failure {
    fn from(error: scpeft_evaluation::Error) -> Self {
        use scpeft_evaluation::Error as E;
        let code = match error {
            E::Setting { .. } | E::Unknown { .. } => exit::CONFIG,
            _ => exit::DATA,
        };
        Self::new(code, chain(&error))
    }
}

impl From<scpeft_checkpoint::Error> for Failure {
    fn from(error: scpeft_checkpoint::Error) -> Self {
        // A full disk says nothing about the weights; a file that is not there does.
        let code = match &error {
            scpeft_checkpoint::Error::Io { source, .. }
                if source.kind() != std::io::ErrorKind::NotFound =>
            {
                exit::INTERNAL
            }
            scpeft_checkpoint::Error::Store { passing: true, .. } => exit::HANG,
            scpeft_checkpoint::Error::Store { .. } | scpeft_checkpoint::Error::Misuse(_) => {
                exit::CONFIG
            }
            _ => exit::WEIGHTS,
        };
        Self::new(code, chain(&error))
    }
}

impl From<scpeft_collective::Error> for Failure {
    fn from(error: scpeft_collective::Error) -> Self {
        use scpeft_collective::Error as E;
        let code = match error {
            // Started again the same way, it fails the same way.
            E::Unconnected { .. }
            | E::WrongWorld { .. }
            | E::Nccl(
                NcclError::Library { .. }
                | NcclError::NotFound { .. }
                | NcclError::Symbol { .. }
                | NcclError::TooOld { .. },
            ) => exit::CONFIG,
            _ => exit::HANG,
        };
        Self::new(code, chain(&error))
    }
}

impl From<scpeft_model::Error> for Failure {
    fn from(error: scpeft_model::Error) -> Self {
        use scpeft_model::Error as E;
        let code = match error {
            E::MissingTensor { .. } | E::ShapeMismatch { .. } => exit::WEIGHTS,
            E::Gather(_) => exit::HANG,
            E::Setting { .. } | E::NoCuda | E::NoDeterminism => exit::CONFIG,
            _ => exit::INTERNAL,
        };
        Self::new(code, chain(&error))
    }
}

impl From<tch::TchError> for Failure {
    fn from(error: tch::TchError) -> Self {
        Self::new(exit::INTERNAL, format!("libtorch: {error}"))
    }
}

/// The exit code of a command that ends like this.
pub fn exit_code(result: &Result<Outcome>) -> i32 {
    match result {
        Ok(Outcome::Done) => exit::OK,
        Ok(Outcome::Preempted) => exit::PREEMPTED,
        Err(failure) => failure.code,
    }
}

/// Attaches the path to an I/O error of the run directory.
pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::new(exit::INTERNAL, format!("`{}`: {error}", path.display()))
}
