//! The loader hands out the same micro-batches whatever the number of ranks and threads, can start
//! anywhere, and delivers errors instead of hanging.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{CELLS, epoch, loader, options, tokenizer, write_corpus};
use scpeft_data::tokenize::{Cell, CellKey, CellTokenizer, Tokens};
use scpeft_data::{Loader, LoaderOptions, MaskDraw, Selection, Shuffle, Tokenizer};

#[test]
fn batches_do_not_depend_on_ranks_threads_or_prefetch() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let one = epoch(&corpus, &options(), 1, 0);
    let cells: BTreeSet<u64> = one.iter().flat_map(|(_, m)| m.cells.clone()).collect();
    assert_eq!(cells.len(), CELLS);
    for (world_size, threads, prefetch_steps) in [(1, 1, 0), (2, 3, 1), (3, 1, 5), (6, 2, 0)] {
        let changed = LoaderOptions {
            world_size,
            threads,
            prefetch_steps,
            ..options()
        };
        assert_eq!(epoch(&corpus, &changed, 1, 0), one, "{world_size} ranks");
    }
    let tail: Vec<_> = one
        .iter()
        .filter(|(batch, _)| *batch >= 3)
        .cloned()
        .collect();
    assert_eq!(epoch(&corpus, &options(), 1, 3), tail);
    assert_ne!(epoch(&corpus, &options(), 2, 0), one);
}

#[test]
fn micro_batches_hold_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let codes = corpus.obs_codes("label").unwrap();
    for (_, micro) in epoch(&corpus, &options(), 0, 0) {
        assert_eq!(micro.rows, micro.cells.len());
        assert!(micro.len <= 36);
        let mut tokens = 0;
        for row in 0..micro.rows {
            let at = row * micro.len..(row + 1) * micro.len;
            let (ids, values, targets) = (
                &micro.gene_ids[at.clone()],
                &micro.values[at.clone()],
                &micro.targets[at],
            );
            let len = ids.iter().filter(|&&id| id != 0).count();
            tokens += len;
            assert_eq!((ids[0], values[0], targets[0]), (1, 0.0, 0.0));
            assert!(
                ids[len..].iter().all(|&id| id == 0) && values[len..].iter().all(|&v| v == -2.0)
            );
            assert!(targets[1..len].iter().all(|t| (1.0..=50.0).contains(t)));
            let masked = values[..len].iter().filter(|&&v| v == -1.0).count();
            assert_eq!(masked, ((len - 1) as f64 * 0.4) as usize);
            assert!(
                values
                    .iter()
                    .zip(targets)
                    .all(|(v, t)| *v == -1.0 || v == t)
            );
            assert_eq!(len == 2, micro.cells[row] == 5);
            assert_eq!(
                micro.labels[row],
                i64::from(codes[micro.cells[row] as usize])
            );
        }
        assert_eq!(micro.tokens, tokens);
    }
}

#[test]
fn fixed_masks_stay_and_others_change() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let run = |mask, number| {
        let options = LoaderOptions {
            mask,
            shuffle: Shuffle::Sequential,
            ..options()
        };
        epoch(&corpus, &options, number, 0)
    };
    assert_eq!(run(MaskDraw::Fixed, 0), run(MaskDraw::Fixed, 1));
    let (first, second) = (run(MaskDraw::PerEpoch, 0), run(MaskDraw::PerEpoch, 1));
    assert_ne!(first, second);
    for ((_, a), (_, b)) in first.iter().zip(&second) {
        assert_eq!(
            (&a.cells, &a.gene_ids, &a.targets),
            (&b.cells, &b.gene_ids, &b.targets)
        );
    }
}

#[test]
fn selections_and_short_batches() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let chosen = Selection::where_equals(&corpus, "label", &["a", "c"]).unwrap();
    assert_eq!(chosen.cells(), 52);
    let make = |drop_last| {
        let options = LoaderOptions {
            drop_last,
            world_size: 6,
            rank: 5,
            ..options()
        };
        Loader::new(corpus.clone(), chosen.clone(), tokenizer(&corpus), options).unwrap()
    };
    assert_eq!(
        (
            make(true).batches_per_epoch(),
            make(false).batches_per_epoch()
        ),
        (2, 3)
    );
    let last = make(false).epoch(0, 2).next().unwrap().unwrap();
    assert_eq!((last.global_cells, last.micro.len()), (4, 0));
    let error = Selection::where_equals(&corpus, "label", &["d"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`d`") && error.contains("`a`, `b`, `c`"),
        "{error}"
    );
    let error = Selection::where_equals(&corpus, "labels", &["a"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("did you mean `label`"), "{error}");
}

#[test]
fn ranks_that_do_not_divide_are_refused_with_sizes_that_work() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let options = LoaderOptions {
        world_size: 4,
        ..options()
    };
    let made = Loader::new(
        corpus.clone(),
        Selection::all(&corpus),
        tokenizer(&corpus),
        options,
    );
    let error = made.err().unwrap();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(
        text.contains("6 = 4 x 1 + 2") && text.ends_with("that work: 1, 2, 3, 6"),
        "{text}"
    );
}

#[test]
fn damage_is_delivered_as_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let shard = corpus.path().join(&corpus.manifest().shards[1].path);
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 8;
    bytes[4..middle].fill(0xAA);
    std::fs::write(&shard, bytes).unwrap();
    let unlabelled = LoaderOptions {
        label_column: None,
        ..options()
    };
    let mut stream = loader(&corpus, unlabelled).epoch(0, 0);
    let error = stream.find_map(Result::err).unwrap();
    let text = error.to_string();
    assert!(
        text.contains("part-00001.parquet") && text.contains("row group"),
        "{text}"
    );
    assert_eq!(error.exit_code(), 3);
}

struct Panics;

impl Tokenizer for Panics {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Self)
    }
    fn pad_id(&self) -> i32 {
        0
    }
    fn pad_value(&self) -> f32 {
        0.0
    }
    fn max_len(&self) -> usize {
        1
    }
}

impl CellTokenizer for Panics {
    fn tokenize(&mut self, _: Cell<'_>, _: CellKey, _: &mut Tokens) -> bool {
        panic!("no tokens today")
    }
}

#[test]
fn a_panic_is_delivered_and_dropping_early_ends_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let bad = Loader::new(
        corpus.clone(),
        Selection::all(&corpus),
        Arc::new(Panics),
        options(),
    )
    .unwrap();
    let text = bad.epoch(0, 0).next().unwrap().unwrap_err().to_string();
    assert!(text.contains("no tokens today"), "{text}");
    let mut stream = loader(&corpus, options()).epoch(0, 0);
    assert!(stream.next().unwrap().is_ok());
    drop(stream);
}
