//! The loader: decodes and tokenises on background threads, and hands out the steps of an epoch.
//!
//! The unit of work is the micro-batch. The stream keeps a few steps ahead in flight: it puts their
//! micro-batches into a queue of jobs, threads work the queue off in any order, and the stream puts
//! the results back into order. A row group is decoded once, by whichever job needs it first or by a
//! hint sent ahead; its block lives as long as jobs of its window do.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::batch::{MicroBatch, StepBatches};
use crate::corpus::{Block, Corpus};
use crate::order::{CellRef, EpochOrder, OrderOptions, SelectedGroup, Selection, Shuffle};
use crate::tokenize::{Cell, CellKey, CellTokenizer, Tokenizer, Tokens};
use crate::{Error, Result};

/// When masks are drawn anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskDraw {
    /// In every epoch.
    PerEpoch,
    /// Never: all epochs see the same masks.
    Fixed,
}

/// What a loader hands out.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Seed of the order.
    pub seed: u64,
    /// Cells in a global batch, over all ranks.
    pub batch_cells: usize,
    /// Cells in a micro-batch.
    pub micro_batch_cells: usize,
    /// This process' rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// How epochs are shuffled.
    pub shuffle: Shuffle,
    /// Whether a last batch with fewer cells is left out.
    pub drop_last: bool,
    /// Background threads.
    pub threads: usize,
    /// Steps that are prepared ahead.
    pub prefetch_steps: usize,
    /// The obs column whose codes are the labels.
    pub label_column: Option<String>,
    /// When masks are drawn anew.
    pub mask: MaskDraw,
}

/// Hands out the micro-batches of one rank. Cheap to share; each epoch is a stream of its own.
pub struct Loader {
    shared: Arc<Shared>,
}

struct Shared {
    corpus: Arc<Corpus>,
    selection: Selection,
    tokenizer: Arc<dyn Tokenizer>,
    options: LoaderOptions,
    labels: Option<Vec<i32>>,
}

impl Loader {
    /// A loader over the selected cells.
    ///
    /// # Errors
    /// When the selection is empty, the label column is missing, or the ranks do not divide the
    /// micro-batches of a global batch.
    pub fn new(
        corpus: Arc<Corpus>,
        selection: Selection,
        tokenizer: Arc<dyn Tokenizer>,
        options: LoaderOptions,
    ) -> Result<Self> {
        check(&options, &selection)?;
        let labels = options
            .label_column
            .as_deref()
            .map(|c| corpus.obs_codes(c))
            .transpose()?;
        let shared = Shared {
            corpus,
            selection,
            tokenizer,
            options,
            labels,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Global batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.shared.batches()
    }

    /// Cells in the selection.
    pub fn cells(&self) -> u64 {
        self.shared.selection.cells()
    }

    /// The steps of an epoch from `first_batch` on. Nothing before it is read.
    pub fn epoch(&self, epoch: u64, first_batch: u64) -> EpochStream {
        EpochStream::new(self.shared.clone(), epoch, first_batch)
    }
}

impl Shared {
    fn batches(&self) -> u64 {
        let (cells, size) = (self.selection.cells(), self.options.batch_cells as u64);
        if self.options.drop_last {
            cells / size
        } else {
            cells.div_ceil(size)
        }
    }
}

fn check(options: &LoaderOptions, selection: &Selection) -> Result<()> {
    let fail = |problem: String, help: &str| Err(Error::options(problem, help));
    let LoaderOptions {
        batch_cells: batch,
        micro_batch_cells: micro,
        world_size: ranks,
        ..
    } = *options;
    for (name, value) in [
        ("batch_cells", batch),
        ("micro_batch_cells", micro),
        ("world_size", ranks),
        ("threads", options.threads),
    ] {
        if value == 0 {
            return fail(format!("`{name}` must be at least 1, got `0`"), "");
        }
    }
    if options.rank >= ranks {
        return fail(
            format!("rank {} of {ranks} ranks does not exist", options.rank),
            "",
        );
    }
    if selection.cells() == 0 {
        return fail(
            "the selection has no cells".into(),
            "check the column and the values it is made from",
        );
    }
    let pieces = batch.div_ceil(micro);
    if pieces.is_multiple_of(ranks) {
        return Ok(());
    }
    let works: Vec<usize> = (1..=batch)
        .filter(|size| batch.is_multiple_of(*size) && (batch / size).is_multiple_of(ranks))
        .collect();
    let problem = format!(
        "a batch of {batch} cells in micro-batches of {micro} makes {pieces} micro-batches (ceil({batch} / {micro})), which {ranks} ranks cannot share evenly: {pieces} = {ranks} x {} + {}",
        pieces / ranks,
        pieces % ranks
    );
    if works.is_empty() {
        let help = format!("choose a batch size that is a multiple of {ranks}");
        return fail(problem, &help);
    }
    let works: Vec<String> = works.iter().map(usize::to_string).collect();
    fail(
        problem,
        &format!("micro-batch sizes that work: {}", works.join(", ")),
    )
}

/// A window of the order, with the blocks of its row groups as they are decoded.
struct Window {
    cells: Vec<CellRef>,
    members: Vec<(SelectedGroup, Slot)>,
}

type Slot = OnceLock<Result<Block, Arc<Error>>>;

impl Window {
    fn block(&self, corpus: &Corpus, member: usize) -> Result<&Block> {
        let (group, slot) = &self.members[member];
        slot.get_or_init(|| {
            corpus
                .read_block(group.row_group, group.chosen.as_deref())
                .map_err(Arc::new)
        })
        .as_ref()
        .map_err(|e| Error::Shared(e.clone()))
    }
}

/// Consecutive cells of one window.
struct Part {
    window: Arc<Window>,
    cells: Range<usize>,
}

enum Job {
    Decode {
        window: Arc<Window>,
        member: usize,
    },
    Micro {
        batch: u64,
        index: usize,
        parts: Vec<Part>,
    },
}

type Done = Result<(u64, MicroBatch)>;

/// The steps of one epoch. Dropping it ends its threads.
pub struct EpochStream {
    shared: Arc<Shared>,
    order: EpochOrder,
    epoch: u64,
    issued: u64,
    delivered: u64,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    ready: BTreeMap<(u64, usize), MicroBatch>,
    windows: VecDeque<(usize, Arc<Window>, usize)>,
    threads: Vec<JoinHandle<()>>,
    refusal: Option<std::io::Error>,
    cancelled: Arc<AtomicBool>,
    empty: Arc<AtomicU64>,
}

impl EpochStream {
    fn new(shared: Arc<Shared>, epoch: u64, first_batch: u64) -> Self {
        let options = OrderOptions {
            seed: shared.options.seed,
            shuffle: shared.options.shuffle,
        };
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
        for number in 0..shared.options.threads {
            match spawn(number) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    refusal = threads.is_empty().then_some(error);
                    break;
                }
            }
        }
        Self {
            order: EpochOrder::new(&shared.selection, options, epoch),
            shared,
            epoch,
            issued: first_batch,
            delivered: first_batch,
            jobs: Some(jobs),
            done,
            ready: BTreeMap::new(),
            windows: VecDeque::new(),
            threads,
            refusal,
            cancelled,
            empty,
        }
    }

    fn positions(&self, batch: u64) -> Range<u64> {
        let size = self.shared.options.batch_cells as u64;
        batch * size..((batch + 1) * size).min(self.order.len())
    }

    /// This rank's micro-batches of a batch: their places, and the positions of their cells.
    fn share(&self, batch: u64) -> Vec<(usize, Range<u64>)> {
        let options = &self.shared.options;
        let range = self.positions(batch);
        let size = options.micro_batch_cells as u64;
        (0..(range.end - range.start).div_ceil(size))
            .filter(|m| m % options.world_size as u64 == options.rank as u64)
            .map(|m| {
                let first = range.start + m * size;
                (m as usize, first..(first + size).min(range.end))
            })
            .collect()
    }

    /// Keeps the prefetched steps in flight.
    fn top_up(&mut self) {
        let last = self
            .shared
            .batches()
            .min(self.delivered + 1 + self.shared.options.prefetch_steps as u64);
        while self.issued < last {
            let batch = self.issued;
            for (index, positions) in self.share(batch) {
                let parts = self.parts(positions);
                self.send(Job::Micro {
                    batch,
                    index,
                    parts,
                });
            }
            self.hint(self.positions(batch).end);
            self.issued += 1;
        }
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The queue has no receiver only when every thread is gone: `collect` reports that.
            let _ = jobs.send(job);
        }
    }

    fn parts(&mut self, positions: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = positions.start;
        while at < positions.end {
            let number = self.order.window_at(at);
            let window = self.open(number);
            let range = self.order.window_range(number);
            let end = range.end.min(positions.end);
            parts.push(Part {
                cells: (at - range.start) as usize..(end - range.start) as usize,
                window,
            });
            at = end;
        }
        parts
    }

    /// The window of this number; windows before it are let go.
    fn open(&mut self, number: usize) -> Arc<Window> {
        while self.windows.front().is_some_and(|(n, ..)| *n < number) {
            self.windows.pop_front();
        }
        if let Some((_, window, _)) = self.windows.iter().find(|(n, ..)| *n == number) {
            return window.clone();
        }
        let window = Arc::new(Window {
            cells: self.order.window_cells(number),
            members: self
                .order
                .members(number)
                .map(|g| (g.clone(), Slot::new()))
                .collect(),
        });
        self.windows.push_back((number, window.clone(), 0));
        window
    }

    /// Has the next window decoded little by little, in step with the use of the current one, so that
    /// no step waits for a whole window.
    fn hint(&mut self, position: u64) {
        let number = self.order.window_at(position.saturating_sub(1));
        if number + 1 >= self.order.windows() {
            return;
        }
        let current = self.order.window_range(number);
        let share = (position - current.start) as f64 / (current.end - current.start) as f64;
        if !self.windows.iter().any(|(n, ..)| *n == number + 1) {
            let keep: Vec<_> = self.windows.drain(..).collect();
            self.open(number + 1);
            for window in keep.into_iter().rev() {
                self.windows.push_front(window);
            }
        }
        let mut jobs = Vec::new();
        if let Some((_, window, hinted)) = self.windows.iter_mut().find(|(n, ..)| *n == number + 1)
        {
            let wanted = (window.members.len() as f64 * share).ceil() as usize;
            for member in *hinted..wanted {
                jobs.push(Job::Decode {
                    window: window.clone(),
                    member,
                });
            }
            *hinted = wanted.max(*hinted);
        }
        for job in jobs {
            self.send(job);
        }
    }

    fn collect(&mut self, batch: u64) -> Result<StepBatches> {
        let mut micro = Vec::new();
        for (index, _) in self.share(batch) {
            while !self.ready.contains_key(&(batch, index)) {
                let lost = || Error::internal("all threads of the loader are gone");
                let (batch, done) = self.done.recv().map_err(|_| lost())??;
                self.ready.insert((batch, done.index), done);
            }
            micro.extend(self.ready.remove(&(batch, index)));
        }
        let range = self.positions(batch);
        Ok(StepBatches {
            epoch: self.epoch,
            batch,
            global_cells: (range.end - range.start) as usize,
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

impl Iterator for EpochStream {
    type Item = Result<StepBatches>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.delivered >= self.shared.batches() || self.jobs.is_none() {
            self.stop();
            return None;
        }
        if let Some(source) = self.refusal.take() {
            self.stop();
            return Some(Err(Error::Threads { source }));
        }
        self.top_up();
        let step = self.collect(self.delivered);
        self.delivered += 1;
        if step.is_err() {
            self.stop();
        }
        Some(step)
    }
}

impl Drop for EpochStream {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Worker {
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    results: Sender<Done>,
    cancelled: Arc<AtomicBool>,
    empty: Arc<AtomicU64>,
    mask_epoch: u64,
}

impl Worker {
    fn run(self) {
        let tokenizer = self.shared.tokenizer.clone();
        let mut cells = tokenizer.worker();
        let mut tokens = Tokens::default();
        while let Ok(job) = self.queue.recv() {
            if self.cancelled.load(Ordering::Relaxed) {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| {
                self.work(job, cells.as_mut(), &mut tokens)
            }));
            let done = done.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(Error::internal(format!(
                    "a thread of the loader panicked: {}",
                    text.unwrap_or_default()
                )))
            });
            let sent = match done {
                Ok(None) => Ok(()),
                Ok(Some(done)) => self.results.send(Ok(done)),
                Err(error) => self.results.send(Err(error)),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn work(
        &self,
        job: Job,
        cells: &mut dyn CellTokenizer,
        tokens: &mut Tokens,
    ) -> Result<Option<(u64, MicroBatch)>> {
        match job {
            // An error of a hint is met again by the job that needs the block.
            Job::Decode { window, member } => {
                let _ = window.block(&self.shared.corpus, member);
                Ok(None)
            }
            Job::Micro {
                batch,
                index,
                parts,
            } => {
                let micro = self.micro_batch(index, &parts, cells, tokens)?;
                Ok(Some((batch, micro)))
            }
        }
    }

    fn micro_batch(
        &self,
        index: usize,
        parts: &[Part],
        tokenizer: &mut dyn CellTokenizer,
        tokens: &mut Tokens,
    ) -> Result<MicroBatch> {
        tokens.clear();
        let mut ids = Vec::with_capacity(parts.iter().map(|p| p.cells.len()).sum());
        let mut empty = 0;
        for part in parts {
            for at in &part.window.cells[part.cells.clone()] {
                let block = part.window.block(&self.shared.corpus, at.member as usize)?;
                let (genes, values) = block.cell(at.place as usize);
                let key = CellKey {
                    cell: at.cell,
                    mask_epoch: self.mask_epoch,
                };
                empty += u64::from(!tokenizer.tokenize(Cell { genes, values }, key, tokens));
                ids.push(at.cell);
            }
        }
        self.empty.fetch_add(empty, Ordering::Relaxed);
        let labels = self.shared.labels.as_ref();
        let labels = labels.map_or_else(Vec::new, |codes| {
            ids.iter().map(|&c| i64::from(codes[c as usize])).collect()
        });
        let tokenizer = &self.shared.tokenizer;
        Ok(MicroBatch::pad(
            index,
            ids,
            labels,
            tokens,
            tokenizer.pad_id(),
            tokenizer.pad_value(),
        ))
    }
}
