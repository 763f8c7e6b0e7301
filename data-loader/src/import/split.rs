//! Dealing cells out to named parts, seeded, with the same shares in every label.

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
        Ok(Self { parts, seed })
    }

    /// The part of each cell. Cells of the same stratum are dealt out together.
    pub(crate) fn deal(&self, strata: &[i32]) -> Vec<i32> {
        let mut cells: Vec<u32> = (0..strata.len() as u32).collect();
        Rng::new(self.seed, Purpose::Split, 0, 0).shuffle(&mut cells);
        cells.sort_by_key(|&cell| strata[cell as usize]);
        let mut parts = vec![0; strata.len()];
        for stratum in cells.chunk_by(|&a, &b| strata[a as usize] == strata[b as usize]) {
            let mut rest = stratum;
            for (part, count) in self.counts(stratum.len()).into_iter().enumerate() {
                let (now, later) = rest.split_at(count);
                for &cell in now {
                    parts[cell as usize] = part as i32;
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
