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
    /// Several processes that nothing connects.
    #[error(
        "Slurm started {ranks} tasks without MPI: each would take itself for the whole run\nhelp: use `srun --mpi=pmix` or `scpeft-launch`, or `srun -n 1` for a single rank"
    )]
    Unconnected {
        /// Tasks of the step.
        ranks: usize,
    },
    /// The launcher belongs to another MPI.
    #[error(
        "{by} started {started} ranks, MPI connects {connected}\nhelp: use the launcher of the MPI that this program is linked to (`ldd` names its `libmpi`)"
    )]
    WrongWorld {
        /// What started the ranks.
        by: &'static str,
        /// How many it started.
        started: usize,
        /// How many MPI knows of.
        connected: usize,
    },
    /// The transport does not sum.
    #[error(
        "rank {rank}: the self-check all-reduce of {ranks} ranks gave a wrong sum in {elements} element(s), the first at {element}: expected {expected}, found {found}\nhelp: the transport between the ranks is broken; look at MPI and the network, no result could be trusted"
    )]
    WrongSum {
        /// The rank that received it.
        rank: usize,
        /// Ranks of the run.
        ranks: usize,
        /// The first wrong element.
        element: usize,
        /// How many are wrong.
        elements: usize,
        /// What it should be.
        expected: f32,
        /// What it is.
        found: f32,
    },
    /// NCCL or the GPU.
    #[error(transparent)]
    Nccl(#[from] crate::nccl::NcclError),
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
