//! Control cells in memory, to be drawn from.

use std::collections::BTreeMap;

use super::{Normal, Panel};
use crate::Result;
use crate::corpus::Corpus;
use crate::order::Selection;
use crate::rng::{Purpose, Rng};

/// Control cells of one group; only what they express is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool {
    ends: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Pool {
    /// Number of cells.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Writes the profile of a cell into a row of zeros over the panel.
    pub fn write(&self, cell: usize, row: &mut [f32]) {
        let start = if cell == 0 { 0 } else { self.ends[cell - 1] };
        let range = start..self.ends[cell];
        for (&column, &value) in self.columns[range.clone()].iter().zip(&self.values[range]) {
            row[column as usize] = value;
        }
    }

    pub(super) fn push(&mut self, panel: &Panel, genes: &[u32], values: &[f32]) {
        for (&gene, &value) in genes.iter().zip(values) {
            if let Some(column) = panel.column(gene) {
                self.columns.push(column as u32);
                self.values.push(value);
            }
        }
        self.ends.push(self.values.len());
    }
}

/// At most `most` cells of each of `groups` groups, chosen by the seed; `group_of` says which group
/// a control cell is in.
///
/// # Errors
/// When cells cannot be read.
pub fn pools(
    corpus: &Corpus,
    normal: Normal,
    panel: &Panel,
    groups: usize,
    group_of: &dyn Fn(u64) -> Option<usize>,
    most: usize,
    seed: u64,
) -> Result<Vec<Pool>> {
    let mut drawn: Vec<Vec<(u64, u64)>> = vec![Vec::new(); groups];
    for cell in 0..corpus.n_cells() {
        if let Some(group) = group_of(cell) {
            let draw = Rng::new(seed, Purpose::ControlPool, 0, cell).next_u64();
            drawn[group].push((draw, cell));
        }
    }
    let mut chosen: BTreeMap<u64, usize> = BTreeMap::new();
    for (group, cells) in drawn.iter_mut().enumerate() {
        cells.sort_unstable();
        chosen.extend(cells.iter().take(most).map(|&(_, cell)| (cell, group)));
    }
    let mut pools = vec![Pool::default(); groups];
    let selection = Selection::filter(corpus, |cell| chosen.contains_key(&cell));
    let mut values = Vec::new();
    for group in selection.groups() {
        let block = corpus.read_block(group.row_group, group.chosen.as_deref())?;
        for row in 0..block.rows() {
            let (genes, own) = block.cell(row);
            values.clear();
            values.extend_from_slice(own);
            normal.apply(&mut values);
            if let Some(&pool) = chosen.get(&group.cell(row)) {
                pools[pool].push(panel, genes, &values);
            }
        }
    }
    Ok(pools)
}
