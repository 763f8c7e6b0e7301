//! Checking that a corpus is what its manifest says.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::corpus::{CellBuffer, Corpus, ObsKind, PackedBlock};
use crate::parallel::in_order;
use crate::{Error, Result};

/// How to check.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// After so many faults the check ends.
    pub max_faults: usize,
    /// Threads to use.
    pub threads: usize,
}

impl Default for VerifyOptions {
    /// Twenty faults, on one thread.
    fn default() -> Self {
        Self {
            max_faults: 20,
            threads: 1,
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Number of the row group in its shard, where it is known.
    pub row_group: Option<usize>,
    /// Number of the row in its row group, where it is known.
    pub row: Option<usize>,
    /// The id of the cell, where it is known.
    pub cell: Option<String>,
    /// What is wrong and where, in words.
    pub problem: String,
}

impl Fault {
    fn of(corpus: &Corpus, error: &Error) -> Self {
        Self {
            file: match error {
                Error::Corpus { path, .. } | Error::Io { path, .. } => path.clone(),
                _ => corpus.path().to_owned(),
            },
            row_group: None,
            row: None,
            cell: None,
            problem: error.to_string(),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)
    }
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Cells whose genes and values were checked.
    pub cells: u64,
    /// Those of them that express nothing, which is allowed.
    pub empty_cells: u64,
    /// Values in them.
    pub nonzeros: u64,
    /// Files whose hash was checked.
    pub files: usize,
    /// The faults in the order of the corpus: hashes, then cells, then obs columns.
    pub faults: Vec<Fault>,
    /// Whether the check ended early because there were so many.
    pub ended_early: bool,
}

/// How far it is: bytes hashed and decoded, and all bytes to be hashed and decoded.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Checks every hash, every footer and every cell: genes strictly ascending and in range, values finite
/// and positive, whole numbers where they are counts, categories known.
///
/// # Errors
/// Only when the check itself fails; what is wrong with the corpus is in the report.
pub fn verify(
    corpus: &Corpus,
    options: VerifyOptions,
    progress: Progress<'_>,
) -> Result<VerifyReport> {
    let shards = corpus.manifest().shards.iter();
    let (done, total) = (AtomicU64::new(0), 2 * shards.map(|s| s.bytes).sum::<u64>());
    let advance = |part: u64| {
        let before = done.fetch_add(part, Ordering::Relaxed);
        progress(before + part, total);
    };
    let mut found = Found {
        most: options.max_faults.max(1),
        report: VerifyReport::default(),
        said: HashSet::new(),
        full: &AtomicBool::new(false),
    };
    hashes(corpus, options.threads, &mut found, &advance)?;
    cells(corpus, options.threads, &mut found, &advance)?;
    categories(corpus, &mut found);
    Ok(found.report)
}

/// The faults so far.
struct Found<'a> {
    most: usize,
    report: VerifyReport,
    /// What was said: the footer of a shard fails once for each of its row groups.
    said: HashSet<String>,
    /// Whether there are so many that the rest is passed over.
    full: &'a AtomicBool,
}

impl Found<'_> {
    fn add(&mut self, fault: Fault) {
        if self.full() {
            self.report.ended_early = true;
        } else if self.said.insert(fault.to_string()) {
            self.report.faults.push(fault);
            if self.report.faults.len() == self.most {
                self.full.store(true, Ordering::Relaxed);
            }
        }
    }

    fn full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

fn hashes(
    corpus: &Corpus,
    threads: usize,
    found: &mut Found<'_>,
    advance: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let manifest = corpus.manifest();
    let shards = manifest.shards.iter();
    let files: Vec<_> = shards
        .filter_map(|s| s.blake3.as_ref().map(|hash| (&s.path, hash, s.bytes)))
        .chain([(&manifest.genes.path, &manifest.genes.blake3, 0)])
        .collect();
    let full = found.full;
    let work = |file: usize| {
        let (path, expected, bytes) = files[file];
        if full.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let hash = corpus.hash(path);
        advance(bytes);
        Ok(Some(match hash {
            Err(error) => Some(Fault::of(corpus, &error)),
            Ok(hash) if hash == *expected => None,
            Ok(hash) => {
                let problem = format!(
                    "blake3 is {hash}, the manifest says {expected}\nhelp: the file was changed or damaged: copy it again, or import the source again"
                );
                let file = corpus.file(path);
                Some(Fault::of(
                    corpus,
                    &Error::corpus(&file, "whole file", problem),
                ))
            }
        }))
    };
    in_order(threads, files.len(), work, |_, checked| {
        found.report.files += usize::from(checked.is_some());
        found.report.ended_early |= checked.is_none();
        if let Some(fault) = checked.flatten() {
            found.add(fault);
        }
        Ok(())
    })
}

/// What one row group holds.
#[derive(Default)]
struct Checked {
    cells: u64,
    empty: u64,
    nonzeros: u64,
    faults: Vec<Fault>,
    /// Whether there are more faults than those.
    more: bool,
}

fn cells(
    corpus: &Corpus,
    threads: usize,
    found: &mut Found<'_>,
    advance: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let (full, most) = (found.full, found.most);
    let work = |number: usize| {
        if full.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let checked = match corpus.read_packed(number, None) {
            Ok(block) => check_block(corpus, number, &block, most),
            Err(error) => Checked {
                faults: vec![Fault {
                    row_group: Some(corpus.row_groups()[number].index),
                    ..Fault::of(corpus, &error)
                }],
                ..Checked::default()
            },
        };
        let group = corpus.row_groups()[number];
        let shard = &corpus.manifest().shards[group.shard];
        advance(shard.bytes * u64::from(group.rows) / shard.rows.max(1));
        Ok(Some(checked))
    };
    in_order(threads, corpus.row_groups().len(), work, |_, checked| {
        let Some(checked) = checked else {
            found.report.ended_early = true;
            return Ok(());
        };
        found.report.cells += checked.cells;
        found.report.empty_cells += checked.empty;
        found.report.nonzeros += checked.nonzeros;
        for fault in checked.faults {
            found.add(fault);
        }
        found.report.ended_early |= checked.more;
        Ok(())
    })
}

fn check_block(corpus: &Corpus, number: usize, block: &PackedBlock, most: usize) -> Checked {
    let group = corpus.row_groups()[number];
    let (genes, kind) = (corpus.genes().len() as u32, corpus.value_kind());
    let mut buffer = CellBuffer::default();
    let mut checked = Checked {
        cells: block.rows() as u64,
        ..Checked::default()
    };
    for row in 0..block.rows() {
        match block.cell(row, genes, kind, &mut buffer) {
            Ok(()) => {
                checked.empty += u64::from(buffer.genes.is_empty());
                checked.nonzeros += buffer.genes.len() as u64;
            }
            Err(problem) if checked.faults.len() < most => {
                let id = corpus.cell_ids(&[group.first_cell + row as u64]);
                let error = corpus.cell_error(number, row as u32, &problem);
                checked.faults.push(Fault {
                    row_group: Some(group.index),
                    row: Some(row),
                    cell: id.ok().and_then(|mut ids| ids.pop()),
                    ..Fault::of(corpus, &error)
                });
            }
            Err(_) => checked.more = true,
        }
    }
    checked
}

fn categories(corpus: &Corpus, found: &mut Found<'_>) {
    let columns = corpus.manifest().obs.iter();
    for column in columns.filter(|c| c.kind == ObsKind::Category) {
        if found.full() {
            found.report.ended_early = true;
            return;
        }
        if let Err(error) = corpus.obs_codes(&column.name) {
            found.add(Fault::of(corpus, &error));
        }
    }
}
