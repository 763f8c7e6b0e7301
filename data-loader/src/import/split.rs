//! Dealing cells out to named parts, seeded: with the same shares in every label, or by whole groups.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use indexmap::IndexMap;
use serde_json::{Value, json};

use super::obs::Obs;
use super::{ImportOptions, groups};
use crate::corpus::{ObsColumn, ObsKind};
use crate::rng::{Purpose, Rng};
use crate::{Error, Result};

/// Name of the obs column that holds the part of each cell.
pub const SPLIT_COLUMN: &str = "split";

/// Named parts with their shares.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOptions {
    /// Names and shares; the shares sum to 1.
    pub parts: Vec<(String, f64)>,
    /// The seed.
    pub seed: u64,
    /// The obs column whose groups go to one part each, as a whole. Without one, cells are dealt out
    /// singly.
    pub by: Option<String>,
}

impl SplitOptions {
    /// Reads `train=0.7,valid=0.1,test=0.2`.
    ///
    /// # Errors
    /// When it is not of this form, or the shares do not sum to 1.
    pub fn parse(text: &str, seed: u64) -> Result<Self> {
        let fail =
            |problem: String| Error::options(problem, "write it like train=0.7,valid=0.1,test=0.2");
        let mut parts: Vec<(String, f64)> = Vec::new();
        for part in text.split(',') {
            let (name, share) = part
                .split_once('=')
                .ok_or_else(|| fail(format!("--split: `{part}` is not of the form name=share")))?;
            let name = name.trim().to_owned();
            let share: f64 = share
                .trim()
                .parse()
                .ok()
                .filter(|s| (0.0..=1.0).contains(s))
                .ok_or_else(|| {
                    fail(format!(
                        "--split: share `{share}` of `{name}` is no number from 0 to 1"
                    ))
                })?;
            if name.is_empty() || parts.iter().any(|(n, _)| *n == name) {
                return Err(fail(format!(
                    "--split: part `{name}` is empty or named twice"
                )));
            }
            parts.push((name, share));
        }
        let sum: f64 = parts.iter().map(|(_, s)| s).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(fail(format!(
                "--split: the shares sum to {sum}, expected 1"
            )));
        }
        Ok(Self {
            parts,
            seed,
            by: None,
        })
    }

    /// The part of each cell. Cells of the same stratum are dealt out together.
    fn deal(&self, strata: &[i32]) -> Vec<u16> {
        let mut cells: Vec<u32> = (0..strata.len() as u32).collect();
        Rng::new(self.seed, Purpose::Split, 0, 0).shuffle(&mut cells);
        cells.sort_by_key(|&cell| strata[cell as usize]);
        let mut parts = vec![0_u16; strata.len()];
        for stratum in cells.chunk_by(|&a, &b| strata[a as usize] == strata[b as usize]) {
            let mut rest = stratum;
            for (part, count) in self.counts(stratum.len()).into_iter().enumerate() {
                let (now, later) = rest.split_at(count);
                for &cell in now {
                    parts[cell as usize] = part as u16;
                }
                rest = later;
            }
        }
        parts
    }

    /// Largest remainder: whole numbers next to the exact shares that sum to `n`.
    fn counts(&self, n: usize) -> Vec<usize> {
        let exact: Vec<f64> = self
            .parts
            .iter()
            .map(|(_, share)| share * n as f64)
            .collect();
        // 0.7 * 10 is a hair below 7: without the tolerance a whole cell would move.
        let mut counts: Vec<usize> = exact.iter().map(|e| (e + 1e-9).floor() as usize).collect();
        let mut order: Vec<usize> = (0..exact.len()).collect();
        order.sort_by(|&a, &b| {
            (exact[b] - counts[b] as f64).total_cmp(&(exact[a] - counts[a] as f64))
        });
        let missing = n - counts.iter().sum::<usize>().min(n);
        for &part in order.iter().take(missing) {
            counts[part] += 1;
        }
        counts
    }
}

/// A part is said to be off when it misses its share by more than this.
const WORTH_SAYING: f64 = 0.05;

/// The part of each cell, decided.
pub(super) struct Parts {
    pub(super) column: ObsColumn,
    pub(super) names: ArrayRef,
    of_cells: Vec<u16>,
    /// What the manifest says about it.
    pub(super) provenance: Value,
}

impl Parts {
    /// What the options ask for; `None` when the corpus gets no column of its own.
    pub(super) fn plan(obs: &Obs<'_>, options: &ImportOptions) -> Result<Option<Self>> {
        match (&options.split, &options.split_column) {
            (Some(_), Some(_)) => Err(Error::options(
                "--split deals cells out, and --split-column takes parts that the file has: not both",
                "leave one out",
            )),
            (Some(split), None) => Self::deal(split, obs, options).map(Some),
            (None, Some(column)) => Self::named(column, obs),
            (None, None) => Ok(None),
        }
    }

    fn new(names: Vec<String>, of_cells: Vec<u16>, mut provenance: Value) -> Self {
        let mut cells = vec![0_u64; names.len()];
        for &part in &of_cells {
            cells[part as usize] += 1;
        }
        let cells: IndexMap<&String, u64> = names.iter().zip(cells).collect();
        provenance["cells"] = json!(cells);
        Self {
            names: Arc::new(StringArray::from_iter_values(&names)),
            column: ObsColumn::new(SPLIT_COLUMN, ObsKind::Category, names),
            of_cells,
            provenance,
        }
    }

    fn deal(split: &SplitOptions, obs: &Obs<'_>, options: &ImportOptions) -> Result<Self> {
        let names: Vec<String> = split.parts.iter().map(|(name, _)| name.clone()).collect();
        let shares: IndexMap<&str, f64> =
            split.parts.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let mut provenance = json!({ "parts": shares, "seed": split.seed });
        let Some(by) = &split.by else {
            let label = options.label.as_ref().and_then(|name| obs.column(name));
            let cells = obs.sources().iter().map(|s| s.cells).sum();
            let strata = match label {
                Some(label) => obs.codes(label)?,
                None => vec![0; cells],
            };
            return Ok(Self::new(names, split.deal(&strata), provenance));
        };
        let (groups, codes) = full_column(by, obs, "--split-by")?;
        let mut sizes = vec![0_u64; groups.len()];
        for &code in &codes {
            sizes[code as usize] += 1;
        }
        let shares: Vec<f64> = split.parts.iter().map(|(_, share)| *share).collect();
        let Some(parts) = groups::deal(&sizes, &shares, split.seed) else {
            let present = sizes.iter().filter(|&&n| n > 0).count();
            return Err(Error::options(
                format!(
                    "--split-by {by}: there are {present} groups for the parts {}",
                    crate::error::listed(&names)
                ),
                "a group goes to one part as a whole: ask for fewer parts, or choose a column with more groups",
            ));
        };
        let off = groups::deviation(&parts, &sizes, &shares);
        if off > WORTH_SAYING {
            tracing::warn!(
                "--split-by {by}: groups are large, a part misses its share by {:.0} % of all cells",
                100.0 * off
            );
        }
        let mut lists: IndexMap<&String, Vec<&String>> = IndexMap::new();
        for (part, name) in names.iter().enumerate() {
            let its = |&(group, _): &(usize, &String)| parts[group] == part && sizes[group] > 0;
            let list = groups.iter().enumerate().filter(its).map(|(_, name)| name);
            lists.insert(name, list.collect());
        }
        provenance["by"] = json!(by);
        provenance["groups"] = json!(lists);
        let of_cells = codes.iter().map(|&c| parts[c as usize] as u16).collect();
        Ok(Self::new(names, of_cells, provenance))
    }

    /// The parts that an obs column names.
    fn named(column: &str, obs: &Obs<'_>) -> Result<Option<Self>> {
        let (names, codes) = full_column(column, obs, "--split-column")?;
        if names.len() > usize::from(u16::MAX) {
            return Err(Error::options(
                format!(
                    "--split-column {column}: it has {} different values",
                    names.len()
                ),
                "choose a column that names parts, like train and test",
            ));
        }
        if column == SPLIT_COLUMN {
            return Ok(None);
        }
        let of_cells = codes.iter().map(|&c| c as u16).collect();
        Ok(Some(Self::new(
            names,
            of_cells,
            json!({ "column": column }),
        )))
    }

    pub(super) fn codes(&self, cells: Range<usize>) -> Vec<i32> {
        self.of_cells[cells].iter().map(|&p| i32::from(p)).collect()
    }
}

/// Categories and codes of a column in which no cell lacks a value.
fn full_column(name: &str, obs: &Obs<'_>, option: &str) -> Result<(Vec<String>, Vec<i32>)> {
    let column = obs
        .column(name)
        .ok_or_else(|| Error::internal(format!("obs column `{name}` was not kept")))?;
    let codes = obs.codes(column)?;
    let missing = codes.iter().filter(|&&c| c < 0).count();
    let Some(first) = codes.iter().position(|&c| c < 0) else {
        return Ok((column.column.categories.clone(), codes));
    };
    let mut row = first;
    for source in obs.sources() {
        if row < source.cells {
            let cell = source.cell_names(row..row + 1)?.concat();
            return Err(source.error(
                format!(
                    "{option} {name}: {missing} cells have no value of this obs column, the first is `{cell}`"
                ),
                "fill the column or drop these cells in the source file, or choose another column",
            ));
        }
        row -= source.cells;
    }
    Err(Error::internal("a cell is in no source"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_in_every_stratum() {
        let split = SplitOptions::parse("train=0.7,valid=0.1,test=0.2", 4).unwrap();
        let strata: Vec<i32> = (0..230)
            .map(|i| if i < 30 { 1 } else { i % 2 * 2 })
            .collect();
        let parts = split.deal(&strata);
        let count = |stratum, part| {
            strata
                .iter()
                .zip(&parts)
                .filter(|p| *p == (&stratum, &part))
                .count()
        };
        assert_eq!([count(1, 0), count(1, 1), count(1, 2)], [21, 3, 6]);
        assert_eq!([count(0, 0), count(0, 1), count(0, 2)], [70, 10, 20]);
        assert_eq!(parts, split.deal(&strata));
        let other = SplitOptions { seed: 5, ..split };
        assert_ne!(parts, other.deal(&strata));
    }

    #[test]
    fn remainders_go_to_the_largest() {
        let split = SplitOptions::parse("a=0.5,b=0.3,c=0.2", 0).unwrap();
        assert_eq!(split.counts(7), [4, 2, 1]);
        assert_eq!(split.counts(1), [1, 0, 0]);
        assert_eq!(split.counts(0), [0, 0, 0]);
    }

    #[test]
    fn malformed_splits_are_refused() {
        for text in [
            "train",
            "a=0.5,b=0.6",
            "a=x",
            "a=0.5,a=0.5",
            "=1",
            "a=-1,b=2",
        ] {
            assert!(SplitOptions::parse(text, 0).is_err(), "{text}");
        }
    }
}
