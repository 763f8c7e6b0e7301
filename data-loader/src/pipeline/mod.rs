//! The loader: decodes and tokenises on background threads, and hands out the steps of an epoch.
//!
//! The unit of work is the micro-batch. The stream keeps a few steps ahead in flight: it puts their
//! micro-batches into a queue of jobs, threads work the queue off in any order, and the stream puts
//! the results back into order. A row group is decoded once, by whichever job needs it first or by a
//! hint sent ahead; its block lives as long as jobs of its window do.
//!
//! `plan` says which cells make up which micro-batch, `window` holds what is decoded, `stream`
//! sends the jobs and `worker` does them.

mod domains;
mod lengths;
mod plan;
mod rows;
mod source;
mod stream;
mod window;
mod worker;

use std::sync::Arc;

pub use rows::Rows;
pub use source::{Corrupt, SkippedCell};

use crate::batch::StepBatches;
use crate::corpus::Corpus;
use crate::order::{EpochOrder, OrderOptions, Selection, Shuffle};
use crate::sampler::{Sampler, WeightTable, class_balanced_weights};
use crate::storage::TrafficSnapshot;
use crate::tokenize::Tokenizer;
use crate::{Error, Result};
use domains::Domains;
use lengths::Buckets;
use rows::RowStream;
use source::Source;
use stream::CellStream;

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
    /// Background threads; two more where shards come over a network, to wait for it.
    pub threads: usize,
    /// Steps that are prepared ahead.
    pub prefetch_steps: usize,
    /// The obs column whose codes are the labels.
    pub label_column: Option<String>,
    /// When masks are drawn anew.
    pub mask: MaskDraw,
    /// Which cells an epoch draws.
    pub sampler: Sampler,
    /// The obs column whose codes are the batch labels: every cell must have one.
    pub batch_column: Option<String>,
    /// The obs column of domains: every cell must have one, and a micro-batch holds cells of one domain
    /// alone. Each domain's last micro-batch of an epoch may be short; a global batch is then a fixed
    /// number of micro-batches, not of cells.
    pub domain_column: Option<String>,
    /// The domain of each cell of the corpus, in place of a column: for domains that no column names.
    pub domain_codes: Option<Arc<[i32]>>,
    /// What is done about damaged cells.
    pub corrupt: Corrupt,
    /// Whether cells of like length share a global batch. Batches are then less random: each holds cells
    /// of one length, drawn from one window.
    pub length_buckets: bool,
    /// The most tokens in a micro-batch, padding included: micro-batches then hold as many cells of a
    /// global batch as fit, instead of `micro_batch_cells`.
    pub micro_batch_tokens: Option<usize>,
}

impl Default for LoaderOptions {
    /// Corpus order on one rank and one thread, each cell once, masks that never change, no obs column.
    /// Both batch sizes are 0 and have to be set.
    fn default() -> Self {
        Self {
            seed: 0,
            batch_cells: 0,
            micro_batch_cells: 0,
            rank: 0,
            world_size: 1,
            shuffle: Shuffle::Sequential,
            drop_last: false,
            threads: 1,
            prefetch_steps: 1,
            label_column: None,
            mask: MaskDraw::Fixed,
            sampler: Sampler::Uniform,
            batch_column: None,
            domain_column: None,
            domain_codes: None,
            corrupt: Corrupt::Fail,
            length_buckets: false,
            micro_batch_tokens: None,
        }
    }
}

/// Hands out the micro-batches of one rank. Cheap to share; each epoch is a stream of its own.
pub struct Loader {
    shared: Arc<Shared>,
    /// What is handed out in place of cells.
    rows: Option<Arc<Rows>>,
}

/// The steps of one epoch. Dropping it ends its threads.
pub struct EpochStream(Steps);

enum Steps {
    Cells(Box<CellStream>),
    Rows(Box<RowStream>),
}

impl EpochStream {
    /// Micro-batches that are ready and wait for their step.
    pub fn ready(&self) -> usize {
        match &self.0 {
            Steps::Cells(stream) => stream.ready(),
            Steps::Rows(_) => 0,
        }
    }
}

impl Iterator for EpochStream {
    type Item = Result<StepBatches>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Steps::Cells(stream) => stream.next(),
            Steps::Rows(stream) => stream.next().map(Ok),
        }
    }
}

struct Shared {
    source: Source,
    selection: Selection,
    tokenizer: Arc<dyn Tokenizer>,
    options: LoaderOptions,
    labels: Option<Vec<i32>>,
    batch_labels: Option<Vec<i32>>,
    domains: Option<Domains>,
    weights: Option<WeightTable>,
}

impl Loader {
    /// A loader over the selected cells.
    ///
    /// # Errors
    /// When the selection is empty, an obs column is missing or not categorical, a cell lacks a batch, a
    /// domain or, for balanced sampling, a label, the sampler's weights cannot be used, or the ranks do
    /// not divide the micro-batches of a global batch.
    pub fn new(
        corpus: Arc<Corpus>,
        selection: Selection,
        tokenizer: Arc<dyn Tokenizer>,
        options: LoaderOptions,
    ) -> Result<Self> {
        check(&options, selection.cells())?;
        let codes = |column: &Option<String>| {
            let column = column.as_deref();
            column.map(|c| corpus.obs_codes(c)).transpose()
        };
        let labels = codes(&options.label_column)?;
        let batch_labels = codes(&options.batch_column)?;
        let domains = match &options.domain_codes {
            Some(codes) => Some(codes.to_vec()),
            None => codes(&options.domain_column)?,
        };
        for (column, codes) in [
            (&options.batch_column, &batch_labels),
            (&options.domain_column, &domains),
        ] {
            // Codes without a column name are whole already.
            if let (Some(column), Some(codes)) = (column, codes) {
                every_cell_has(&corpus, &selection, column, codes)?;
            }
        }
        let weights = weights(&corpus, &selection, &options, labels.as_deref())?;
        let micro_cells = options.micro_batch_cells;
        let domains = domains.map(|codes| Domains::new(codes, &selection, micro_cells));
        let shared = Shared {
            source: Source::new(corpus, options.corrupt),
            selection,
            tokenizer,
            options,
            labels,
            batch_labels,
            domains,
            weights,
        };
        Ok(Self {
            shared: Arc::new(shared),
            rows: None,
        })
    }

    /// A loader over rows in memory; `selection` are the cells of `corpus` that they stand for.
    ///
    /// # Errors
    /// When there are no rows, or the ranks do not divide the micro-batches of a global batch.
    pub fn of_rows(
        corpus: Arc<Corpus>,
        selection: Selection,
        tokenizer: Arc<dyn Tokenizer>,
        rows: Arc<Rows>,
        options: LoaderOptions,
    ) -> Result<Self> {
        check(&options, rows.len() as u64)?;
        let shared = Shared {
            source: Source::new(corpus, options.corrupt),
            selection,
            tokenizer,
            options,
            labels: None,
            batch_labels: None,
            domains: None,
            weights: None,
        };
        Ok(Self {
            shared: Arc::new(shared),
            rows: Some(rows),
        })
    }

    /// Global batches in an epoch, the same in every epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        match &self.rows {
            Some(rows) => {
                let options = &self.shared.options;
                options.batches(rows.len() as u64, options.batch_cells as u64)
            }
            None => self.shared.batches(),
        }
    }

    /// Cells in the selection, or rows.
    pub fn cells(&self) -> u64 {
        match &self.rows {
            Some(rows) => rows.len() as u64,
            None => self.shared.selection.cells(),
        }
    }

    /// What reading the corpus asked of its store so far, by this and all other loaders of it.
    pub fn traffic(&self) -> TrafficSnapshot {
        self.shared.source.corpus.traffic().snapshot()
    }

    /// How many cells were left out so far because they are damaged.
    pub fn skipped_cells(&self) -> usize {
        self.shared.source.skipped_cells()
    }

    /// The cells that were left out so far because they are damaged, by index.
    pub fn skipped(&self) -> Vec<SkippedCell> {
        self.shared.source.skipped()
    }

    /// The steps of an epoch from `first_batch` on. Nothing before it is read.
    pub fn epoch(&self, epoch: u64, first_batch: u64) -> EpochStream {
        EpochStream(match &self.rows {
            Some(rows) => Steps::Rows(Box::new(RowStream::new(
                rows.clone(),
                self.shared.options.clone(),
                epoch,
                first_batch,
                self.batches_per_epoch(),
            ))),
            None => Steps::Cells(Box::new(CellStream::new(
                self.shared.clone(),
                epoch,
                first_batch,
            ))),
        })
    }
}

impl LoaderOptions {
    /// Whether micro-batches hold cells of one domain alone.
    fn by_domain(&self) -> bool {
        self.domain_column.is_some() || self.domain_codes.is_some()
    }

    /// Global batches of so many items, `size` in each.
    fn batches(&self, items: u64, size: u64) -> u64 {
        if self.drop_last {
            items / size
        } else {
            items.div_ceil(size)
        }
    }
}

impl Shared {
    fn batches(&self) -> u64 {
        let (items, size) = match &self.domains {
            None => (self.selection.cells(), self.options.batch_cells as u64),
            Some(domains) => (domains.micro_batches(), self.micro_per_batch()),
        };
        self.options.batches(items, size)
    }

    /// Micro-batches in a full global batch.
    fn micro_per_batch(&self) -> u64 {
        let options = &self.options;
        options.batch_cells.div_ceil(options.micro_batch_cells) as u64
    }

    fn buckets(&self, epoch: u64) -> Option<Buckets> {
        let LoaderOptions {
            length_buckets,
            micro_batch_tokens,
            ..
        } = self.options;
        (length_buckets || micro_batch_tokens.is_some()).then_some(Buckets {
            seed: self.options.seed,
            epoch,
            batch_cells: self.options.batch_cells as u64,
            reorder: length_buckets,
        })
    }

    fn order(&self, epoch: u64) -> EpochOrder {
        let options = OrderOptions {
            seed: self.options.seed,
            shuffle: self.options.shuffle,
        };
        match (&self.weights, &self.options.sampler) {
            (Some(weights), _) => EpochOrder::sampled(&self.selection, options, epoch, weights),
            (None, Sampler::Stratified(codes)) => {
                EpochOrder::stratified(&self.selection, options, epoch, codes.clone())
                    .expect("codes were counted when the loader was made")
            }
            (None, _) => EpochOrder::new(&self.selection, options, epoch),
        }
    }
}

fn every_cell_has(
    corpus: &Corpus,
    selection: &Selection,
    column: &str,
    codes: &[i32],
) -> Result<()> {
    let mut missing = selection.cell_indices().filter(|&c| codes[c as usize] < 0);
    let Some(first) = missing.next() else {
        return Ok(());
    };
    Err(Error::MissingValue {
        column: column.to_owned(),
        cell: corpus.cell_ids(&[first])?.pop().unwrap_or_default(),
        cells: 1 + missing.count(),
    })
}

fn weights(
    corpus: &Corpus,
    selection: &Selection,
    options: &LoaderOptions,
    labels: Option<&[i32]>,
) -> Result<Option<WeightTable>> {
    let draws = matches!(
        options.sampler,
        Sampler::ClassBalanced | Sampler::Weighted(_)
    );
    if draws && options.by_domain() {
        return Err(Error::options(
            "micro-batches of one domain need each cell once, but cells are to be drawn with replacement",
            "choose the uniform sampler, or leave the domain column out",
        ));
    }
    match &options.sampler {
        Sampler::Uniform => Ok(None),
        Sampler::Stratified(codes) => {
            let order = OrderOptions {
                seed: 0,
                shuffle: Shuffle::Sequential,
            };
            EpochOrder::stratified(selection, order, 0, codes.clone()).map(|_| None)
        }
        Sampler::Weighted(weights) => WeightTable::new(weights, selection.cells()).map(Some),
        Sampler::ClassBalanced => {
            let (Some(column), Some(labels)) = (&options.label_column, labels) else {
                return Err(Error::options(
                    "class-balanced sampling needs a label column, but none is given",
                    "name the obs column of the labels, or choose the uniform sampler",
                ));
            };
            every_cell_has(corpus, selection, column, labels)?;
            let codes: Vec<i32> = selection
                .cell_indices()
                .map(|cell| labels[cell as usize])
                .collect();
            let weights = class_balanced_weights(&codes)
                .map_err(|_| Error::internal("a cell without a label was not noticed"))?;
            WeightTable::new(&weights, selection.cells()).map(Some)
        }
    }
}

fn check(options: &LoaderOptions, items: u64) -> Result<()> {
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
    if items == 0 {
        return fail(
            "the selection has no cells".into(),
            "check the column and the values it is made from",
        );
    }
    let sorted = options.length_buckets || options.micro_batch_tokens.is_some();
    if sorted && options.by_domain() {
        return fail(
            "micro-batches of one domain cannot be made by length too".into(),
            "leave the domain column out, or length buckets and the token budget",
        );
    }
    if options.length_buckets && matches!(options.sampler, Sampler::Stratified(_)) {
        return fail(
            "length buckets undo the stratified order".into(),
            "choose one of the two",
        );
    }
    if options.micro_batch_tokens.is_some() {
        return Ok(());
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
