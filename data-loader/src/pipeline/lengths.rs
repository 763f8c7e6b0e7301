//! Cells of like length together: less padding, for the same cells in every epoch.
//!
//! Inside a window cells are sorted by how many tokens they have at most, and cut at the borders of
//! global batches; the pieces then come in an order drawn by the seed. So every cell comes as often as
//! without, and which cells are in a batch is still a pure function of seed, epoch and corpus.

use super::source::Source;
use super::window::Window;
use crate::Result;
use crate::order::CellRef;
use crate::rng::{Purpose, Rng};
use crate::tokenize::Tokenizer;

/// What cells are sorted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buckets {
    pub(super) seed: u64,
    pub(super) epoch: u64,
    /// Cells in a global batch.
    pub(super) batch_cells: u64,
    /// Whether the cells of a window change places; if not, lengths are only looked up.
    pub(super) reorder: bool,
}

/// The most tokens that each cell of a window can have, in the order of its cells.
pub(super) fn lengths(
    window: &Window,
    source: &Source,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<u32>> {
    let mut of_members = Vec::new();
    for member in 0..window.members() {
        of_members.push(window.stored(source, member)?);
    }
    let tokens = |at: &CellRef| {
        let stored = of_members[at.member as usize][at.place as usize];
        tokenizer.most_tokens(stored as usize) as u32
    };
    Ok(window.cells.iter().map(tokens).collect())
}

impl Buckets {
    /// Sorts the cells of a window, the first of which has this position in the epoch.
    pub(super) fn sort(
        &self,
        number: usize,
        position: u64,
        cells: &mut Vec<CellRef>,
        lengths: &mut Vec<u32>,
    ) {
        let n = cells.len() as u64;
        // What a global batch of the window before has still to take, whole ones, and a rest.
        let head = (self.batch_cells - position % self.batch_cells) % self.batch_cells;
        let mut borders = vec![0];
        let mut border = if head == 0 { self.batch_cells } else { head };
        while border < n {
            borders.push(border as usize);
            border += self.batch_cells;
        }
        borders.push(n as usize);
        let mut pieces: Vec<usize> = (0..borders.len() - 1).collect();
        Rng::new(self.seed, Purpose::Buckets, self.epoch, number as u64).shuffle(&mut pieces);
        let mut sorted: Vec<u32> = (0..n as u32).collect();
        sorted.sort_by_key(|&place| lengths[place as usize]);
        let (mut taken, mut order) = (0, vec![0; n as usize]);
        for piece in pieces {
            let span = borders[piece]..borders[piece + 1];
            let size = span.len();
            order[span].copy_from_slice(&sorted[taken..taken + size]);
            taken += size;
        }
        *cells = order.iter().map(|&place| cells[place as usize]).collect();
        *lengths = order.iter().map(|&place| lengths[place as usize]).collect();
    }
}

/// Cuts cells into micro-batches of at most so many tokens, padding included, cells of like length
/// together. A cell that is longer than that has a micro-batch for itself. Returns places in `lengths`.
pub(super) fn by_tokens(lengths: &[u32], most_tokens: usize) -> Vec<Vec<u32>> {
    let mut sorted: Vec<u32> = (0..lengths.len() as u32).collect();
    sorted.sort_by_key(|&place| lengths[place as usize]);
    let mut micro: Vec<Vec<u32>> = Vec::new();
    for place in sorted {
        let length = lengths[place as usize] as usize;
        match micro.last_mut() {
            // Lengths ascend: this one is the longest.
            Some(cells) if (cells.len() + 1) * length <= most_tokens => cells.push(place),
            _ => micro.push(vec![place]),
        }
    }
    micro
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_window_keeps_its_cells_and_batches_are_alike(
            lengths in prop::collection::vec(1_u32..50, 1..200),
            batch in 1_u64..40, position in 0_u64..100, seed in any::<u64>(),
        ) {
            let cell = |cell| CellRef { cell, member: 0, place: cell as u32, occurrence: 0 };
            let mut cells: Vec<CellRef> = (0..lengths.len() as u64).map(cell).collect();
            let buckets = Buckets { seed, epoch: 2, batch_cells: batch, reorder: true };
            let mut sorted = lengths.clone();
            buckets.sort(3, position, &mut cells, &mut sorted);
            let mut seen: Vec<u64> = cells.iter().map(|c| c.cell).collect();
            for (cell, &length) in cells.iter().zip(&sorted) {
                prop_assert_eq!(lengths[cell.cell as usize], length);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u64).collect::<Vec<_>>());
            // No two pieces overlap in length, other than at their ends.
            let mut pieces: Vec<&[u32]> = Vec::new();
            let mut rest = sorted.as_slice();
            let mut size = (batch - position % batch) as usize;
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                prop_assert!(piece.is_sorted());
                pieces.push(piece);
                (rest, size) = (behind, batch as usize);
            }
            pieces.sort_by_key(|piece| (piece[0], piece[piece.len() - 1]));
            prop_assert!(pieces.windows(2).all(|w| w[0][w[0].len() - 1] <= w[1][0]));
        }

        #[test]
        fn micro_batches_fit_their_budget(
            lengths in prop::collection::vec(1_u32..50, 1..200), budget in 50_usize..400,
        ) {
            let micro = by_tokens(&lengths, budget);
            let mut seen: Vec<u32> = micro.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for cells in micro {
                let longest = cells.iter().map(|&c| lengths[c as usize]).max().unwrap_or(0);
                prop_assert!(cells.len() * longest as usize <= budget);
            }
        }
    }
}
