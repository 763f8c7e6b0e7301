use crate::{Collective, Result, Topology};

/// Told of every collective as it begins and ends.
pub trait Observer {
    /// `op` begins, with `bytes` of this rank's payload.
    fn begin(&self, op: &'static str, bytes: usize);
    /// What began last has ended.
    fn end(&self);
}

/// A world whose collectives are observed.
pub struct Observed<'a> {
    inner: &'a dyn Collective,
    observer: &'a dyn Observer,
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
    pub fn new(inner: &'a dyn Collective, observer: &'a dyn Observer) -> Self {
        Self { inner, observer }
    }

    fn watch<T>(&self, op: &'static str, bytes: usize, run: impl FnOnce() -> T) -> T {
        self.observer.begin(op, bytes);
        let result = run();
        self.observer.end();
        result
    }
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

    fn barrier(&self) -> Result<()> {
        self.watch("barrier", 0, || self.inner.barrier())
    }

    fn abort(&self, code: i32) -> ! {
        self.inner.abort(code)
    }
}
