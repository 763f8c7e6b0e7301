//! Some cells of one row group in memory, as compressed sparse rows.

/// Some cells of one row group, as compressed sparse rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    offsets: Vec<usize>,
    genes: Vec<u32>,
    values: Vec<f32>,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            genes: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl Block {
    /// Number of cells.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Gene indices (ascending) and values of one cell.
    pub fn cell(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[row]..self.offsets[row + 1];
        (&self.genes[range.clone()], &self.values[range])
    }

    /// Number of stored values.
    pub fn nonzeros(&self) -> usize {
        self.genes.len()
    }

    pub(crate) fn push(&mut self, genes: &[u32], values: &[f32]) {
        self.genes.extend_from_slice(genes);
        self.values.extend_from_slice(values);
        self.offsets.push(self.genes.len());
    }
}
