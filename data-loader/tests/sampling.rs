//! What is drawn with replacement, and what is batched by domain: exact, the same on any number of ranks
//! and threads, from any batch on.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{CELLS, domain, epoch, options, tokenizer, write_corpus};
use scpeft_data::{
    Corpus, Loader, LoaderOptions, MicroBatch, Sampler, ScgptOptions, ScgptTokenizer, Selection,
    Shuffle, Vocab,
};

fn weighted() -> LoaderOptions {
    let weights = (0..CELLS).map(|c| if c % 9 == 0 { 12.0 } else { 0.5 });
    LoaderOptions {
        sampler: Sampler::Weighted(weights.collect()),
        ..options()
    }
}

fn by_domain() -> LoaderOptions {
    LoaderOptions {
        domain_column: Some("domain".into()),
        batch_column: Some("domain".into()),
        ..options()
    }
}

fn cells(all: &[(u64, MicroBatch)]) -> Vec<u64> {
    all.iter().flat_map(|(_, m)| m.cells.clone()).collect()
}

/// The same for 2, 3 and 6 ranks, other threads, and from batch 2 on.
fn assert_pure(corpus: &Arc<Corpus>, options: &LoaderOptions) {
    let one = epoch(corpus, options, 1, 0);
    for (world_size, threads, prefetch_steps) in [(1, 1, 0), (2, 3, 1), (3, 1, 5), (6, 2, 0)] {
        let changed = LoaderOptions {
            world_size,
            threads,
            prefetch_steps,
            ..options.clone()
        };
        assert_eq!(epoch(corpus, &changed, 1, 0), one, "{world_size} ranks");
    }
    let tail: Vec<_> = one.iter().filter(|(b, _)| *b >= 2).cloned().collect();
    assert!(!tail.is_empty());
    assert_eq!(epoch(corpus, options, 1, 2), tail);
}

#[test]
fn draws_with_replacement_are_exact_and_independent_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    assert_pure(&corpus, &weighted());
    let first = cells(&epoch(&corpus, &weighted(), 1, 0));
    assert_eq!(first.len(), CELLS);
    let heavy = first.iter().filter(|&c| c % 9 == 0).count();
    // 12 of 103 cells weigh 144 of 189.5: 78 draws expected, 5 deviations are 22.
    assert!(heavy.abs_diff(78) < 22, "{heavy}");
    assert!(first.iter().collect::<BTreeSet<_>>().len() < CELLS * 3 / 4);
    let second = cells(&epoch(&corpus, &weighted(), 2, 0));
    let sorted = |mut cells: Vec<u64>| {
        cells.sort_unstable();
        cells
    };
    assert_ne!(sorted(first), sorted(second));
}

/// Values and targets of one draw of a cell.
type Row = (Vec<f32>, Vec<f32>);

#[test]
fn a_cell_drawn_twice_is_masked_in_two_ways() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let mut rows: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
    for (_, micro) in epoch(&corpus, &weighted(), 0, 0) {
        for row in 0..micro.rows {
            let at = row * micro.len..(row + 1) * micro.len;
            let unpadded = |values: &[f32]| -> Vec<f32> {
                values[at.clone()]
                    .iter()
                    .copied()
                    .filter(|v| *v != -2.0)
                    .collect()
            };
            let pair = (unpadded(&micro.values), unpadded(&micro.targets));
            rows.entry(micro.cells[row]).or_default().push(pair);
        }
    }
    let mut repeated = 0;
    for (cell, draws) in rows.iter().filter(|(_, draws)| draws.len() > 1) {
        repeated += 1;
        let masks: BTreeSet<String> = draws.iter().map(|(v, _)| format!("{v:?}")).collect();
        assert_eq!(masks.len(), draws.len(), "cell {cell}");
        assert!(
            draws.iter().all(|(_, targets)| *targets == draws[0].1),
            "cell {cell}"
        );
    }
    assert!(repeated > 8, "{repeated}");
}

#[test]
fn classes_are_balanced_over_the_selected_cells() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    // 26 cells of a, 2 of b, 25 of c: those of class b are rare.
    let codes = corpus.obs_codes("label").unwrap();
    let chosen = Selection::filter(&corpus, |cell| match codes[cell as usize] {
        0 | 2 => true,
        1 => cell < 8,
        _ => false,
    });
    let options = LoaderOptions {
        sampler: Sampler::ClassBalanced,
        ..options()
    };
    let make = Loader::new(corpus.clone(), chosen.clone(), tokenizer(&corpus), options).unwrap();
    let mut drawn = [0_u64; 3];
    for number in 0..40 {
        let mut cells = 0;
        for step in make.epoch(number, 0) {
            for micro in step.unwrap().micro {
                cells += micro.rows as u64;
                for label in micro.labels {
                    drawn[usize::try_from(label).unwrap()] += 1;
                }
            }
        }
        assert_eq!(cells, chosen.cells());
    }
    let expected = 40 * chosen.cells() / 3;
    // 5 standard deviations.
    let slack = (5.0 * (expected as f64 * 2.0 / 3.0).sqrt()) as u64;
    assert!(
        drawn.iter().all(|n| n.abs_diff(expected) < slack),
        "{drawn:?} {expected}"
    );
}

#[test]
fn micro_batches_hold_one_domain_and_domains_interleave() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    assert_pure(&corpus, &by_domain());
    let mut orders = BTreeSet::new();
    for number in 0..4 {
        let all = epoch(&corpus, &by_domain(), number, 0);
        let mut seen = cells(&all);
        seen.sort_unstable();
        assert_eq!(seen, (0..CELLS as u64).collect::<Vec<_>>());
        let mut sizes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (batch, micro) in &all {
            let code = micro.domain.unwrap();
            let same = |c: &u64| domain(*c as usize) == code as i32;
            assert!(micro.cells.iter().all(same), "batch {batch}");
            assert_eq!(micro.batch_labels, vec![i64::from(code); micro.rows]);
            sizes.entry(code).or_default().push(micro.rows);
        }
        for (code, sizes) in &sizes {
            let of_domain = (0..CELLS).filter(|&c| domain(c) == *code as i32).count();
            assert_eq!(sizes.len(), of_domain.div_ceil(4), "domain {code}");
            assert!(
                sizes[..sizes.len() - 1].iter().all(|&n| n == 4),
                "{sizes:?}"
            );
        }
        // 6 micro-batches make a batch, the last batch has the rest.
        let micro = all.len();
        assert!(
            all.iter()
                .enumerate()
                .all(|(i, (b, m))| (i / 6, i % 6) == (*b as usize, m.index))
        );
        assert_eq!(micro, 8 + 18 + 1);
        let codes: Vec<u32> = all.iter().map(|(_, m)| m.domain.unwrap()).collect();
        let changes = codes.windows(2).filter(|w| w[0] != w[1]).count();
        assert!(changes > 4, "{codes:?}");
        orders.insert(codes);
    }
    assert!(orders.len() > 1, "the order is drawn per epoch");
}

#[test]
fn evaluation_in_corpus_order_keeps_domains_apart() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let sequential = LoaderOptions {
        shuffle: Shuffle::Sequential,
        ..by_domain()
    };
    assert_pure(&corpus, &sequential);
    let all = epoch(&corpus, &sequential, 0, 0);
    for code in 0..3 {
        let of_domain = all.iter().filter(|(_, m)| m.domain == Some(code));
        let found: Vec<u64> = of_domain.flat_map(|(_, m)| m.cells.clone()).collect();
        let wanted = (0..CELLS)
            .filter(|&c| domain(c) == code as i32)
            .map(|c| c as u64);
        assert_eq!(found, wanted.collect::<Vec<_>>());
    }
    let dropped = LoaderOptions {
        drop_last: true,
        ..sequential
    };
    let micro = epoch(&corpus, &dropped, 0, 0).len();
    assert_eq!(micro, 24);
}

#[test]
fn what_cannot_be_sampled_or_batched_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let refuse = |options: LoaderOptions, code: i32, parts: &[&str]| {
        let all = Selection::all(&corpus);
        let made = Loader::new(corpus.clone(), all, tokenizer(&corpus), options);
        let error = made.err().unwrap();
        for part in parts {
            assert!(
                error.to_string().contains(part),
                "`{part}` is not in: {error}"
            );
        }
        assert_eq!(error.exit_code(), code, "{error}");
    };
    let label = Some("label".to_owned());
    let missing = ["25 of the selected cells", "`label`", "`cell-3`", "help:"];
    refuse(
        LoaderOptions {
            batch_column: label.clone(),
            ..options()
        },
        3,
        &missing,
    );
    refuse(
        LoaderOptions {
            domain_column: label,
            ..options()
        },
        3,
        &missing,
    );
    let balanced = LoaderOptions {
        sampler: Sampler::ClassBalanced,
        ..options()
    };
    refuse(balanced.clone(), 3, &missing);
    refuse(
        LoaderOptions {
            label_column: None,
            ..balanced
        },
        2,
        &["label column"],
    );
    let short = Sampler::Weighted(vec![1.0; 5]);
    refuse(
        LoaderOptions {
            sampler: short,
            ..options()
        },
        2,
        &["5 sampling weights for 103"],
    );
    let both = LoaderOptions {
        sampler: weighted().sampler,
        ..by_domain()
    };
    refuse(both, 2, &["uniform sampler"]);
    let unknown = Some("domains".to_owned());
    refuse(
        LoaderOptions {
            domain_column: unknown,
            ..options()
        },
        3,
        &["did you mean `domain`"],
    );
}

#[test]
fn categorical_padding_reaches_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = write_corpus(dir.path());
    let vocab = Vocab::from_genes(corpus.genes(), scpeft_data::GeneKey::Symbol);
    let map = vocab
        .match_genes(corpus.genes(), scpeft_data::GeneKey::Auto)
        .unwrap();
    let style = scpeft_data::ValueStyle::Category;
    let kind = corpus.value_kind();
    let styled = ScgptOptions {
        max_len: 36,
        ..ScgptOptions::for_values(kind)
    }
    .styled(style);
    let tokenizer = Arc::new(ScgptTokenizer::new(&vocab, map, kind, styled).unwrap());
    let all = Selection::all(&corpus);
    let made = Loader::new(corpus, all, tokenizer, options()).unwrap();
    let mut pads = 0;
    for step in made.epoch(0, 0) {
        for micro in step.unwrap().micro {
            for (id, value) in micro.gene_ids.iter().zip(&micro.values) {
                assert_eq!(*id == 0, *value == 51.0);
                pads += usize::from(*id == 0);
            }
        }
    }
    assert!(pads > 0);
}
