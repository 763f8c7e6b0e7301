//! What a corpus holds, in numbers.
//!
//! Row groups are read one by one, by several threads; what they hold is added up in their order, so that
//! the result does not depend on threads. In memory are a number per gene, the length of each cell, and a
//! few row groups.

mod lengths;
mod picture;

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use serde::Serialize;

use crate::corpus::{Block, Corpus, ValueKind};
use crate::parallel::in_order;
use crate::{Error, Result};

pub use lengths::{LengthOptions, PaddingWaste};
pub use picture::draw;

/// What to count.
#[derive(Debug, Clone)]
pub struct StatsOptions {
    /// Categorical obs columns to count cells by, besides label and batch.
    pub by: Vec<String>,
    /// How many of the most expressed genes are listed.
    pub top_genes: usize,
    /// What the lengths of sequences are worked out for.
    pub lengths: LengthOptions,
    /// Threads to use.
    pub threads: usize,
}

/// Mean, extremes and quantiles of a number per cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// The mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Quantiles by their name in per cent: `5`, `25`, `50`, `75`, `95`.
    pub quantiles: IndexMap<&'static str, f64>,
    /// Ends of the bins of a histogram of twenty equal bins up to the 99.5 % quantile, with the cells in
    /// each; the last bin holds what lies above, too.
    pub histogram: Vec<(f64, u64)>,
}

/// One of the most expressed genes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GeneShare {
    /// Its symbol.
    pub symbol: String,
    /// Its part of the sum of all values.
    pub share: f64,
    /// The part of the cells that express it.
    pub cells: f64,
}

/// How many cells each category has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CategoryCounts {
    /// What the column is: `label`, `batch` or nothing.
    pub role: Option<&'static str>,
    /// Cells of each category.
    pub counts: IndexMap<String, u64>,
    /// Cells without one.
    pub missing: u64,
}

/// What a corpus holds, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Number of cells.
    pub cells: u64,
    /// Number of genes.
    pub genes: usize,
    /// Genes that some cell expresses.
    pub expressed_genes: usize,
    /// What the values are.
    pub value_kind: ValueKind,
    /// Number of stored values.
    pub nonzeros: u64,
    /// Share of zeros in the matrix of cells and genes.
    pub zeros: f64,
    /// Share of ones among the stored values.
    pub ones: f64,
    /// The largest value.
    pub largest_value: f32,
    /// Cells that express nothing.
    pub empty_cells: u64,
    /// Expressed genes per cell.
    pub genes_per_cell: Distribution,
    /// Sum of the values per cell.
    pub sum_per_cell: Distribution,
    /// The genes with the largest sums.
    pub top_genes: Vec<GeneShare>,
    /// Cells by the categories of columns.
    pub by: IndexMap<String, CategoryCounts>,
    /// What is cut off and wasted at some lengths of sequences.
    pub padding: Vec<PaddingWaste>,
}

/// How far it is: cells read, and all cells.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Counts what a corpus holds.
///
/// # Errors
/// When a column does not exist or is not categorical, an option cannot work, or the corpus cannot be read.
pub fn stats(corpus: &Corpus, options: &StatsOptions, progress: Progress<'_>) -> Result<Stats> {
    options.lengths.check()?;
    if corpus.n_cells() == 0 {
        return Err(Error::options("the corpus has no cells to count", ""));
    }
    let by = categories(corpus, options)?;
    let mut sums = Sums::new(corpus);
    let done = AtomicU64::new(0);
    in_order(
        options.threads,
        corpus.row_groups().len(),
        |number| {
            let part = Part::of(&corpus.read_block(number, None)?, corpus.genes().len());
            let rows = part.lengths.len() as u64;
            let before = done.fetch_add(rows, Ordering::Relaxed);
            progress(before + rows, corpus.n_cells());
            Ok(part)
        },
        |_, part| {
            sums.add(&part);
            Ok(())
        },
    )?;
    let padding = lengths::padding(corpus, &sums.lengths, &options.lengths);
    Ok(sums.finish(corpus, options, by, padding))
}

fn categories(corpus: &Corpus, options: &StatsOptions) -> Result<IndexMap<String, CategoryCounts>> {
    let manifest = corpus.manifest();
    let roles = [(&manifest.label, "label"), (&manifest.batch, "batch")];
    let roles = roles
        .into_iter()
        .filter_map(|(column, role)| column.clone().map(|c| (c, Some(role))));
    let asked = options.by.iter().map(|column| (column.clone(), None));
    let mut by = IndexMap::new();
    for (column, role) in roles.chain(asked) {
        if by.contains_key(&column) {
            continue;
        }
        let names = corpus.categories(&column)?;
        let mut counts: IndexMap<String, u64> = names.iter().map(|n| (n.clone(), 0)).collect();
        let mut missing = 0;
        for code in corpus.obs_codes(&column)? {
            match usize::try_from(code)
                .ok()
                .and_then(|c| counts.get_index_mut(c))
            {
                Some((_, n)) => *n += 1,
                None => missing += 1,
            }
        }
        let counts = CategoryCounts {
            role,
            counts,
            missing,
        };
        by.insert(column, counts);
    }
    Ok(by)
}

/// What one row group holds.
struct Part {
    lengths: Vec<u32>,
    sums: Vec<f64>,
    of_gene: Vec<(f64, u32)>,
    ones: u64,
    largest: f32,
}

impl Part {
    fn of(block: &Block, genes: usize) -> Self {
        let mut part = Self {
            lengths: Vec::with_capacity(block.rows()),
            sums: Vec::with_capacity(block.rows()),
            of_gene: vec![(0.0, 0); genes],
            ones: 0,
            largest: 0.0,
        };
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            let mut sum = 0.0;
            for (&gene, &value) in genes.iter().zip(values) {
                let wide = f64::from(value);
                sum += wide;
                let of_gene = &mut part.of_gene[gene as usize];
                of_gene.0 += wide;
                of_gene.1 += 1;
                part.ones += u64::from(value == 1.0);
                part.largest = part.largest.max(value);
            }
            part.lengths.push(genes.len() as u32);
            part.sums.push(sum);
        }
        part
    }
}

/// What all row groups so far hold.
struct Sums {
    lengths: Vec<u32>,
    per_cell: LogHistogram,
    of_gene: Vec<(f64, u64)>,
    ones: u64,
    largest: f32,
}

impl Sums {
    fn new(corpus: &Corpus) -> Self {
        Self {
            lengths: Vec::with_capacity(corpus.n_cells() as usize),
            per_cell: LogHistogram::default(),
            of_gene: vec![(0.0, 0); corpus.genes().len()],
            ones: 0,
            largest: 0.0,
        }
    }

    fn add(&mut self, part: &Part) {
        self.lengths.extend_from_slice(&part.lengths);
        for &sum in &part.sums {
            self.per_cell.add(sum);
        }
        for (all, part) in self.of_gene.iter_mut().zip(&part.of_gene) {
            all.0 += part.0;
            all.1 += u64::from(part.1);
        }
        self.ones += part.ones;
        self.largest = self.largest.max(part.largest);
    }

    fn finish(
        self,
        corpus: &Corpus,
        options: &StatsOptions,
        by: IndexMap<String, CategoryCounts>,
        padding: Vec<PaddingWaste>,
    ) -> Stats {
        let cells = self.lengths.len() as u64;
        let nonzeros: u64 = self.lengths.iter().map(|&n| u64::from(n)).sum();
        let total: f64 = self.of_gene.iter().map(|g| g.0).sum();
        let mut genes: Vec<usize> = (0..self.of_gene.len())
            .filter(|&g| self.of_gene[g].1 > 0)
            .collect();
        let expressed_genes = genes.len();
        genes.sort_by(|&a, &b| self.of_gene[b].0.total_cmp(&self.of_gene[a].0));
        genes.truncate(options.top_genes);
        let top_genes = genes.into_iter().map(|gene| GeneShare {
            symbol: corpus.genes().symbols[gene].clone(),
            share: self.of_gene[gene].0 / total,
            cells: self.of_gene[gene].1 as f64 / cells as f64,
        });
        let slots = cells as f64 * corpus.genes().len() as f64;
        Stats {
            cells,
            genes: corpus.genes().len(),
            expressed_genes,
            value_kind: corpus.value_kind(),
            nonzeros,
            zeros: 1.0 - nonzeros as f64 / slots.max(1.0),
            ones: self.ones as f64 / nonzeros.max(1) as f64,
            largest_value: self.largest,
            empty_cells: self.lengths.iter().filter(|&&n| n == 0).count() as u64,
            genes_per_cell: distribution_of_lengths(&self.lengths),
            sum_per_cell: self.per_cell.distribution(),
            top_genes: top_genes.collect(),
            by,
            padding,
        }
    }
}

const QUANTILES: [(&str, f64); 5] = [
    ("5", 0.05),
    ("25", 0.25),
    ("50", 0.5),
    ("75", 0.75),
    ("95", 0.95),
];
const BINS: usize = 20;

/// The value at a share of the cells, given values ascending with the cells that have each.
fn quantile(ascending: &[(f64, u64)], cells: u64, share: f64) -> f64 {
    let wanted = (share * (cells - 1) as f64).round() as u64;
    let mut seen = 0;
    for &(value, n) in ascending {
        seen += n;
        if seen > wanted {
            return value;
        }
    }
    ascending.last().map_or(0.0, |last| last.0)
}

fn distribution(ascending: &[(f64, u64)], mean: f64, min: f64, max: f64) -> Distribution {
    let cells: u64 = ascending.iter().map(|a| a.1).sum();
    let top = quantile(ascending, cells, 0.995).max(1.0);
    let width = top / BINS as f64;
    let mut histogram: Vec<(f64, u64)> = (1..=BINS).map(|bin| (bin as f64 * width, 0)).collect();
    for &(value, n) in ascending {
        histogram[((value / width) as usize).min(BINS - 1)].1 += n;
    }
    Distribution {
        mean,
        min,
        max,
        quantiles: QUANTILES
            .iter()
            .map(|&(name, share)| (name, quantile(ascending, cells, share)))
            .collect(),
        histogram,
    }
}

fn distribution_of_lengths(lengths: &[u32]) -> Distribution {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut counts = vec![0_u64; longest as usize + 1];
    for &length in lengths {
        counts[length as usize] += 1;
    }
    let ascending: Vec<(f64, u64)> = (0..)
        .zip(counts)
        .filter(|c| c.1 > 0)
        .map(|(value, n): (u32, u64)| (f64::from(value), n))
        .collect();
    let sum: f64 = ascending.iter().map(|&(value, n)| value * n as f64).sum();
    let min = ascending.first().map_or(0.0, |a| a.0);
    distribution(
        &ascending,
        sum / lengths.len().max(1) as f64,
        min,
        f64::from(longest),
    )
}

/// Counts numbers of any size in bins that differ by one part in 200.
#[derive(Default)]
struct LogHistogram {
    bins: std::collections::BTreeMap<i32, u64>,
    zeros: u64,
    sum: f64,
    cells: u64,
    range: Option<(f64, f64)>,
}

impl LogHistogram {
    const STEP: f64 = 1.005;

    fn add(&mut self, value: f64) {
        let (low, high) = self.range.unwrap_or((value, value));
        self.range = Some((low.min(value), high.max(value)));
        self.sum += value;
        self.cells += 1;
        if value > 0.0 {
            let bin = (value.ln() / Self::STEP.ln()).round() as i32;
            *self.bins.entry(bin).or_default() += 1;
        } else {
            self.zeros += 1;
        }
    }

    fn distribution(&self) -> Distribution {
        let zeros = (self.zeros > 0).then_some((0.0, self.zeros));
        let bins = self.bins.iter().map(|(&bin, &n)| (Self::STEP.powi(bin), n));
        let ascending: Vec<(f64, u64)> = zeros.into_iter().chain(bins).collect();
        let (min, max) = self.range.unwrap_or_default();
        distribution(&ascending, self.sum / self.cells.max(1) as f64, min, max)
    }
}

impl CategoryCounts {
    /// The categories with the most cells first.
    pub fn by_size(&self) -> Vec<(&str, u64)> {
        let mut counts: Vec<(&str, u64)> =
            self.counts.iter().map(|(k, &n)| (k.as_str(), n)).collect();
        counts.sort_by_key(|&(_, n)| Reverse(n));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_bins_are_those_worked_out_by_hand() {
        let lengths: Vec<u32> = (0..=100).collect();
        let found = distribution_of_lengths(&lengths);
        assert_eq!((found.mean, found.min, found.max), (50.0, 0.0, 100.0));
        assert_eq!(
            found.quantiles.values().copied().collect::<Vec<_>>(),
            [5.0, 25.0, 50.0, 75.0, 95.0]
        );
        assert_eq!(found.histogram.iter().map(|h| h.1).sum::<u64>(), 101);
        // Bins of five: 0 to 4, and so on; the last also holds 100.
        assert_eq!((found.histogram[0], found.histogram[19].1), ((5.0, 5), 6));
    }

    #[test]
    fn a_logarithmic_histogram_is_close() {
        let mut histogram = LogHistogram::default();
        for value in 0..1000 {
            histogram.add(f64::from(value));
        }
        let found = histogram.distribution();
        assert_eq!((found.mean, found.min, found.max), (499.5, 0.0, 999.0));
        assert!(
            (found.quantiles["50"] / 500.0 - 1.0).abs() < 0.006,
            "{found:?}"
        );
    }
}
