//! Which cells, in which order. Nothing here reads a file or a clock: the order of an epoch is a pure
//! function of (seed, epoch, row groups, selection, weights).

mod selection;
mod spread;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::rng::{Purpose, Rng};
use crate::sampler::WeightTable;
use crate::{Error, Result};
use spread::spread;

pub use selection::{SelectedGroup, Selection};

/// How an epoch is shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// Not at all: corpus order.
    Sequential,
    /// Row groups in random order, and their cells mixed inside windows of so many row groups.
    Windowed {
        /// Row groups in a window. A window and the next one are in memory at the same time.
        row_groups: usize,
    },
}

/// What an order depends on, besides the selection and the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderOptions {
    /// The seed.
    pub seed: u64,
    /// How to shuffle.
    pub shuffle: Shuffle,
}

/// A cell in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellRef {
    /// Index in the corpus.
    pub cell: u64,
    /// Which of the window's row groups it is in.
    pub member: u32,
    /// Its place among the chosen cells of that row group.
    pub place: u32,
    /// How often the cell was drawn before in the same epoch, counted along the corpus.
    pub occurrence: u32,
}

/// The order of the selected cells in one epoch.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    selection: Selection,
    options: OrderOptions,
    epoch: u64,
    /// Places in the selection's row groups, in the order of the epoch.
    groups: Vec<u32>,
    /// Position of the first cell of each window, and the end of the last.
    starts: Vec<u64>,
    /// How often each selected cell comes; `None` when each comes once.
    times: Option<PerCell<Vec<u32>>>,
    /// The code of each selected cell, when windows are arranged by them.
    strata: Option<PerCell<Arc<[i32]>>>,
}

/// One number for each selected cell.
#[derive(Debug, Clone)]
struct PerCell<V> {
    of_cells: V,
    /// The first cell of each of the selection's row groups, as its place in the selection.
    firsts: Arc<[usize]>,
}

impl<T, V: std::ops::Deref<Target = [T]>> PerCell<V> {
    fn new(selection: &Selection, of_cells: V) -> Self {
        let mut first = 0;
        let firsts = selection.groups.iter().map(|group| {
            first += group.len();
            first - group.len()
        });
        Self {
            firsts: firsts.collect(),
            of_cells,
        }
    }

    fn of_group(&self, group: usize, cells: usize) -> &[T] {
        let first = self.firsts[group];
        &self.of_cells[first..first + cells]
    }
}

impl EpochOrder {
    /// The order of `selection` in an epoch, each cell once.
    pub fn new(selection: &Selection, options: OrderOptions, epoch: u64) -> Self {
        Self::laid_out(selection, options, epoch, None, None)
    }

    /// The order of `selection` in an epoch, each cell once, such that any stretch of a window has every
    /// code in its share of the window, rounded up or down by less than two cells. `codes` has one for
    /// each selected cell, in corpus order; what they are does not matter.
    ///
    /// # Errors
    /// When there is not one code for each selected cell.
    pub fn stratified(
        selection: &Selection,
        options: OrderOptions,
        epoch: u64,
        codes: Arc<[i32]>,
    ) -> Result<Self> {
        if codes.len() as u64 != selection.cells() {
            return Err(Error::options(
                format!(
                    "{} codes for {} selected cells, expected one for each",
                    codes.len(),
                    selection.cells()
                ),
                "",
            ));
        }
        let strata = PerCell::new(selection, codes);
        Ok(Self::laid_out(
            selection,
            options,
            epoch,
            None,
            Some(strata),
        ))
    }

    /// The order of as many cells as the selection has, drawn with replacement. Cells are shuffled
    /// after they are drawn, so that reading goes by row group all the same.
    pub fn sampled(
        selection: &Selection,
        options: OrderOptions,
        epoch: u64,
        weights: &WeightTable,
    ) -> Self {
        let times = PerCell::new(selection, weights.draw(options.seed, epoch));
        Self::laid_out(selection, options, epoch, Some(times), None)
    }

    fn laid_out(
        selection: &Selection,
        options: OrderOptions,
        epoch: u64,
        times: Option<PerCell<Vec<u32>>>,
        strata: Option<PerCell<Arc<[i32]>>>,
    ) -> Self {
        let mut groups: Vec<u32> = (0..selection.groups.len() as u32).collect();
        if options.shuffle != Shuffle::Sequential {
            Rng::new(options.seed, Purpose::RowGroups, epoch, 0).shuffle(&mut groups);
        }
        let mut order = Self {
            selection: selection.clone(),
            options,
            epoch,
            groups,
            starts: vec![0],
            times,
            strata,
        };
        for window in 0..order.groups.len().div_ceil(order.window_groups()) {
            let cells: u64 = (order.numbers(window).iter())
                .map(|&number| order.draws(number as usize))
                .sum();
            order.starts.push(order.starts[window] + cells);
        }
        order
    }

    /// Number of cells, each counted as often as it comes.
    pub fn len(&self) -> u64 {
        self.selection.cells
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.selection.cells == 0
    }

    /// How many cells of one of the selection's row groups come.
    fn draws(&self, number: usize) -> u64 {
        let cells = self.selection.groups[number].len();
        self.times.as_ref().map_or(cells as u64, |times| {
            let times = times.of_group(number, cells);
            times.iter().map(|&n| u64::from(n)).sum()
        })
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The window that holds a position.
    pub fn window_at(&self, position: u64) -> usize {
        self.starts.partition_point(|&start| start <= position) - 1
    }

    /// The positions of a window.
    pub fn window_range(&self, window: usize) -> Range<u64> {
        self.starts[window]..self.starts[window + 1]
    }

    /// The row groups of a window.
    pub fn members(&self, window: usize) -> impl Iterator<Item = &SelectedGroup> {
        let numbers = self.numbers(window).iter();
        numbers.map(|&g| &self.selection.groups[g as usize])
    }

    /// The row groups of a window, as their places in the selection.
    fn numbers(&self, window: usize) -> &[u32] {
        let size = self.window_groups();
        let last = self.groups.len().min((window + 1) * size);
        &self.groups[window * size..last]
    }

    /// The cells of a window, in order.
    pub fn window_cells(&self, window: usize) -> Vec<CellRef> {
        let mut cells =
            Vec::with_capacity((self.starts[window + 1] - self.starts[window]) as usize);
        for (member, &number) in self.numbers(window).iter().enumerate() {
            let group = &self.selection.groups[number as usize];
            let times = self.times.as_ref();
            let times = times.map(|times| times.of_group(number as usize, group.len()));
            for place in 0..group.len() {
                let cell = group.cell(place);
                cells.extend(
                    (0..times.map_or(1, |t| t[place])).map(|occurrence| CellRef {
                        cell,
                        member: member as u32,
                        place: place as u32,
                        occurrence,
                    }),
                );
            }
        }
        if self.options.shuffle != Shuffle::Sequential {
            Rng::new(
                self.options.seed,
                Purpose::Window,
                self.epoch,
                window as u64,
            )
            .shuffle(&mut cells);
        }
        match &self.strata {
            None => cells,
            Some(strata) => self.arranged(window, cells, strata),
        }
    }

    /// The cells of a window such that each code is spread evenly, otherwise in the order they have.
    fn arranged(
        &self,
        window: usize,
        cells: Vec<CellRef>,
        strata: &PerCell<Arc<[i32]>>,
    ) -> Vec<CellRef> {
        let members: Vec<&[i32]> = (self.numbers(window).iter())
            .map(|&number| {
                let group = &self.selection.groups[number as usize];
                strata.of_group(number as usize, group.len())
            })
            .collect();
        let mut of_code: BTreeMap<i32, VecDeque<CellRef>> = BTreeMap::new();
        let total = cells.len();
        for cell in cells {
            let code = members[cell.member as usize][cell.place as usize];
            of_code.entry(code).or_default().push_back(cell);
        }
        let mut cells: Vec<_> = of_code.into_values().collect();
        let counts: Vec<usize> = cells.iter().map(VecDeque::len).collect();
        let mut pattern = spread(&counts);
        if total > 0 && self.options.shuffle != Shuffle::Sequential {
            let (seed, epoch) = (self.options.seed, self.epoch);
            let start = Rng::new(seed, Purpose::Strata, epoch, window as u64).below(total as u32);
            pattern.rotate_left(start as usize);
        }
        let next = |category: u32| cells[category as usize].pop_front();
        pattern.into_iter().filter_map(next).collect()
    }

    /// The corpus indices of the cells at some positions.
    pub fn cells(&self, positions: Range<u64>) -> Vec<u64> {
        let mut cells = Vec::new();
        let mut at = positions.start;
        while at < positions.end.min(self.len()) {
            let window = self.window_at(at);
            let range = self.window_range(window);
            let end = range.end.min(positions.end);
            let span = (at - range.start) as usize..(end - range.start) as usize;
            cells.extend(self.window_cells(window)[span].iter().map(|c| c.cell));
            at = end;
        }
        cells
    }

    fn window_groups(&self) -> usize {
        match self.options.shuffle {
            Shuffle::Sequential => 1,
            Shuffle::Windowed { row_groups } => row_groups.max(1),
        }
    }
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    fn selection(parts: &[(u32, u64)]) -> Selection {
        let mut first_cell = 0;
        Selection::from_groups(parts.iter().enumerate().map(|(row_group, &(rows, picks))| {
            let chosen: Vec<u32> = (0..rows).filter(|r| picks >> (r % 64) & 1 == 1).collect();
            let group = SelectedGroup {
                row_group,
                first_cell,
                rows,
                chosen: (chosen.len() < rows as usize).then_some(chosen),
            };
            first_cell += u64::from(rows);
            group
        }))
    }

    fn order(selection: &Selection, seed: u64, row_groups: usize, epoch: u64) -> EpochOrder {
        let shuffle = Shuffle::Windowed { row_groups };
        EpochOrder::new(selection, OrderOptions { seed, shuffle }, epoch)
    }

    fn mix(cell: u64) -> u64 {
        Rng::new(0, Purpose::Split, 0, cell).next_u64()
    }

    proptest! {
        #[test]
        fn an_epoch_is_a_permutation_of_the_selection(
            parts in prop::collection::vec((1_u32..40, any::<u64>()), 1..12),
            seed in any::<u64>(), window in 1_usize..5, epoch in 0_u64..9,
        ) {
            let selection = selection(&parts);
            let mut cells = order(&selection, seed, window, epoch).cells(0..selection.cells());
            cells.sort_unstable();
            prop_assert_eq!(cells, selection.cell_indices().collect::<Vec<_>>());
        }

        #[test]
        fn starting_anywhere_gives_the_tail(
            parts in prop::collection::vec((1_u32..40, any::<u64>()), 1..12),
            seed in any::<u64>(), window in 1_usize..5, at in any::<prop::sample::Index>(),
        ) {
            let selection = selection(&parts);
            prop_assume!(selection.cells() > 0);
            let order = order(&selection, seed, window, 3);
            let at = at.index(selection.cells() as usize);
            let all = order.cells(0..selection.cells());
            prop_assert_eq!(&all[at..], order.cells(at as u64..selection.cells()));
        }

        #[test]
        fn draws_with_replacement_fill_the_epoch_from_anywhere(
            parts in prop::collection::vec((1_u32..40, any::<u64>()), 1..12),
            seed in any::<u64>(), window in 1_usize..5, at in any::<prop::sample::Index>(),
        ) {
            let selection = selection(&parts);
            prop_assume!(selection.cells() > 0);
            let weights: Vec<f64> = (0..selection.cells()).map(|c| (c % 5) as f64 + 0.1).collect();
            let table = WeightTable::new(&weights, selection.cells()).unwrap();
            let shuffle = Shuffle::Windowed { row_groups: window };
            let order = EpochOrder::sampled(&selection, OrderOptions { seed, shuffle }, 2, &table);
            let all = order.cells(0..selection.cells());
            let mut wanted = Vec::new();
            for (cell, times) in selection.cell_indices().zip(table.draw(seed, 2)) {
                wanted.extend(std::iter::repeat_n(cell, times as usize));
            }
            let at = at.index(all.len());
            prop_assert_eq!(&all[at..], order.cells(at as u64..selection.cells()));
            let mut sorted = all;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, wanted);
        }

        #[test]
        fn strata_are_spread_evenly_and_every_cell_comes_once(
            parts in prop::collection::vec((1_u32..60, any::<u64>()), 1..12),
            categories in 1_i32..9, skew in 1_i32..5, seed in any::<u64>(), window in 1_usize..5,
            at in any::<prop::sample::Index>(), batch in 1_usize..50,
        ) {
            let selection = selection(&parts);
            prop_assume!(selection.cells() > 0);
            let code = |cell: u64| (mix(cell) % categories as u64) as i32 / skew - 1;
            let codes: Arc<[i32]> = selection.cell_indices().map(code).collect();
            let shuffle = Shuffle::Windowed { row_groups: window };
            let options = OrderOptions { seed, shuffle };
            let order = EpochOrder::stratified(&selection, options, 1, codes.clone()).unwrap();
            let all = order.cells(0..selection.cells());
            let at = at.index(all.len());
            prop_assert_eq!(&all[at..], order.cells(at as u64..selection.cells()));
            let again = EpochOrder::stratified(&selection, options, 1, codes).unwrap();
            prop_assert_eq!(&again.cells(0..selection.cells()), &all);
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, selection.cell_indices().collect::<Vec<_>>());
            for number in 0..order.windows() {
                let range = order.window_range(number);
                let cells = &all[range.start as usize..range.end as usize];
                for code_here in -1..categories {
                    let count = |part: &[u64]| part.iter().filter(|&&c| code(c) == code_here).count() as f64;
                    let share = count(cells) / cells.len() as f64;
                    for part in cells.chunks(batch) {
                        let expected = share * part.len() as f64;
                        prop_assert!((count(part) - expected).abs() < 2.0, "{} {}", count(part), expected);
                    }
                }
            }
        }

        #[test]
        fn every_category_keeps_its_share_at_every_place(counts in prop::collection::vec(0_usize..70, 1..30)) {
            let sequence = spread(&counts);
            let total: usize = counts.iter().sum();
            prop_assert_eq!(sequence.len(), total);
            let mut seen = vec![0_usize; counts.len()];
            for (place, &category) in sequence.iter().enumerate() {
                seen[category as usize] += 1;
                for (seen, count) in seen.iter().zip(&counts) {
                    let due = (place + 1) as f64 * *count as f64 / total as f64;
                    prop_assert!((*seen as f64 - due).abs() < 1.0, "{:?} at {}", counts, place);
                }
            }
            prop_assert_eq!(seen, counts);
        }

        #[test]
        fn epochs_differ(seed in any::<u64>()) {
            let selection = selection(&[(50, u64::MAX), (50, u64::MAX)]);
            let cells = |epoch| order(&selection, seed, 2, epoch).cells(0..100);
            prop_assert_ne!(cells(0), cells(1));
        }
    }

    #[test]
    fn sequential_is_corpus_order() {
        let selection = selection(&[(5, 0b10101), (3, 0), (2, u64::MAX)]);
        let options = OrderOptions {
            seed: 1,
            shuffle: Shuffle::Sequential,
        };
        let order = EpochOrder::new(&selection, options, 7);
        assert_eq!(order.cells(0..9), [0, 2, 4, 8, 9]);
    }
}
