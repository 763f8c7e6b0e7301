//! Cells per second from stored row groups to padded token batches, at about 1,500 expressed genes
//! a cell and 1,200 tokens, on one thread.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::tokenize::{Cell, CellKey, Tokens};
use scpeft_data::{GeneKey, GeneTable, ScgptOptions, ScgptTokenizer, Tokenizer, ValueKind, Vocab};

const GENES: usize = 20_000;
const EXPRESSED: usize = 1_500;
const CELLS: usize = 64;

/// Counts as real cells have them: most expressed genes are seen once or twice.
fn cells() -> Vec<(Vec<u32>, Vec<f32>)> {
    (0..CELLS as u64)
        .map(|cell| {
            let mut rng = Rng::new(1, Purpose::Split, 0, cell);
            let mut genes: Vec<u32> = (0..GENES as u32).collect();
            rng.shuffle(&mut genes);
            genes.truncate(EXPRESSED);
            genes.sort_unstable();
            let values = genes
                .iter()
                .map(|_| (1.0 / (1.0 - 0.99 * rng.uniform())).floor() as f32)
                .collect();
            (genes, values)
        })
        .collect()
}

fn tokenize(criterion: &mut Criterion) {
    let table = GeneTable {
        symbols: (0..GENES).map(|g| format!("G{g}")).collect(),
        ensembl: vec![None; GENES],
    };
    let vocab = Vocab::from_genes(&table, GeneKey::Symbol);
    let map = vocab
        .match_genes(&table, GeneKey::Symbol)
        .expect("the vocabulary is made of these genes");
    let options = ScgptOptions {
        max_len: 1_200,
        ..ScgptOptions::for_values(ValueKind::Counts)
    };
    let tokenizer =
        ScgptTokenizer::new(&vocab, map, ValueKind::Counts, options).expect("valid options");
    let cells = cells();
    let mut worker = tokenizer.worker();
    let mut tokens = Tokens::default();
    let mut group = criterion.benchmark_group("tokenize");
    group.throughput(Throughput::Elements(CELLS as u64));
    group.bench_function("scgpt, 1500 genes, 1200 tokens", |bencher| {
        bencher.iter_custom(|times| {
            thread_time(times, || {
                tokens.clear();
                for (cell, (genes, values)) in cells.iter().enumerate() {
                    let key = CellKey::new(cell as u64, 0, 0);
                    worker.tokenize(Cell { genes, values }, key, &mut tokens);
                }
                black_box(tokens.ids.len());
            })
        });
    });
    group.finish();
}

/// What a thread computed, whatever else the machine was busy with.
fn thread_time(times: u64, mut work: impl FnMut()) -> Duration {
    let begun = thread_clock();
    for _ in 0..times {
        work();
    }
    thread_clock().saturating_sub(begun)
}

fn thread_clock() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists on Linux and `now` is valid for writing.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    assert_eq!(failed, 0, "the clock of a thread can be read");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
