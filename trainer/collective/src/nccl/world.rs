use std::cell::RefCell;
use std::rc::Rc;

use super::{Communicator, DeviceSlice, FORMING, Nccl, QUEUEING, Streams};
use crate::all_gather::{AllGather, Group};
use crate::{Collective, Observer, Result, Topology};

/// Sums over ranks in the memory of their devices.
pub trait DeviceSum {
    /// Queues, on libtorch's stream, that `memory` is replaced by its elementwise sum over ranks. Work
    /// that is queued there afterwards sees the sum.
    ///
    /// # Collective
    /// Must be called by all ranks with the same number of elements of the same type.
    ///
    /// # Errors
    /// When NCCL fails, now or since the last call.
    fn all_reduce_sum(&self, memory: &DeviceSlice) -> Result<()>;
}

/// A world whose ranks have a device each and sum in its memory through NCCL. Everything that is in host
/// memory goes through the world that it was formed with.
pub struct NcclWorld<'a> {
    inner: &'a dyn Collective,
    observer: Rc<dyn Observer>,
    streams: Streams,
    device: usize,
    // Dropped before the world: ending it in good order needs the other ranks.
    communicator: RefCell<Communicator>,
}

impl std::fmt::Debug for NcclWorld<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NcclWorld")
            .field("topology", self.inner.topology())
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl<'a> NcclWorld<'a> {
    /// Forms a communicator of all ranks of `inner` on the current device of each, number `device` of
    /// those that libtorch sees. Sums on devices are shown to `observer`.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When NCCL or the transport of `inner` fails.
    pub fn form(
        inner: &'a dyn Collective,
        observer: Rc<dyn Observer>,
        nccl: Rc<Nccl>,
        streams: Streams,
        device: usize,
    ) -> Result<Self> {
        let topology = inner.topology();
        let own = if topology.is_root() {
            nccl.unique_id()
        } else {
            Ok(Vec::new())
        };
        // Without an id the others must not wait for one: what they get is then too short.
        let id = inner.broadcast(own.clone().unwrap_or_default())?;
        own?;
        let (rank, ranks) = (topology.rank, topology.world_size);
        let communicator = Communicator::form(nccl, &id, rank, ranks, FORMING, QUEUEING)?;
        Ok(Self {
            inner,
            observer,
            streams,
            device,
            communicator: RefCell::new(communicator),
        })
    }
}

impl DeviceSum for NcclWorld<'_> {
    fn all_reduce_sum(&self, memory: &DeviceSlice) -> Result<()> {
        let stream = self.streams.current(self.device)?;
        self.observer.begin("nccl_all_reduce", memory.bytes());
        let result = self.communicator.borrow_mut().all_reduce(memory, stream);
        self.observer.end();
        Ok(result?)
    }
}

impl Collective for NcclWorld<'_> {
    fn topology(&self) -> &Topology {
        self.inner.topology()
    }

    fn on_device(&self) -> Option<&dyn DeviceSum> {
        Some(self)
    }

    fn all_reduce_sum(&self, buffer: &mut [f32]) -> Result<()> {
        self.inner.all_reduce_sum(buffer)
    }

    fn all_reduce_sum_f64(&self, buffer: &mut [f64]) -> Result<()> {
        self.inner.all_reduce_sum_f64(buffer)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.inner.broadcast(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        self.inner.gather(bytes)
    }

    fn all_gather(&self, group: Group) -> Result<Rc<dyn AllGather>> {
        self.inner.all_gather(group)
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn abort(&self, code: i32) -> ! {
        self.inner.abort(code)
    }
}
