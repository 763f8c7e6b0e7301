//! The steps of one epoch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::plan::{Plan, PlannedMicro};
use super::window::Windows;
use super::worker::{Done, Job, Worker};
use super::{MaskDraw, Shared};
use crate::batch::{MicroBatch, StepBatches};
use crate::{Error, Result};

/// Threads beyond those asked for when shards come over a network: whoever fetches a row group waits, and
/// the others have something to do meanwhile.
const WAITING_THREADS: usize = 2;

/// The steps of one epoch over cells. Dropping it ends its threads.
pub(super) struct CellStream {
    shared: Arc<Shared>,
    windows: Windows,
    plan: Plan,
    /// The cells of each issued batch over all ranks, and the places of our micro-batches.
    in_flight: VecDeque<(usize, Vec<usize>)>,
    epoch: u64,
    issued: u64,
    delivered: u64,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    ready: BTreeMap<(u64, usize), MicroBatch>,
    threads: Vec<JoinHandle<()>>,
    refusal: Option<Error>,
    cancelled: Arc<AtomicBool>,
    empty: Arc<AtomicU64>,
}

impl CellStream {
    pub(super) fn new(shared: Arc<Shared>, epoch: u64, first_batch: u64) -> Self {
        let (jobs, queue) = unbounded();
        let (results, done) = unbounded();
        let cancelled = Arc::new(AtomicBool::new(false));
        let empty = Arc::new(AtomicU64::new(0));
        let mask_epoch = match shared.options.mask {
            MaskDraw::PerEpoch => epoch,
            MaskDraw::Fixed => 0,
        };
        let spawn = |number: usize| {
            let worker = Worker {
                shared: shared.clone(),
                queue: queue.clone(),
                results: results.clone(),
                cancelled: cancelled.clone(),
                empty: empty.clone(),
                mask_epoch,
            };
            std::thread::Builder::new()
                .name(format!("scpeft-loader-{}-{number}", shared.options.rank))
                .spawn(move || worker.run())
        };
        // Fewer threads than asked for only cost speed; none at all is an error of the first step.
        let (mut threads, mut refusal) = (Vec::new(), None);
        let waiting = if shared.source.corpus.is_remote() {
            WAITING_THREADS
        } else {
            0
        };
        for number in 0..shared.options.threads + waiting {
            match spawn(number) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    refusal = threads
                        .is_empty()
                        .then_some(Error::Threads { source: error });
                    break;
                }
            }
        }
        let mut windows = Windows::new(shared.order(epoch), shared.buckets(epoch));
        let plan = Plan::from_batch(&shared, &mut windows, epoch, first_batch);
        let plan = plan.unwrap_or_else(|error| {
            refusal = Some(error);
            Plan::Consecutive
        });
        Self {
            plan,
            windows,
            in_flight: VecDeque::new(),
            shared,
            epoch,
            issued: first_batch,
            delivered: first_batch,
            jobs: Some(jobs),
            done,
            ready: BTreeMap::new(),
            threads,
            refusal,
            cancelled,
            empty,
        }
    }

    /// Micro-batches that are ready and wait for their step.
    pub(super) fn ready(&self) -> usize {
        self.ready.len() + self.done.len()
    }

    /// Keeps the prefetched steps in flight.
    fn top_up(&mut self) -> Result<()> {
        let last = self
            .shared
            .batches()
            .min(self.delivered + 1 + self.shared.options.prefetch_steps as u64);
        while self.issued < last {
            let batch = self.issued;
            let (planned, later) = self.plan.batch(&self.shared, &mut self.windows, batch)?;
            let places = planned.micro.iter().map(|m| m.index).collect();
            self.in_flight.push_back((planned.cells, places));
            for PlannedMicro {
                index,
                domain,
                parts,
            } in planned.micro
            {
                self.send(Job::Micro {
                    batch,
                    index,
                    domain,
                    parts,
                });
            }
            for job in later {
                self.send(job);
            }
            self.issued += 1;
        }
        Ok(())
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The queue has no receiver only when every thread is gone: `collect` reports that.
            let _ = jobs.send(job);
        }
    }

    fn collect(&mut self, batch: u64) -> Result<StepBatches> {
        let mut micro = Vec::new();
        let (global_cells, places) = self
            .in_flight
            .pop_front()
            .ok_or_else(|| Error::internal("a step was not planned"))?;
        for index in places {
            while !self.ready.contains_key(&(batch, index)) {
                let lost = || Error::internal("all threads of the loader are gone");
                let (batch, done) = self.done.recv().map_err(|_| lost())??;
                self.ready.insert((batch, done.index), done);
            }
            let done = self.ready.remove(&(batch, index));
            // One whose cells were all skipped has nothing to say.
            micro.extend(done.filter(|micro| micro.rows > 0));
        }
        Ok(StepBatches {
            epoch: self.epoch,
            batch,
            global_cells,
            micro,
        })
    }

    fn stop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has already sent its error.
            let _ = thread.join();
        }
        let empty = self.empty.swap(0, Ordering::Relaxed);
        if empty > 0 {
            tracing::warn!(
                epoch = self.epoch,
                cells = empty,
                "cells express no gene of the vocabulary: they are only a class token"
            );
        }
    }
}

impl Iterator for CellStream {
    type Item = Result<StepBatches>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.delivered >= self.shared.batches() || self.jobs.is_none() {
            self.stop();
            return None;
        }
        if let Some(error) = self.refusal.take() {
            self.stop();
            return Some(Err(error));
        }
        let step = self.top_up().and_then(|()| self.collect(self.delivered));
        self.delivered += 1;
        if step.is_err() {
            self.stop();
        }
        Some(step)
    }
}

impl Drop for CellStream {
    fn drop(&mut self) {
        self.stop();
    }
}
