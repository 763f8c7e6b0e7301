//! Where the cells come from, and what happens to those that cannot be used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::corpus::{CellBuffer, Corpus, PackedBlock};
use crate::order::SelectedGroup;
use crate::{Error, Result};

/// What is done about cells and row groups that are damaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Corrupt {
    /// The first one is an error.
    #[default]
    Fail,
    /// They are left out of their batches, and listed. Files that cannot be reached are errors all the
    /// same.
    Skip,
}

/// A cell that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedCell {
    /// Its index in the corpus.
    pub cell: u64,
    /// Where it is and what is wrong with it.
    pub problem: String,
}

/// Reads blocks of cells and keeps the list of those that were left out.
pub(super) struct Source {
    pub(super) corpus: Arc<Corpus>,
    corrupt: Corrupt,
    skipped: Mutex<BTreeMap<u64, String>>,
}

impl Source {
    pub(super) fn new(corpus: Arc<Corpus>, corrupt: Corrupt) -> Self {
        Self {
            corpus,
            corrupt,
            skipped: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn skipped_cells(&self) -> usize {
        let skipped = self.skipped.lock();
        skipped.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The cells that were left out so far, by index.
    pub(super) fn skipped(&self) -> Vec<SkippedCell> {
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = skipped.iter();
        entries
            .map(|(&cell, problem)| SkippedCell {
                cell,
                problem: problem.clone(),
            })
            .collect()
    }

    /// The chosen cells of a row group. When cells are skipped, each is looked at here already: which
    /// ones are listed then depends on the row groups that were read and not on whose share they are.
    pub(super) fn read(&self, group: &SelectedGroup) -> Result<PackedBlock> {
        let read = self
            .corpus
            .read_packed(group.row_group, group.chosen.as_deref());
        match (read, self.corrupt) {
            (Err(error @ Error::Corpus { .. }), Corrupt::Skip) => {
                let mut block = PackedBlock::default();
                for place in 0..group.len() {
                    block.push_fault("is in a row group that cannot be read".to_owned());
                    self.note(group.cell(place), error.to_string());
                }
                Ok(block)
            }
            (Ok(block), Corrupt::Skip) => {
                let mut buffer = CellBuffer::default();
                for place in 0..group.len() {
                    self.unpack(&block, place, group.cell(place), &mut buffer)?;
                }
                Ok(block)
            }
            (read, _) => read,
        }
    }

    /// How many values each chosen cell of a row group has, when the shard has a column that says it.
    pub(super) fn stored(&self, group: &SelectedGroup) -> Result<Option<Vec<u32>>> {
        match self.corpus.stored(group.row_group) {
            Ok(Some(all)) => Ok(Some(match &group.chosen {
                None => all,
                Some(rows) => rows.iter().map(|&row| all[row as usize]).collect(),
            })),
            // If it cannot be read, reading the cells will say what is wrong.
            Ok(None) | Err(Error::Corpus { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many values the cells of a block have; none for those that are skipped.
    pub(super) fn count(&self, block: &PackedBlock, group: &SelectedGroup) -> Result<Vec<u32>> {
        let mut buffer = CellBuffer::default();
        let count = |place| {
            let usable = self.unpack(block, place, group.cell(place), &mut buffer)?;
            Ok(if usable { buffer.genes.len() as u32 } else { 0 })
        };
        (0..group.len()).map(count).collect()
    }

    /// Unpacks a cell of a block. Returns whether it can be used.
    pub(super) fn unpack(
        &self,
        block: &PackedBlock,
        row: usize,
        cell: u64,
        buffer: &mut CellBuffer,
    ) -> Result<bool> {
        let corpus = &self.corpus;
        let n_genes = corpus.genes().len() as u32;
        let problem = match block.cell(row, n_genes, corpus.value_kind(), buffer) {
            Ok(()) if !buffer.genes.is_empty() => return Ok(true),
            Ok(()) => "has no value at all".to_owned(),
            Err(problem) => problem,
        };
        match self.corrupt {
            Corrupt::Fail => Err(self.unusable(cell, &problem)),
            Corrupt::Skip => {
                self.note(cell, problem);
                Ok(false)
            }
        }
    }

    fn unusable(&self, cell: u64, problem: &str) -> Error {
        let (number, row) = self.corpus.locate(cell);
        let help = "\nhelp: find all such cells with `scpeft-data verify`; leave them out with `data.corrupt = \"skip\"`";
        self.corpus
            .cell_error(number, row, &format!("{problem}{help}"))
    }

    fn note(&self, cell: u64, problem: String) {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.entry(cell).or_insert(problem);
    }
}
