//! A small corpus, and the micro-batches that a loader makes of it.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "each test uses its share"
)]

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use scpeft_data::corpus::{
    CellBatch, CellValues, CorpusWriter, ObsColumn, ObsKind, Provenance, WriterOptions,
    obs_array_type,
};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{
    Corpus, GeneKey, GeneTable, Loader, LoaderOptions, MaskDraw, MicroBatch, ScgptOptions,
    ScgptTokenizer, Selection, Shuffle, Tokenizer, ValueKind, Vocab,
};

pub const CELLS: usize = 103;
pub const GENES: u32 = 60;

/// The domain of each cell: the first are all of one, one is rare.
pub fn domain(cell: usize) -> i32 {
    if cell < 30 {
        0
    } else if cell % 20 == 3 {
        2
    } else {
        1
    }
}

/// [`CELLS`] cells in row groups of 8 and shards of 40.
pub fn write_corpus(dir: &Path) -> Arc<Corpus> {
    write_corpus_of(dir, CELLS, 8, 40)
}

/// A corpus of random counts; cell 5 expresses nothing. Every fourth cell has no label.
pub fn write_corpus_of(
    dir: &Path,
    cells: usize,
    row_group_cells: usize,
    shard_cells: usize,
) -> Arc<Corpus> {
    let genes = GeneTable {
        symbols: (0..GENES).map(|g| format!("G{g}")).collect(),
        ensembl: vec![None; GENES as usize],
    };
    let label = ObsColumn::new(
        "label",
        ObsKind::Category,
        ["a", "b", "c"].map(String::from).to_vec(),
    );
    let domains = ObsColumn::new(
        "domain",
        ObsKind::Category,
        ["x", "y", "z"].map(String::from).to_vec(),
    );
    let options = WriterOptions {
        row_group_cells,
        shard_cells,
        ..WriterOptions::default()
    };
    let obs = [label, domains].map(|column| (column, obs_array_type(ObsKind::Category, false)));
    let output = dir.join("corpus");
    let mut writer =
        CorpusWriter::create(&output, options, ValueKind::Counts, &genes, obs.to_vec()).unwrap();
    let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    for cell in 0..cells {
        let mut rng = Rng::new(11, Purpose::Split, 1, cell as u64);
        for gene in (0..GENES).filter(|&gene| cell != 5 || gene == 0) {
            if rng.below(3) > 0 || cell == 5 {
                indices.push(gene);
                values.push(1 + rng.below(6) * rng.below(9));
            }
        }
        offsets.push(indices.len() as i32);
    }
    let labels = (0..cells as i32).map(|c| (c % 4 < 3).then_some(c % 4));
    let domains = (0..cells).map(|c| Some(domain(c)));
    let column = |codes: Int32Array, names: [&str; 3]| -> ArrayRef {
        let names = Arc::new(StringArray::from(names.to_vec()));
        Arc::new(DictionaryArray::<Int32Type>::try_new(codes, names).unwrap())
    };
    let batch = CellBatch {
        cell_ids: (0..cells).map(|c| format!("cell-{c}")).collect(),
        offsets,
        genes: indices,
        values: CellValues::Counts(values),
        obs: vec![
            column(labels.collect(), ["a", "b", "c"]),
            column(domains.collect(), ["x", "y", "z"]),
        ],
    };
    writer.write(&batch).unwrap();
    writer
        .finish(Some("label".into()), None, Provenance::default())
        .unwrap();
    Arc::new(Corpus::open(&output).unwrap())
}

pub fn tokenizer(corpus: &Corpus) -> Arc<dyn Tokenizer> {
    let vocab = Vocab::from_genes(corpus.genes(), GeneKey::Symbol);
    let map = vocab.match_genes(corpus.genes(), GeneKey::Auto).unwrap();
    let options = ScgptOptions {
        max_len: 36,
        mask_ratio: 0.4,
        seed: 3,
        ..ScgptOptions::for_values(corpus.value_kind())
    };
    Arc::new(ScgptTokenizer::new(&vocab, map, corpus.value_kind(), options).unwrap())
}

pub fn options() -> LoaderOptions {
    LoaderOptions {
        seed: 9,
        batch_cells: 24,
        micro_batch_cells: 4,
        rank: 0,
        world_size: 1,
        shuffle: Shuffle::Windowed { row_groups: 3 },
        drop_last: false,
        threads: 2,
        prefetch_steps: 2,
        label_column: Some("label".into()),
        mask: MaskDraw::PerEpoch,
        ..LoaderOptions::default()
    }
}

pub fn loader(corpus: &Arc<Corpus>, options: LoaderOptions) -> Loader {
    Loader::new(
        corpus.clone(),
        Selection::all(corpus),
        tokenizer(corpus),
        options,
    )
    .unwrap()
}

/// The micro-batches of an epoch with their global batch, over all ranks.
pub fn epoch(
    corpus: &Arc<Corpus>,
    options: &LoaderOptions,
    epoch: u64,
    first: u64,
) -> Vec<(u64, MicroBatch)> {
    let mut all = Vec::new();
    for rank in 0..options.world_size {
        let loader = loader(
            corpus,
            LoaderOptions {
                rank,
                ..options.clone()
            },
        );
        let mut steps = 0;
        for step in loader.epoch(epoch, first) {
            let step = step.unwrap();
            assert_eq!(step.batch, first + steps);
            assert!(
                step.micro
                    .iter()
                    .all(|m| m.index % options.world_size == rank)
            );
            steps += 1;
            all.extend(step.micro.into_iter().map(|m| (step.batch, m)));
        }
        assert_eq!(first + steps, loader.batches_per_epoch());
    }
    all.sort_by_key(|(batch, micro)| (*batch, micro.index));
    all
}
