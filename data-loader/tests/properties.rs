//! Over random corpora: an epoch is a permutation of the cells, cut into the same global batches for any
//! number of ranks, and starting anywhere gives the rest of it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{epoch, options, write_corpus_of};
use proptest::prelude::*;
use scpeft_data::{LoaderOptions, MicroBatch, Shuffle};

/// Micro-batches in a global batch: 1, 2, 3 and 8 ranks divide it.
const MICRO_BATCHES: usize = 24;

fn cells(batches: &[(u64, MicroBatch)]) -> Vec<u64> {
    let mut cells: Vec<u64> = batches.iter().flat_map(|(_, m)| m.cells.clone()).collect();
    cells.sort_unstable();
    cells
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn global_batches_are_a_function_of_corpus_seed_and_epoch(
        n_cells in 6_usize..220,
        row_group_cells in 1_usize..30,
        row_groups in 1_usize..6,
        micro_batch_cells in 1_usize..4,
        window in 1_usize..5,
        (drop_last, length_buckets) in any::<(bool, bool)>(),
        seed in any::<u64>(),
        number in 0_u64..5,
        at in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let corpus = write_corpus_of(dir.path(), n_cells, row_group_cells, row_group_cells * row_groups);
        let batch_cells = MICRO_BATCHES * micro_batch_cells;
        prop_assume!(n_cells >= batch_cells || !drop_last);
        let one = LoaderOptions {
            seed,
            batch_cells,
            micro_batch_cells,
            shuffle: Shuffle::Windowed { row_groups: window },
            drop_last,
            length_buckets,
            ..options()
        };
        let all = epoch(&corpus, &one, number, 0);

        let delivered = cells(&all);
        if drop_last {
            prop_assert_eq!(delivered.len(), n_cells / batch_cells * batch_cells);
            prop_assert!(delivered.is_sorted_by(|a, b| a < b));
            prop_assert!(delivered.iter().all(|&cell| cell < n_cells as u64));
        } else {
            prop_assert_eq!(delivered, (0..n_cells as u64).collect::<Vec<_>>());
        }

        for (world_size, threads, prefetch_steps) in [(2, 1, 2), (3, 3, 0), (8, 2, 1)] {
            let ranks = LoaderOptions { world_size, threads, prefetch_steps, ..one.clone() };
            prop_assert_eq!(&epoch(&corpus, &ranks, number, 0), &all, "{} ranks", world_size);
        }

        let batches = all.last().map_or(0, |(batch, _)| batch + 1);
        let from = at.index(batches as usize) as u64;
        let rest: Vec<_> = all.iter().filter(|(batch, _)| *batch >= from).cloned().collect();
        let eight = LoaderOptions { world_size: 8, ..one };
        prop_assert_eq!(epoch(&corpus, &eight, number, from), rest);
    }
}
