//! How well two groupings of cells agree, and how far groups lie apart, as scikit-learn defines it.
//!
//! Groups are codes from 0.

use crate::cells::Cells;
use crate::stats::enough;
use crate::{Score, Undefined};

/// Counts of (group of `a`, group of `b`), row by row, with both numbers of groups.
fn contingency(a: &[usize], b: &[usize]) -> (Vec<f64>, usize, usize) {
    assert_eq!(a.len(), b.len(), "two groupings of the same cells");
    let groups = |codes: &[usize]| codes.iter().max().map_or(0, |max| max + 1);
    let (rows, columns) = (groups(a), groups(b));
    let mut counts = vec![0.0; rows * columns];
    for (&i, &j) in a.iter().zip(b) {
        counts[i * columns + j] += 1.0;
    }
    (counts, rows, columns)
}

fn margins(counts: &[f64], rows: usize, columns: usize) -> (Vec<f64>, Vec<f64>) {
    let mut of_rows = vec![0.0; rows];
    let mut of_columns = vec![0.0; columns];
    for (i, row) in counts.chunks(columns.max(1)).enumerate() {
        for (j, &n) in row.iter().enumerate() {
            of_rows[i] += n;
            of_columns[j] += n;
        }
    }
    (of_rows, of_columns)
}

/// Adjusted Rand index (Hubert and Arabie 1985); 1 for equal groupings, about 0 for unrelated ones.
///
/// # Errors
/// Fewer than two cells.
///
/// # Panics
/// When the groupings have different lengths.
pub fn adjusted_rand_index(a: &[usize], b: &[usize]) -> Score {
    enough("cells", a.len(), 2)?;
    let (counts, rows, columns) = contingency(a, b);
    let (of_rows, of_columns) = margins(&counts, rows, columns);
    let pairs = |n: &f64| n * (n - 1.0) / 2.0;
    let all = pairs(&(a.len() as f64));
    let both: f64 = counts.iter().map(pairs).sum();
    let (in_a, in_b): (f64, f64) = (
        of_rows.iter().map(pairs).sum(),
        of_columns.iter().map(pairs).sum(),
    );
    let expected = in_a * in_b / all;
    let most = f64::midpoint(in_a, in_b);
    // Both groupings are one group, or both are single cells: they agree.
    if (most - expected).abs() < f64::EPSILON * all {
        return Ok(1.0);
    }
    Ok((both - expected) / (most - expected))
}

fn entropy(counts: &[f64], total: f64) -> f64 {
    let term = |n: &f64| {
        if *n > 0.0 {
            n / total * (n / total).ln()
        } else {
            0.0
        }
    };
    -counts.iter().map(term).sum::<f64>()
}

/// Mutual information over the arithmetic mean of the entropies; 1 for equal groupings.
///
/// # Errors
/// No cells.
///
/// # Panics
/// When the groupings have different lengths.
pub fn normalized_mutual_information(a: &[usize], b: &[usize]) -> Score {
    enough("cells", a.len(), 1)?;
    let (counts, rows, columns) = contingency(a, b);
    let (of_rows, of_columns) = margins(&counts, rows, columns);
    let total = a.len() as f64;
    let (h_a, h_b) = (entropy(&of_rows, total), entropy(&of_columns, total));
    let mean = f64::midpoint(h_a, h_b);
    if mean <= 0.0 {
        return Ok(1.0);
    }
    Ok((h_a + h_b - entropy(&counts, total)) / mean)
}

/// Calinski-Harabasz index: dispersion between groups over dispersion within them, each per degree
/// of freedom.
///
/// # Errors
/// One group only, every cell a group of its own, or all cells in one place.
///
/// # Panics
/// When there is not one group for each cell.
pub fn calinski_harabasz(embedding: Cells<'_>, groups: &[usize]) -> Score {
    assert_eq!(embedding.len(), groups.len(), "one group per cell");
    let n_groups = groups.iter().max().map_or(0, |max| max + 1);
    let center = embedding.mean();
    // Relative to the centre of all, so that far clouds lose no digits.
    let offset = |cell: usize| {
        let row = embedding.row(cell).iter().zip(&center);
        row.map(|(&x, c)| f64::from(x) - c)
    };
    let mut centers = vec![vec![0.0; embedding.genes()]; n_groups];
    let mut sizes = vec![0.0; n_groups];
    for (cell, &group) in groups.iter().enumerate() {
        sizes[group] += 1.0;
        centers[group]
            .iter_mut()
            .zip(offset(cell))
            .for_each(|(c, x)| *c += x);
    }
    for (center, size) in centers.iter_mut().zip(&sizes) {
        for x in center {
            *x /= f64::max(*size, 1.0);
        }
    }
    let present = sizes.iter().filter(|&&n| n > 0.0).count();
    enough("groups", present, 2)?;
    enough("cells for so many groups", groups.len(), present + 1)?;
    let squares = |center: &Vec<f64>| center.iter().map(|x| x * x).sum::<f64>();
    let between: f64 = centers
        .iter()
        .zip(&sizes)
        .map(|(c, n)| n * squares(c))
        .sum();
    let within: f64 = (groups.iter().enumerate())
        .flat_map(|(cell, &g)| offset(cell).zip(&centers[g]).map(|(x, c)| (x - c).powi(2)))
        .sum();
    if within <= 0.0 && between <= 0.0 {
        return Err(Undefined::Constant {
            what: "the embedding",
        });
    }
    // Groups without spread are as far apart as can be; scikit-learn says 1.
    if within <= 0.0 {
        return Ok(1.0);
    }
    let freedom = (groups.len() - present) as f64 / (present - 1) as f64;
    Ok(between / within * freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_defined_says_why() {
        let embedding = Cells::new("cells", &[0.0, 1.0, 5.0], 1).unwrap();
        let why = |score: Score| score.unwrap_err().to_string();
        assert_eq!(
            why(calinski_harabasz(embedding, &[0, 0, 0])),
            "1 groups, at least 2 are needed"
        );
        assert_eq!(
            why(calinski_harabasz(embedding, &[0, 1, 2])),
            "3 cells for so many groups, at least 4 are needed"
        );
        let flat = Cells::new("cells", &[1.0; 3], 1).unwrap();
        assert_eq!(
            why(calinski_harabasz(flat, &[0, 0, 1])),
            "the embedding does not vary"
        );
        assert!(adjusted_rand_index(&[0], &[0]).is_err());
        assert!(normalized_mutual_information(&[], &[]).is_err());
    }

    #[test]
    fn the_same_groups_under_other_numbers_agree() {
        assert_eq!(adjusted_rand_index(&[0, 0, 1], &[1, 1, 0]), Ok(1.0));
        let same = normalized_mutual_information(&[0, 0, 1], &[1, 1, 0]).unwrap();
        assert!((same - 1.0).abs() < 1e-12);
    }
}
