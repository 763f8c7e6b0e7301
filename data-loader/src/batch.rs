//! What the loader hands to a step of training.

use crate::tokenize::Tokens;

/// Cells that go through the model together, padded to the longest of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    /// Place in the global batch.
    pub index: usize,
    /// The code of the domain that all its cells are in, when micro-batches are made by domain.
    pub domain: Option<u32>,
    /// The cells, as their indices in the corpus.
    pub cells: Vec<u64>,
    /// Number of cells.
    pub rows: usize,
    /// Tokens per cell, padding included.
    pub len: usize,
    /// Token ids, `rows * len`, row by row.
    pub gene_ids: Vec<i32>,
    /// Values, with the mask value where they are masked.
    pub values: Vec<f32>,
    /// Values before masking.
    pub targets: Vec<f32>,
    /// Label codes, -1 where a cell has none; empty when no label column was asked for.
    pub labels: Vec<i64>,
    /// Codes of the batch column; empty when none was asked for.
    pub batch_labels: Vec<i64>,
    /// Tokens that are not padding.
    pub tokens: usize,
}

/// One rank's share of one global batch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepBatches {
    /// The epoch.
    pub epoch: u64,
    /// Number of the global batch in the epoch.
    pub batch: u64,
    /// Cells in the global batch, over all ranks.
    pub global_cells: usize,
    /// This rank's micro-batches; may be empty in a short last batch.
    pub micro: Vec<MicroBatch>,
}

impl MicroBatch {
    /// Pads ragged token sequences to the longest of them.
    pub(crate) fn pad(cells: Vec<u64>, tokens: &Tokens, pad_id: i32, pad_value: f32) -> Self {
        let rows = cells.len();
        let len = tokens.longest();
        let gene_ids = padded(tokens, &tokens.ids, len, pad_id);
        let values = padded(tokens, &tokens.values, len, pad_value);
        let targets = if tokens.targets.is_empty() {
            values.clone()
        } else {
            padded(tokens, &tokens.targets, len, pad_value)
        };
        Self {
            cells,
            rows,
            len,
            gene_ids,
            values,
            targets,
            tokens: tokens.ids.len(),
            ..Self::default()
        }
    }
}

/// Lays ragged sequences out in rows of one length.
fn padded<T: Copy>(tokens: &Tokens, ragged: &[T], len: usize, pad: T) -> Vec<T> {
    let mut rows = Vec::with_capacity(tokens.rows() * len);
    for row in 0..tokens.rows() {
        rows.extend_from_slice(&ragged[tokens.range(row)]);
        rows.resize((row + 1) * len, pad);
    }
    rows
}
