//! Random numbers that belong to a thing, not to a stream.
//!
//! A generator is keyed by (seed, purpose, epoch, item) and counts up from zero, so that what a cell
//! draws never depends on which cells came before it, nor on the thread or rank that drew.

/// What the numbers are for. Each purpose has its own numbers for the same item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Order of the row groups in an epoch.
    RowGroups = 1,
    /// Order of the cells in a window.
    Window = 2,
    /// Which of several equal bin edges a value falls to.
    Binning = 3,
    /// Which genes of a long cell are kept.
    GeneSample = 4,
    /// Which values are masked.
    Mask = 5,
    /// Which cells go to which split.
    Split = 6,
    /// Which cells an epoch draws with replacement.
    Sampling = 7,
    /// In which order the last cells of each domain come.
    Domains = 8,
    /// In which order the lengths of a window come.
    Buckets = 9,
    /// Where a cell comes in a corpus that is shuffled as it is written.
    Import = 10,
    /// What synthetic cells hold.
    Synthesis = 12,
    /// Where the pattern of a stratified window begins.
    Strata = 13,
    /// The true random orders that shuffles are compared with.
    Reference = 14,
    /// Which control cell goes with a treated one.
    Control = 16,
    /// Which control cells are kept to be drawn from.
    ControlPool = 17,
    /// In which order rows in memory come in an epoch.
    Rows = 18,
}

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A counter-based generator (SplitMix64 over a mixed key).
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The generator of one item in one epoch for one purpose.
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, item: u64) -> Self {
        let mut state = mix(seed.wrapping_add(GAMMA));
        for part in [purpose as u64, epoch, item] {
            state = mix(state ^ part.wrapping_mul(GAMMA).wrapping_add(GAMMA));
        }
        Self { state }
    }

    /// The next 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// The number at a place, counted from the next one, without going there.
    #[inline]
    pub fn at(&self, place: u64) -> u64 {
        mix(self
            .state
            .wrapping_add(GAMMA.wrapping_mul(place.wrapping_add(1))))
    }

    /// A uniform number in [0, 1) with 53 random bits.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// A uniform integer in 0..n without bias (Lemire 2019). `n` must not be 0.
    #[inline]
    pub fn below(&mut self, n: u32) -> u32 {
        debug_assert!(n > 0);
        let mut product = (self.next_u64() >> 32) * u64::from(n);
        if (product as u32) < n {
            let threshold = n.wrapping_neg() % n;
            while (product as u32) < threshold {
                product = (self.next_u64() >> 32) * u64::from(n);
            }
        }
        (product >> 32) as u32
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other =
                self.below(u32::try_from(last + 1).expect("windows hold fewer than 2^32 cells"));
            items.swap(last, other as usize);
        }
    }
}

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_separate_streams() {
        let first = |seed, purpose, epoch, item| Rng::new(seed, purpose, epoch, item).next_u64();
        let base = first(1, Purpose::Mask, 2, 3);
        assert_eq!(base, first(1, Purpose::Mask, 2, 3));
        for other in [
            first(2, Purpose::Mask, 2, 3),
            first(1, Purpose::Binning, 2, 3),
            first(1, Purpose::Mask, 3, 3),
            first(1, Purpose::Mask, 2, 4),
            first(1, Purpose::Mask, 3, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn bounded_integers_are_even() {
        let mut rng = Rng::new(7, Purpose::GeneSample, 0, 0);
        let mut seen = [0_u32; 7];
        for _ in 0..70_000 {
            seen[rng.below(7) as usize] += 1;
        }
        // 10 000 expected each; 5 standard deviations are 463.
        assert!(seen.iter().all(|&n| n.abs_diff(10_000) < 463), "{seen:?}");
    }

    #[test]
    fn uniform_stays_in_range_and_has_the_right_mean() {
        let mut rng = Rng::new(7, Purpose::Binning, 0, 0);
        let mut sum = 0.0;
        for _ in 0..100_000 {
            let u = rng.uniform();
            assert!((0.0..1.0).contains(&u));
            sum += u;
        }
        assert!((sum / 100_000.0 - 0.5).abs() < 0.005);
    }
}
