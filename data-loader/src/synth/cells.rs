//! The cells themselves: which genes a synthetic cell expresses, how often, and what it is called.

use super::SynthOptions;
use crate::rng::{Purpose, Rng};
use crate::{Error, Result};

/// Cell lines, each with an expression profile of its own.
pub(super) const LINES: usize = 50;
/// Treatments, the control included.
pub(super) const DRUGS: usize = 95;
/// Plates, which cells come in one after the other.
pub(super) const PLATES: usize = 14;
/// Samples on a plate: each is one treatment.
pub(super) const WELLS: usize = 96;

/// A profile is a table of so many genes, in which a gene stands the more often the more it is expressed:
/// a random number of 16 bits is then a random molecule.
const SLOTS: usize = 1 << 16;
/// Spread of the logarithm of expression over genes: chosen for the share of single molecules.
const GENE_SPREAD: f64 = 3.15;
/// The part of that spread that cell lines have in common, as a correlation.
const COMMON: f64 = 0.7;
/// Spread of the logarithm of molecules per cell.
const SIZE_SPREAD: f64 = 0.52;
/// No gene has a larger share of the molecules of a cell.
const LARGEST_SHARE: f64 = 0.02;
/// Molecules of the largest cell, as a multiple of the median.
const LARGEST_CELL: f64 = 8.0;
/// Share of the cells of a stretch of the corpus that come from another plate.
const STRAYS: f64 = 0.02;

/// What a cell is, besides its expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) line: usize,
    pub(super) drug: usize,
    pub(super) plate: usize,
    /// Number of its sample over all plates.
    pub(super) sample: usize,
}

/// Some consecutive cells.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Corpus index of the first one.
    pub(super) first: u64,
    pub(super) offsets: Vec<i32>,
    pub(super) genes: Vec<u32>,
    pub(super) counts: Vec<u32>,
    pub(super) meta: Vec<Meta>,
}

impl Cells {
    pub(super) fn rows(&self) -> usize {
        self.meta.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.rows() as u64).map(|row| barcode(self.first + row))
    }
}

/// Makes any cell of a corpus, in any order.
pub(super) struct Generator {
    seed: u64,
    cells: u64,
    genes: usize,
    profiles: Vec<Vec<u16>>,
    /// Up to which random number each line is drawn.
    line_ends: Vec<f64>,
    median_size: f64,
}

impl Generator {
    pub(super) fn new(options: &SynthOptions) -> Result<Self> {
        let (seed, genes) = (options.seed, options.genes);
        let mut common = Rng::new(seed, Purpose::Synthesis, 0, 0);
        let common: Vec<f64> = (0..genes).map(|_| normal(&mut common)).collect();
        let profiles: Vec<Vec<u16>> = (0..LINES)
            .map(|line| profile(seed, line as u64, &common))
            .collect();
        let median_size = median_size(&profiles, genes, options.nonzeros)?;
        // Some lines are three times as frequent as others.
        let mut sum = 0.0;
        let line_ends: Vec<f64> = (0..LINES)
            .map(|line| {
                sum += 1.0 + 2.0 * line as f64 / LINES as f64;
                sum
            })
            .collect();
        Ok(Self {
            seed,
            cells: options.cells,
            genes,
            profiles,
            line_ends: line_ends.iter().map(|end| end / sum).collect(),
            median_size,
        })
    }

    /// The cells of a range of the corpus.
    pub(super) fn cells(&self, range: std::ops::Range<u64>) -> Cells {
        let rows = (range.end - range.start) as usize;
        let mut out = Cells {
            first: range.start,
            offsets: vec![0],
            meta: Vec::with_capacity(rows),
            ..Cells::default()
        };
        let mut scratch = Scratch {
            counts: vec![0; self.genes],
            seen: vec![0; self.genes.div_ceil(64)],
        };
        for cell in range {
            let mut rng = Rng::new(self.seed, Purpose::Synthesis, 1, cell);
            let meta = self.meta(cell, &mut rng);
            let size = (SIZE_SPREAD * normal(&mut rng)).exp().min(LARGEST_CELL);
            let molecules = (self.median_size * size).round().max(1.0) as usize;
            scratch.express(&self.profiles[meta.line], molecules, &mut rng);
            scratch.drain(&mut out);
            out.meta.push(meta);
            out.offsets.push(out.genes.len() as i32);
        }
        out
    }

    /// What a cell is. Plates follow each other, as in an archive of one file for each.
    fn meta(&self, cell: u64, rng: &mut Rng) -> Meta {
        let plate = if rng.uniform() < STRAYS {
            rng.below(PLATES as u32) as usize
        } else {
            (u128::from(cell) * PLATES as u128 / u128::from(self.cells)) as usize
        };
        let well = rng.below(WELLS as u32) as usize;
        let at = rng.uniform();
        Meta {
            line: self
                .line_ends
                .partition_point(|&end| end <= at)
                .min(LINES - 1),
            drug: well % DRUGS,
            plate,
            sample: plate * WELLS + well,
        }
    }
}

/// Counts of one cell, and which of them are not 0.
struct Scratch {
    counts: Vec<u16>,
    seen: Vec<u64>,
}

impl Scratch {
    /// Draws molecules, four from each random number.
    fn express(&mut self, profile: &[u16], molecules: usize, rng: &mut Rng) {
        let mut left = molecules;
        while left > 0 {
            let mut bits = rng.next_u64();
            for _ in 0..left.min(4) {
                let gene = usize::from(profile[(bits & 0xFFFF) as usize]);
                bits >>= 16;
                self.counts[gene] = self.counts[gene].saturating_add(1);
                self.seen[gene / 64] |= 1 << (gene % 64);
            }
            left = left.saturating_sub(4);
        }
    }

    /// Hands the cell over, genes ascending, and is empty again.
    fn drain(&mut self, out: &mut Cells) {
        for (word, seen) in self.seen.iter_mut().enumerate() {
            let mut bits = std::mem::take(seen);
            while bits != 0 {
                let gene = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                out.genes.push(gene as u32);
                out.counts
                    .push(u32::from(std::mem::take(&mut self.counts[gene])));
            }
        }
    }
}

/// The table of a cell line: log-normal expression, rounded to whole slots without bias.
fn profile(seed: u64, line: u64, common: &[f64]) -> Vec<u16> {
    let mut rng = Rng::new(seed, Purpose::Synthesis, 2, line);
    let own = (1.0 - COMMON).sqrt();
    let mut shares: Vec<f64> = common
        .iter()
        .map(|z| (GENE_SPREAD * (COMMON.sqrt() * z + own * normal(&mut rng))).exp())
        .collect();
    // The cap moves the sum that it is a share of; two rounds settle it well enough.
    for _ in 0..2 {
        let cap = shares.iter().sum::<f64>() * LARGEST_SHARE;
        for share in &mut shares {
            *share = share.min(cap);
        }
    }
    let total: f64 = shares.iter().sum();
    let start = rng.uniform();
    let mut sum = 0.0;
    let mut slots = Vec::with_capacity(SLOTS);
    for (gene, share) in shares.iter().enumerate() {
        sum += share / total;
        let end = (sum * SLOTS as f64 + start).floor() as usize;
        slots.resize(end.clamp(slots.len(), SLOTS), gene as u16);
    }
    let last = slots.last().copied().unwrap_or(0);
    slots.resize(SLOTS, last);
    slots
}

/// The molecules of the median cell that give the wanted mean number of expressed genes.
fn median_size(profiles: &[Vec<u16>], genes: usize, nonzeros: u32) -> Result<f64> {
    // How many genes have each number of slots, over all lines.
    let mut with_slots = std::collections::BTreeMap::<u32, u32>::new();
    for profile in profiles {
        let mut slots = vec![0_u32; genes];
        for &gene in profile {
            slots[usize::from(gene)] += 1;
        }
        for n in slots.into_iter().filter(|&n| n > 0) {
            *with_slots.entry(n).or_default() += 1;
        }
    }
    // Quantiles of the size of cells, in standard deviations.
    let sizes: Vec<f64> = (-12..=12)
        .map(|step| f64::from(step) / 4.0)
        .collect::<Vec<_>>();
    let weight = |z: f64| (-z * z / 2.0).exp();
    let weights: f64 = sizes.iter().map(|&z| weight(z)).sum();
    let expressed = |median: f64| {
        let of_size = |z: f64| {
            let molecules = median * (SIZE_SPREAD * z).exp().min(LARGEST_CELL);
            let genes = with_slots.iter().map(|(&slots, &genes)| {
                let missed = (-molecules * f64::from(slots) / SLOTS as f64).exp();
                f64::from(genes) * (1.0 - missed)
            });
            genes.sum::<f64>() / profiles.len() as f64
        };
        sizes.iter().map(|&z| weight(z) * of_size(z)).sum::<f64>() / weights
    };
    let wanted = f64::from(nonzeros);
    // Beyond so many molecules the counts of the first genes leave 16 bits.
    let (mut low, mut high) = (1.0, 100_000.0);
    let most = expressed(high);
    if wanted > most || wanted < expressed(low) {
        return Err(Error::options(
            format!(
                "cells with {nonzeros} expressed genes on average cannot be made of {genes} genes: between 1 and {most:.0} can"
            ),
            "choose another --nonzeros, or more --genes",
        ));
    }
    while high - low > 0.5 {
        let middle = f64::midpoint(low, high);
        if expressed(middle) < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// A standard normal number (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.uniform()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.uniform()).cos()
}

/// The barcode of a cell: three rounds of wells, and a library. Neighbours have unlike barcodes.
fn barcode(cell: u64) -> String {
    const ROUNDS: [u64; 3] = [96, 192, 192];
    const LIBRARY: u64 = 65_536;
    let (library, place) = (cell / LIBRARY, cell % LIBRARY);
    // The factor has no divisor in common with the number of barcodes, so no two places share one.
    let code = (place * 2_654_435 + library * 977) % ROUNDS.iter().product::<u64>();
    format!(
        "{:02}_{:03}_{:03}-lib_{:04}",
        code / (ROUNDS[1] * ROUNDS[2]) + 1,
        code / ROUNDS[2] % ROUNDS[1] + 1,
        code % ROUNDS[2] + 1,
        841 + library
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn options(genes: usize, nonzeros: u32) -> SynthOptions {
        SynthOptions {
            cells: 6000,
            genes,
            nonzeros,
            seed: 3,
            ..SynthOptions::default()
        }
    }

    #[test]
    fn cells_look_like_real_ones() {
        let generator = Generator::new(&options(62_710, 1500)).unwrap();
        let cells = generator.cells(0..3000);
        let mut lengths: Vec<i32> = cells.offsets.windows(2).map(|w| w[1] - w[0]).collect();
        lengths.sort_unstable();
        let mean = f64::from(*cells.offsets.last().unwrap()) / 3000.0;
        assert!((mean - 1500.0).abs() < 40.0, "{mean}");
        let (low, high) = (lengths[150], lengths[2850]);
        assert!(
            (650..810).contains(&low) && (2400..2900).contains(&high),
            "{low} {high}"
        );
        let ones = cells.counts.iter().filter(|&&c| c == 1).count() as f64;
        let ones = ones / cells.counts.len() as f64;
        assert!((0.60..0.66).contains(&ones), "{ones}");
        let most = *cells.counts.iter().max().unwrap();
        assert!((300..2000).contains(&most), "{most}");
        for w in cells.offsets.windows(2) {
            let genes = &cells.genes[w[0] as usize..w[1] as usize];
            assert!(genes.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn a_cell_does_not_depend_on_its_neighbours() {
        let generator = Generator::new(&options(900, 60)).unwrap();
        let all = generator.cells(0..50);
        let tail = generator.cells(20..50);
        assert_eq!(all.meta[20..], tail.meta);
        let start = all.offsets[20] as usize;
        assert_eq!(all.genes[start..], tail.genes);
        assert_eq!(all.counts[start..], tail.counts);
        let other = SynthOptions {
            seed: 4,
            ..options(900, 60)
        };
        let other = Generator::new(&other).unwrap().cells(0..50);
        assert_ne!(all.genes, other.genes);
    }

    #[test]
    fn lines_differ_and_plates_follow_each_other() {
        let generator = Generator::new(&options(5000, 300)).unwrap();
        let cells = generator.cells(0..6000);
        let stray = |(cell, meta): (usize, &Meta)| meta.plate != cell * PLATES / 6000;
        let strays = cells.meta.iter().enumerate().filter(|&m| stray(m)).count();
        // 6000 cells, 2 % of them drawn, of which 13 in 14 leave their plate.
        assert!((60..170).contains(&strays), "{strays}");
        let mut means = vec![vec![0.0; 5000]; 2];
        for row in 0..cells.rows() {
            if cells.meta[row].line < 2 {
                for at in cells.offsets[row] as usize..cells.offsets[row + 1] as usize {
                    means[cells.meta[row].line][cells.genes[at] as usize] +=
                        f64::from(cells.counts[at]);
                }
            }
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let cosine = dot(&means[0], &means[1])
            / (dot(&means[0], &means[0]) * dot(&means[1], &means[1])).sqrt();
        assert!((0.05..0.9).contains(&cosine), "{cosine}");
        let samples: BTreeSet<usize> = cells.meta.iter().map(|m| m.sample).collect();
        assert!(samples.len() > 1200 && samples.iter().all(|&s| s < PLATES * WELLS));
    }

    #[test]
    fn barcodes_are_unique() {
        let names: BTreeSet<String> = (0..200_000).map(barcode).collect();
        assert_eq!(names.len(), 200_000);
        assert!(names.iter().all(|name| name.len() == 19));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let error = Generator::new(&options(500, 499)).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--nonzeros"), "{error}");
    }
}
