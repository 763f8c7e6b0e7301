//! From opened sources to a corpus: one thread reads, one cleans and writes, one hashes the files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use arrow::array::ArrayRef;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::json;

use super::join::{self, Joined};
use super::obs::Obs;
use super::orthologues::{Orthologues, Renamed};
use super::panel::Panel;
use super::record::Shape;
use super::shuffle::Shuffle;
use super::source::Source;
use super::values::{BadValue, clean};
use super::{ImportOptions, ImportReport, Rows, Scratch, ValuesOption, hashing};
use crate::corpus::{CellBatch, CorpusWriter, SourceFile, ValueKind};
use crate::genes::GeneTable;
use crate::{Error, Result};

/// Most cells and most values that are handed on at a time.
const BLOCK_CELLS: usize = 1024;
const BLOCK_VALUES: usize = 1 << 20;
/// Blocks that wait for the next thread.
const WAITING: usize = 2;

/// Imports all inputs. `progress` is told how many cells are done, and of how many.
pub(super) fn run(
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportReport> {
    let mut sources = Vec::new();
    for path in &options.inputs {
        sources.push(Source::open(path, options)?);
    }
    join::name_sources(&mut sources);
    let renamed = rename(&sources, options)?;
    let tables: Vec<(&str, &GeneTable)> = (sources.iter().enumerate())
        .map(|(i, s)| {
            (
                s.name.as_str(),
                renamed.get(i).map_or(&s.genes, |r| &r.genes),
            )
        })
        .collect();
    let mut joined = join::genes(&tables, options.join, options.gene_key)?;
    joined.after(&renamed);
    let panel = Panel::choose(joined.table.clone(), options)?;
    joined.then(panel.places.as_deref());
    let kind = value_kind(&sources, options)?;
    let obs = Obs::plan(&sources, options)?;
    Job {
        options,
        sources: &sources,
        joined: &joined,
        panel: &panel,
        kind,
        obs: &obs,
        long_ids: join::ids_clash(&sources)?,
    }
    .run(progress)
}

/// The genes of each source as those of another species; nothing when they stay as they are.
fn rename(sources: &[Source], options: &ImportOptions) -> Result<Vec<Renamed>> {
    let Some(options) = &options.orthologues else {
        return Ok(Vec::new());
    };
    let table = Orthologues::read(options)?;
    let renamed = sources.iter().map(|s| table.apply(&s.genes, &s.path));
    renamed.collect()
}

/// The kind of all values, which must be the same in all sources.
fn value_kind(sources: &[Source], options: &ImportOptions) -> Result<ValueKind> {
    let mut kinds: Vec<ValueKind> = Vec::new();
    for source in sources {
        let some = source.sample()?;
        let kind = options.values.decide(&some);
        if options.values == ValuesOption::Auto
            && kind == ValueKind::Lognorm
            && some.all(|v| v.is_nan() || v >= 0.0)
        {
            tracing::warn!(
                "`{}` holds fractions: taken as log-normalised values (say --values to choose, or take another matrix: {})",
                source.place.trim_start_matches('/'),
                source.others
            );
        }
        kinds.push(kind);
    }
    let first = kinds.first().copied().unwrap_or(ValueKind::Counts);
    match kinds.iter().position(|&kind| kind != first) {
        None => Ok(first),
        Some(other) => Err(sources[other].error(
            format!(
                "holds {} values, but `{}` holds {}: one corpus holds one kind",
                kinds[other].name(),
                sources[0].path.display(),
                first.name()
            ),
            "take inputs of one kind; --layer or --raw may choose the counts of an .h5ad file",
        )),
    }
}

struct Job<'a> {
    options: &'a ImportOptions,
    sources: &'a [Source],
    joined: &'a Joined,
    panel: &'a Panel,
    kind: ValueKind,
    obs: &'a Obs<'a>,
    /// Whether cell ids get the name of their source.
    long_ids: bool,
}

/// Consecutive cells of one source on their way to the writing thread.
struct Block {
    source: usize,
    rows: Rows,
    ids: Vec<String>,
    obs: Vec<ArrayRef>,
}

/// What the writing thread made.
struct Written {
    writer: CorpusWriter,
    shuffle: Option<Shuffle>,
    nonzeros: u64,
}

impl Job<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<ImportReport> {
        let options = self.options;
        let cells: usize = self.sources.iter().map(|s| s.cells).sum();
        let total = cells as u64 * if options.shuffle.is_some() { 2 } else { 1 };
        let scratch = Scratch::new(&options.output)?;
        let genes = &self.panel.genes;
        let (kind, schema) = (self.kind, self.obs.schema());
        let types = schema
            .iter()
            .map(|(_, data_type)| data_type.clone())
            .collect();
        let writer = CorpusWriter::create(&options.output, options.writer, kind, genes, schema)?;
        let shuffle = match options.shuffle {
            None => None,
            Some(seed) => {
                let shape = Shape::new(kind, types);
                Some(Shuffle::new(
                    seed,
                    shape,
                    scratch.path(),
                    self.expected_bytes(),
                )?)
            }
        };
        let sink = Written {
            writer,
            shuffle,
            nonzeros: 0,
        };
        let files = self.files();
        let stop = AtomicBool::new(false);
        let done = thread::scope(|scope| {
            let hashes = scope.spawn(|| hashing::hash_files(&files, &stop));
            let mut told = |done| progress(done, total);
            let written = match self.write_all(sink, scratch.path(), &mut told) {
                Ok(written) => Self::reorder(written, cells as u64, &mut told),
                Err(error) => Err(error),
            };
            if written.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            let hashes = hashes.join().map_err(|_| panicked("hashing"))?;
            Ok((written?, hashes?))
        });
        let (written, hashes) = done?;
        let nonzeros = written.nonzeros;
        let manifest = written.writer.finish(
            options.label.clone(),
            options.batch.clone(),
            self.provenance(hashes)?,
        )?;
        Ok(ImportReport {
            cells: manifest.n_cells,
            genes: manifest.genes.n,
            nonzeros,
            bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
            value_kind: kind,
        })
    }

    /// About how large the cells are on their way through the scratch files. Half of the places of a
    /// dense matrix are taken to be zeros; a wrong guess costs time alone.
    fn expected_bytes(&self) -> u64 {
        let value = match self.kind {
            ValueKind::Counts => 3,
            ValueKind::Lognorm => 6,
        };
        self.sources.iter().map(|s| s.stored() as u64 * value).sum()
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let mut files = Vec::new();
        for source in self.sources {
            for file in &source.files {
                // Files of a folder are named with their folder.
                let name = match (file == &source.path, file.strip_prefix(&source.path)) {
                    (false, Ok(inner)) => format!("{}/{}", source.name, inner.display()),
                    _ => file
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                };
                files.push((name, file.clone()));
            }
        }
        files
    }

    /// Reads on this thread, cleans and writes on another.
    fn write_all(
        &self,
        sink: Written,
        scratch: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Written> {
        thread::scope(|scope| {
            let (send, receive) = bounded(WAITING);
            let writing = scope.spawn(|| self.take_blocks(sink, receive));
            let read = self.read_blocks(scratch, &send, progress);
            drop(send);
            let written = writing.join().map_err(|_| panicked("writing"))?;
            // When writing fails first, reading ends because nobody listens: that is no error.
            let written = written?;
            read?;
            Ok(written)
        })
    }

    fn read_blocks(
        &self,
        scratch: &Path,
        send: &Sender<Block>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut before = 0;
        for (number, source) in self.sources.iter().enumerate() {
            let mut seen = 0;
            source.visit(scratch, &mut |rows| {
                seen += rows.len();
                for rows in rows.split(BLOCK_CELLS, BLOCK_VALUES) {
                    let range = rows.first..rows.first + rows.len();
                    let mut ids = source.cell_names(range.clone())?;
                    if self.long_ids {
                        for id in &mut ids {
                            id.push('-');
                            id.push_str(&source.name);
                        }
                    }
                    let obs = self
                        .obs
                        .arrays(number, range.clone(), before + range.start)?;
                    let block = Block {
                        source: number,
                        rows,
                        ids,
                        obs,
                    };
                    if send.send(block).is_err() {
                        return Err(Error::internal("the writing thread ended early"));
                    }
                    progress((before + range.end) as u64);
                }
                Ok(())
            })?;
            if seen != source.cells {
                let problem = format!("gave {seen} cells, expected {}", source.cells);
                return Err(source.error(problem, "the file is damaged"));
            }
            before += source.cells;
        }
        Ok(())
    }

    fn take_blocks(&self, mut sink: Written, blocks: Receiver<Block>) -> Result<Written> {
        for block in blocks {
            let places = self.joined.places[block.source].as_deref();
            let all = 0..block.rows.len();
            let (offsets, genes, values) = clean(&block.rows, all, self.kind, places)
                .map_err(|bad| self.bad_value(bad, &block))?;
            sink.nonzeros += genes.len() as u64;
            let batch = CellBatch {
                cell_ids: block.ids,
                offsets,
                genes,
                values,
                obs: block.obs,
            };
            match &mut sink.shuffle {
                None => sink.writer.write(&batch)?,
                Some(shuffle) => shuffle.add(&batch)?,
            }
        }
        Ok(sink)
    }

    /// The second pass of a shuffle: sorts on another thread, writes on this one.
    fn reorder(mut written: Written, cells: u64, progress: &mut dyn FnMut(u64)) -> Result<Written> {
        let Some(shuffle) = written.shuffle.take() else {
            return Ok(written);
        };
        thread::scope(|scope| {
            let (send, receive) = bounded::<CellBatch>(WAITING);
            let sorting = scope.spawn(move || {
                shuffle.finish(&mut |batch| {
                    send.send(batch)
                        .map_err(|_| Error::internal("the writing thread ended early"))
                })
            });
            let mut done = cells;
            let mut failed = None;
            for batch in &receive {
                done += batch.cell_ids.len() as u64;
                if let Err(error) = written.writer.write(&batch) {
                    failed = Some(error);
                    break;
                }
                progress(done);
            }
            drop(receive);
            let sorted = sorting.join().map_err(|_| panicked("sorting"))?;
            match failed {
                Some(error) => Err(error),
                None => sorted.map(|()| written),
            }
        })
    }

    fn provenance(&self, hashes: Vec<SourceFile>) -> Result<crate::corpus::Provenance> {
        let mut provenance = self.options.provenance(hashes)?;
        let options = &mut provenance.options;
        options.extend(self.joined.provenance.clone());
        options.extend(self.panel.provenance.clone());
        if let Some(parts) = &self.obs.parts {
            options.insert("split".to_owned(), parts.provenance.clone());
        }
        if self.sources.len() > 1 {
            let inputs: Vec<_> = self
                .sources
                .iter()
                .map(|s| json!({ "name": s.name, "cells": s.cells, "genes": s.genes.len() }))
                .collect();
            options.insert("inputs".to_owned(), json!(inputs));
            options.insert("long_cell_ids".to_owned(), json!(self.long_ids));
        }
        Ok(provenance)
    }

    fn bad_value(&self, bad: BadValue, block: &Block) -> Error {
        let source = &self.sources[block.source];
        let (cell, gene) = (
            &block.ids[bad.row],
            &source.genes.symbols[bad.gene as usize],
        );
        let (option, others) = (self.options.values, source.others.clone());
        bad.into_error(&source.path, &source.place, cell, gene, option, &others)
    }
}

fn panicked(what: &str) -> Error {
    Error::internal(format!("the {what} thread panicked"))
}
