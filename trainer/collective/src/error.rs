/// Why a collective could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// MPI is initialised already, or refuses to be.
    #[error(
        "MPI could not be initialised\nhelp: start the ranks with `mpirun` or `srun --mpi=pmix`"
    )]
    MpiInit,
    /// MPI cannot be called from the threads that this process uses.
    #[error("MPI grants thread level {found}, `funneled` or higher is needed")]
    MpiThreads {
        /// What MPI granted.
        found: String,
    },
    /// More bytes than one MPI message can count.
    #[error("a message of {bytes} bytes exceeds MPI's limit of {limit}")]
    MessageTooLarge {
        /// Size of the message.
        bytes: usize,
        /// Largest size.
        limit: usize,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
