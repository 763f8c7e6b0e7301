//! Flavor `cell_ranger`: dispersion of logged values against genes of like mean (Zheng et al. 2017,
//! "Massively parallel digital transcriptional profiling of single cells", as scanpy 1.11 computes it).

use super::moments::Moments;
use super::{Batches, Cells, HvgTable, descending, median};
use crate::Result;
use crate::corpus::ValueKind;
use crate::preprocess::{log1p, normalize_total};

/// The sum that counts are scaled to before the logarithm.
const TARGET_SUM: f32 = 1e4;
/// Stands for a mean of zero, so that it can be divided by.
const TINY_MEAN: f64 = 1e-12;
/// The 75 % point of the normal distribution: makes a median absolute deviation a standard deviation.
const NORMAL_QUARTILE: f64 = 0.674_489_750_196_081_7;

pub(super) fn highly_variable(
    cells: &dyn Cells,
    batches: &Batches,
    n_top: usize,
) -> Result<HvgTable> {
    // The reference squares in single precision. Differences of nearly equal dispersions follow, which
    // are divided by others: in the end it shows in the fourth digit.
    let moments = Moments::of(&Logged(cells), batches, |value| f64::from(value * value))?;
    if let ([only], true) = (moments.as_slice(), batches.is_whole()) {
        let stats = Stats::of(only, &all_genes(only), n_top);
        return Ok(HvgTable {
            rank: Vec::new(),
            n_batches: stats.selected.iter().map(|&s| u32::from(s)).collect(),
            means: stats.means,
            spread: stats.dispersions,
            normalised: stats.normalised,
            selected: stats.selected,
        });
    }
    let stats: Vec<Stats> = moments
        .iter()
        .map(|batch| Stats::of(batch, &expressed_genes(batch), n_top))
        .collect();
    Ok(combined(&stats, cells.genes(), n_top))
}

fn all_genes(batch: &Moments) -> Vec<usize> {
    (0..batch.sums.len()).collect()
}

fn expressed_genes(batch: &Moments) -> Vec<usize> {
    (0..batch.sums.len())
        .filter(|&gene| batch.expressed[gene] > 0)
        .collect()
}

/// Genes are ordered by the number of batches that select them, then by their mean normalised
/// dispersion, which comes last where it is undefined in every batch.
fn combined(stats: &[Stats], genes: usize, n_top: usize) -> HvgTable {
    let mean = |of: fn(&Stats) -> &[f64]| -> Vec<f64> {
        (0..genes)
            .map(|gene| {
                let defined: Vec<f64> = stats
                    .iter()
                    .map(|s| of(s)[gene])
                    .filter(|v| !v.is_nan())
                    .collect();
                defined.iter().sum::<f64>() / defined.len() as f64
            })
            .collect()
    };
    let normalised = mean(|s| &s.normalised);
    let n_batches: Vec<u32> = (0..genes)
        .map(|gene| stats.iter().map(|s| u32::from(s.selected[gene])).sum())
        .collect();
    let mut order = descending(&normalised.iter().copied().map(rounded).collect::<Vec<_>>());
    order.sort_by(|&a, &b| n_batches[b].cmp(&n_batches[a]));
    let mut selected = vec![false; genes];
    for &gene in order.iter().take(n_top) {
        selected[gene] = true;
    }
    HvgTable {
        means: mean(|s| &s.means),
        spread: mean(|s| &s.dispersions),
        normalised,
        rank: Vec::new(),
        n_batches,
        selected,
    }
}

/// The genes of one batch; zero for genes that take no part.
struct Stats {
    means: Vec<f64>,
    dispersions: Vec<f64>,
    /// Not a number where no gene of like mean has another dispersion.
    normalised: Vec<f64>,
    selected: Vec<bool>,
}

impl Stats {
    /// Looks at some genes of a batch.
    fn of(batch: &Moments, genes: &[usize], n_top: usize) -> Self {
        let (mut means, variances) = (batch.means(), batch.variances());
        for mean in means.iter_mut().filter(|m| **m == 0.0) {
            *mean = TINY_MEAN;
        }
        let mut stats = Self {
            means: vec![0.0; means.len()],
            dispersions: vec![0.0; means.len()],
            normalised: vec![0.0; means.len()],
            selected: vec![false; means.len()],
        };
        for &gene in genes {
            stats.means[gene] = means[gene];
            stats.dispersions[gene] = variances[gene] / means[gene];
        }
        stats.normalise(genes);
        stats.select(genes, n_top);
        stats
    }

    /// Sets each dispersion against those of genes in the same bin of means, whose limits are the 10th
    /// to the 100th percentile by fives.
    fn normalise(&mut self, genes: &[usize]) {
        let mut sorted: Vec<f64> = genes.iter().map(|&g| self.means[g]).collect();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return;
        }
        let limits: Vec<f64> = (0..19)
            .map(|i| percentile(&sorted, f64::from(10 + 5 * i) / 100.0))
            .collect();
        let mut bins = vec![Vec::new(); limits.len() + 1];
        for &gene in genes {
            bins[limits.partition_point(|&l| l < self.means[gene])].push(gene);
        }
        for bin in &bins {
            let centre = median(bin.iter().map(|&g| self.dispersions[g]).collect());
            let deviation = |&g: &usize| (self.dispersions[g] - centre).abs() / NORMAL_QUARTILE;
            let scale = median(bin.iter().map(deviation).collect());
            for &gene in bin {
                self.normalised[gene] = (self.dispersions[gene] - centre) / scale;
            }
        }
    }

    /// All genes that reach the `n_top`-th highest normalised dispersion.
    fn select(&mut self, genes: &[usize], n_top: usize) {
        let mut defined: Vec<f64> = genes
            .iter()
            .map(|&g| self.normalised[g])
            .filter(|v| !v.is_nan())
            .collect();
        defined.sort_by(|a, b| b.total_cmp(a));
        let Some(&least) = defined.get(n_top.min(defined.len()).saturating_sub(1)) else {
            return;
        };
        for &gene in genes {
            self.selected[gene] = rounded(self.normalised[gene]) >= rounded(least);
        }
    }
}

/// In each bin one gene lies just as far from the centre as the scale says, or two do. Such genes of
/// different bins are equally dispersed: rounding, which depends on the machine's logarithm, must not
/// choose among them.
fn rounded(normalised: f64) -> f64 {
    (normalised * 1e9).round()
}

/// A quantile of sorted values by linear interpolation, rounded as numpy does: whether a gene is in the
/// bin below a limit may hang on the last bit.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let index = share * (sorted.len() - 1) as f64;
    let below = index.floor();
    let t = index - below;
    let a = sorted[below as usize];
    let b = sorted[(below as usize + 1).min(sorted.len() - 1)];
    if t >= 0.5 {
        b - (b - a) * (1.0 - t)
    } else {
        a + (b - a) * t
    }
}

/// Cells whose counts are normalised and logged on the way.
struct Logged<'a>(&'a dyn Cells);

impl Cells for Logged<'_> {
    fn genes(&self) -> usize {
        self.0.genes()
    }

    fn cells(&self) -> u64 {
        self.0.cells()
    }

    fn value_kind(&self) -> ValueKind {
        ValueKind::Lognorm
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u32], &[f32])) -> Result<()> {
        if self.0.value_kind() == ValueKind::Lognorm {
            return self.0.visit(visit);
        }
        let mut logged = Vec::new();
        self.0.visit(&mut |genes, values| {
            logged.clear();
            logged.extend_from_slice(values);
            normalize_total(&mut logged, TARGET_SUM);
            log1p(&mut logged);
            visit(genes, &logged);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&sorted, 0.1), 1.3);
        assert_eq!(percentile(&sorted, 0.5), 3.0);
        assert_eq!(percentile(&sorted, 0.95), 7.399_999_999_999_999);
        assert_eq!(percentile(&sorted, 1.0), 8.0);
        assert_eq!(percentile(&[3.0], 0.4), 3.0);
    }
}
