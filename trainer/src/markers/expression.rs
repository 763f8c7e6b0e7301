//! How genes are expressed in each group, and a rank-sum test of it, from cells that are read in
//! passes: a block of genes at a time.

use std::path::Path;

use scpeft_data::{Corpus, Selection};
use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::de::SortedControl;

use super::contrast::Contrast;
use crate::failure::{Failure, Result};
use crate::normalized;

/// What the values of a block of genes may take in memory.
const BLOCK_BYTES: usize = 128 << 20;

/// Sums over the cells of each group, and what a test says of each contrast.
pub(super) struct Expression {
    genes: usize,
    /// Cells of each group.
    sizes: Vec<f64>,
    /// Sum of values, and cells that express it; group by group.
    sums: Vec<f64>,
    expressed: Vec<f64>,
    /// p values by contrast and gene.
    pub(super) p_values: Vec<Vec<f64>>,
}

/// The names of a file, one a line.
///
/// # Errors
/// When it cannot be read, or is empty.
pub(super) fn gene_list(path: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::config(format!("`--gene-list {}`: {e}", path.display())))?;
    let names = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Failure::config(format!(
            "`--gene-list {}` names no gene\nhelp: one symbol a line, as the corpus has it",
            path.display()
        )));
    }
    Ok(names)
}

impl Expression {
    /// Reads the cells of the selection, of which every one has a group; `genes` are ascending.
    ///
    /// # Errors
    /// When a cell cannot be read.
    pub(super) fn collect(
        corpus: &Corpus,
        selection: &Selection,
        groups: (&[i32], usize),
        genes: &[u32],
        contrasts: &[Contrast],
    ) -> Result<Self> {
        let (group_of, n_groups) = groups;
        let n = genes.len();
        let mut found = Self {
            genes: n,
            sizes: vec![0.0; n_groups],
            sums: vec![0.0; n_groups * n],
            expressed: vec![0.0; n_groups * n],
            p_values: vec![vec![1.0; n]; contrasts.len()],
        };
        for cell in selection.cell_indices() {
            found.sizes[group_of[cell as usize] as usize] += 1.0;
        }
        let cells = selection.cells() as usize;
        let block = (BLOCK_BYTES / (4 * cells.max(1))).clamp(1, n.max(1));
        let mut place_of = vec![usize::MAX; corpus.genes().len()];
        for (place, &gene) in genes.iter().enumerate() {
            place_of[gene as usize] = place;
        }
        for first in (0..n).step_by(block) {
            let width = block.min(n - first);
            let mut rows: Vec<Vec<f32>> = vec![Vec::new(); n_groups];
            normalized::visit(corpus, selection, &mut |cell, own, values| {
                let group = group_of[cell as usize] as usize;
                let begin = rows[group].len();
                rows[group].resize(begin + width, 0.0);
                for (&gene, &value) in own.iter().zip(values) {
                    let place = place_of[gene as usize].wrapping_sub(first);
                    if place < width {
                        rows[group][begin + place] = value;
                    }
                }
            })?;
            found.add(&rows, first, width);
            found.test(&rows, first, width, contrasts)?;
        }
        Ok(found)
    }

    fn add(&mut self, rows: &[Vec<f32>], first: usize, width: usize) {
        for (group, rows) in rows.iter().enumerate() {
            let own = group * self.genes + first;
            for row in rows.chunks_exact(width) {
                for (at, &value) in row.iter().enumerate() {
                    self.sums[own + at] += f64::from(value);
                    self.expressed[own + at] += f64::from(u8::from(value > 0.0));
                }
            }
        }
    }

    fn test(
        &mut self,
        rows: &[Vec<f32>],
        first: usize,
        width: usize,
        contrasts: &[Contrast],
    ) -> Result<()> {
        for (contrast, p_values) in contrasts.iter().zip(&mut self.p_values) {
            let sides = (0..rows.len()).filter(|&g| contrast.is_background(g));
            let background: Vec<f32> = sides.flat_map(|g| rows[g].iter().copied()).collect();
            let control = Cells::new("the background", &background, width)?;
            let target = Cells::new("the target", &rows[contrast.target], width)?;
            let tested = SortedControl::new(control).test(target, 0.0)?;
            p_values[first..first + width].copy_from_slice(&tested.p_value);
        }
        Ok(())
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.sizes.len()
    }

    /// Mean value of a gene over groups.
    pub(super) fn mean(&self, groups: &[usize], gene: usize) -> f64 {
        self.over(&self.sums, groups, gene)
    }

    /// Share of the cells of groups that express a gene.
    pub(super) fn share(&self, groups: &[usize], gene: usize) -> f64 {
        self.over(&self.expressed, groups, gene)
    }

    fn over(&self, of: &[f64], groups: &[usize], gene: usize) -> f64 {
        let sum: f64 = groups.iter().map(|&g| of[g * self.genes + gene]).sum();
        let cells: f64 = groups.iter().map(|&g| self.sizes[g]).sum();
        sum / cells.max(1.0)
    }
}
