//! The nearest neighbours of each cell in an embedding, by Euclidean distance: exact, from all
//! pairs, or approximate, from the lists of cells that lie nearest.

use super::lists;
use super::pairs::{Wanted, sweep};
use crate::cells::Cells;
use crate::stats::enough;
use crate::{Undefined, parallel};

/// `k` neighbours of each cell, without the cell itself, nearest first; equal distances by number.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbors {
    k: usize,
    cells: Vec<u32>,
    distances: Vec<f32>,
}

/// How an approximate search is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Share of true neighbours that the search must find on cells that are searched exactly.
    pub recall: f64,
    /// Seed of the cells that centres start from and of those that are searched exactly.
    pub seed: u64,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            recall: 0.99,
            seed: 0,
        }
    }
}

/// What an approximate search was worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Share of true neighbours that were found, on cells searched exactly.
    pub share: f64,
    /// How many cells were searched exactly.
    pub cells: usize,
    /// Lists of cells.
    pub lists: usize,
    /// Lists that were looked through for each cell.
    pub probes: usize,
}

impl Neighbors {
    pub(super) fn new(k: usize, cells: Vec<u32>, distances: Vec<f32>) -> Self {
        Self {
            k,
            cells,
            distances,
        }
    }

    /// From rows of `k` neighbours made elsewhere, nearest first.
    ///
    /// # Panics
    /// When the two have different lengths, or rows are cut short.
    #[must_use]
    pub fn from_rows(k: usize, cells: Vec<u32>, distances: Vec<f32>) -> Self {
        assert_eq!(
            cells.len(),
            distances.len(),
            "a distance for each neighbour"
        );
        assert!(k > 0 && cells.len().is_multiple_of(k), "whole rows");
        Self {
            k,
            cells,
            distances,
        }
    }

    /// Neighbours of each cell.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len() / self.k
    }

    /// Never: there are at least two cells.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Neighbours of a cell.
    #[must_use]
    pub fn of(&self, cell: usize) -> &[u32] {
        &self.cells[cell * self.k..(cell + 1) * self.k]
    }

    /// Distances to the neighbours of a cell.
    #[must_use]
    pub fn distances(&self, cell: usize) -> &[f32] {
        &self.distances[cell * self.k..(cell + 1) * self.k]
    }

    /// The nearest `k` of them.
    ///
    /// # Errors
    /// There are fewer.
    pub fn first(&self, k: usize) -> Result<Self, Undefined> {
        enough("neighbours of a cell", self.k, k)?;
        let cut = |rows: &mut dyn Iterator<Item = usize>| rows.collect::<Vec<_>>();
        let at = cut(&mut (0..self.len()).flat_map(|cell| cell * self.k..cell * self.k + k));
        Ok(Self {
            k,
            cells: at.iter().map(|&i| self.cells[i]).collect(),
            distances: at.iter().map(|&i| self.distances[i]).collect(),
        })
    }

    /// Share of `exact`'s neighbours that are among these, over all cells.
    #[must_use]
    pub fn recall(&self, exact: &Self) -> f64 {
        let found: usize = (0..exact.len())
            .map(|cell| {
                let mut own = self.of(cell).to_vec();
                own.sort_unstable();
                let hit = |other: &&u32| own.binary_search(other).is_ok();
                exact.of(cell).iter().filter(hit).count()
            })
            .sum();
        found as f64 / exact.cells.len() as f64
    }
}

/// The `k` nearest neighbours of each cell, from all pairs.
///
/// # Errors
/// `k` is 0, there are not more than `k` cells, or all are in one place.
pub fn exact(embedding: Cells<'_>, k: usize) -> Result<Neighbors, Undefined> {
    possible(embedding, k)?;
    let wanted = Wanted {
        neighbors: k,
        groups: None,
    };
    let found = sweep(embedding, wanted, parallel::cores());
    Ok(Neighbors::new(k, found.nearest, found.distances))
}

/// The `k` nearest neighbours of each cell among the cells of the lists that lie nearest to it (an
/// inverted file: Jegou, Douze and Schmid 2011, without compression). As many lists are looked
/// through as the wanted recall needs on a sample of cells that is searched exactly; what was
/// reached is returned. The result depends on the seed, not on the number of threads.
///
/// # Errors
/// See [`exact`].
pub fn approximate(
    embedding: Cells<'_>,
    k: usize,
    search: Search,
) -> Result<(Neighbors, Recall), Undefined> {
    possible(embedding, k)?;
    Ok(lists::search(embedding, k, search, parallel::cores()))
}

pub(super) fn possible(embedding: Cells<'_>, k: usize) -> Result<(), Undefined> {
    enough("neighbours asked for", k, 1)?;
    enough("cells for so many neighbours", embedding.len(), k + 1)?;
    spread(embedding)
}

/// Cells in one place have no neighbours but by their numbers.
pub(super) fn spread(embedding: Cells<'_>) -> Result<(), Undefined> {
    let first = embedding.row(0);
    if embedding.rows().all(|row| row == first) {
        return Err(Undefined::Constant {
            what: "the embedding",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn clouds(n: usize, width: usize) -> Vec<f32> {
        let mut rng = Rng::new(5, "clouds");
        let mut values = Vec::with_capacity(n * width);
        for cell in 0..n {
            for d in 0..width {
                let center = if d % 7 == cell % 7 { 4.0 } else { 0.0 };
                values.push(center + rng.normal() as f32);
            }
        }
        values
    }

    #[test]
    fn an_approximate_search_reaches_the_recall_that_it_states() {
        let values = clouds(3000, 24);
        let cells = Cells::new("cells", &values, 24).unwrap();
        let exact = exact(cells, 15).unwrap();
        let search = Search {
            recall: 0.95,
            seed: 1,
        };
        let (found, recall) = approximate(cells, 15, search).unwrap();
        let whole = found.recall(&exact);
        assert!(
            recall.share >= 0.95 && recall.probes < recall.lists,
            "{recall:?}"
        );
        assert!((whole - recall.share).abs() < 0.02, "{whole} {recall:?}");
        let again = lists::search(cells, 15, search, 1);
        assert_eq!((found, recall), again);
    }

    #[test]
    fn too_few_cells_are_said_to_be_so() {
        let cells = Cells::new("cells", &[0.0, 1.0, 2.0], 1).unwrap();
        let error = exact(cells, 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3 cells for so many neighbours, at least 4 are needed"
        );
        let near = exact(cells, 2).unwrap();
        assert_eq!(near.of(1), [0, 2]);
        assert_eq!(near.first(1).unwrap().of(2), [1]);
        assert!(near.first(3).is_err());
    }
}
