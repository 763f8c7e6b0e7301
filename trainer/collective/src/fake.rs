use std::rc::Rc;

use crate::all_gather::{AllGather, GatherBuffer, Gathering, Group};
use crate::{Collective, Result, Topology};

/// One rank of a world whose other ranks do not exist, for planning: sizes, numbers and shares are those
/// of a run of that many ranks, values are not.
///
/// The others bring zeros to sums. Where something is gathered, each is taken to hold what this rank does.
#[derive(Debug, Clone)]
pub struct Fake {
    topology: Topology,
}

impl Fake {
    /// Rank 0 of `ranks`, of which `per_node` share a host.
    pub fn new(ranks: usize, per_node: usize) -> Self {
        let ranks = ranks.max(1);
        Self {
            topology: Topology {
                rank: 0,
                world_size: ranks,
                local_rank: 0,
                local_size: per_node.clamp(1, ranks),
                cores: None,
            },
        }
    }
}

impl Collective for Fake {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn all_reduce_sum(&self, _buffer: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum_f64(&self, _buffer: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        Ok(Some(vec![bytes.to_vec(); self.topology.world_size]))
    }

    fn all_gather(&self, group: Group) -> Result<Rc<dyn AllGather>> {
        Ok(Rc::new(FakeGroup {
            ranks: match group {
                Group::World => self.topology.world_size,
                Group::Node => self.topology.local_size,
            },
        }))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

#[derive(Debug)]
struct FakeGroup {
    ranks: usize,
}

impl AllGather for FakeGroup {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn start(&self, mut buffer: Box<dyn GatherBuffer>) -> Result<Box<dyn Gathering>> {
        let (from, bytes) = (buffer.part(), buffer.part_bytes());
        for rank in 0..self.ranks {
            // SAFETY: by the contract of `GatherBuffer` the part has `bytes` bytes, the whole that many
            // for every rank of the group, and they do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(from, buffer.whole().add(rank * bytes), bytes);
            }
        }
        Ok(Box::new(Gathered))
    }
}

#[derive(Debug)]
struct Gathered;

impl Gathering for Gathered {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
