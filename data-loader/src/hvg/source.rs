//! Where the cells come from.

use super::Cells;
use crate::Result;
use crate::corpus::{Corpus, ValueKind};
use crate::order::Selection;

/// Some cells and genes of a corpus, read row group by row group.
#[derive(Debug)]
pub struct CorpusCells<'a> {
    corpus: &'a Corpus,
    selection: &'a Selection,
    /// The place of each corpus gene among the chosen ones.
    places: Vec<Option<u32>>,
    genes: usize,
}

impl<'a> CorpusCells<'a> {
    /// The selected cells with some genes of the corpus (ascending), numbered in that order.
    pub fn new(corpus: &'a Corpus, selection: &'a Selection, genes: &[u32]) -> Self {
        let mut places = vec![None; corpus.genes().len()];
        for (place, &gene) in genes.iter().enumerate() {
            places[gene as usize] = Some(place as u32);
        }
        Self {
            corpus,
            selection,
            places,
            genes: genes.len(),
        }
    }
}

impl Cells for CorpusCells<'_> {
    fn genes(&self) -> usize {
        self.genes
    }

    fn cells(&self) -> u64 {
        self.selection.cells()
    }

    fn value_kind(&self) -> ValueKind {
        self.corpus.value_kind()
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u32], &[f32])) -> Result<()> {
        let (mut genes, mut values) = (Vec::new(), Vec::new());
        for group in self.selection.groups() {
            let block = self
                .corpus
                .read_block(group.row_group, group.chosen.as_deref())?;
            for row in 0..block.rows() {
                genes.clear();
                values.clear();
                let (all, of_all) = block.cell(row);
                for (&gene, &value) in all.iter().zip(of_all) {
                    if let Some(place) = self.places[gene as usize] {
                        genes.push(place);
                        values.push(value);
                    }
                }
                visit(&genes, &values);
            }
        }
        Ok(())
    }
}

/// A matrix in memory, cell by cell.
#[derive(Debug, Clone, Copy)]
pub struct DenseCells<'a> {
    values: &'a [f32],
    genes: usize,
    kind: ValueKind,
}

impl<'a> DenseCells<'a> {
    /// `values` holds `genes` values per cell, zeros included.
    pub fn new(values: &'a [f32], genes: usize, kind: ValueKind) -> Self {
        Self {
            values,
            genes,
            kind,
        }
    }
}

impl Cells for DenseCells<'_> {
    fn genes(&self) -> usize {
        self.genes
    }

    fn cells(&self) -> u64 {
        (self.values.len() / self.genes.max(1)) as u64
    }

    fn value_kind(&self) -> ValueKind {
        self.kind
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u32], &[f32])) -> Result<()> {
        let (mut genes, mut values) = (Vec::new(), Vec::new());
        for cell in self.values.chunks(self.genes.max(1)) {
            genes.clear();
            values.clear();
            for (gene, &value) in cell.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                genes.push(gene as u32);
                values.push(value);
            }
            visit(&genes, &values);
        }
        Ok(())
    }
}
