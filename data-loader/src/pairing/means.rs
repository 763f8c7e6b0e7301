//! Mean profiles of groups of cells, in one pass over a corpus.

use super::{Normal, Panel};
use crate::Result;
use crate::corpus::Corpus;
use crate::order::Selection;
use crate::parallel::{default_threads, in_order};

/// Mean and spread of each group of cells, gene by gene.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Means {
    /// Cells of each group.
    pub cells: Vec<u64>,
    /// Means, a row for each group; zeros where a group has no cells.
    pub mean: Vec<Vec<f64>>,
    /// Variances (divided by the number of cells), likewise.
    pub variance: Vec<Vec<f64>>,
}

/// Means over the genes of `panel` of the cells that `group_of` puts into one of `groups` groups.
/// Sums are taken in the order of the corpus and in double precision: every rank finds the same.
///
/// # Errors
/// When cells cannot be read.
pub fn means(
    corpus: &Corpus,
    normal: Normal,
    panel: &Panel,
    groups: usize,
    group_of: &(dyn Fn(u64) -> Option<usize> + Sync),
) -> Result<Means> {
    let mut found = Means {
        cells: vec![0; groups],
        mean: vec![vec![0.0; panel.len()]; groups],
        variance: vec![vec![0.0; panel.len()]; groups],
    };
    let selection = Selection::filter(corpus, |cell| group_of(cell).is_some());
    let chosen = selection.groups();
    let read = |item: usize| {
        let group = &chosen[item];
        corpus.read_block(group.row_group, group.chosen.as_deref())
    };
    let mut values = Vec::new();
    in_order(default_threads(), chosen.len(), read, |item, block| {
        for row in 0..block.rows() {
            let Some(group) = group_of(chosen[item].cell(row)) else {
                continue;
            };
            let (genes, own) = block.cell(row);
            values.clear();
            values.extend_from_slice(own);
            normal.apply(&mut values);
            found.cells[group] += 1;
            let (sums, squares) = (&mut found.mean[group], &mut found.variance[group]);
            for (&gene, &value) in genes.iter().zip(&values) {
                if let Some(column) = panel.column(gene) {
                    let value = f64::from(value);
                    sums[column] += value;
                    squares[column] += value * value;
                }
            }
        }
        Ok(())
    })?;
    for group in 0..groups {
        let n = found.cells[group].max(1) as f64;
        let of = found.mean[group].iter_mut().zip(&mut found.variance[group]);
        for (mean, variance) in of {
            *mean /= n;
            // Rounding may leave a little less than nothing.
            *variance = (*variance / n - *mean * *mean).max(0.0);
        }
    }
    Ok(found)
}
