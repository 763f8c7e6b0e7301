//! From a cell to a sequence of tokens.

pub mod mask;
mod medians;
pub mod panel;
pub mod rank;
pub mod scfoundation;
pub mod scgpt;
mod sequence;

use std::ops::Range;

pub use sequence::{SequenceOptions, Sequencer};

/// One cell: gene indices of the corpus, ascending, and their values.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// Gene indices.
    pub genes: &'a [u32],
    /// Values, all non-zero.
    pub values: &'a [f32],
}

/// What the random choices for a cell are keyed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellKey {
    /// Index of the cell in the corpus.
    pub cell: u64,
    /// The epoch its masks are drawn for; in the upper half, how often the cell came before in it.
    pub mask_epoch: u64,
}

impl CellKey {
    /// The key of a cell that comes for the (`occurrence` + 1)-th time in an epoch: its masks differ
    /// from those before.
    pub fn new(cell: u64, epoch: u64, occurrence: u32) -> Self {
        Self {
            cell,
            mask_epoch: epoch ^ u64::from(occurrence) << 32,
        }
    }
}

/// Token sequences of different lengths, one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Values, masked.
    pub values: Vec<f32>,
    /// Values before masking; empty when none of them is masked.
    pub targets: Vec<f32>,
    ends: Vec<usize>,
}

impl Tokens {
    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Where a sequence lies.
    pub fn range(&self, row: usize) -> Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start..self.ends[row]
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        (0..self.rows())
            .map(|row| self.range(row).len())
            .max()
            .unwrap_or(0)
    }

    /// Forgets all sequences, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.values.clear();
        self.targets.clear();
        self.ends.clear();
    }

    /// Ends the sequence whose ids and values were pushed.
    pub fn end_row(&mut self) {
        self.ends.push(self.ids.len());
    }

    /// Takes the values so far for targets, before some of the last sequence are masked.
    pub fn keep_targets(&mut self) {
        self.targets
            .extend_from_slice(&self.values[self.targets.len()..]);
    }
}

/// Makes tokens of cells.
pub trait Tokenizer: Send + Sync {
    /// A tokeniser with its own buffers, for one thread.
    fn worker(&self) -> Box<dyn CellTokenizer + '_>;
    /// The token that fills up short sequences.
    fn pad_id(&self) -> i32;
    /// The value that goes with it.
    fn pad_value(&self) -> f32;
    /// No sequence is longer than this.
    fn max_len(&self) -> usize;
    /// The token of a gene of the corpus; `None` where the tokeniser cannot say.
    fn token(&self, _gene: u32) -> Option<i32> {
        None
    }
    /// No sequence of a cell with so many values is longer than this.
    fn most_tokens(&self, values: usize) -> usize {
        (values + 1).min(self.max_len())
    }
}

/// Makes tokens of one cell at a time, reusing its buffers.
pub trait CellTokenizer {
    /// Adds the sequence of a cell to `out`. Returns whether the cell expresses a known gene.
    fn tokenize(&mut self, cell: Cell<'_>, key: CellKey, out: &mut Tokens) -> bool;
}
