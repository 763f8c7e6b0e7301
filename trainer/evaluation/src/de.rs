//! Differential expression of one condition against control, and how well predicted cells
//! reproduce it: Mann-Whitney U per gene, Benjamini and Hochberg over genes, as pdex and cell-eval
//! do it.

use crate::cells::{Cells, same_genes};
use crate::profile::sign;
use crate::stats::{ascending, average_ranks, descending, pick, spearman};
use crate::{Result, Score, Undefined};

/// False discovery rate below which a gene counts as changed.
pub const FDR: f64 = 0.05;
/// pdex's own addend to pseudobulk means before the ratio; cell-eval uses 0.
pub const PDEX_EPSILON: f64 = 1e-9;

/// Control cells, sorted gene by gene once for all conditions.
#[derive(Debug, Clone)]
pub struct SortedControl {
    cells: usize,
    /// Gene by gene, ascending.
    columns: Vec<f32>,
    /// Sum of t^3 - t over groups of t equal values, per gene.
    ties: Vec<f64>,
    mean: Vec<f64>,
}

/// Test results of one condition, per gene.
#[derive(Debug, Clone, PartialEq)]
pub struct DeTable {
    /// Two-sided p values.
    pub p_value: Vec<f64>,
    /// The same, adjusted over genes.
    pub fdr: Vec<f64>,
    /// log2 of the ratio of geometric pseudobulks. Infinite where, without an epsilon, one side is
    /// zero.
    pub log2fc: Vec<f64>,
}

impl SortedControl {
    /// Sorts the control cells.
    #[must_use]
    pub fn new(control: Cells<'_>) -> Self {
        let (n, genes) = (control.len(), control.genes());
        let mut columns = Vec::with_capacity(n * genes);
        let mut ties = Vec::with_capacity(genes);
        control.sorted_columns(|_, column| {
            columns.extend_from_slice(column);
            ties.push(column.chunk_by(|a, b| a == b).map(|g| cubes(g.len())).sum());
        });
        Self {
            cells: n,
            columns,
            ties,
            mean: control.mean(),
        }
    }

    /// Mean profile of the control cells.
    #[must_use]
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Tests every gene of `treated` against control.
    ///
    /// # Errors
    /// Another number of genes.
    pub fn test(&self, treated: Cells<'_>, epsilon: f64) -> Result<DeTable> {
        same_genes("the treated cells", treated.genes(), self.ties.len())?;
        let mut p_value = vec![1.0; self.ties.len()];
        treated.sorted_columns(|gene, column| {
            p_value[gene] = self.p_value(gene, column);
        });
        Ok(DeTable {
            fdr: benjamini_hochberg(&p_value),
            log2fc: log2_fold_change(&treated.mean(), &self.mean, epsilon),
            p_value,
        })
    }

    /// Two-sided p value of the normal approximation with corrections for ties and continuity
    /// (scipy's `mannwhitneyu(method="asymptotic")`); 1 when all values are equal.
    fn p_value(&self, gene: usize, treated: &[f32]) -> f64 {
        let control = &self.columns[gene * self.cells..(gene + 1) * self.cells];
        let (mut rank_sum, mut ties) = (0.0, self.ties[gene]);
        // Treated values seen so far, and control values below the present one.
        let (mut seen, mut below) = (0, 0);
        for group in treated.chunk_by(|a, b| a == b) {
            below += control[below..].partition_point(|&x| x < group[0]);
            let equal = control[below..].partition_point(|&x| x <= group[0]);
            let before = (below + seen) as f64;
            let tied = equal + group.len();
            rank_sum += group.len() as f64 * (before + f64::midpoint(tied as f64, 1.0));
            ties += cubes(tied) - cubes(equal);
            seen += group.len();
            below += equal;
        }
        let (n, m) = (treated.len() as f64, self.cells as f64);
        let u = rank_sum - n * (n + 1.0) / 2.0;
        let total = n + m;
        let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
        if variance <= 0.0 {
            return 1.0;
        }
        let excess = (u - n * m / 2.0).abs() - 0.5;
        let z = excess / variance.sqrt();
        // 2 (1 - Phi(z)) = erfc(z / sqrt 2).
        libm::erfc(z / std::f64::consts::SQRT_2).min(1.0)
    }
}

pub(crate) fn cubes(t: usize) -> f64 {
    let t = t as f64;
    t * t * t - t
}

/// p values adjusted for the false discovery rate (Benjamini and Hochberg 1995).
#[must_use]
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let order = ascending(p);
    let mut adjusted = vec![0.0; p.len()];
    let mut least = 1.0f64;
    for (rank, &i) in order.iter().enumerate().rev() {
        least = least.min(p[i] * p.len() as f64 / (rank + 1) as f64);
        adjusted[i] = least;
    }
    adjusted
}

/// `log2((expm1(mean) + epsilon) / (expm1(control mean) + epsilon))` per gene. Zero over zero is no
/// change; one side alone zero is infinite.
#[must_use]
pub fn log2_fold_change(mean: &[f64], control: &[f64], epsilon: f64) -> Vec<f64> {
    let bulk: Vec<f64> = mean.iter().map(|m| m.exp_m1()).collect();
    let base: Vec<f64> = control.iter().map(|c| c.exp_m1()).collect();
    ratios(&bulk, &base, epsilon)
}

/// `log2((x + epsilon) / (y + epsilon))` per gene, for pseudobulks made otherwise.
#[must_use]
pub fn ratios(x: &[f64], y: &[f64], epsilon: f64) -> Vec<f64> {
    let ratio = |(x, y): (&f64, &f64)| {
        let (x, y) = ((x + epsilon).max(0.0), (y + epsilon).max(0.0));
        if x <= 0.0 && y <= 0.0 {
            0.0
        } else {
            (x / y).log2()
        }
    };
    x.iter().zip(y).map(ratio).collect()
}

impl DeTable {
    /// Significant genes, largest |log2FC| first.
    #[must_use]
    pub fn significant(&self) -> Vec<usize> {
        let size: Vec<f64> = self.log2fc.iter().map(|x| x.abs()).collect();
        let mut genes = descending(&size);
        genes.retain(|&g| self.fdr[g] < FDR);
        genes
    }

    /// Number of significant genes.
    #[must_use]
    pub fn n_significant(&self) -> usize {
        self.fdr.iter().filter(|f| **f < FDR).count()
    }
}

/// Real and predicted test results of one condition.
#[derive(Debug, Clone)]
pub struct DePair<'a> {
    real: &'a DeTable,
    predicted: &'a DeTable,
    real_genes: Vec<usize>,
    predicted_genes: Vec<usize>,
}

impl<'a> DePair<'a> {
    /// Puts two tables over the same genes side by side.
    #[must_use]
    pub fn new(real: &'a DeTable, predicted: &'a DeTable) -> Self {
        Self {
            real,
            predicted,
            real_genes: real.significant(),
            predicted_genes: predicted.significant(),
        }
    }

    /// `overlap_at_k` of cell-eval, `overlap_at_N` without `k`: of the top genes, at most as many
    /// as are really significant, the share that the prediction has among as many of its own.
    /// 0 when a side has no significant gene.
    #[must_use]
    pub fn overlap_at(&self, k: Option<usize>) -> f64 {
        self.shared_top(k, self.real_genes.len())
    }

    /// `precision_at_k`: the same with at most as many as are predicted to be significant.
    #[must_use]
    pub fn precision_at(&self, k: Option<usize>) -> f64 {
        self.shared_top(k, self.predicted_genes.len())
    }

    fn shared_top(&self, k: Option<usize>, most: usize) -> f64 {
        if self.real_genes.is_empty() || self.predicted_genes.is_empty() {
            return 0.0;
        }
        let k = k.map_or(most, |k| k.min(most));
        let top = |genes: &[usize]| {
            let mut chosen = vec![false; self.real.fdr.len()];
            genes.iter().take(k).for_each(|&g| chosen[g] = true);
            chosen
        };
        let (real, predicted) = (top(&self.real_genes), top(&self.predicted_genes));
        let shared = real.iter().zip(&predicted).filter(|(a, b)| **a && **b);
        shared.count() as f64 / k as f64
    }

    /// `de_sig_genes_recall`: share of really significant genes that are predicted so.
    ///
    /// # Errors
    /// No gene is really significant.
    pub fn recall(&self) -> Score {
        self.some_real()?;
        let found = self.real_genes.iter();
        let found = found.filter(|&&g| self.predicted.fdr[g] < FDR).count();
        Ok(found as f64 / self.real_genes.len() as f64)
    }

    /// `de_direction_match`: share of really significant genes whose predicted fold change has the
    /// real sign.
    ///
    /// # Errors
    /// No gene is really significant.
    pub fn direction_match(&self) -> Score {
        self.some_real()?;
        let same = |&&g: &&usize| sign(self.real.log2fc[g]) == sign(self.predicted.log2fc[g]);
        let found = self.real_genes.iter().filter(same).count();
        Ok(found as f64 / self.real_genes.len() as f64)
    }

    /// `de_spearman_lfc_sig`: Spearman correlation of log2FC over really significant genes.
    ///
    /// # Errors
    /// Fewer than two of them, or no variation.
    pub fn spearman_lfc(&self) -> Score {
        self.some_real()?;
        let of = |table: &DeTable| pick(&table.log2fc, &self.real_genes);
        spearman(&of(self.real), &of(self.predicted))
    }

    /// Area under the ROC curve of the predicted FDR for real significance.
    ///
    /// # Errors
    /// All genes are significant, or none is.
    pub fn roc_auc(&self) -> Score {
        let (labels, scores) = self.labelled()?;
        let ranks = average_ranks(&scores);
        let positive = labels.iter().filter(|l| **l).count() as f64;
        let negative = labels.len() as f64 - positive;
        let sum: f64 = (labels.iter().zip(&ranks))
            .filter(|(l, _)| **l)
            .map(|(_, r)| r)
            .sum();
        Ok((sum - positive * (positive + 1.0) / 2.0) / (positive * negative))
    }

    /// Average precision of the predicted FDR for real significance (`pr_auc`).
    ///
    /// # Errors
    /// All genes are significant, or none is.
    pub fn pr_auc(&self) -> Score {
        let (labels, scores) = self.labelled()?;
        let positive = labels.iter().filter(|l| **l).count() as f64;
        let order = descending(&scores);
        let (mut hits, mut taken, mut area) = (0.0, 0.0, 0.0);
        for group in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
            let new = group.iter().filter(|&&g| labels[g]).count() as f64;
            hits += new;
            taken += group.len() as f64;
            area += new / positive * (hits / taken);
        }
        Ok(area)
    }

    fn labelled(&self) -> std::result::Result<(Vec<bool>, Vec<f64>), Undefined> {
        let labels: Vec<bool> = self.real.fdr.iter().map(|f| *f < FDR).collect();
        let positive = labels.iter().filter(|l| **l).count();
        if positive == 0 || positive == labels.len() {
            return Err(Undefined::OneClass {
                what: if positive == 0 {
                    "not significant"
                } else {
                    "significant"
                },
            });
        }
        let score = |f: &f64| -f.clamp(1e-10, 1.0).log10();
        Ok((labels, self.predicted.fdr.iter().map(score).collect()))
    }

    fn some_real(&self) -> std::result::Result<(), Undefined> {
        crate::stats::enough("significant genes", self.real_genes.len(), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(fdr: &[f64], log2fc: &[f64]) -> DeTable {
        DeTable {
            p_value: fdr.to_vec(),
            fdr: fdr.to_vec(),
            log2fc: log2fc.to_vec(),
        }
    }

    #[test]
    fn equal_values_are_no_evidence() {
        let cells = [1.0f32; 8];
        let control = SortedControl::new(Cells::new("c", &cells, 2).unwrap());
        let treated = Cells::new("t", &cells[..6], 2).unwrap();
        let found = control.test(treated, 0.0).unwrap();
        assert_eq!(found.p_value, [1.0, 1.0]);
        assert_eq!(found.log2fc, [0.0, 0.0]);
        assert!(
            control
                .test(Cells::new("t", &cells, 4).unwrap(), 0.0)
                .is_err()
        );
    }

    #[test]
    fn without_epsilon_a_gene_that_appears_changes_infinitely() {
        assert_eq!(
            log2_fold_change(&[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0], 0.0),
            [0.0, f64::INFINITY, f64::NEG_INFINITY]
        );
    }

    #[test]
    fn a_side_without_significant_genes_overlaps_nowhere() {
        let some = table(&[0.01, 0.9], &[1.0, 0.1]);
        let none = table(&[0.9, 0.9], &[1.0, 0.1]);
        assert_eq!(DePair::new(&some, &none).overlap_at(None), 0.0);
        let pair = DePair::new(&none, &some);
        assert_eq!(pair.overlap_at(Some(5)), 0.0);
        assert!(matches!(pair.recall(), Err(Undefined::TooFew { .. })));
        assert!(matches!(pair.roc_auc(), Err(Undefined::OneClass { .. })));
    }
}
