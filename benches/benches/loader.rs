//! The loader on one corpus: prints one line of JSON. A program of its own, so that peak memory and CPU
//! time are those of one case; `benches/loader/run.py` runs them all.
//!
//! usage: loader [--corpus DIR] [--case tokens|raw|first] [--threads N] [--max-len TOKENS]
//!               [--batch CELLS] [--cells N] [--window ROW_GROUPS] [--from SHARE] [--buckets 0|1]
//!
//! `tokens` are padded batches of scGPT tokens, `raw` batches of sparse rows, `first` the time from
//! nothing to the first batch of tokens, which starts at a share of the epoch. Without a corpus, a small
//! one is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use scpeft_data::corpus::{CellBuffer, PackedBlock};
use scpeft_data::synth::{SynthOptions, synthesize};
use scpeft_data::{
    Corpus, EpochOrder, GeneKey, Loader, LoaderOptions, OrderOptions, ScgptOptions, ScgptTokenizer,
    Selection, Shuffle, Tokenizer, Vocab,
};
use serde_json::{Value, json};

struct Case {
    corpus: PathBuf,
    what: String,
    threads: usize,
    max_len: usize,
    batch: usize,
    cells: u64,
    window: usize,
    from: f64,
    buckets: bool,
}

fn main() {
    let case = arguments();
    let begun = Instant::now();
    let corpus = Arc::new(Corpus::open(&case.corpus).expect("a corpus"));
    let opened = begun.elapsed().as_secs_f64();
    let mut line = match case.what.as_str() {
        "tokens" => tokens(&case, &corpus),
        "raw" => raw(&case, &corpus),
        "first" => first(&case, &corpus, begun),
        other => panic!("no case `{other}`: tokens, raw or first"),
    };
    let usage = usage();
    for (key, value) in [
        ("case", json!(case.what)),
        ("threads", json!(case.threads)),
        ("open_s", json!(opened)),
        ("peak_mb", json!(usage.ru_maxrss / 1024)),
    ] {
        line[key] = value;
    }
    println!("{line}");
}

/// Options by name; what `cargo bench` adds is passed over.
fn arguments() -> Case {
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").expect("options begin with --");
        given.insert(name.to_owned(), words.next().expect("a value"));
    }
    let text =
        |name: &str, default: &str| given.get(name).map_or(default, String::as_str).to_owned();
    let number = |name: &str, default: f64| {
        let given = given.get(name);
        given.map_or(default, |text| text.parse().expect("a number"))
    };
    Case {
        corpus: given.get("corpus").map_or_else(small_corpus, PathBuf::from),
        what: text("case", "tokens"),
        threads: number("threads", 1.0) as usize,
        max_len: number("max-len", 1200.0) as usize,
        batch: number("batch", 64.0) as usize,
        cells: number("cells", f64::MAX) as u64,
        window: number("window", 8.0) as usize,
        from: number("from", 0.0),
        buckets: number("buckets", 0.0) > 0.0,
    }
}

fn small_corpus() -> PathBuf {
    let output = std::env::temp_dir().join("scpeft-bench-corpus");
    let options = SynthOptions {
        cells: 10_000,
        output: output.clone(),
        overwrite: true,
        ..SynthOptions::default()
    };
    synthesize(&options, &|_, _| ()).expect("a corpus");
    output
}

fn usage() -> libc::rusage {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure of the type that the call fills.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    usage
}

/// CPU seconds of all threads so far.
fn cpu() -> f64 {
    let usage = usage();
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Runs something that returns a number of cells, and says how fast it was.
fn measured(run: impl FnOnce() -> u64) -> Value {
    let (cpu_begun, begun) = (cpu(), Instant::now());
    let cells = run();
    let (cpu, wall) = (cpu() - cpu_begun, begun.elapsed().as_secs_f64());
    json!({
        "cells": cells,
        "cells_per_cpu_s": (cells as f64 / cpu).round(),
        "cells_per_s": (cells as f64 / wall).round(),
    })
}

fn loader(case: &Case, corpus: &Arc<Corpus>) -> Loader {
    let vocab = Vocab::from_genes(corpus.genes(), GeneKey::Symbol);
    let map = vocab.match_genes(corpus.genes(), GeneKey::Symbol);
    let options = ScgptOptions {
        max_len: case.max_len,
        ..ScgptOptions::for_values(corpus.value_kind())
    };
    let map = map.expect("the vocabulary is made of these genes");
    let tokenizer = ScgptTokenizer::new(&vocab, map, corpus.value_kind(), options);
    let tokenizer: Arc<dyn Tokenizer> = Arc::new(tokenizer.expect("valid options"));
    let options = LoaderOptions {
        seed: 1,
        batch_cells: case.batch,
        micro_batch_cells: case.batch,
        shuffle: Shuffle::Windowed {
            row_groups: case.window,
        },
        threads: case.threads,
        prefetch_steps: 4 * case.threads,
        length_buckets: case.buckets,
        ..LoaderOptions::default()
    };
    Loader::new(corpus.clone(), Selection::all(corpus), tokenizer, options).expect("a loader")
}

fn tokens(case: &Case, corpus: &Arc<Corpus>) -> Value {
    let loader = loader(case, corpus);
    let (mut tokens, mut slots) = (0, 0);
    let mut line = measured(|| {
        let mut cells = 0;
        for step in loader.epoch(0, 0) {
            for micro in step.expect("a step").micro {
                cells += micro.rows as u64;
                tokens += micro.tokens;
                slots += micro.rows * micro.len;
            }
            if cells >= case.cells {
                break;
            }
        }
        cells
    });
    line["padding"] = json!(1.0 - tokens as f64 / slots.max(1) as f64);
    line["max_len"] = json!(case.max_len);
    line
}

fn first(case: &Case, corpus: &Arc<Corpus>, begun: Instant) -> Value {
    let loader = loader(case, corpus);
    let batch = (loader.batches_per_epoch() as f64 * case.from) as u64;
    let step = loader.epoch(0, batch).next().expect("a batch");
    let seconds = begun.elapsed().as_secs_f64();
    let cells = step.expect("a step").global_cells;
    json!({
        "batch": batch,
        "of_batches": loader.batches_per_epoch(),
        "cells": cells,
        "shards": corpus.manifest().shards.len(),
        "first_batch_s": seconds,
    })
}

/// Sparse rows in batches: where each row ends, its genes and its values.
fn raw(case: &Case, corpus: &Arc<Corpus>) -> Value {
    let order = OrderOptions {
        seed: 1,
        shuffle: Shuffle::Windowed {
            row_groups: case.window,
        },
    };
    let order = EpochOrder::new(&Selection::all(corpus), order, 0);
    let (next, cells) = (AtomicUsize::new(0), AtomicU64::new(0));
    measured(|| {
        std::thread::scope(|scope| {
            for _ in 0..case.threads {
                scope.spawn(|| {
                    loop {
                        let window = next.fetch_add(1, Ordering::Relaxed);
                        let enough = cells.load(Ordering::Relaxed) >= case.cells;
                        if window >= order.windows() || enough {
                            return;
                        }
                        let done = raw_window(corpus, &order, window, case.batch);
                        cells.fetch_add(done, Ordering::Relaxed);
                    }
                });
            }
        });
        cells.load(Ordering::Relaxed)
    })
}

fn raw_window(corpus: &Corpus, order: &EpochOrder, window: usize, batch: usize) -> u64 {
    let blocks: Vec<PackedBlock> = order
        .members(window)
        .map(|group| corpus.read_packed(group.row_group, None).expect("cells"))
        .collect();
    let (n_genes, kind) = (corpus.genes().len() as u32, corpus.value_kind());
    let cells = order.window_cells(window);
    let mut stored = 0;
    for part in cells.chunks(batch) {
        // Each batch is memory of its own, as whoever takes batches expects.
        let mut rows = CellBuffer::default();
        rows.genes.reserve(stored);
        rows.values.reserve(stored);
        let mut ends = Vec::with_capacity(part.len());
        for at in part {
            let block = &blocks[at.member as usize];
            block
                .append_cell(at.place as usize, n_genes, kind, &mut rows)
                .expect("a sound cell");
            ends.push(rows.genes.len() as i64);
        }
        stored = rows.genes.len() + rows.genes.len() / 8;
        std::hint::black_box((&ends, &rows.genes, &rows.values));
    }
    cells.len() as u64
}
