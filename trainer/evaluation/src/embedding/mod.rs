//! What an embedding is worth: who is near whom, which clusters that makes, and how well both agree
//! with the cells' labels and mix their batches (Luecken and others 2022, as their program scib
//! computes it).
//!
//! Embeddings are [`Cells`], one row of coordinates a cell. Labels and batches are codes from 0,
//! one a cell. What depends on chance is drawn from a seed; nothing depends on the number of threads.

pub mod community;
pub mod graph;
pub mod integration;
mod lists;
pub mod mixing;
pub mod neighbors;
mod pairs;
pub mod regression;
mod silhouette;

pub use silhouette::Silhouettes;

use crate::cells::Cells;
use crate::{Error, Result, parallel};
use neighbors::Neighbors;

/// An embedding whose cells have labels and batches.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    cells: Cells<'a>,
    labels: &'a [usize],
    batches: &'a [usize],
}

/// What one pass over all pairs of cells gives.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// Nearest neighbours, if there are more cells than were asked for.
    pub neighbors: std::result::Result<Neighbors, crate::Undefined>,
    /// Silhouettes of labels and batches.
    pub silhouettes: Silhouettes,
}

impl<'a> Labelled<'a> {
    /// Labels and batches beside their cells.
    ///
    /// # Errors
    /// Not one label and one batch for each cell.
    pub fn new(cells: Cells<'a>, labels: &'a [usize], batches: &'a [usize]) -> Result<Self> {
        for (what, found) in [("labels", labels.len()), ("batches", batches.len())] {
            if found != cells.len() {
                return Err(Error::Length {
                    what: format!("{what} of the embedding's cells"),
                    found,
                    expected: cells.len(),
                });
            }
        }
        Ok(Self {
            cells,
            labels,
            batches,
        })
    }

    /// The embedding.
    #[must_use]
    pub fn cells(&self) -> Cells<'a> {
        self.cells
    }

    /// Label of each cell.
    #[must_use]
    pub fn labels(&self) -> &'a [usize] {
        self.labels
    }

    /// Batch of each cell.
    #[must_use]
    pub fn batches(&self) -> &'a [usize] {
        self.batches
    }

    /// The `k` nearest neighbours and the silhouettes, from all pairs of cells; the time grows with
    /// the square of their number, the memory does not.
    #[must_use]
    pub fn pairs(&self, k: usize) -> Pairs {
        let possible = neighbors::possible(self.cells, k);
        let wanted = pairs::Wanted {
            neighbors: if possible.is_ok() { k } else { 0 },
            groups: Some((self.labels, self.batches)),
        };
        let found = pairs::sweep(self.cells, wanted, parallel::cores());
        let silhouettes = match neighbors::spread(self.cells) {
            Ok(()) => Silhouettes::new(&found, self.labels, self.batches),
            Err(why) => Silhouettes {
                batches: vec![Err(why.clone()); pairs::groups_of(self.labels)],
                labels: Err(why),
            },
        };
        let neighbors = possible.map(|()| Neighbors::new(k, found.nearest, found.distances));
        Pairs {
            neighbors,
            silhouettes,
        }
    }
}
