//! Which cells make up which micro-batch of which global batch: the same on every rank.

use std::ops::Range;

use super::Shared;
use super::domains::DomainPlan;
use super::window::{Part, Windows};
use super::worker::Job;

/// One micro-batch to be made.
pub(super) struct PlannedMicro {
    /// Place in the global batch.
    pub(super) index: usize,
    pub(super) domain: Option<u32>,
    pub(super) parts: Vec<Part>,
}

/// One global batch, with the micro-batches of this rank.
pub(super) struct PlannedBatch {
    /// Cells over all ranks.
    pub(super) cells: usize,
    pub(super) micro: Vec<PlannedMicro>,
}

/// How the order is dealt out.
pub(super) enum Plan {
    /// In pieces of consecutive cells.
    Consecutive,
    /// In pieces of one domain.
    ByDomain(DomainPlan),
}

impl Plan {
    /// The plan that goes on with batch `first`.
    pub(super) fn from_batch(
        shared: &Shared,
        windows: &mut Windows,
        epoch: u64,
        first: u64,
    ) -> Self {
        match &shared.domains {
            None => Self::Consecutive,
            Some(domains) => {
                let mut plan = DomainPlan::new(domains, &shared.options, epoch);
                for _ in 0..first * shared.micro_per_batch() {
                    plan.next(domains, windows);
                }
                // What was passed over is read by the jobs that need it, not ahead.
                plan.take_jobs();
                Self::ByDomain(plan)
            }
        }
    }

    /// Plans a batch; batches come in order. Also returns jobs that prepare later ones.
    pub(super) fn batch(
        &mut self,
        shared: &Shared,
        windows: &mut Windows,
        batch: u64,
    ) -> (PlannedBatch, Vec<Job>) {
        let options = &shared.options;
        let ours = |index: u64| index % options.world_size as u64 == options.rank as u64;
        let mut planned = PlannedBatch {
            cells: 0,
            micro: Vec::new(),
        };
        match self {
            Self::Consecutive => {
                let size = options.batch_cells as u64;
                let cells = batch * size..((batch + 1) * size).min(windows.order.len());
                planned.cells = (cells.end - cells.start) as usize;
                let size = options.micro_batch_cells as u64;
                let pieces = (0..(cells.end - cells.start).div_ceil(size)).filter(|&m| ours(m));
                for index in pieces {
                    let first = cells.start + index * size;
                    planned.micro.push(PlannedMicro {
                        index: index as usize,
                        domain: None,
                        parts: consecutive(windows, first..(first + size).min(cells.end)),
                    });
                }
                (planned, windows.hints(cells.end))
            }
            Self::ByDomain(plan) => {
                for index in 0..shared.micro_per_batch() {
                    let Some(domains) = &shared.domains else {
                        break;
                    };
                    let Some((domain, parts)) = plan.next(domains, windows) else {
                        break;
                    };
                    planned.cells += parts.iter().map(Part::len).sum::<usize>();
                    if ours(index) {
                        planned.micro.push(PlannedMicro {
                            index: index as usize,
                            domain: Some(domain),
                            parts,
                        });
                    }
                }
                let mut jobs = plan.take_jobs();
                jobs.extend(windows.hints(plan.position()));
                (planned, jobs)
            }
        }
    }
}

fn consecutive(windows: &mut Windows, positions: Range<u64>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = positions.start;
    while at < positions.end {
        let number = windows.order.window_at(at);
        let window = windows.open(number);
        let range = windows.order.window_range(number);
        let end = range.end.min(positions.end);
        let cells = (at - range.start) as usize..(end - range.start) as usize;
        parts.push(Part::Range(window, cells));
        at = end;
    }
    parts
}
