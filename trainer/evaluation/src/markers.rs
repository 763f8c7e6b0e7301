//! Marker genes of groups of cells: Wilcoxon's rank-sum test with correction for ties, as
//! `scanpy.tl.rank_genes_groups(method="wilcoxon", tie_correct=True)` makes it.

use crate::cells::Cells;
use crate::de::{PDEX_EPSILON, benjamini_hochberg, cubes, log2_fold_change};
use crate::stats::{descending, enough};
use crate::{Error, Result, Undefined, parallel};

/// Genes of one item of work: one cache line of f32.
const COLUMNS: usize = 16;

/// Tests of one group against others, per gene.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkerTable {
    /// Standardised rank sum; positive where the group expresses more. 0 where all are equal.
    pub score: Vec<f64>,
    /// Two-sided p values of the normal approximation, without correction for continuity.
    pub p_value: Vec<f64>,
    /// The same, adjusted over genes (Benjamini and Hochberg).
    pub fdr: Vec<f64>,
    /// log2 of the ratio of `expm1` of the mean log1p expressions, each with 1e-9 added.
    pub log2fc: Vec<f64>,
    /// Share of the group's cells that express the gene.
    pub share: Vec<f64>,
    /// Share of the others' cells that express it.
    pub share_of_others: Vec<f64>,
}

/// What a gene's ranks say of one comparison.
#[derive(Clone, Copy)]
struct Test {
    score: f64,
    p_value: f64,
}

impl MarkerTable {
    /// Genes by score, the strongest marker first; equal scores by number.
    #[must_use]
    pub fn order(&self) -> Vec<usize> {
        descending(&self.score)
    }
}

/// How far two lists of genes agree at their tops.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap {
    /// Genes at the top of both, in the order of the first.
    pub shared: Vec<usize>,
    /// Shared ones over those of either.
    pub jaccard: f64,
}

/// Agreement of the first `k` of two orders of genes. `None` when one of them is empty.
#[must_use]
pub fn overlap(a: &[usize], b: &[usize], k: usize) -> Option<Overlap> {
    let (a, b) = (&a[..k.min(a.len())], &b[..k.min(b.len())]);
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let shared: Vec<usize> = a.iter().filter(|gene| b.contains(gene)).copied().collect();
    let either = a.len() + b.len() - shared.len();
    Some(Overlap {
        jaccard: shared.len() as f64 / either as f64,
        shared,
    })
}

/// Each group against all other cells. Cells without a group belong to no group but to the others.
/// A group of one cell, or without others, has no table and says why.
///
/// # Errors
/// Not one group for each cell.
pub fn one_against_rest(
    cells: Cells<'_>,
    groups: &[Option<usize>],
) -> Result<Vec<std::result::Result<MarkerTable, Undefined>>> {
    same_length(cells, groups.len())?;
    let count = groups.iter().flatten().max().map_or(0, |max| max + 1);
    let of: Vec<Vec<bool>> = (0..count)
        .map(|group| groups.iter().map(|g| *g == Some(group)).collect())
        .collect();
    Ok(compare(cells, &of))
}

/// The cells of `of` against those of `others`.
///
/// # Errors
/// Not one answer for each cell in both.
pub fn between(
    cells: Cells<'_>,
    of: &[bool],
    others: &[bool],
) -> Result<std::result::Result<MarkerTable, Undefined>> {
    same_length(cells, of.len())?;
    same_length(cells, others.len())?;
    let rows: Vec<usize> = (0..of.len()).filter(|&c| of[c] || others[c]).collect();
    if rows.is_empty() {
        return Ok(Err(Undefined::TooFew {
            what: "cells of the group",
            found: 0,
            needed: 2,
        }));
    }
    let values = cells.select(&rows);
    let chosen = Cells::new("the two groups", &values, cells.genes())?;
    let inside: Vec<bool> = rows.iter().map(|&c| of[c]).collect();
    let mut found = compare(chosen, &[inside]);
    Ok(found.remove(0))
}

fn same_length(cells: Cells<'_>, found: usize) -> Result<()> {
    if found != cells.len() {
        return Err(Error::Length {
            what: "groups of the cells".to_owned(),
            found,
            expected: cells.len(),
        });
    }
    Ok(())
}

/// Tests each of `of` against the cells outside it, ranking every gene once for all.
fn compare(cells: Cells<'_>, of: &[Vec<bool>]) -> Vec<std::result::Result<MarkerTable, Undefined>> {
    let genes = cells.genes();
    let sizes: Vec<usize> = of
        .iter()
        .map(|inside| inside.iter().filter(|i| **i).count())
        .collect();
    let chunk = |chunk: usize| {
        let columns = chunk * COLUMNS..((chunk + 1) * COLUMNS).min(genes);
        let column = |gene: usize| test_gene(cells, gene, of, &sizes);
        columns.map(column).collect::<Vec<Vec<Test>>>()
    };
    let tests = parallel::map(genes.div_ceil(COLUMNS), parallel::cores(), chunk).concat();
    (of.iter().zip(&sizes).enumerate())
        .map(|(at, (inside, &size))| {
            enough("cells of the group", size, 2)?;
            enough("cells of the others", cells.len() - size, 2)?;
            let (mean, share) = profile(cells, inside, true, size);
            let (base, share_of_others) = profile(cells, inside, false, cells.len() - size);
            let p_value: Vec<f64> = tests.iter().map(|gene| gene[at].p_value).collect();
            Ok(MarkerTable {
                score: tests.iter().map(|gene| gene[at].score).collect(),
                fdr: benjamini_hochberg(&p_value),
                log2fc: log2_fold_change(&mean, &base, PDEX_EPSILON),
                p_value,
                share,
                share_of_others,
            })
        })
        .collect()
}

/// Mean and share of non-zero values per gene, of the cells inside or outside.
fn profile(cells: Cells<'_>, inside: &[bool], side: bool, size: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut mean, mut share) = (vec![0.0; cells.genes()], vec![0.0; cells.genes()]);
    for (row, _) in cells.rows().zip(inside).filter(|(_, i)| **i == side) {
        for ((mean, share), &x) in mean.iter_mut().zip(&mut share).zip(row) {
            *mean += f64::from(x) / size as f64;
            *share += if x == 0.0 { 0.0 } else { 1.0 / size as f64 };
        }
    }
    (mean, share)
}

fn test_gene(cells: Cells<'_>, gene: usize, of: &[Vec<bool>], sizes: &[usize]) -> Vec<Test> {
    let n = cells.len();
    let mut column: Vec<(f32, u32)> = cells
        .rows()
        .zip(0..)
        .map(|(row, c)| (row[gene], c))
        .collect();
    column.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut sums = vec![0.0; of.len()];
    let (mut ties, mut before) = (0.0, 0);
    for equal in column.chunk_by(|a, b| a.0 == b.0) {
        let rank = before as f64 + f64::midpoint(equal.len() as f64, 1.0);
        for (sum, inside) in sums.iter_mut().zip(of) {
            let hits = equal
                .iter()
                .filter(|(_, cell)| inside[*cell as usize])
                .count();
            *sum += rank * hits as f64;
        }
        ties += cubes(equal.len());
        before += equal.len();
    }
    let total = n as f64;
    let shrink = 1.0 - ties / cubes(n).max(1.0);
    let test = |(sum, size): (&f64, &usize)| {
        let size = *size as f64;
        let variance = size * (total - size) * (total + 1.0) / 12.0 * shrink;
        // All values are equal: nothing is said about the gene.
        if variance <= 0.0 {
            return Test {
                score: 0.0,
                p_value: 1.0,
            };
        }
        let score = (sum - size * (total + 1.0) / 2.0) / variance.sqrt();
        let p_value = libm::erfc(score.abs() / std::f64::consts::SQRT_2);
        Test { score, p_value }
    };
    sums.iter().zip(sizes).map(test).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_comes_first_and_small_groups_say_why() {
        // Gene 0 marks group 0, gene 1 is flat, gene 2 is noise.
        let values: Vec<f32> = (0..12)
            .flat_map(|i| {
                [
                    if i < 4 { 2.0 + i as f32 } else { 0.0 },
                    1.0,
                    (i % 3) as f32,
                ]
            })
            .collect();
        let cells = Cells::new("cells", &values, 3).unwrap();
        let groups: Vec<Option<usize>> = (0..12)
            .map(|i| match i {
                0..4 => Some(0),
                4..11 => Some(1),
                _ => None,
            })
            .collect();
        let found = one_against_rest(cells, &groups).unwrap();
        let first = found[0].clone().unwrap();
        assert_eq!(first.order()[0], 0);
        assert_eq!((first.score[1], first.p_value[1]), (0.0, 1.0));
        assert_eq!((first.share[0], first.share_of_others[0]), (1.0, 0.0));
        assert!(first.log2fc[0] > 30.0 && first.fdr[0] < 0.05, "{first:?}");
        let one: Vec<bool> = (0..12).map(|i| i == 0).collect();
        let rest: Vec<bool> = one.iter().map(|i| !i).collect();
        let error = between(cells, &one, &rest).unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 cells of the group, at least 2 are needed"
        );
        let in_zero: Vec<bool> = (0..12).map(|i| i < 4).collect();
        let in_one: Vec<bool> = (0..12).map(|i| (4..11).contains(&i)).collect();
        let pair = between(cells, &in_zero, &in_one).unwrap().unwrap();
        assert!(
            pair.p_value[0] > first.p_value[0],
            "fewer cells, weaker evidence"
        );
    }

    #[test]
    fn overlaps_count_what_is_at_both_tops() {
        let found = overlap(&[3, 1, 2, 0], &[0, 3, 2, 1], 2).unwrap();
        assert_eq!(
            found,
            Overlap {
                shared: vec![3],
                jaccard: 1.0 / 3.0
            }
        );
        assert_eq!(overlap(&[], &[1], 2), None);
    }
}
