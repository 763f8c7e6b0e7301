use std::rc::Rc;

use crate::all_gather::{AllGather, GatherBuffer, Gathering, Group};
use crate::{Collective, Result, Topology};

/// Told of every collective as it begins and ends.
pub trait Observer {
    /// `op` begins, with `bytes` of this rank's payload.
    fn begin(&self, op: &'static str, bytes: usize);
    /// What began last has ended.
    fn end(&self);
}

impl<A: Observer, B: Observer> Observer for (A, B) {
    fn begin(&self, op: &'static str, bytes: usize) {
        self.0.begin(op, bytes);
        self.1.begin(op, bytes);
    }

    fn end(&self) {
        self.0.end();
        self.1.end();
    }
}

impl<T: Observer> Observer for Rc<T> {
    fn begin(&self, op: &'static str, bytes: usize) {
        self.as_ref().begin(op, bytes);
    }

    fn end(&self) {
        self.as_ref().end();
    }
}

/// A world whose collectives are observed.
pub struct Observed<'a> {
    inner: &'a dyn Collective,
    observer: Rc<dyn Observer>,
}

impl std::fmt::Debug for Observed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed")
            .field("topology", self.inner.topology())
            .finish_non_exhaustive()
    }
}

impl<'a> Observed<'a> {
    /// Observes `inner`.
    pub fn new(inner: &'a dyn Collective, observer: Rc<dyn Observer>) -> Self {
        Self { inner, observer }
    }

    fn watch<T>(&self, op: &'static str, bytes: usize, run: impl FnOnce() -> T) -> T {
        watch(self.observer.as_ref(), op, bytes, run)
    }
}

fn watch<T>(observer: &dyn Observer, op: &'static str, bytes: usize, run: impl FnOnce() -> T) -> T {
    observer.begin(op, bytes);
    let result = run();
    observer.end();
    result
}

impl Collective for Observed<'_> {
    fn topology(&self) -> &Topology {
        self.inner.topology()
    }

    fn all_reduce_sum(&self, buffer: &mut [f32]) -> Result<()> {
        self.watch("all_reduce_f32", size_of_val(buffer), || {
            self.inner.all_reduce_sum(buffer)
        })
    }

    fn all_reduce_sum_f64(&self, buffer: &mut [f64]) -> Result<()> {
        self.watch("all_reduce_f64", size_of_val(buffer), || {
            self.inner.all_reduce_sum_f64(buffer)
        })
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.watch("broadcast", bytes.len(), || self.inner.broadcast(bytes))
    }

    fn gather(&self, bytes: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        self.watch("gather", bytes.len(), || self.inner.gather(bytes))
    }

    fn all_gather(&self, group: Group) -> Result<Rc<dyn AllGather>> {
        let inner = self.watch("group", 0, || self.inner.all_gather(group))?;
        Ok(Rc::new(ObservedGroup {
            inner,
            observer: self.observer.clone(),
        }))
    }

    fn barrier(&self) -> Result<()> {
        self.watch("barrier", 0, || self.inner.barrier())
    }

    fn abort(&self, code: i32) -> ! {
        self.inner.abort(code)
    }
}

/// A group whose gathers are observed where they wait.
struct ObservedGroup {
    inner: Rc<dyn AllGather>,
    observer: Rc<dyn Observer>,
}

impl std::fmt::Debug for ObservedGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl AllGather for ObservedGroup {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn start(&self, buffer: Box<dyn GatherBuffer>) -> Result<Box<dyn Gathering>> {
        let bytes = buffer.part_bytes();
        Ok(Box::new(ObservedGathering {
            inner: self.inner.start(buffer)?,
            bytes,
            observer: self.observer.clone(),
        }))
    }
}

struct ObservedGathering {
    inner: Box<dyn Gathering>,
    bytes: usize,
    observer: Rc<dyn Observer>,
}

impl std::fmt::Debug for ObservedGathering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Gathering for ObservedGathering {
    fn wait(self: Box<Self>) -> Result<()> {
        let Self {
            inner,
            bytes,
            observer,
        } = *self;
        watch(observer.as_ref(), "all_gather", bytes, || inner.wait())
    }
}
