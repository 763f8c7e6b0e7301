//! Micro-batches of one domain each: a pure function of the order and the domains.
//!
//! Cells are dealt out in the order of the epoch, each to the open micro-batch of its domain, and a
//! micro-batch comes when it is full. So domains interleave as their cells do, whatever their order in
//! the corpus. What is left of each domain in the end comes last, in an order drawn per epoch.

use std::collections::VecDeque;
use std::sync::Arc;

use super::window::{Carried, Part, Window, Windows};
use super::worker::Job;
use super::{LoaderOptions, Shared};
use crate::Result;
use crate::order::{Selection, Shuffle};
use crate::rng::{Purpose, Rng};

/// Which domain each cell is in.
pub(super) struct Domains {
    /// Codes of all cells of the corpus.
    codes: Vec<i32>,
    /// Selected cells of each domain.
    counts: Vec<u64>,
    micro_cells: usize,
}

impl Domains {
    /// `codes` are not negative for the selected cells.
    pub(super) fn new(codes: Vec<i32>, selection: &Selection, micro_cells: usize) -> Self {
        let domains = codes.iter().max().map_or(0, |&code| code + 1);
        let mut counts = vec![0; usize::try_from(domains).unwrap_or(0)];
        for cell in selection.cell_indices() {
            counts[codes[cell as usize] as usize] += 1;
        }
        Self {
            codes,
            counts,
            micro_cells,
        }
    }

    /// Micro-batches in an epoch.
    pub(super) fn micro_batches(&self) -> u64 {
        let size = self.micro_cells as u64;
        self.counts.iter().map(|n| n.div_ceil(size)).sum()
    }
}

/// Deals an epoch out, from its first cell on.
pub(super) struct DomainPlan {
    seed: u64,
    shuffle: Shuffle,
    epoch: u64,
    /// The window that is dealt out, and the next place in it.
    window: usize,
    at: usize,
    position: u64,
    /// For each domain the cells that wait: those of earlier windows, and places in this one.
    waiting: Vec<(Vec<Part>, Vec<u32>)>,
    /// The domains whose last cells are still to come, when all windows are dealt out.
    last: Option<VecDeque<u32>>,
    jobs: Vec<Job>,
}

impl DomainPlan {
    pub(super) fn new(domains: &Domains, options: &LoaderOptions, epoch: u64) -> Self {
        Self {
            seed: options.seed,
            shuffle: options.shuffle,
            epoch,
            window: 0,
            at: 0,
            position: 0,
            waiting: domains
                .counts
                .iter()
                .map(|_| (Vec::new(), Vec::new()))
                .collect(),
            last: None,
            jobs: Vec::new(),
        }
    }

    /// Cells that were dealt out, in the order of the epoch.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Jobs that prepare what comes later.
    pub(super) fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// The next micro-batch: its domain and its cells.
    pub(super) fn next(
        &mut self,
        domains: &Domains,
        windows: &mut Windows,
        shared: &Shared,
    ) -> Result<Option<(u32, Vec<Part>)>> {
        while self.window < windows.order.windows() {
            let window = windows.open(self.window, shared)?;
            while let Some(cell) = window.cells.get(self.at) {
                let domain = domains.codes[cell.cell as usize] as usize;
                let (earlier, here) = &mut self.waiting[domain];
                here.push(self.at as u32);
                let waiting = here.len() + earlier.iter().map(Part::len).sum::<usize>();
                self.at += 1;
                self.position += 1;
                if waiting == domains.micro_cells {
                    let mut parts = std::mem::take(earlier);
                    parts.push(Part::Places(window, std::mem::take(here)));
                    return Ok(Some((domain as u32, parts)));
                }
            }
            self.carry_over(&window);
            self.window += 1;
            self.at = 0;
        }
        if self.last.is_none() {
            self.last = Some(self.order_of_the_last());
        }
        let Some(domain) = self.last.as_mut().and_then(VecDeque::pop_front) else {
            return Ok(None);
        };
        let (earlier, _) = &mut self.waiting[domain as usize];
        Ok(Some((domain, std::mem::take(earlier))))
    }

    /// The window ends: cells that still wait are taken out of it.
    fn carry_over(&mut self, window: &Arc<Window>) {
        let here = self.waiting.iter().flat_map(|(_, here)| here);
        let cells: Vec<_> = here.map(|&place| window.cells[place as usize]).collect();
        if cells.is_empty() {
            return;
        }
        let carried = Arc::new(Carried::new(window.clone(), cells));
        let mut next = 0;
        for (earlier, here) in &mut self.waiting {
            if here.is_empty() {
                continue;
            }
            let end = next + here.len() as u32;
            earlier.push(Part::Carried(carried.clone(), (next..end).collect()));
            here.clear();
            next = end;
        }
        self.jobs.push(Job::Carry(carried));
    }

    fn order_of_the_last(&self) -> VecDeque<u32> {
        let left = (0..self.waiting.len()).filter(|&d| !self.waiting[d].0.is_empty());
        let mut left: Vec<u32> = left.map(|d| d as u32).collect();
        if self.shuffle != Shuffle::Sequential {
            Rng::new(self.seed, Purpose::Domains, self.epoch, 0).shuffle(&mut left);
        }
        left.into()
    }
}
