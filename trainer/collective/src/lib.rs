//! Sums over ranks: one narrow trait, and its single-process and MPI implementations.
//!
//! No collective is issued outside this crate, and every rank must issue the same sequence. MPI
//! errors are fatal to the job by MPI's default, so an implementation either completes or the
//! launcher ends the job.
//!
//! This is the only crate that links MPI.

mod all_gather;
mod error;
mod mpi_gather;
mod mpi_world;
mod single;

use std::rc::Rc;

pub use all_gather::{AllGather, GatherBuffer, Gathering, Group};
pub use error::{Error, Result};
pub use mpi_world::MpiWorld;
pub use single::Single;

/// Where a process stands among the ranks of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// This process, 0 to `world_size` - 1.
    pub rank: usize,
    /// Processes in the run.
    pub world_size: usize,
    /// This process among those of its host.
    pub local_rank: usize,
    /// Processes on its host.
    pub local_size: usize,
}

impl Topology {
    /// A run of one process.
    pub const SINGLE: Self = Self {
        rank: 0,
        world_size: 1,
        local_rank: 0,
        local_size: 1,
    };

    /// Whether this rank speaks for the run.
    pub fn is_root(&self) -> bool {
        self.rank == 0
    }
}

/// Operations that all ranks enter together.
pub trait Collective {
    /// Where this process stands.
    fn topology(&self) -> &Topology;

    /// Replaces `buffer` by its elementwise sum over ranks; all ranks get the same bits.
    ///
    /// # Collective
    /// Must be called by all ranks with the same length.
    ///
    /// # Errors
    /// When the transport fails.
    fn all_reduce_sum(&self, buffer: &mut [f32]) -> Result<()>;

    /// As [`Collective::all_reduce_sum`], in f64: counts and metric sums.
    ///
    /// # Collective
    /// Must be called by all ranks with the same length.
    ///
    /// # Errors
    /// When the transport fails.
    fn all_reduce_sum_f64(&self, buffer: &mut [f64]) -> Result<()>;

    /// Gives every rank the bytes of rank 0.
    ///
    /// # Collective
    /// Must be called by all ranks; only rank 0's argument is read.
    ///
    /// # Errors
    /// When the transport fails.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Collects every rank's bytes on rank 0, in rank order; other ranks get `None`.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport fails, or the total exceeds what one message can carry.
    fn gather(&self, bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>>;

    /// A group that gathers parts of its ranks without waiting at once. It may outlive `self`.
    ///
    /// # Collective
    /// Must be called by all ranks with the same group.
    ///
    /// # Errors
    /// When the transport fails.
    fn all_gather(&self, group: Group) -> Result<Rc<dyn AllGather>>;

    /// Waits for all ranks.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport fails.
    fn barrier(&self) -> Result<()>;

    /// Ends the whole job with this exit code, without waiting for the other ranks.
    fn abort(&self, code: i32) -> !;
}

/// The world that this process was started in: MPI under mpirun or srun, else a single process.
///
/// MPI is not initialised for a single process, which saves half a second.
///
/// # Errors
/// When MPI cannot be initialised.
pub fn discover() -> Result<Box<dyn Collective>> {
    if started_by_mpi(|name| std::env::var_os(name).is_some()) {
        Ok(Box::new(MpiWorld::init()?))
    } else {
        Ok(Box::new(Single))
    }
}

/// Whether the environment is that of a rank: Open MPI's own variables, or PMIx and PMI under
/// Slurm. `SLURM_PROCID` alone is no sign, an interactive allocation sets it too.
fn started_by_mpi(is_set: impl Fn(&str) -> bool) -> bool {
    [
        "OMPI_COMM_WORLD_SIZE",
        "PMIX_RANK",
        "PMI_RANK",
        "MPI_LOCALRANKID",
    ]
    .into_iter()
    .any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpi_is_used_only_where_a_launcher_set_ranks() {
        assert!(started_by_mpi(|n| n == "PMIX_RANK"));
        assert!(started_by_mpi(|n| n == "OMPI_COMM_WORLD_SIZE"));
        assert!(!started_by_mpi(|n| n == "SLURM_PROCID"));
    }

    /// A part and a whole on the heap, which stay where they are.
    #[derive(Debug)]
    struct Memory(Box<[u8]>, std::rc::Rc<std::cell::UnsafeCell<[u8; 3]>>);

    // SAFETY: both live on the heap for as long as the value does.
    unsafe impl GatherBuffer for Memory {
        fn part(&self) -> *const u8 {
            self.0.as_ptr()
        }

        fn whole(&mut self) -> *mut u8 {
            self.1.get().cast()
        }

        fn part_bytes(&self) -> usize {
            self.0.len()
        }
    }

    #[test]
    fn a_single_process_gathers_its_own_part() {
        let group = Single.all_gather(Group::Node).unwrap();
        assert_eq!((group.rank(), group.ranks()), (0, 1));
        let whole = Rc::new(std::cell::UnsafeCell::new([0; 3]));
        let memory = Memory(Box::new([1, 2, 3]), whole.clone());
        group.start(Box::new(memory)).unwrap().wait().unwrap();
        // SAFETY: the gather is done, nobody else has a pointer.
        assert_eq!(unsafe { *whole.get() }, [1, 2, 3]);
    }

    #[test]
    fn a_single_process_is_its_own_sum() {
        let world = Single;
        let mut buffer = [1.5, -2.0];
        world.all_reduce_sum(&mut buffer).unwrap();
        assert_eq!(buffer, [1.5, -2.0]);
        assert_eq!(world.broadcast(vec![7]).unwrap(), [7]);
        assert_eq!(world.gather(&[1, 2]).unwrap().unwrap(), [vec![1, 2]]);
        assert!(world.topology().is_root());
    }
}
