//! What the values of a matrix are, and bringing them into the form of a corpus.

use super::Rows;
use crate::Error;
use crate::corpus::{CellValues, ValueKind};

/// What the caller says the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValuesOption {
    /// Found out from the first cells.
    #[default]
    Auto,
    /// Counts.
    Counts,
    /// Normalised and log-transformed.
    Lognorm,
}

impl ValuesOption {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Counts => "counts",
            Self::Lognorm => "lognorm",
        }
    }

    /// The kind of values, given the first cells.
    pub(crate) fn decide(self, first: &Rows) -> ValueKind {
        // A value that is not finite is reported as such later, it decides nothing here.
        let whole = |v: &f64| v.fract() == 0.0 || !v.is_finite();
        let counts = match self {
            Self::Counts => true,
            Self::Lognorm => false,
            Self::Auto => first.values.iter().all(whole),
        };
        if counts {
            ValueKind::Counts
        } else {
            ValueKind::Lognorm
        }
    }
}

/// A value that cannot be stored: where it is, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct BadValue {
    pub(crate) row: usize,
    pub(crate) gene: u32,
    pub(crate) problem: Problem,
}

#[derive(Debug)]
pub(crate) enum Problem {
    NotFinite(f64),
    Negative(f64),
    Fractional(f64),
    TooLarge(f64),
}

/// Cells in the form of a corpus, reused from block to block.
#[derive(Debug, Default)]
pub(crate) struct Clean {
    pub(crate) offsets: Vec<i32>,
    pub(crate) genes: Vec<u32>,
    values: Vec<f64>,
    order: Vec<(u32, f64)>,
}

impl Clean {
    /// Sorts each cell by gene, sums duplicates, drops zeros, and refuses values that are not
    /// finite, not positive, or not integer when they must be counts.
    pub(crate) fn fill(&mut self, rows: &Rows, kind: ValueKind) -> Result<(), BadValue> {
        self.offsets.clear();
        self.offsets.push(0);
        self.genes.clear();
        self.values.clear();
        for row in 0..rows.len() {
            let span = rows.offsets[row]..rows.offsets[row + 1];
            let (genes, values) = (&rows.genes[span.clone()], &rows.values[span]);
            let begin = self.genes.len();
            if genes.windows(2).all(|w| w[0] < w[1]) {
                for (&gene, &value) in genes.iter().zip(values) {
                    if value != 0.0 {
                        self.genes.push(gene);
                        self.values.push(value);
                    }
                }
            } else {
                self.sort_and_sum(genes, values);
            }
            for (&gene, &value) in self.genes[begin..].iter().zip(&self.values[begin..]) {
                if let Some(problem) = problem(value, kind) {
                    let row = rows.first + row;
                    return Err(BadValue { row, gene, problem });
                }
            }
            self.offsets.push(self.genes.len() as i32);
        }
        Ok(())
    }

    fn sort_and_sum(&mut self, genes: &[u32], values: &[f64]) {
        self.order.clear();
        self.order
            .extend(genes.iter().copied().zip(values.iter().copied()));
        self.order.sort_by_key(|&(gene, _)| gene);
        for same in self.order.chunk_by(|a, b| a.0 == b.0) {
            let sum: f64 = same.iter().map(|&(_, v)| v).sum();
            if sum != 0.0 {
                self.genes.push(same[0].0);
                self.values.push(sum);
            }
        }
    }

    /// Moves the values to other genes, each to at most one; those of genes without a place are dropped.
    pub(crate) fn relocate(&mut self, places: &[Option<u32>]) {
        let (mut from, mut kept) = (0, 0);
        for row in 1..self.offsets.len() {
            self.order.clear();
            let end = self.offsets[row] as usize;
            for at in from..end {
                if let Some(gene) = places[self.genes[at] as usize] {
                    self.order.push((gene, self.values[at]));
                }
            }
            from = end;
            // Sorted already unless the genes come in another order: then this costs next to nothing.
            self.order.sort_by_key(|&(gene, _)| gene);
            for &(gene, value) in &self.order {
                self.genes[kept] = gene;
                self.values[kept] = value;
                kept += 1;
            }
            self.offsets[row] = kept as i32;
        }
        self.genes.truncate(kept);
        self.values.truncate(kept);
    }

    pub(crate) fn values(&self, kind: ValueKind) -> CellValues {
        match kind {
            ValueKind::Counts => {
                CellValues::Counts(self.values.iter().map(|&v| v as u32).collect())
            }
            ValueKind::Lognorm => {
                CellValues::Lognorm(self.values.iter().map(|&v| v as f32).collect())
            }
        }
    }
}

fn problem(value: f64, kind: ValueKind) -> Option<Problem> {
    // Not only NaN and infinity: a double that overflows a float would be written as infinity.
    if !(value as f32).is_finite() {
        Some(Problem::NotFinite(value))
    } else if value < 0.0 {
        Some(Problem::Negative(value))
    } else if kind == ValueKind::Counts && value.fract() != 0.0 {
        Some(Problem::Fractional(value))
    } else if kind == ValueKind::Counts && value > f64::from(u32::MAX) {
        Some(Problem::TooLarge(value))
    } else {
        None
    }
}

impl BadValue {
    /// The error in words. `others` are the matrices that the file has besides this one, as options.
    pub(crate) fn into_error(
        self,
        source: &std::path::Path,
        place: &str,
        cell: &str,
        gene: &str,
        option: ValuesOption,
        others: &str,
    ) -> Error {
        let (what, help) = match self.problem {
            Problem::NotFinite(v) => (
                format!("`{v}`, which is no finite number"),
                "repair or drop this cell or gene in the source file".to_owned(),
            ),
            Problem::Negative(v) => (
                format!("`{v}`, which is negative: scaled data cannot be used"),
                format!("take counts or log-normalised values: {others}"),
            ),
            Problem::Fractional(v) if option == ValuesOption::Auto => (
                format!("`{v}`, which is no integer, while the first cells hold counts"),
                format!(
                    "say what the values are with --values counts or --values lognorm, or take another matrix: {others}"
                ),
            ),
            Problem::Fractional(v) => (
                format!("`{v}`, which is no integer, but counts were asked for"),
                format!(
                    "pass --values lognorm when these are log-normalised values, or take another matrix: {others}"
                ),
            ),
            Problem::TooLarge(v) => (
                format!("`{v}`, which is too large for a count"),
                String::new(),
            ),
        };
        Error::Import {
            path: source.to_owned(),
            place: format!("`{}`", place.trim_start_matches('/')),
            problem: format!("cell `{cell}`, gene `{gene}` holds {what}"),
            help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_sorted_and_summed() {
        let rows = Rows {
            first: 0,
            offsets: vec![0, 4, 6],
            genes: vec![3, 1, 3, 2, 0, 5],
            values: vec![2.0, 7.0, 1.0, 0.0, 4.0, 0.0],
        };
        let mut clean = Clean::default();
        clean.fill(&rows, ValueKind::Counts).unwrap();
        assert_eq!(clean.offsets, [0, 2, 3]);
        assert_eq!(clean.genes, [1, 3, 0]);
        assert_eq!(clean.values, [7.0, 3.0, 4.0]);
        clean.relocate(&[None, Some(4), None, Some(0), None, None]);
        assert_eq!(clean.offsets, [0, 2, 2]);
        assert_eq!(clean.genes, [0, 4]);
        assert_eq!(clean.values, [3.0, 7.0]);
    }
}
