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

    /// One of its cells alone, as wide as before.
    pub fn single(&self, row: usize, pad_id: i32) -> Self {
        let slots = row * self.len..(row + 1) * self.len;
        let of = |codes: &[i64]| codes.get(row..=row).unwrap_or_default().to_vec();
        let gene_ids = self.gene_ids[slots.clone()].to_vec();
        Self {
            index: self.index,
            domain: self.domain,
            cells: vec![self.cells[row]],
            rows: 1,
            len: self.len,
            tokens: gene_ids.iter().filter(|&&id| id != pad_id).count(),
            gene_ids,
            values: self.values[slots.clone()].to_vec(),
            targets: self.targets[slots].to_vec(),
            labels: of(&self.labels),
            batch_labels: of(&self.batch_labels),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_cell_is_what_it_is_in_its_batch() {
        let batch = MicroBatch {
            index: 4,
            cells: vec![10, 11],
            rows: 2,
            len: 3,
            gene_ids: vec![1, 2, 3, 5, 6, 0],
            values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 9.0],
            targets: vec![0.5, 1.5, 2.5, 3.5, 4.5, 9.5],
            labels: vec![7, 8],
            tokens: 5,
            ..MicroBatch::default()
        };
        let single = batch.single(1, 0);
        assert_eq!((single.cells, single.rows, single.len), (vec![11], 1, 3));
        assert_eq!(single.gene_ids, [5, 6, 0]);
        assert_eq!(
            (single.values, single.targets),
            (vec![3.0, 4.0, 9.0], vec![3.5, 4.5, 9.5])
        );
        assert_eq!((single.tokens, single.index), (2, 4));
        assert_eq!(single.labels, [8]);
        assert!(single.batch_labels.is_empty());
    }
}
