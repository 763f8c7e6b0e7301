//! Damaged and hostile Parquet files: an error that names the file, or the cells as they were; never a
//! panic, a hang or other cells.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use scpeft_data::Corpus;
use scpeft_data::corpus::{CellBuffer, Manifest, Profile};
use scpeft_data::index::{Columns, IndexOptions, index};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::synth::{SynthLayout, SynthOptions, synthesize};

/// Files that readers of Parquet have stumbled over; their origin is in the README of the fixtures.
fn known_bad_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parquet_bad");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 8);
    files
}

fn corpus(dir: &Path, layout: SynthLayout) -> PathBuf {
    let output = dir.join("corpus");
    let options = SynthOptions {
        cells: 300,
        genes: 500,
        nonzeros: 40,
        layout,
        output: output.clone(),
        row_group_cells: Some(100),
        threads: 1,
        ..SynthOptions::default()
    };
    synthesize(&options, &|_, _| ()).unwrap();
    output
}

/// A corpus of foreign files, and the only one of them.
fn foreign(dir: &Path) -> (PathBuf, PathBuf) {
    let files = corpus(dir, SynthLayout::Tahoe);
    let output = dir.join("indexed");
    index(&index_options(&files, &output), &|_, _| ()).unwrap();
    let manifest = manifest(&output);
    let shard = files.join(&manifest.shards[0].path);
    assert!(shard.is_file(), "{}", shard.display());
    (output, shard)
}

fn index_options(source: &Path, output: &Path) -> IndexOptions {
    IndexOptions {
        source: source.to_owned(),
        output: output.to_owned(),
        overwrite: false,
        columns: Columns::tahoe(),
        gene_table: None,
        gene_id_column: None,
        obs: None,
        values: scpeft_data::import::ValuesOption::Auto,
        label: None,
        batch: None,
        split: None,
        side_tables: Vec::new(),
        store: scpeft_data::StoreOptions::default(),
    }
}

fn manifest(corpus: &Path) -> Manifest {
    serde_json::from_slice(&std::fs::read(corpus.join("manifest.json")).unwrap()).unwrap()
}

/// Takes the checksums out of a manifest, and sets the size of its shard, so that what reads the file is
/// what has to notice.
fn trust(corpus: &Path, bytes: u64) {
    let mut manifest = manifest(corpus);
    let shard = &mut manifest.shards[0];
    shard.bytes = bytes;
    shard.blake3 = None;
    shard.footer_blake3 = None;
    shard.chunk_crc32 = Vec::new();
    let text = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(corpus.join("manifest.json"), text).unwrap();
}

/// Genes and values.
type Cell = (Vec<u32>, Vec<f32>);

/// Everything that a corpus holds: genes and values of every cell, its id and its obs codes.
fn contents(path: &Path) -> Result<Vec<Cell>, String> {
    let corpus = Corpus::open(path).map_err(|e| e.to_string())?;
    let (genes, kind) = (corpus.genes().len() as u32, corpus.value_kind());
    let (mut cells, mut buffer) = (Vec::new(), CellBuffer::default());
    for number in 0..corpus.row_groups().len() {
        let block = corpus
            .read_packed(number, None)
            .map_err(|e| e.to_string())?;
        for row in 0..block.rows() {
            block.cell(row, genes, kind, &mut buffer)?;
            assert!(buffer.genes.iter().all(|&gene| gene < genes));
            cells.push((buffer.genes.clone(), buffer.values.clone()));
        }
    }
    let all: Vec<u64> = (0..corpus.n_cells()).collect();
    corpus.cell_ids(&all).map_err(|e| e.to_string())?;
    for column in &corpus.manifest().obs {
        if !column.categories.is_empty() {
            corpus.obs_codes(&column.name).map_err(|e| e.to_string())?;
        }
    }
    Ok(cells)
}

/// One of many ways to damage a file, from a seed.
fn damaged(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed, Purpose::Split, 7, 0);
    let mut bytes = bytes.to_vec();
    let n = bytes.len() as u32;
    // The footer is short and decides much: every other damage is in it or near it.
    let at = if rng.below(2) == 0 {
        rng.below(n)
    } else {
        n - 1 - rng.below(n.min(2500))
    } as usize;
    let length = (1 + rng.below(40) as usize).min(bytes.len() - at);
    match rng.below(5) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at..at + length].fill(0),
        2 => bytes[at..at + length].fill(0xff),
        3 => {
            for byte in &mut bytes[at..at + length] {
                *byte = rng.below(256) as u8;
            }
        }
        _ => {
            let from = rng.below(n) as usize;
            let length = length.min(bytes.len() - from);
            bytes.copy_within(from..from + length, at);
        }
    }
    bytes
}

#[test]
fn files_that_other_readers_stumbled_over_are_refused_by_name() {
    for file in known_bad_files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let dir = tempfile::tempdir().unwrap();
        let (_, shard) = foreign(dir.path());
        std::fs::copy(&file, &shard).unwrap();
        // The column of lists that some of them have stands for genes and for values.
        for column in ["genes", "x", "outer", "int32", "min_fl", "nation_key"] {
            let mut options = index_options(&dir.path().join("corpus"), &dir.path().join("again"));
            options.columns = Columns {
                genes: column.into(),
                values: column.into(),
                cell_id: None,
                ..Columns::tahoe()
            };
            let error = index(&options, &|_, _| ()).unwrap_err().to_string();
            let shard = shard.file_name().unwrap().to_string_lossy();
            assert!(error.contains(&*shard), "{name}, {column}: {error}");
            assert!(!dir.path().join("again").exists(), "{name}, {column}");
        }
    }
}

#[test]
fn files_that_other_readers_stumbled_over_are_no_shards() {
    for layout in [Profile::List, Profile::Packed] {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), SynthLayout::Corpus(layout));
        for file in known_bad_files() {
            std::fs::copy(&file, corpus.join("shards/part-00000.parquet")).unwrap();
            trust(&corpus, file.metadata().unwrap().len());
            let error = contents(&corpus).unwrap_err();
            assert!(error.contains("part-00000.parquet"), "{error}");
        }
    }
}

#[test]
fn damage_is_an_error_or_changes_nothing() {
    for layout in [Profile::List, Profile::Packed] {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path(), SynthLayout::Corpus(layout));
        let shard = corpus.join("shards/part-00000.parquet");
        let sound = std::fs::read(&shard).unwrap();
        let expected = contents(&corpus).unwrap();
        let mut refused = 0;
        for seed in 0..400 {
            std::fs::write(&shard, damaged(&sound, seed)).unwrap();
            match contents(&corpus) {
                Ok(found) => assert!(found == expected, "{layout:?}, seed {seed}"),
                Err(error) => {
                    assert!(error.contains("part-00000.parquet"), "seed {seed}: {error}");
                    refused += 1;
                }
            }
        }
        // What is left are damages of four bytes that nobody reads, or of bytes into the same bytes.
        assert!(refused > 380, "{layout:?}: {refused} of 400");
        for length in (0..sound.len()).step_by(sound.len() / 40) {
            std::fs::write(&shard, &sound[..length]).unwrap();
            let error = contents(&corpus).unwrap_err();
            assert!(error.contains("part-00000.parquet"), "{length}: {error}");
        }
    }
}

#[test]
fn damage_that_no_checksum_guards_never_ends_in_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (indexed, foreign_shard) = foreign(dir.path());
    let mut places = vec![(indexed, foreign_shard)];
    for layout in [Profile::List, Profile::Packed] {
        let dir = dir.path().join(format!("{layout:?}"));
        std::fs::create_dir(&dir).unwrap();
        let corpus = corpus(&dir, SynthLayout::Corpus(layout));
        let shard = corpus.join("shards/part-00000.parquet");
        places.push((corpus, shard));
    }
    for (corpus, shard) in places {
        let sound = std::fs::read(&shard).unwrap();
        let cells = contents(&corpus).unwrap().len();
        let mut refused = 0;
        for seed in 0..1000 {
            let bytes = damaged(&sound, seed);
            std::fs::write(&shard, &bytes).unwrap();
            trust(&corpus, bytes.len() as u64);
            match contents(&corpus) {
                Ok(found) => assert_eq!(found.len(), cells, "seed {seed}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 400, "{}: {refused}", corpus.display());
        for length in (0..sound.len()).step_by(sound.len() / 40) {
            std::fs::write(&shard, &sound[..length]).unwrap();
            trust(&corpus, length as u64);
            contents(&corpus).unwrap_err();
        }
    }
}
