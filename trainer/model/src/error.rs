use tch::TchError;

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights lack a tensor that the model cannot do without.
    #[error(
        "the weights have no tensor `{name}` of shape {shape:?}\nhelp: is this a checkpoint of the configured architecture?"
    )]
    MissingTensor {
        /// Name of the tensor in the model.
        name: String,
        /// Shape that the model expects.
        shape: Vec<i64>,
    },
    /// A tensor has another shape than the model expects.
    #[error("tensor `{name}` has shape {found:?}, the model expects {expected:?}")]
    ShapeMismatch {
        /// Name of the tensor in the model.
        name: String,
        /// Shape that the model expects.
        expected: Vec<i64>,
        /// Shape that was found.
        found: Vec<i64>,
    },
    /// A setting of the model or of an adapter is out of range.
    #[error("{setting}: {problem}")]
    Setting {
        /// The setting, as its configuration key.
        setting: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The requested device does not exist here.
    #[error(
        "no CUDA device is available\nhelp: set `run.device = \"cpu\"`, or install the NVIDIA driver and run `make build` again"
    )]
    NoCuda,
    /// libtorch cannot be told to use deterministic algorithms alone.
    #[error(
        "this libtorch has no switch for deterministic algorithms that is known here\nhelp: run `make build` again, which installs the one that is, or set `run.deterministic = false`"
    )]
    NoDeterminism,
    /// An input that a setting of the model asks for is missing from the micro-batch.
    #[error("the model needs {what} and the micro-batch has none")]
    MissingInput {
        /// What is missing.
        what: &'static str,
    },
    /// The shares of a block could not be put together.
    #[error("gathering a block of the backbone: {0}")]
    Gather(Box<dyn std::error::Error + Send + Sync>),
    /// A defect of this crate.
    #[error("internal error: {0}\nhelp: please report it")]
    Internal(String),
    /// libtorch refused an operation: an internal defect or memory exhaustion.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
