//! Micro-batches of rows that lie in memory: conditions with their mean profiles.

use std::sync::Arc;

use super::LoaderOptions;
use crate::batch::{MicroBatch, StepBatches};
use crate::order::Shuffle;
use crate::rng::{Purpose, Rng};

/// Rows of one length, all with the same tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// A cell of the corpus that each row stands for.
    pub cells: Vec<u64>,
    /// Tokens of every row.
    pub tokens: Vec<i32>,
    /// Input profiles, laid end to end; rows may share one.
    pub inputs: Vec<f32>,
    /// The input profile of each row.
    pub input_of: Vec<usize>,
    /// Target profiles, one a row, laid end to end.
    pub targets: Vec<f32>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    fn micro_batch(&self, index: usize, chosen: &[usize]) -> MicroBatch {
        let len = self.tokens.len();
        let mut micro = MicroBatch {
            index,
            rows: chosen.len(),
            len,
            tokens: chosen.len() * len,
            ..MicroBatch::default()
        };
        for &row in chosen {
            let input = self.input_of[row];
            micro.cells.push(self.cells[row]);
            micro.gene_ids.extend_from_slice(&self.tokens);
            micro
                .values
                .extend_from_slice(&self.inputs[input * len..(input + 1) * len]);
            micro
                .targets
                .extend_from_slice(&self.targets[row * len..(row + 1) * len]);
        }
        micro
    }
}

/// The steps of one epoch over rows.
pub(super) struct RowStream {
    rows: Arc<Rows>,
    options: LoaderOptions,
    epoch: u64,
    order: Vec<usize>,
    next: u64,
    batches: u64,
}

impl RowStream {
    pub(super) fn new(
        rows: Arc<Rows>,
        options: LoaderOptions,
        epoch: u64,
        first_batch: u64,
        batches: u64,
    ) -> Self {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        if options.shuffle != Shuffle::Sequential {
            Rng::new(options.seed, Purpose::Rows, epoch, 0).shuffle(&mut order);
        }
        Self {
            rows,
            options,
            epoch,
            order,
            next: first_batch,
            batches,
        }
    }
}

impl Iterator for RowStream {
    type Item = StepBatches;

    fn next(&mut self) -> Option<StepBatches> {
        if self.next >= self.batches {
            return None;
        }
        let batch = self.next;
        self.next += 1;
        let size = self.options.batch_cells;
        let first = batch as usize * size;
        let chosen = &self.order[first..(first + size).min(self.order.len())];
        let pieces = chosen.chunks(self.options.micro_batch_cells).enumerate();
        let ours = |index: usize| index % self.options.world_size == self.options.rank;
        Some(StepBatches {
            epoch: self.epoch,
            batch,
            global_cells: chosen.len(),
            micro: pieces
                .filter(|(index, _)| ours(*index))
                .map(|(index, piece)| self.rows.micro_batch(index, piece))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(rank: usize, world_size: usize, epoch: u64, first: u64) -> Vec<StepBatches> {
        let rows = Rows {
            cells: (0..11).map(|row| 100 + row).collect(),
            tokens: vec![7, 8],
            inputs: vec![0.5, 1.5, 2.5, 3.5],
            input_of: (0..11).map(|row| row % 2).collect(),
            targets: (0..22).map(|x| x as f32).collect(),
        };
        let options = LoaderOptions {
            batch_cells: 4,
            micro_batch_cells: 2,
            rank,
            world_size,
            shuffle: Shuffle::Windowed { row_groups: 1 },
            ..LoaderOptions::default()
        };
        RowStream::new(Arc::new(rows), options, epoch, first, 3).collect()
    }

    #[test]
    fn ranks_share_the_rows_of_one_and_a_resumed_epoch_goes_on() {
        let alone = steps(0, 1, 5, 0);
        let sizes: Vec<usize> = alone.iter().map(|s| s.global_cells).collect();
        assert_eq!(sizes, [4, 4, 3]);
        for (batch, step) in alone.iter().enumerate() {
            let mut shared: Vec<MicroBatch> = Vec::new();
            for rank in 0..2 {
                let own = &steps(rank, 2, 5, 0)[batch];
                assert_eq!(own.global_cells, step.global_cells);
                shared.extend(own.micro.iter().cloned());
            }
            shared.sort_by_key(|micro| micro.index);
            assert_eq!(shared, step.micro);
        }
        assert_eq!(steps(0, 1, 5, 1), alone[1..]);
        assert_ne!(steps(0, 1, 6, 0), alone);
        let mut cells: Vec<u64> = (alone.iter().flat_map(|s| &s.micro))
            .flat_map(|micro| micro.cells.clone())
            .collect();
        cells.sort_unstable();
        assert_eq!(cells, (100..111).collect::<Vec<u64>>());
        let micro = &alone[0].micro[0];
        let row = (micro.cells[0] - 100) as usize;
        assert_eq!(micro.gene_ids, [7, 8, 7, 8]);
        assert_eq!(
            micro.targets[..2],
            [2.0 * row as f32, 2.0 * row as f32 + 1.0]
        );
        assert_eq!(micro.values[0], [0.5, 2.5][row % 2]);
    }
}
