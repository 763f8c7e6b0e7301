//! Dealing whole groups of cells out to named parts.

use crate::rng::{Purpose, Rng};

/// Orders of the groups that are tried.
const TRIALS: u64 = 64;
/// An order is good enough when no part is off by a larger share of all cells.
const TOLERANCE: f64 = 0.02;

/// The part of each group, given their numbers of cells and the shares of the parts. Every part with a
/// share gets a group; a group without cells goes with the first part. `None` when there are too few groups.
pub(super) fn deal(sizes: &[u64], shares: &[f64], seed: u64) -> Option<Vec<usize>> {
    let mut groups: Vec<u32> = (0..sizes.len() as u32)
        .filter(|&g| sizes[g as usize] > 0)
        .collect();
    if groups.len() < shares.iter().filter(|&&s| s > 0.0).count() {
        return None;
    }
    let mut best: Option<(f64, Vec<usize>)> = None;
    for trial in 0..=TRIALS {
        Rng::new(seed, Purpose::Split, 1, trial).shuffle(&mut groups);
        if trial == TRIALS {
            // Large groups first fits best, but leaves little to the seed: it is the last resort.
            groups.sort_by_key(|&g| std::cmp::Reverse(sizes[g as usize]));
        }
        let parts = fill(&groups, sizes, shares);
        let off = deviation(&parts, sizes, shares);
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, parts));
        }
        if off <= TOLERANCE {
            break;
        }
    }
    best.map(|(_, parts)| parts)
}

/// Gives each group to the part that lacks most cells.
fn fill(groups: &[u32], sizes: &[u64], shares: &[f64]) -> Vec<usize> {
    let total: u64 = sizes.iter().sum();
    let mut lacking: Vec<f64> = shares.iter().map(|s| s * total as f64).collect();
    let mut empty: Vec<bool> = shares.iter().map(|&s| s > 0.0).collect();
    let mut parts = vec![0; sizes.len()];
    for (done, &group) in groups.iter().enumerate() {
        let left = groups.len() - done;
        let must_fill = left <= empty.iter().filter(|&&e| e).count();
        let part = (0..shares.len())
            .filter(|&p| shares[p] > 0.0 && (!must_fill || empty[p]))
            .max_by(|&a, &b| lacking[a].total_cmp(&lacking[b]).then(b.cmp(&a)))
            .unwrap_or(0);
        lacking[part] -= sizes[group as usize] as f64;
        empty[part] = false;
        parts[group as usize] = part;
    }
    parts
}

/// By which share of all cells the worst part is off.
pub(super) fn deviation(parts: &[usize], sizes: &[u64], shares: &[f64]) -> f64 {
    let total = sizes.iter().sum::<u64>().max(1) as f64;
    let mut got = vec![0.0; shares.len()];
    for (&part, &size) in parts.iter().zip(sizes) {
        got[part] += size as f64 / total;
    }
    got.iter()
        .zip(shares)
        .map(|(g, s)| (g - s).abs())
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_met_where_groups_allow() {
        let sizes = [100, 100, 100, 100, 100, 100, 100, 100, 100, 100];
        let parts = deal(&sizes, &[0.8, 0.1, 0.1], 3).unwrap();
        assert!(deviation(&parts, &sizes, &[0.8, 0.1, 0.1]) < 1e-9);
        assert_ne!(parts, deal(&sizes, &[0.8, 0.1, 0.1], 4).unwrap());
        // The large group can only go to the large part.
        let parts = deal(&[800, 60, 70, 40, 30], &[0.8, 0.1, 0.1], 0).unwrap();
        assert_eq!(parts[0], 0);
        assert_eq!(deal(&[5, 5], &[0.8, 0.1, 0.1], 0), None);
        assert_eq!(deal(&[5, 5, 0], &[0.8, 0.1, 0.1], 0), None);
        assert_eq!(
            deal(&[5, 5], &[0.0, 0.5, 0.5], 0).map(|p| p.contains(&0)),
            Some(false)
        );
    }

    proptest! {
        #[test]
        fn every_part_gets_a_group(
            sizes in prop::collection::vec(1_u64..1000, 3..40),
            share in 0.01_f64..0.9,
            seed: u64,
        ) {
            let shares = [share, (1.0 - share) / 2.0, (1.0 - share) / 2.0];
            let parts = deal(&sizes, &shares, seed).unwrap();
            for part in 0..3 {
                prop_assert!(parts.contains(&part));
            }
            prop_assert_eq!(&parts, &deal(&sizes, &shares, seed).unwrap());
            // A part is off by half of the largest group, but where that goes to fill it.
            let total: u64 = sizes.iter().sum();
            let largest = *sizes.iter().max().unwrap();
            let bound = 2.0 * largest as f64 / total as f64;
            prop_assert!(deviation(&parts, &sizes, &shares) <= bound + 1e-9);
        }
    }
}
