//! Medians of genes, for backbones that are trained from nothing: published ones bring theirs.

use super::rank::Scale;
use crate::Result;
use crate::corpus::Corpus;
use crate::order::Selection;

/// The median of each gene's expression among the cells that express it, each cell scaled to the same
/// sum, over the first `cells_most` cells of a selection; 1 for genes that none of them expresses.
///
/// # Errors
/// When the corpus cannot be read.
pub fn gene_medians(corpus: &Corpus, selection: &Selection, cells_most: u64) -> Result<Vec<f64>> {
    let mut values: Vec<Vec<f32>> = vec![Vec::new(); corpus.genes().len()];
    let scale = Scale::of(corpus.value_kind());
    let mut left = cells_most;
    for group in selection.groups() {
        if left == 0 {
            break;
        }
        let block = corpus.read_block(group.row_group, group.chosen.as_deref())?;
        for row in 0..block.rows() {
            if left == 0 {
                break;
            }
            left -= 1;
            let (genes, counts) = block.cell(row);
            let scaled = scale.of_cell(counts);
            for (&gene, &count) in genes.iter().zip(counts) {
                values[gene as usize].push(scaled(count));
            }
        }
    }
    Ok(values.into_iter().map(median).collect())
}

fn median(mut values: Vec<f32>) -> f64 {
    if values.is_empty() {
        return 1.0;
    }
    values.sort_unstable_by(f32::total_cmp);
    let middle = values.len() / 2;
    let upper = f64::from(values[middle]);
    if values.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(f64::from(values[middle - 1]), upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(median(vec![]), 1.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0, 4.0]), 3.0);
    }
}
