use std::rc::Rc;

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};

use crate::all_gather::{AllGather, Group};
use crate::cores::{CpuMask, MASK_BYTES, share};
use crate::mpi_gather::MpiGather;
use crate::{Collective, Error, Result, Topology};

/// Largest element count of one MPI call: counts are C ints.
pub(crate) const COUNT_MAX: usize = i32::MAX as usize;

/// The ranks of an MPI job.
pub struct MpiWorld {
    topology: Topology,
    world: SimpleCommunicator,
    // Dropped last: dropping the last one finalises MPI.
    universe: Rc<Universe>,
}

impl std::fmt::Debug for MpiWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MpiWorld")
            .field("topology", &self.topology)
            .finish_non_exhaustive()
    }
}

impl MpiWorld {
    /// Initialises MPI. Only the calling thread issues collectives afterwards.
    ///
    /// # Errors
    /// When MPI is initialised already or grants no threads.
    pub fn init() -> Result<Self> {
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Multiple).ok_or(Error::MpiInit)?;
        if threading < Threading::Funneled {
            return Err(Error::MpiThreads {
                found: format!("{threading:?}"),
            });
        }
        let world = universe.world();
        let node = world.split_shared(world.rank());
        let topology = Topology {
            rank: world.rank() as usize,
            world_size: world.size() as usize,
            local_rank: node.rank() as usize,
            local_size: node.size() as usize,
            cores: Some(cores_of(&node)),
        };
        Ok(Self {
            topology,
            world,
            universe: Rc::new(universe),
        })
    }

    fn sum<T: Equivalence + Clone>(&self, buffer: &mut [T]) {
        for chunk in buffer.chunks_mut(COUNT_MAX) {
            let send = chunk.to_vec();
            self.world
                .all_reduce_into(&send[..], chunk, SystemOperation::sum());
        }
    }
}

/// This rank's share of the cores of its host, whose ranks are `node`.
fn cores_of(node: &SimpleCommunicator) -> usize {
    let own = CpuMask::of_this_process();
    let mut all = vec![0u8; node.size() as usize * MASK_BYTES];
    node.all_gather_into(own.bytes(), &mut all[..]);
    let masks: Vec<CpuMask> = all
        .chunks_exact(MASK_BYTES)
        .map(CpuMask::from_bytes)
        .collect();
    let by_mask = share(&masks, node.rank() as usize);
    // A container may be given less time than its processors have; its ranks share it.
    let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if usable < own.count() {
        by_mask.min((usable / masks.len()).max(1))
    } else {
        by_mask
    }
}

impl Collective for MpiWorld {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn all_reduce_sum(&self, buffer: &mut [f32]) -> Result<()> {
        self.sum(buffer);
        Ok(())
    }

    fn all_reduce_sum_f64(&self, buffer: &mut [f64]) -> Result<()> {
        self.sum(buffer);
        Ok(())
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let root = self.world.process_at_rank(0);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        bytes.resize(len as usize, 0);
        for chunk in bytes.chunks_mut(COUNT_MAX) {
            root.broadcast_into(chunk);
        }
        Ok(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        // An empty Rust slice may point to address 1, which is what Open MPI takes for MPI_IN_PLACE.
        let bytes = if bytes.is_empty() {
            &[0u8; 1][..0]
        } else {
            bytes
        };
        let root = self.world.process_at_rank(0);
        let mut lengths = vec![0u64; self.topology.world_size];
        self.world
            .all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
        let total: u64 = lengths.iter().sum();
        if total as usize > COUNT_MAX {
            return Err(Error::MessageTooLarge {
                bytes: total as usize,
                limit: COUNT_MAX,
            });
        }
        if !self.topology.is_root() {
            root.gather_varcount_into(bytes);
            return Ok(None);
        }
        let counts: Vec<i32> = lengths.iter().map(|&n| n as i32).collect();
        let displacements: Vec<i32> = counts
            .iter()
            .scan(0, |at, &n| {
                let start = *at;
                *at += n;
                Some(start)
            })
            .collect();
        let mut all = vec![0u8; total as usize + 1];
        let mut partition =
            PartitionMut::new(&mut all[..total as usize], &counts[..], &displacements[..]);
        root.gather_varcount_into_root(bytes, &mut partition);
        let mut rest = &all[..];
        let parts = lengths
            .iter()
            .map(|&n| {
                let (part, tail) = rest.split_at(n as usize);
                rest = tail;
                part.to_vec()
            })
            .collect();
        Ok(Some(parts))
    }

    fn all_gather(&self, group: Group) -> Result<Rc<dyn AllGather>> {
        let ranks = match group {
            Group::World => self.world.duplicate(),
            Group::Node => self.world.split_shared(self.world.rank()),
        };
        Ok(Rc::new(MpiGather::new(ranks, Rc::clone(&self.universe))))
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}
