//! Which cells of a corpus are meant.

use std::sync::Arc;

use crate::corpus::Corpus;
use crate::error::nearest;
use crate::{Error, Result};

/// The chosen cells of one row group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedGroup {
    /// Number of the row group in the corpus.
    pub row_group: usize,
    /// Corpus index of the first cell of the row group.
    pub first_cell: u64,
    /// Cells in the row group.
    pub rows: u32,
    /// The chosen rows, ascending; `None` when all are chosen.
    pub chosen: Option<Vec<u32>>,
}

impl SelectedGroup {
    /// Number of chosen cells.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.rows as usize, Vec::len)
    }

    /// Whether no cell is chosen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The corpus index of the chosen cell at a place.
    pub(crate) fn cell(&self, place: usize) -> u64 {
        let row = self
            .chosen
            .as_ref()
            .map_or(place as u32, |rows| rows[place]);
        self.first_cell + u64::from(row)
    }
}

/// A set of cells of a corpus, kept per row group. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub(super) groups: Arc<[SelectedGroup]>,
    pub(super) cells: u64,
}

impl Selection {
    /// All cells.
    pub fn all(corpus: &Corpus) -> Self {
        Self::from_groups(
            corpus
                .row_groups()
                .iter()
                .enumerate()
                .map(|(row_group, g)| SelectedGroup {
                    row_group,
                    first_cell: g.first_cell,
                    rows: g.rows,
                    chosen: None,
                }),
        )
    }

    /// The cells whose categorical obs `column` has one of `values`.
    ///
    /// # Errors
    /// When the column does not exist or is not categorical, or a value is no category of it.
    pub fn where_equals<S: AsRef<str>>(
        corpus: &Corpus,
        column: &str,
        values: &[S],
    ) -> Result<Self> {
        let categories = corpus.categories(column)?;
        let mut wanted = vec![false; categories.len()];
        for value in values {
            let value = value.as_ref();
            let place = categories.iter().position(|c| c == value);
            let place = place.ok_or_else(|| Error::UnknownValue {
                column: column.to_owned(),
                value: value.to_owned(),
                nearest: nearest(value, categories),
                present: categories.to_vec(),
            })?;
            wanted[place] = true;
        }
        let codes = corpus.obs_codes(column)?;
        Ok(Self::filter(corpus, |cell| {
            usize::try_from(codes[cell as usize]).is_ok_and(|code| wanted[code])
        }))
    }

    /// The cells for which `keep` says so, given their corpus index.
    pub fn filter(corpus: &Corpus, keep: impl Fn(u64) -> bool) -> Self {
        Self::all(corpus).and(keep)
    }

    /// The cells of this selection for which `keep` says so too, given their corpus index.
    pub fn and(&self, keep: impl Fn(u64) -> bool) -> Self {
        Self::from_groups(self.groups.iter().map(|group| {
            let rows: Vec<u32> = (0..group.len())
                .map(|place| group.cell(place))
                .filter(|&cell| keep(cell))
                .map(|cell| (cell - group.first_cell) as u32)
                .collect();
            SelectedGroup {
                chosen: (rows.len() < group.rows as usize).then_some(rows),
                ..*group
            }
        }))
    }

    /// A selection from its row groups; empty ones are left out.
    pub fn from_groups(groups: impl IntoIterator<Item = SelectedGroup>) -> Self {
        let groups: Arc<[SelectedGroup]> = groups.into_iter().filter(|g| !g.is_empty()).collect();
        let cells = groups.iter().map(|g| g.len() as u64).sum();
        Self { groups, cells }
    }

    /// Number of cells.
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// The row groups with chosen cells.
    pub fn groups(&self) -> &[SelectedGroup] {
        &self.groups
    }

    /// The corpus indices of all chosen cells, ascending.
    pub fn cell_indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups
            .iter()
            .flat_map(|g| (0..g.len()).map(|place| g.cell(place)))
    }
}
