//! How well an order mixes the categories of a column, measured without reading any expression.
//!
//! The measure is the entropy of the categories in a batch, averaged over the batches of an epoch. A true
//! random order has the most that chance gives; corpus order usually far less.

use std::sync::Arc;

use serde::Serialize;

use crate::corpus::Corpus;
use crate::order::{EpochOrder, OrderOptions, Selection, Shuffle};
use crate::rng::{Purpose, Rng};
use crate::sampler::{WeightTable, class_balanced_weights};
use crate::{Error, Result};

/// What to compare.
#[derive(Debug, Clone)]
pub struct QualityOptions {
    /// The categorical obs column.
    pub column: String,
    /// Cells in a batch.
    pub batch_cells: usize,
    /// Seed of all orders.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Row groups in a window of the shuffle.
    pub window_row_groups: usize,
    /// How many true random orders are averaged.
    pub permutations: u64,
}

/// The mean entropy of the batches of one order, in bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OrderQuality {
    /// Which order.
    pub order: &'static str,
    /// Mean over the batches of the entropy of the categories in each.
    pub entropy: f64,
    /// That, divided by the one of a true random order.
    pub ratio: f64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Cells in an epoch.
    pub cells: u64,
    /// Categories that there are, missing counted as one.
    pub categories: usize,
    /// Entropy of the whole corpus, in bits.
    pub corpus_entropy: f64,
    /// Mean entropy of batches in a true random order, in bits.
    pub random_entropy: f64,
    /// Standard deviation of that mean from one random order to another.
    pub random_deviation: f64,
    /// The orders of the loader, and corpus order.
    pub orders: Vec<OrderQuality>,
}

/// Compares orders of a corpus.
///
/// # Errors
/// When the column does not exist or is not categorical, or a number is 0.
pub fn of_corpus(corpus: &Corpus, options: &QualityOptions) -> Result<Quality> {
    let codes = corpus.obs_codes(&options.column)?;
    quality(&Selection::all(corpus), &codes, options)
}

/// Compares orders of a selection: a pure function of the options and of `codes`, one for each cell of the
/// corpus, -1 where missing.
///
/// # Errors
/// When a number of the options is 0, or no cell is selected.
pub fn quality(selection: &Selection, codes: &[i32], options: &QualityOptions) -> Result<Quality> {
    for (name, value) in [
        ("--batch-cells", options.batch_cells),
        ("--window-row-groups", options.window_row_groups),
        ("--permutations", options.permutations as usize),
    ] {
        if value == 0 {
            return Err(Error::options(
                format!("`{name}` must be at least 1, got `0`"),
                "",
            ));
        }
    }
    if selection.cells() == 0 {
        return Err(Error::options(
            "there are no cells to compare orders of",
            "",
        ));
    }
    let batch = options.batch_cells;
    let mut meter = Meter::new(codes);
    let mut cells: Vec<u64> = selection.cell_indices().collect();
    let selected: Arc<[i32]> = cells.iter().map(|&c| codes[c as usize]).collect();
    let corpus_entropy = meter.mean(cells.iter().copied(), cells.len());
    let corpus_order = meter.mean(cells.iter().copied(), batch);
    let random: Vec<f64> = (0..options.permutations)
        .map(|number| {
            Rng::new(options.seed, Purpose::Reference, options.epoch, number).shuffle(&mut cells);
            meter.mean(cells.iter().copied(), batch)
        })
        .collect();
    let n = random.len() as f64;
    let mean = random.iter().sum::<f64>() / n;
    let squares: f64 = random.iter().map(|r| (r - mean).powi(2)).sum();
    let order = OrderOptions {
        seed: options.seed,
        shuffle: Shuffle::Windowed {
            row_groups: options.window_row_groups,
        },
    };
    let epoch = options.epoch;
    let mut of_order = |order: &EpochOrder| {
        let windows = (0..order.windows()).flat_map(|w| order.window_cells(w));
        meter.mean(windows.map(|c| c.cell), batch)
    };
    let mut found = vec![
        ("corpus order", corpus_order),
        (
            "uniform",
            of_order(&EpochOrder::new(selection, order, epoch)),
        ),
        (
            "stratified",
            of_order(&EpochOrder::stratified(
                selection,
                order,
                epoch,
                selected.clone(),
            )?),
        ),
    ];
    // Cells without a category cannot be drawn by category.
    if let Ok(weights) = class_balanced_weights(&selected) {
        let weights = WeightTable::new(&weights, selection.cells())?;
        let order = EpochOrder::sampled(selection, order, epoch, &weights);
        found.push(("class balanced", of_order(&order)));
    }
    let ratio = |entropy: f64| if mean > 0.0 { entropy / mean } else { 1.0 };
    Ok(Quality {
        cells: selection.cells(),
        categories: meter.categories(&selected),
        corpus_entropy,
        random_entropy: mean,
        random_deviation: (squares / (n - 1.0).max(1.0)).sqrt(),
        orders: found
            .into_iter()
            .map(|(order, entropy)| OrderQuality {
                order,
                entropy,
                ratio: ratio(entropy),
            })
            .collect(),
    })
}

/// Measures batches. Code -1 has the first place.
struct Meter<'a> {
    codes: &'a [i32],
    counts: Vec<u32>,
}

impl<'a> Meter<'a> {
    fn new(codes: &'a [i32]) -> Self {
        let most = codes.iter().copied().max().unwrap_or(-1);
        Self {
            codes,
            counts: vec![0; (most + 2) as usize],
        }
    }

    /// The mean entropy of batches, a short last one left out when there are others.
    fn mean(&mut self, cells: impl Iterator<Item = u64>, batch: usize) -> f64 {
        let (mut sum, mut batches, mut filled) = (0.0, 0, 0);
        for cell in cells {
            self.counts[(self.codes[cell as usize] + 1) as usize] += 1;
            filled += 1;
            if filled == batch {
                sum += self.take(filled);
                batches += 1;
                filled = 0;
            }
        }
        let rest = self.take(filled);
        if batches == 0 {
            rest
        } else {
            sum / f64::from(batches)
        }
    }

    /// The entropy of the batch, which is then empty.
    fn take(&mut self, cells: usize) -> f64 {
        let mut entropy = 0.0;
        for count in &mut self.counts {
            if *count > 0 {
                let share = f64::from(*count) / cells as f64;
                entropy -= share * share.log2();
                *count = 0;
            }
        }
        entropy
    }

    fn categories(&self, codes: &[i32]) -> usize {
        let mut present = vec![false; self.counts.len()];
        for &code in codes {
            present[(code + 1) as usize] = true;
        }
        present.into_iter().filter(|&p| p).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::SelectedGroup;

    fn selection(groups: u64, rows: u32) -> Selection {
        Selection::from_groups((0..groups).map(|group| SelectedGroup {
            row_group: group as usize,
            first_cell: group * u64::from(rows),
            rows,
            chosen: None,
        }))
    }

    fn options(window_row_groups: usize) -> QualityOptions {
        QualityOptions {
            column: "any".into(),
            batch_cells: 64,
            seed: 5,
            epoch: 0,
            window_row_groups,
            permutations: 4,
        }
    }

    fn of(found: &Quality, order: &str) -> f64 {
        found
            .orders
            .iter()
            .find(|o| o.order == order)
            .unwrap()
            .ratio
    }

    #[test]
    fn entropies_are_those_worked_out_by_hand() {
        let codes = [0, 0, 0, 0, 1, 1, 0, 1];
        let mut meter = Meter::new(&codes);
        assert_eq!(
            meter.mean(0..8, 4),
            0.5 * (0.25 * 2.0 - 0.75 * 0.75_f64.log2())
        );
        assert_eq!(meter.mean(0..4, 4), 0.0);
        assert_eq!(meter.mean([0, 4, 1, 5].into_iter(), 2), 1.0);
    }

    #[test]
    fn a_sorted_corpus_is_mixed_by_wide_windows_and_not_by_narrow_ones() {
        let selection = selection(64, 128);
        let codes: Vec<i32> = (0..64 * 128).map(|c| c / 128 / 4).collect();
        let narrow = quality(&selection, &codes, &options(1)).unwrap();
        assert_eq!((narrow.categories, narrow.corpus_entropy), (16, 4.0));
        assert_eq!(of(&narrow, "corpus order"), 0.0);
        assert_eq!(of(&narrow, "uniform"), 0.0);
        assert!(narrow.random_entropy > 3.7 && narrow.random_entropy < 4.0);
        assert!(narrow.random_deviation < 0.02, "{narrow:?}");
        let wide = quality(&selection, &codes, &options(64)).unwrap();
        assert!((of(&wide, "uniform") - 1.0).abs() < 0.01, "{wide:?}");
        // Every batch has four cells of each category: as even as can be.
        let even = 4.0 / wide.random_entropy;
        assert!((of(&wide, "stratified") - even).abs() < 0.01, "{wide:?}");
        assert!(
            of(
                &quality(&selection, &codes, &options(8)).unwrap(),
                "uniform"
            ) < 0.9
        );
    }

    #[test]
    fn missing_values_are_a_category_and_cannot_be_balanced() {
        let selection = selection(4, 100);
        let codes: Vec<i32> = (0..400).map(|c| c % 3 - 1).collect();
        let found = quality(&selection, &codes, &options(2)).unwrap();
        assert_eq!(found.categories, 3);
        assert!(found.orders.iter().all(|o| o.order != "class balanced"));
        let bad = QualityOptions {
            batch_cells: 0,
            ..options(1)
        };
        assert!(quality(&selection, &codes, &bad).is_err());
    }
}
