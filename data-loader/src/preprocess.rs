//! Gene filter, normalisation and value binning of one cell.

use crate::Result;
use crate::corpus::Corpus;
use crate::order::Selection;
use crate::rng::Rng;

/// Where the random numbers of a cell come from: a keyed generator, or given numbers in a test.
pub trait Draws {
    /// A uniform number in [0, 1) for the value at `position` among the non-zero values of the cell.
    /// Asked for in ascending order, and only where the number matters.
    fn uniform(&mut self, position: usize) -> f64;

    /// The bin of the value at `position`: one of `right + 1 ..= left`, or `left` when they are equal.
    fn bin(&mut self, position: usize, left: u16, right: u16) -> f32 {
        if left <= right + 1 {
            return f32::from(left);
        }
        let (left, right) = (f64::from(left), f64::from(right));
        (self.uniform(position) * (right - left) + left).ceil() as f32
    }

    /// Draws `k` different numbers of 0..n into `out`, in any order.
    fn sample(&mut self, n: usize, k: usize, out: &mut Vec<u32>);
}

impl Draws for Rng {
    fn uniform(&mut self, position: usize) -> f64 {
        (self.at(position as u64) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Without a branch: whether the number matters is as random as the values of a cell.
    #[inline]
    fn bin(&mut self, position: usize, left: u16, right: u16) -> f32 {
        let wide = (self.at(position as u64) >> 32) * u64::from(left - right);
        f32::from(left - (wide >> 32) as u16)
    }

    /// Draws those that are taken, or those that are left out when they are fewer.
    fn sample(&mut self, n: usize, k: usize, out: &mut Vec<u32>) {
        out.clear();
        out.extend(0..n as u32);
        let k = k.min(n);
        let drawn = k.min(n - k);
        for place in 0..drawn {
            let other = place + self.below((n - place) as u32) as usize;
            out.swap(place, other);
        }
        if drawn < k {
            out.drain(..drawn);
        }
        out.truncate(k);
    }
}

/// Sum of each gene's values over the selected cells.
///
/// # Errors
/// When the corpus cannot be read.
pub fn gene_totals(corpus: &Corpus, selection: &Selection) -> Result<Vec<f64>> {
    let mut totals = vec![0.0; corpus.genes().len()];
    for group in selection.groups() {
        let block = corpus.read_block(group.row_group, group.chosen.as_deref())?;
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            for (&gene, &value) in genes.iter().zip(values) {
                totals[gene as usize] += f64::from(value);
            }
        }
    }
    Ok(totals)
}

/// The genes with at least `min_counts` in total.
pub fn filter_genes(totals: &[f64], min_counts: f64) -> Vec<u32> {
    (0..totals.len() as u32)
        .filter(|&gene| totals[gene as usize] >= min_counts)
        .collect()
}

/// The divisor that brings a cell with this sum of values to `target`; 1 for an empty cell.
pub fn size_factor(sum: f64, target: f32) -> f32 {
    if sum == 0.0 { 1.0 } else { sum as f32 / target }
}

/// Scales the values of a cell so that they sum to `target`.
pub fn normalize_total(values: &mut [f32], target: f32) {
    let factor = size_factor(values.iter().map(|&v| f64::from(v)).sum(), target);
    for value in values {
        *value /= factor;
    }
}

/// ln(1 + x) of each value.
pub fn log1p(values: &mut [f32]) {
    for value in values {
        *value = value.ln_1p();
    }
}

/// Bins a row: zeros stay 0, the others go to bins 1 to `n_bins - 1` by rank. A row without zeros is
/// binned as a whole.
pub fn binning(row: &[f32], n_bins: usize, draws: &mut dyn Draws) -> Vec<i64> {
    let nonzero: Vec<f32> = row.iter().copied().filter(|&v| v != 0.0).collect();
    let mut bins = vec![0.0; nonzero.len()];
    Binner::new(n_bins).bin(&nonzero, draws, &mut bins);
    let mut bins = bins.into_iter();
    row.iter()
        .map(|&v| {
            if v == 0.0 {
                0
            } else {
                bins.next().map_or(0, |b| b as i64)
            }
        })
        .collect()
}

/// Counts below this are looked up in a table instead of being sorted.
const TABLE: usize = 1024;

/// Bins the values of a cell by quantile. Keeps its buffers between cells.
#[derive(Debug)]
pub struct Binner {
    quantiles: Vec<f64>,
    edges: Vec<f64>,
    /// The different values, ascending, and how many values are at most so large.
    distinct: Vec<f32>,
    ends: Vec<u32>,
    digits: Vec<Digits>,
    keys: Vec<u32>,
    /// How often each small count comes, counted in two tables by turns: most counts are 1, and each
    /// would wait for the one before it.
    histogram: Vec<[u32; 2]>,
    lookup: Vec<Digits>,
    /// Counts too large for the table, ascending.
    large: Vec<u32>,
    /// Which of the different values each different count became; small ones first.
    runs: Vec<(u32, u32)>,
}

/// The bins a value may fall to: uniform over `right + 1 ..= left` where several edges equal it.
#[derive(Debug, Clone, Copy, Default)]
struct Digits {
    left: u16,
    right: u16,
}

impl Binner {
    /// A binner for `n_bins` bins, the zero bin included.
    pub fn new(n_bins: usize) -> Self {
        let edges = n_bins.saturating_sub(1);
        let step = 1.0 / (edges.max(2) - 1) as f64;
        let mut quantiles: Vec<f64> = (0..edges).map(|i| i as f64 * step).collect();
        if let Some(last) = quantiles.last_mut().filter(|_| edges > 1) {
            *last = 1.0;
        }
        Self {
            quantiles,
            edges: Vec::with_capacity(edges),
            distinct: Vec::new(),
            ends: Vec::new(),
            digits: Vec::new(),
            keys: Vec::new(),
            histogram: vec![[0; 2]; TABLE],
            lookup: vec![Digits::default(); TABLE],
            large: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// The bin edges of the last cell; empty before the first and for an empty cell.
    pub fn edges(&self) -> &[f64] {
        &self.edges
    }

    /// Bins the non-zero values of a cell into `out`, which is as long as `values`.
    pub fn bin<D: Draws + ?Sized>(&mut self, values: &[f32], draws: &mut D, out: &mut [f32]) {
        self.begin();
        self.keys.clear();
        self.keys.extend(values.iter().map(|v| ascending_bits(*v)));
        self.keys.sort_unstable();
        for (place, &key) in self.keys.iter().enumerate() {
            push_run(
                &mut self.distinct,
                &mut self.ends,
                from_ascending_bits(key),
                place as u32 + 1,
            );
        }
        self.find_digits();
        for (position, (&value, bin)) in values.iter().zip(out).enumerate() {
            let Digits { left, right } = self.digits_of(value);
            *bin = draws.bin(position, left, right);
        }
    }

    /// Bins non-zero integer counts after `transform`, which must not decrease. The same as
    /// transforming each value and calling [`Binner::bin`], but each different count is transformed
    /// and placed once.
    pub fn bin_counts<D: Draws + ?Sized>(
        &mut self,
        counts: &[f32],
        transform: impl Fn(f32) -> f32,
        draws: &mut D,
        out: &mut [f32],
    ) {
        self.learn_counts(counts, transform);
        for (position, (&value, bin)) in counts.iter().zip(out).enumerate() {
            *bin = self.draw_count(position, value, draws);
        }
    }

    /// Prepares for [`Binner::draw_count`] of these counts, which must be whole and positive.
    pub fn learn_counts(&mut self, counts: &[f32], transform: impl Fn(f32) -> f32) {
        self.begin();
        self.count_runs(counts, &transform);
        self.find_digits();
        for &(count, run) in &self.runs {
            let Some(entry) = self.lookup.get_mut(count as usize) else {
                break;
            };
            *entry = self.digits[run as usize];
        }
    }

    /// The bin of one of the counts learnt.
    #[inline]
    pub fn draw_count<D: Draws + ?Sized>(&self, position: usize, count: f32, draws: &mut D) -> f32 {
        let count = count as u32;
        let digits = match self.lookup.get(count as usize) {
            Some(digits) => *digits,
            None => self.digits_of_large(count),
        };
        draws.bin(position, digits.left, digits.right)
    }

    #[cold]
    fn digits_of_large(&self, count: u32) -> Digits {
        let place = self.runs.partition_point(|run| run.0 < count);
        self.digits[self.runs[place].1 as usize]
    }

    /// Fills `distinct` and `ends` from a histogram of the small counts and a sort of the large ones.
    fn count_runs(&mut self, counts: &[f32], transform: impl Fn(f32) -> f32) {
        self.large.clear();
        self.runs.clear();
        let mut most = 0;
        for (place, &value) in counts.iter().enumerate() {
            let count = value as u32;
            if let Some(times) = self.histogram.get_mut(count as usize) {
                times[place % 2] += 1;
                most = most.max(count as usize);
            } else {
                self.large.push(count);
            }
        }
        self.large.sort_unstable();
        let mut end = 0;
        for count in 0..=most as u32 {
            let [even, odd] = std::mem::take(&mut self.histogram[count as usize]);
            if even + odd > 0 {
                end += even + odd;
                self.push_count(count, end, &transform);
            }
        }
        for place in 0..self.large.len() {
            end += 1;
            self.push_count(self.large[place], end, &transform);
        }
    }

    fn push_count(&mut self, count: u32, end: u32, transform: impl Fn(f32) -> f32) {
        let value = transform(count as f32);
        push_run(&mut self.distinct, &mut self.ends, value, end);
        self.runs.push((count, self.distinct.len() as u32 - 1));
    }

    fn begin(&mut self) {
        self.distinct.clear();
        self.ends.clear();
        self.edges.clear();
    }

    /// The edges are quantiles of the values by linear interpolation; each different value is then
    /// placed among them.
    fn find_digits(&mut self) {
        self.digits.clear();
        let Some(&n) = self.ends.last() else { return };
        let mut run = 0;
        for &q in &self.quantiles {
            let index = q * f64::from(n - 1);
            let lower = index.floor();
            let t = index - lower;
            while f64::from(self.ends[run]) <= lower {
                run += 1;
            }
            let next =
                usize::from(f64::from(self.ends[run]) <= lower + 1.0 && run + 1 < self.ends.len());
            let (a, b) = (
                f64::from(self.distinct[run]),
                f64::from(self.distinct[run + next]),
            );
            self.edges.push(if t >= 0.5 {
                b - (b - a) * (1.0 - t)
            } else {
                a + (b - a) * t
            });
        }
        let (mut left, mut right) = (0, 0);
        for &value in &self.distinct {
            let value = f64::from(value);
            while left < self.edges.len() && self.edges[left] <= value {
                left += 1;
            }
            while right < self.edges.len() && self.edges[right] < value {
                right += 1;
            }
            self.digits.push(Digits {
                left: left as u16,
                right: right as u16,
            });
        }
    }

    fn digits_of(&self, value: f32) -> Digits {
        let place = self.distinct.partition_point(|&d| d < value);
        self.digits[place]
    }
}

fn push_run(distinct: &mut Vec<f32>, ends: &mut Vec<u32>, value: f32, end: u32) {
    if distinct.last() == Some(&value) {
        if let Some(last) = ends.last_mut() {
            *last = end;
        }
    } else {
        distinct.push(value);
        ends.push(end);
    }
}

/// Maps a float to an integer that sorts the same way.
fn ascending_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    }
}

fn from_ascending_bits(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn rng(item: u64) -> Rng {
        Rng::new(5, Purpose::Binning, 0, item)
    }

    #[test]
    fn one_value_falls_into_any_bin() {
        let mut seen = [false; 51];
        for item in 0..2000 {
            seen[binning(&[0.0, 3.0], 51, &mut rng(item))[1] as usize] = true;
        }
        assert!(!seen[0] && seen[1..].iter().all(|&s| s));
    }

    #[test]
    fn counts_and_floats_agree() {
        let counts: Vec<f32> = (0..1500)
            .map(|i| ((i * i) % 97 * (i % 7 * 800 + 1) + 1) as f32)
            .collect();
        let transform = |c: f32| (c / 0.37).ln_1p();
        let floats: Vec<f32> = counts.iter().map(|&c| transform(c)).collect();
        let (mut a, mut b) = (vec![0.0; 1500], vec![0.0; 1500]);
        let mut binner = Binner::new(51);
        for item in 0..3 {
            binner.bin(&floats, &mut rng(item), &mut a);
            let edges = binner.edges().to_vec();
            binner.bin_counts(&counts, transform, &mut rng(item), &mut b);
            assert_eq!(edges, binner.edges());
            assert_eq!(a, b);
        }
        assert!(a.iter().all(|v| (1.0..=50.0).contains(v)));
    }

    #[test]
    fn samples_are_distinct() {
        let mut out = Vec::new();
        Draws::sample(&mut rng(1), 30, 12, &mut out);
        let mut sorted = out.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((out.len(), sorted.len()), (12, 12));
        assert!(out.iter().all(|&i| i < 30));
    }
}
