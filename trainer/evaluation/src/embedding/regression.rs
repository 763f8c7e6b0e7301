//! How much of an embedding's variance the batch explains (principal component regression).

use super::mixing::present;
use super::pairs::groups_of;
use crate::cells::Cells;
use crate::pca::pca;
use crate::stats::enough;
use crate::{Score, Undefined};

/// Components that scib regresses on.
pub const COMPONENTS: usize = 50;

/// Share of the variance of the leading [`COMPONENTS`] principal components that lies between
/// batches: scib's `pcr` of a categorical covariate.
///
/// # Errors
/// One batch only, or all cells in one place.
///
/// # Panics
/// When there is not one batch for each cell.
pub fn principal_component_regression(cells: Cells<'_>, batches: &[usize]) -> Score {
    assert_eq!(cells.len(), batches.len(), "one batch for each cell");
    enough("batches", present(batches), 2)?;
    // All components together are the cells, turned: then there is nothing to look for.
    if cells.genes() <= COMPONENTS {
        return between(cells.genes(), batches, |cell| cells.row(cell));
    }
    let components = COMPONENTS.min(cells.len() - 1);
    let found = pca(cells, components, 0)?;
    between(components, batches, |cell| {
        &found.scores[cell * components..(cell + 1) * components]
    })
}

/// Sum of squares between batches over the whole one.
fn between<'a>(width: usize, batches: &[usize], row: impl Fn(usize) -> &'a [f32]) -> Score {
    let groups = groups_of(batches);
    let n = batches.len() as f64;
    let mut mean = vec![0.0; width];
    for cell in 0..batches.len() {
        mean.iter_mut()
            .zip(row(cell))
            .for_each(|(m, &x)| *m += f64::from(x) / n);
    }
    let mut sums = vec![0.0; groups * width];
    let mut sizes = vec![0.0; groups];
    let mut total = 0.0;
    for (cell, &batch) in batches.iter().enumerate() {
        sizes[batch] += 1.0;
        let sums = &mut sums[batch * width..(batch + 1) * width];
        for ((sum, &x), mean) in sums.iter_mut().zip(row(cell)).zip(&mean) {
            let offset = f64::from(x) - mean;
            *sum += offset;
            total += offset * offset;
        }
    }
    if total <= 0.0 {
        return Err(Undefined::Constant {
            what: "the embedding",
        });
    }
    let squares = sums
        .chunks_exact(width)
        .zip(&sizes)
        .filter(|(_, n)| **n > 0.0);
    let explained: f64 = squares
        .map(|(s, n)| s.iter().map(|x| x * x).sum::<f64>() / n)
        .sum();
    Ok(explained / total)
}

/// scib's comparison: the share that the embedding takes off the one of the uncorrected cells,
/// `(before - after) / before`; 0 where it adds to it.
///
/// # Errors
/// One of them is not defined, or batches explain nothing before.
pub fn comparison(before: &Score, after: &Score) -> Score {
    let (before, after) = (before.clone()?, after.clone()?);
    if before <= 0.0 {
        return Err(Undefined::Constant {
            what: "the mean of the batches of the uncorrected cells",
        });
    }
    Ok(((before - after) / before).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_explain_what_lies_between_them() {
        // Between: 4 cells 1 from the middle; within: 4 cells 0.5 from their batch.
        let values = [0.5f32, 1.5, 2.5, 3.5];
        let cells = Cells::new("cells", &values, 1).unwrap();
        let found = principal_component_regression(cells, &[0, 0, 1, 1]).unwrap();
        assert!((found - 4.0 / 5.0).abs() < 1e-12, "{found}");
        assert_eq!(comparison(&Ok(0.8), &Ok(0.2)), Ok((0.8 - 0.2) / 0.8));
        assert_eq!(comparison(&Ok(0.1), &Ok(0.2)), Ok(0.0));
        assert!(principal_component_regression(cells, &[1; 4]).is_err());
        let flat = Cells::new("cells", &[2.0; 4], 1).unwrap();
        assert_eq!(
            principal_component_regression(flat, &[0, 0, 1, 1]),
            Err(Undefined::Constant {
                what: "the embedding"
            })
        );
    }
}
