//! The entries of a matrix that is stored by genes.

use super::hdf5::Hdf5;
use super::matrix::{BLOCK_VALUES, Sparse, bounds, indices};
use super::scatter::{Entries, VisitEntries};
use crate::Result;

/// Genes whose bounds are read at a time.
const BLOCK_GENES: usize = 8192;

/// A sparse matrix whose columns are consecutive.
pub(super) struct ByGenes<'a> {
    pub(super) file: &'a Hdf5,
    pub(super) sparse: &'a Sparse,
    pub(super) place: &'a str,
    pub(super) cells: usize,
    pub(super) genes: usize,
}

impl Entries for ByGenes<'_> {
    fn visit(&self, visit: &mut VisitEntries<'_>) -> Result<()> {
        let mut gene_of = Vec::new();
        for first in (0..self.genes).step_by(BLOCK_GENES) {
            let last = (first + BLOCK_GENES).min(self.genes);
            let bounds = bounds(self.file, self.sparse, self.place, first..last)?;
            let end = bounds[bounds.len() - 1];
            let (mut at, mut gene) = (bounds[0], 0);
            while at < end {
                let span = at..(at + BLOCK_VALUES).min(end);
                gene_of.clear();
                for entry in span.clone() {
                    while bounds[gene + 1] <= entry {
                        gene += 1;
                    }
                    gene_of.push((first + gene) as u32);
                }
                let cells = indices(self.file, self.sparse, self.place, span.clone(), self.cells)?;
                let values = self.file.rows(&self.sparse.data, span.clone())?;
                visit(&gene_of, &cells, &values)?;
                at = span.end;
            }
        }
        Ok(())
    }
}

impl ByGenes<'_> {
    /// How many entries each cell has.
    pub(super) fn counts(&self) -> Result<Vec<u32>> {
        let mut counts = vec![0_u32; self.cells];
        let stored = self.sparse.data.len();
        for at in (0..stored).step_by(BLOCK_VALUES) {
            let span = at..(at + BLOCK_VALUES).min(stored);
            for cell in indices(self.file, self.sparse, self.place, span, self.cells)? {
                counts[cell as usize] += 1;
            }
        }
        Ok(counts)
    }
}
