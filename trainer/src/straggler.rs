//! Which rank the others wait for: ranks compare the time that each spent outside collectives.
//!
//! Time inside a collective says nothing of the rank that is in it: it is shortest on the slowest one.

use scpeft_collective::Collective;

use crate::failure::Result;

/// How fast a rank is beside the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Standing {
    /// The median time over ranks divided by this rank's: 1 for one like the others, below 1 for a
    /// slow one.
    pub(crate) score: f64,
    /// The slowest rank.
    pub(crate) slowest: usize,
    /// Its score.
    pub(crate) slowest_score: f64,
}

/// Adds up this rank's time outside collectives until ranks compare.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    busy_seconds: f64,
}

impl Pace {
    /// Adds a step of `seconds`, `waited` of them in collectives.
    pub(crate) fn add(&mut self, seconds: f64, waited: f64) {
        self.busy_seconds += (seconds - waited).max(0.0);
    }

    /// Compares what was added since the last time; `None` for a run of one rank.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport fails.
    pub(crate) fn compare(&mut self, world: &dyn Collective) -> Result<Option<Standing>> {
        let topology = world.topology();
        let busy = std::mem::take(&mut self.busy_seconds);
        if topology.world_size == 1 {
            return Ok(None);
        }
        let mut all = vec![0.0; topology.world_size];
        all[topology.rank] = busy;
        world.all_reduce_sum_f64(&mut all)?;
        Ok(Some(standing(&all, topology.rank)))
    }
}

/// The standing of `rank` by the seconds of every rank.
fn standing(seconds: &[f64], rank: usize) -> Standing {
    let typical = median(seconds);
    // A rank that did nothing at all is not slow.
    let score = |own: f64| if own > 0.0 { typical / own } else { 1.0 };
    let slowest = (0..seconds.len())
        .max_by(|&a, &b| seconds[a].total_cmp(&seconds[b]))
        .unwrap_or(0);
    Standing {
        score: score(seconds[rank]),
        slowest,
        slowest_score: score(seconds[slowest]),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::Single;

    #[test]
    fn the_slowest_rank_is_named_and_scores_below_one() {
        let seconds = [1.0, 1.0, 4.0, 2.0];
        let of = |rank| standing(&seconds, rank);
        assert_eq!((of(0).slowest, of(0).slowest_score), (2, 0.375));
        assert_eq!([0, 1, 2, 3].map(|r| of(r).score), [1.5, 1.5, 0.375, 0.75]);
        assert_eq!(standing(&[2.0, 2.0, 2.0], 1).score, 1.0);
        assert_eq!(standing(&[0.0, 0.0], 0).score, 1.0);
    }

    #[test]
    fn time_in_collectives_does_not_count_and_each_comparison_starts_anew() {
        let mut pace = Pace::default();
        pace.add(3.0, 1.0);
        pace.add(1.0, 1.5);
        assert_eq!(pace.busy_seconds, 2.0);
        assert_eq!(pace.compare(&Single).unwrap(), None);
        assert_eq!(pace.busy_seconds, 0.0);
    }
}
