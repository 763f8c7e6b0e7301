//! Which cells make up which micro-batch of which global batch: the same on every rank.

use std::ops::Range;
use std::sync::Arc;

use super::Shared;
use super::domains::DomainPlan;
use super::lengths::by_tokens;
use super::window::{Part, Window, Windows};
use super::worker::Job;
use crate::Result;

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
    ) -> Result<Self> {
        Ok(match &shared.domains {
            None => Self::Consecutive,
            Some(domains) => {
                let mut plan = DomainPlan::new(domains, &shared.options, epoch);
                for _ in 0..first * shared.micro_per_batch() {
                    plan.next(domains, windows, shared)?;
                }
                // What was passed over is read by the jobs that need it, not ahead.
                plan.take_jobs();
                Self::ByDomain(plan)
            }
        })
    }

    /// Plans a batch; batches come in order. Also returns jobs that prepare later ones.
    pub(super) fn batch(
        &mut self,
        shared: &Shared,
        windows: &mut Windows,
        batch: u64,
    ) -> Result<(PlannedBatch, Vec<Job>)> {
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
                let end = cells.end;
                let pieces = match options.micro_batch_tokens {
                    Some(most) => by_budget(shared, windows, cells, most)?,
                    None => by_number(shared, windows, cells)?,
                };
                for (index, parts) in (0..).zip(pieces).filter(|(index, _)| ours(*index)) {
                    planned.micro.push(PlannedMicro {
                        index: index as usize,
                        domain: None,
                        parts,
                    });
                }
                Ok((planned, windows.hints(end, shared)?))
            }
            Self::ByDomain(plan) => {
                for index in 0..shared.micro_per_batch() {
                    let Some(domains) = &shared.domains else {
                        break;
                    };
                    let Some((domain, parts)) = plan.next(domains, windows, shared)? else {
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
                jobs.extend(windows.hints(plan.position(), shared)?);
                Ok((planned, jobs))
            }
        }
    }
}

/// Micro-batches of a number of consecutive cells.
fn by_number(shared: &Shared, windows: &mut Windows, cells: Range<u64>) -> Result<Vec<Vec<Part>>> {
    let size = shared.options.micro_batch_cells as u64;
    let pieces = cells.clone().step_by(size as usize);
    pieces
        .map(|first| consecutive(shared, windows, first..(first + size).min(cells.end)))
        .collect()
}

/// Micro-batches of at most so many tokens.
fn by_budget(
    shared: &Shared,
    windows: &mut Windows,
    cells: Range<u64>,
    most: usize,
) -> Result<Vec<Vec<Part>>> {
    let mut places = Vec::new();
    let mut lengths = Vec::new();
    for part in consecutive(shared, windows, cells)? {
        if let Part::Range(window, range) = part {
            lengths.extend_from_slice(&window.lengths[range.clone()]);
            places.extend(range.map(|place| (window.clone(), place as u32)));
        }
    }
    let pieces = by_tokens(&lengths, most).into_iter();
    let parts = pieces.map(|piece| {
        let mut parts: Vec<(Arc<Window>, Vec<u32>)> = Vec::new();
        for place in piece {
            let (window, place) = &places[place as usize];
            match parts.iter_mut().find(|(w, _)| Arc::ptr_eq(w, window)) {
                Some((_, here)) => here.push(*place),
                None => parts.push((window.clone(), vec![*place])),
            }
        }
        let parts = parts.into_iter();
        parts
            .map(|(window, here)| Part::Places(window, here))
            .collect()
    });
    Ok(parts.collect())
}

fn consecutive(shared: &Shared, windows: &mut Windows, positions: Range<u64>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = positions.start;
    while at < positions.end {
        let number = windows.order.window_at(at);
        let window = windows.open(number, shared)?;
        let range = windows.order.window_range(number);
        let end = range.end.min(positions.end);
        let cells = (at - range.start) as usize..(end - range.start) as usize;
        parts.push(Part::Range(window, cells));
        at = end;
    }
    Ok(parts)
}
