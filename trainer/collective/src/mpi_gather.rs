use std::rc::Rc;

use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{AsRaw, Communicator};

use crate::all_gather::{AllGather, GatherBuffer, Gathering};
use crate::mpi_world::COUNT_MAX;
use crate::{Error, Result};

/// Gathers on a communicator of its own, so that its order is independent of the run's.
pub(crate) struct MpiGather {
    // Dropped before MPI is finalised.
    group: SimpleCommunicator,
    _universe: Rc<Universe>,
}

impl MpiGather {
    pub(crate) fn new(group: SimpleCommunicator, universe: Rc<Universe>) -> Self {
        Self {
            group,
            _universe: universe,
        }
    }
}

impl std::fmt::Debug for MpiGather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MpiGather")
            .field("rank", &self.rank())
            .field("ranks", &self.ranks())
            .finish_non_exhaustive()
    }
}

impl AllGather for MpiGather {
    fn rank(&self) -> usize {
        self.group.rank() as usize
    }

    fn ranks(&self) -> usize {
        self.group.size() as usize
    }

    fn start(&self, mut buffer: Box<dyn GatherBuffer>) -> Result<Box<dyn Gathering>> {
        let bytes = buffer.part_bytes();
        let count = i32::try_from(bytes).map_err(|_| Error::MessageTooLarge {
            bytes,
            limit: COUNT_MAX,
        })?;
        let byte = u8::equivalent_datatype().as_raw();
        // SAFETY: the null request is a constant of the MPI library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: both pointers are good for as long as `buffer` lives, by the contract of
        // `GatherBuffer`; `MpiGathering` keeps it until the request is complete. MPI returns an
        // error only where its handler is changed, which nobody does: errors end the job.
        unsafe {
            ffi::MPI_Iallgather(
                buffer.part().cast(),
                count,
                byte,
                buffer.whole().cast(),
                count,
                byte,
                self.group.as_raw(),
                &raw mut request,
            );
        }
        Ok(Box::new(MpiGathering {
            request,
            _buffer: buffer,
        }))
    }
}

/// An `MPI_Iallgather` under way.
#[derive(Debug)]
struct MpiGathering {
    request: ffi::MPI_Request,
    _buffer: Box<dyn GatherBuffer>,
}

impl Gathering for MpiGathering {
    fn wait(self: Box<Self>) -> Result<()> {
        // Dropping it waits.
        Ok(())
    }
}

impl Drop for MpiGathering {
    fn drop(&mut self) {
        // SAFETY: a request of `MPI_Iallgather`, waited for once, while its memory is alive.
        unsafe {
            ffi::MPI_Wait(&raw mut self.request, ffi::RSMPI_STATUS_IGNORE);
        }
    }
}
