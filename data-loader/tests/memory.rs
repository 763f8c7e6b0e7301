//! What the loader holds in memory does not grow with the corpus.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use scpeft_data::synth::{SynthOptions, synthesize};
use scpeft_data::{
    Corpus, GeneKey, Loader, LoaderOptions, ScgptOptions, ScgptTokenizer, Selection, Shuffle,
    Tokenizer, Vocab,
};

fn corpus(output: &Path, cells: u64) -> Arc<Corpus> {
    let options = SynthOptions {
        cells,
        genes: 4000,
        nonzeros: 800,
        output: output.to_owned(),
        row_group_cells: Some(256),
        shard_cells: 2048,
        threads: 1,
        ..SynthOptions::default()
    };
    synthesize(&options, &|_, _| ()).unwrap();
    Arc::new(Corpus::open(output).unwrap())
}

/// The most memory resident since the last call, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// The most memory resident during an epoch over a corpus.
fn epoch(corpus: &Arc<Corpus>) -> u64 {
    let vocab = Vocab::from_genes(corpus.genes(), GeneKey::Symbol);
    let map = vocab.match_genes(corpus.genes(), GeneKey::Symbol).unwrap();
    let options = ScgptOptions::for_values(corpus.value_kind());
    let tokenizer = ScgptTokenizer::new(&vocab, map, corpus.value_kind(), options).unwrap();
    let tokenizer: Arc<dyn Tokenizer> = Arc::new(tokenizer);
    let options = LoaderOptions {
        seed: 1,
        batch_cells: 32,
        micro_batch_cells: 32,
        shuffle: Shuffle::Windowed { row_groups: 3 },
        threads: 2,
        prefetch_steps: 4,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(corpus.clone(), Selection::all(corpus), tokenizer, options).unwrap();
    peak();
    let cells: usize = loader
        .epoch(0, 0)
        .map(|step| step.unwrap().global_cells)
        .sum();
    assert_eq!(cells as u64, corpus.n_cells());
    peak()
}

#[test]
fn ten_times_the_cells_take_no_more_memory() {
    let dir = tempfile::tempdir().unwrap();
    let small = corpus(&dir.path().join("small"), 2500);
    let large = corpus(&dir.path().join("large"), 25_000);
    let (few, many) = (epoch(&small).max(epoch(&small)), epoch(&large));
    // The large one holds 20 million values: 40 MB packed, and 160 MB as tokens.
    let slack = 24 << 20;
    assert!(many < few + slack, "{few} bytes, then {many}");
}
