//! How well embeddings and clusterings agree with labels, as scikit-learn and scib define it.
//!
//! Groups are codes from 0. Distances are Euclidean. Where a score is not defined (one group, an
//! empty table) it is `None`, never a number that looks like one.

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
/// # Panics
/// When the groupings have different lengths.
pub fn adjusted_rand_index(a: &[usize], b: &[usize]) -> Option<f64> {
    let (counts, rows, columns) = contingency(a, b);
    let (of_rows, of_columns) = margins(&counts, rows, columns);
    let pairs = |n: &f64| n * (n - 1.0) / 2.0;
    let all = pairs(&(a.len() as f64));
    if all <= 0.0 {
        return None;
    }
    let both: f64 = counts.iter().map(pairs).sum();
    let (in_a, in_b): (f64, f64) = (
        of_rows.iter().map(pairs).sum(),
        of_columns.iter().map(pairs).sum(),
    );
    let expected = in_a * in_b / all;
    let most = f64::midpoint(in_a, in_b);
    // Both groupings are one group, or both are single cells: they agree.
    if (most - expected).abs() < f64::EPSILON * all {
        return Some(1.0);
    }
    Some((both - expected) / (most - expected))
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
/// # Panics
/// When the groupings have different lengths.
pub fn normalized_mutual_information(a: &[usize], b: &[usize]) -> Option<f64> {
    let (counts, rows, columns) = contingency(a, b);
    let (of_rows, of_columns) = margins(&counts, rows, columns);
    let total = a.len() as f64;
    if a.is_empty() {
        return None;
    }
    let (h_a, h_b) = (entropy(&of_rows, total), entropy(&of_columns, total));
    let mean = f64::midpoint(h_a, h_b);
    if mean <= 0.0 {
        return Some(1.0);
    }
    Some((h_a + h_b - entropy(&counts, total)) / mean)
}

fn row(embedding: &[f64], width: usize, cell: usize) -> &[f64] {
    &embedding[cell * width..(cell + 1) * width]
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y));
    squares.sum::<f64>().sqrt()
}

/// Silhouette of each of `cells` (Rousseeuw 1987); 0 for a cell alone in its group. `None` when
/// there are fewer than two groups or no two cells share one.
fn silhouettes(
    embedding: &[f64],
    width: usize,
    cells: &[usize],
    groups: &[usize],
) -> Option<Vec<f64>> {
    let n_groups = cells.iter().map(|&c| groups[c]).max()? + 1;
    let mut sizes = vec![0.0; n_groups];
    for &cell in cells {
        sizes[groups[cell]] += 1.0;
    }
    let present = sizes.iter().filter(|&&n| n > 0.0).count();
    if present < 2 || present == cells.len() {
        return None;
    }
    let of_cell = |&cell: &usize| {
        let own = groups[cell];
        if sizes[own] < 2.0 {
            return 0.0;
        }
        let mut sums = vec![0.0; n_groups];
        for &other in cells {
            let (a, b) = (row(embedding, width, cell), row(embedding, width, other));
            sums[groups[other]] += distance(a, b);
        }
        let inside = sums[own] / (sizes[own] - 1.0);
        let outside = (0..n_groups)
            .filter(|&g| g != own && sizes[g] > 0.0)
            .map(|g| sums[g] / sizes[g])
            .fold(f64::INFINITY, f64::min);
        let most = inside.max(outside);
        if most > 0.0 {
            (outside - inside) / most
        } else {
            0.0
        }
    };
    Some(cells.iter().map(of_cell).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean silhouette over all cells, from -1 to 1; quadratic in the number of cells. scib's ASW of
/// labels is `(s + 1) / 2`. `embedding` is `[cells, width]`, row by row.
///
/// # Panics
/// When `embedding` does not hold `width` numbers for each cell.
pub fn silhouette(embedding: &[f64], width: usize, groups: &[usize]) -> Option<f64> {
    assert_eq!(embedding.len(), groups.len() * width, "one row per cell");
    let cells: Vec<usize> = (0..groups.len()).collect();
    silhouettes(embedding, width, &cells, groups).map(|s| mean(&s))
}

/// scib's batch ASW: within each label, the mean over cells of one minus the absolute silhouette of
/// the batches; then the mean over labels. 1 when batches are mixed. Labels that occur in one batch
/// alone, or in as many batches as cells, say nothing and are left out.
///
/// # Panics
/// As [`silhouette`].
pub fn batch_silhouette(
    embedding: &[f64],
    width: usize,
    labels: &[usize],
    batches: &[usize],
) -> Option<f64> {
    assert_eq!(embedding.len(), labels.len() * width, "one row per cell");
    let n_labels = labels.iter().max()? + 1;
    let of_label = |label: usize| {
        let cells: Vec<usize> = (0..labels.len()).filter(|&c| labels[c] == label).collect();
        let found = silhouettes(embedding, width, &cells, batches)?;
        let mixed: Vec<f64> = found.iter().map(|s| 1.0 - s.abs()).collect();
        Some(mean(&mixed))
    };
    let found: Vec<f64> = (0..n_labels).filter_map(of_label).collect();
    (!found.is_empty()).then(|| mean(&found))
}

/// Calinski-Harabasz index: dispersion between groups over dispersion within them, each per degree
/// of freedom.
///
/// # Panics
/// As [`silhouette`].
pub fn calinski_harabasz(embedding: &[f64], width: usize, groups: &[usize]) -> Option<f64> {
    assert_eq!(embedding.len(), groups.len() * width, "one row per cell");
    let n_groups = groups.iter().max()? + 1;
    let mut centers = vec![vec![0.0; width]; n_groups];
    let mut sizes = vec![0.0; n_groups];
    let mut center = vec![0.0; width];
    for (cell, &group) in groups.iter().enumerate() {
        sizes[group] += 1.0;
        for (k, x) in row(embedding, width, cell).iter().enumerate() {
            centers[group][k] += x;
            center[k] += x / groups.len() as f64;
        }
    }
    for (sums, size) in centers.iter_mut().zip(&sizes) {
        for x in sums.iter_mut() {
            *x /= f64::max(*size, 1.0);
        }
    }
    let present = sizes.iter().filter(|&&n| n > 0.0).count();
    if present < 2 || present == groups.len() {
        return None;
    }
    let between: f64 = (0..n_groups)
        .map(|g| sizes[g] * distance(&centers[g], &center).powi(2))
        .sum();
    let within: f64 = groups
        .iter()
        .enumerate()
        .map(|(cell, &g)| distance(row(embedding, width, cell), &centers[g]).powi(2))
        .sum();
    // Groups without spread are as far apart as can be; scikit-learn says 1.
    if within <= 0.0 {
        return Some(1.0);
    }
    let freedom = (groups.len() - present) as f64 / (present - 1) as f64;
    Some(between / within * freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_defined_is_none() {
        let embedding = [0.0, 1.0, 5.0];
        assert_eq!(silhouette(&embedding, 1, &[0, 0, 0]), None);
        assert_eq!(silhouette(&embedding, 1, &[0, 1, 2]), None);
        assert_eq!(calinski_harabasz(&embedding, 1, &[0, 0, 0]), None);
        assert_eq!(
            batch_silhouette(&embedding, 1, &[0, 0, 0], &[0, 0, 0]),
            None
        );
        assert_eq!(adjusted_rand_index(&[0], &[0]), None);
        assert_eq!(normalized_mutual_information(&[], &[]), None);
    }

    #[test]
    fn far_groups_score_near_one_and_a_lone_cell_zero() {
        let embedding = [0.0, 1.0, 100.0, 101.0, 50.0];
        let s = silhouettes(&embedding, 1, &[0, 1, 2, 3, 4], &[0, 0, 1, 1, 2]).unwrap();
        assert!(s[0] > 0.97 && s[4].abs() < 1e-12, "{s:?}");
        assert_eq!(adjusted_rand_index(&[0, 0, 1], &[1, 1, 0]), Some(1.0));
        let same = normalized_mutual_information(&[0, 0, 1], &[1, 1, 0]).unwrap();
        assert!((same - 1.0).abs() < 1e-12);
    }
}
