//! What the collectives of this rank took: bytes that it handed over and time that it waited, by
//! operation, since the start and for the metrics.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use scpeft_collective::Observer;
use scpeft_protocol::metrics;

use crate::exporter::Exporter;

/// Sums of one operation since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    /// Collectives.
    pub calls: u64,
    /// Bytes of this rank's payload.
    pub bytes: u64,
    /// Seconds from entering to leaving.
    pub seconds: f64,
}

impl Total {
    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            bytes: self.bytes - before.bytes,
            seconds: self.seconds - before.seconds,
        }
    }
}

/// Follows the collectives of a rank.
#[derive(Debug, Default)]
pub struct Ledger {
    totals: RefCell<BTreeMap<&'static str, Total>>,
    /// Operation, bytes and begin of the collective in hand.
    current: Cell<Option<(&'static str, usize, Instant)>>,
    exporter: RefCell<Option<Rc<Exporter>>>,
}

impl Ledger {
    /// From now on every collective is exported too.
    pub fn export_to(&self, exporter: &Rc<Exporter>) {
        *self.exporter.borrow_mut() = Some(Rc::clone(exporter));
    }

    /// The sums of an operation, under the name that the transport observes it by.
    pub fn of(&self, op: &str) -> Total {
        self.totals.borrow().get(op).copied().unwrap_or_default()
    }

    /// The sums by operation.
    pub fn by_op(&self) -> Vec<(&'static str, Total)> {
        let totals = self.totals.borrow();
        totals.iter().map(|(&op, &total)| (op, total)).collect()
    }

    /// The sums over all operations.
    pub fn all(&self) -> Total {
        let totals = self.totals.borrow();
        totals.values().fold(Total::default(), |sum, t| Total {
            calls: sum.calls + t.calls,
            bytes: sum.bytes + t.bytes,
            seconds: sum.seconds + t.seconds,
        })
    }
}

impl Observer for Ledger {
    fn begin(&self, op: &'static str, bytes: usize) {
        self.current.set(Some((op, bytes, Instant::now())));
    }

    fn end(&self) {
        let Some((op, bytes, begun)) = self.current.take() else {
            return;
        };
        let seconds = begun.elapsed().as_secs_f64();
        let mut totals = self.totals.borrow_mut();
        let total = totals.entry(op).or_default();
        total.calls += 1;
        total.bytes += bytes as u64;
        total.seconds += seconds;
        if let Some(exporter) = self.exporter.borrow().as_ref() {
            exporter.observe_labelled(&metrics::COLLECTIVE_SECONDS, &[op], seconds);
            exporter.add(&metrics::COLLECTIVE_BYTES, &[op], bytes as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::{Collective as _, Observed, Single};

    #[test]
    fn collectives_are_counted_by_operation_and_exported_once_there_is_an_exporter() {
        let (ledger, other) = (Rc::new(Ledger::default()), Rc::new(Ledger::default()));
        let world = Observed::new(&Single, Rc::new((Rc::clone(&ledger), Rc::clone(&other))));
        world.all_reduce_sum(&mut [0.0; 5]).unwrap();
        let once = ledger.of("all_reduce_f32");
        assert_eq!((once.calls, once.bytes), (1, 20));
        assert_eq!(other.of("all_reduce_f32").bytes, 20);
        let exporter = Rc::new(Exporter::new().unwrap());
        ledger.export_to(&exporter);
        world.all_reduce_sum(&mut [0.0; 2]).unwrap();
        world.all_reduce_sum_f64(&mut [0.0; 2]).unwrap();
        assert_eq!(ledger.of("all_reduce_f32").bytes, 28);
        assert_eq!((ledger.all().calls, ledger.all().bytes), (3, 44));
        let text = exporter.text().unwrap();
        for line in [
            "scpeft_collective_bytes_total{op=\"all_reduce_f32\"} 8",
            "scpeft_collective_bytes_total{op=\"all_reduce_f64\"} 16",
            "scpeft_collective_seconds_count{op=\"all_reduce_f32\"} 1",
            "scpeft_collective_seconds_bucket{op=\"all_reduce_f32\",le=\"+Inf\"} 1",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "`{line}` is not in\n{text}"
            );
        }
    }
}
