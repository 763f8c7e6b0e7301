//! Batches of a stratified loader have the categories of their window in proportion.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{CELLS, domain, epoch, options, write_corpus};
use scpeft_data::{LoaderOptions, Sampler, Shuffle};

#[test]
fn batches_have_the_proportions_of_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let codes: Vec<i32> = (0..CELLS).map(domain).collect();
    let share = |code| codes.iter().filter(|&&c| c == code).count() as f64 / CELLS as f64;
    let make = |world_size, threads| LoaderOptions {
        sampler: Sampler::Stratified(codes.clone().into()),
        // All row groups are in one window.
        shuffle: Shuffle::Windowed { row_groups: 20 },
        world_size,
        threads,
        ..options()
    };
    let all = epoch(&corpus, &make(1, 2), 1, 0);
    assert_eq!(epoch(&corpus, &make(3, 1), 1, 0), all);
    let seen: BTreeSet<u64> = all.iter().flat_map(|(_, m)| m.cells.clone()).collect();
    assert_eq!(seen.len(), CELLS);
    for batch in 0..5 {
        let micro = all.iter().filter(|(number, _)| *number == batch);
        let cells: Vec<u64> = micro.flat_map(|(_, m)| m.cells.clone()).collect();
        for code in 0..3 {
            let count = cells.iter().filter(|&&c| domain(c as usize) == code);
            let expected = share(code) * cells.len() as f64;
            assert!(
                (count.count() as f64 - expected).abs() < 2.0,
                "batch {batch}, {code}"
            );
        }
    }
    let tail: Vec<_> = all
        .iter()
        .filter(|(batch, _)| *batch >= 2)
        .cloned()
        .collect();
    assert_eq!(epoch(&corpus, &make(1, 1), 1, 2), tail);
    assert_ne!(epoch(&corpus, &make(1, 1), 2, 0), all);
}

#[test]
fn codes_for_other_cells_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let options = LoaderOptions {
        sampler: Sampler::Stratified(vec![0; 5].into()),
        ..options()
    };
    let selection = scpeft_data::Selection::all(&corpus);
    let made = scpeft_data::Loader::new(
        corpus.clone(),
        selection,
        common::tokenizer(&corpus),
        options,
    );
    let error = made.err().unwrap();
    assert!(error.to_string().contains("5 codes for 103"), "{error}");
    assert_eq!(error.exit_code(), 2);
}
