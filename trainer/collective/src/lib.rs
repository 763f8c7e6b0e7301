//! Sums over ranks: one narrow trait, and its single-process and MPI implementations.
//!
//! No collective is issued outside this crate, and every rank must issue the same sequence. MPI
//! errors are fatal to the job by MPI's default, so an implementation either completes or the
//! launcher ends the job.
//!
//! This is the only crate that links MPI, and the only one that loads NCCL.

mod all_gather;
mod cores;
mod discovery;
mod error;
mod fake;
mod mpi_gather;
mod mpi_world;
pub mod nccl;
mod observed;
mod self_check;
mod single;

use std::rc::Rc;

pub use all_gather::{AllGather, GatherBuffer, Gathering, Group};
pub use cores::{CpuMask, share};
pub use error::{Error, Result};
pub use fake::Fake;
pub use mpi_world::MpiWorld;
pub use observed::{Observed, Observer};
pub use self_check::{Bandwidth, self_check};
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
    /// Its share of the cores of its host; `None` for all that the process may use.
    pub cores: Option<usize>,
}

impl Topology {
    /// A run of one process.
    pub const SINGLE: Self = Self {
        rank: 0,
        world_size: 1,
        local_rank: 0,
        local_size: 1,
        cores: None,
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

    /// Sums in the memory of the ranks' devices, where the world has that.
    fn on_device(&self) -> Option<&dyn nccl::DeviceSum> {
        None
    }

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

/// The world that this process was started in: MPI under mpirun, srun or another PMI launcher, else
/// a single process.
///
/// MPI is not initialised for a single process, which saves half a second.
///
/// # Errors
/// When MPI cannot be initialised, or connects other processes than were started.
pub fn discover() -> Result<Box<dyn Collective>> {
    match discovery::started(|name| std::env::var(name).ok())? {
        discovery::Start::Alone => Ok(Box::new(Single)),
        discovery::Start::Ranks { by, ranks } => {
            let world = MpiWorld::init()?;
            discovery::agree(by, ranks, world.topology().world_size)?;
            Ok(Box::new(world))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
