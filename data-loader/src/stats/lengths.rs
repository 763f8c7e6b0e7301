//! Lengths of sequences: what a longest length cuts off, and what padding wastes.

use serde::Serialize;

use crate::corpus::Corpus;
use crate::order::{EpochOrder, OrderOptions, Selection, Shuffle};
use crate::{Error, Result};

/// What lengths are worked out for: sequences of one token for each expressed gene and one class token.
#[derive(Debug, Clone)]
pub struct LengthOptions {
    /// The longest sequences to try, in tokens.
    pub max_lens: Vec<usize>,
    /// Cells that are padded to the longest of them.
    pub batch_cells: usize,
    /// Row groups in a window of the shuffle.
    pub window_row_groups: usize,
    /// Seed of the shuffle.
    pub seed: u64,
}

impl LengthOptions {
    pub(super) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::options(what, ""));
        if let Some(short) = self.max_lens.iter().find(|&&max| max < 2) {
            return bad(format!(
                "a longest length must be at least 2, got `{short}`"
            ));
        }
        if self.batch_cells == 0 || self.window_row_groups == 0 {
            return bad("batches and windows must hold at least 1".into());
        }
        Ok(())
    }
}

/// What happens at one longest length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PaddingWaste {
    /// The longest length, in tokens.
    pub max_len: usize,
    /// Share of the cells that lose genes.
    pub cut_cells: f64,
    /// Share of the expressed genes that are lost.
    pub cut_genes: f64,
    /// Share of the slots that are padding in batches in shuffled order.
    pub waste: f64,
    /// The same when the cells of a window are ordered by length first.
    pub bucketed_waste: f64,
}

/// Works out an epoch for each longest length. `genes` is the number of expressed genes of each cell.
pub(super) fn padding(
    corpus: &Corpus,
    genes: &[u32],
    options: &LengthOptions,
) -> Vec<PaddingWaste> {
    let selection = Selection::all(corpus);
    let order = OrderOptions {
        seed: options.seed,
        shuffle: Shuffle::Windowed {
            row_groups: options.window_row_groups,
        },
    };
    let order = EpochOrder::new(&selection, order, 0);
    let mut lens: Vec<Tally> = options
        .max_lens
        .iter()
        .map(|&max| Tally::new(max))
        .collect();
    let mut shuffled = Batches::default();
    let mut bucketed = Batches::default();
    for window in 0..order.windows() {
        let mut lengths: Vec<usize> = order
            .window_cells(window)
            .iter()
            .map(|at| genes[at.cell as usize] as usize + 1)
            .collect();
        shuffled.extend(&lengths, options.batch_cells, |batch| {
            for tally in &mut lens {
                tally.shuffled.add(batch, tally.max_len);
            }
        });
        lengths.sort_unstable();
        bucketed.extend(&lengths, options.batch_cells, |batch| {
            for tally in &mut lens {
                tally.bucketed.add(batch, tally.max_len);
            }
        });
    }
    for tally in &mut lens {
        tally.shuffled.add(&shuffled.rest, tally.max_len);
        tally.bucketed.add(&bucketed.rest, tally.max_len);
    }
    lens.iter().map(|tally| tally.finish(genes)).collect()
}

/// Cuts lengths that come window by window into batches.
#[derive(Default)]
struct Batches {
    rest: Vec<usize>,
}

impl Batches {
    fn extend(&mut self, lengths: &[usize], size: usize, mut visit: impl FnMut(&[usize])) {
        for &length in lengths {
            self.rest.push(length);
            if self.rest.len() == size {
                visit(&self.rest);
                self.rest.clear();
            }
        }
    }
}

struct Tally {
    max_len: usize,
    shuffled: Slots,
    bucketed: Slots,
}

#[derive(Default)]
struct Slots {
    tokens: u64,
    slots: u64,
}

impl Slots {
    fn add(&mut self, batch: &[usize], max_len: usize) {
        let longest = batch.iter().copied().max().unwrap_or(0).min(max_len);
        self.slots += (longest * batch.len()) as u64;
        let kept = batch.iter().map(|&length| length.min(max_len));
        self.tokens += kept.sum::<usize>() as u64;
    }

    fn waste(&self) -> f64 {
        1.0 - self.tokens as f64 / self.slots.max(1) as f64
    }
}

impl Tally {
    fn new(max_len: usize) -> Self {
        Self {
            max_len,
            shuffled: Slots::default(),
            bucketed: Slots::default(),
        }
    }

    fn finish(&self, genes: &[u32]) -> PaddingWaste {
        let room = self.max_len as u32 - 1;
        let cut = genes.iter().filter(|&&n| n > room);
        let lost: u64 = cut.clone().map(|&n| u64::from(n - room)).sum();
        let all: u64 = genes.iter().map(|&n| u64::from(n)).sum();
        PaddingWaste {
            max_len: self.max_len,
            cut_cells: cut.count() as f64 / genes.len().max(1) as f64,
            cut_genes: lost as f64 / all.max(1) as f64,
            waste: self.shuffled.waste(),
            bucketed_waste: self.bucketed.waste(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waste_is_what_padding_adds() {
        let mut slots = Slots::default();
        slots.add(&[2, 4], 10);
        slots.add(&[10, 30], 20);
        // 8 + 40 slots, of which 6 + 30 are used.
        assert_eq!(slots.waste(), 0.25);
        let found = Tally::new(4).finish(&[2, 3, 5, 10]);
        assert_eq!((found.cut_cells, found.cut_genes), (0.5, 0.45));
    }
}
