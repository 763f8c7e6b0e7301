//! An all-reduce whose sum is known, before anything depends on sums: a transport that is set up wrongly
//! shows now, not in a loss curve.

use std::time::{Duration, Instant};

use crate::{Collective, Error, Result};

/// Elements that are summed: 4 MiB, about what adapters and heads of a published backbone have.
const ELEMENTS: usize = 1 << 20;
/// Values repeat after this many elements and ranks.
const PERIOD: usize = 5;

/// How fast an all-reduce of known size was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Bytes of each rank's buffer.
    pub bytes: usize,
    /// Time of the second of two all-reduces; the first one opens connections.
    pub elapsed: Duration,
    /// Ranks that took part.
    pub ranks: usize,
}

impl Bandwidth {
    /// Bytes of the buffer per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl std::fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "all-reduce of {} ranks: sum checked, {:.1} MiB in {:.2} ms, {:.2} GB/s",
            self.ranks,
            self.bytes as f64 / f64::from(1 << 20),
            1e3 * self.elapsed.as_secs_f64(),
            self.bytes_per_second() / 1e9
        )
    }
}

/// What a rank brings: small whole numbers, so that every order of summing is exact; of place and
/// rank, so that a rank that is missing or counted twice, and shifted elements, show.
fn value(rank: usize, element: usize) -> f32 {
    (1 + (rank + element) % PERIOD) as f32
}

/// Sums over all ranks what is known to each, twice, and compares. `None` for a single rank.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// [`Error::WrongSum`] on the ranks that received a wrong sum; when the transport fails.
pub fn self_check(world: &dyn Collective) -> Result<Option<Bandwidth>> {
    let topology = world.topology();
    if topology.world_size == 1 {
        return Ok(None);
    }
    let expected: Vec<f32> = (0..PERIOD)
        .map(|element| (0..topology.world_size).map(|r| value(r, element)).sum())
        .collect();
    let mut elapsed = Duration::ZERO;
    for _ in 0..2 {
        let mut buffer: Vec<f32> = (0..ELEMENTS).map(|i| value(topology.rank, i)).collect();
        let begun = Instant::now();
        world.all_reduce_sum(&mut buffer)?;
        elapsed = begun.elapsed();
        let wrong = |&i: &usize| buffer[i] != expected[i % PERIOD];
        if let Some(element) = (0..ELEMENTS).find(wrong) {
            return Err(Error::WrongSum {
                rank: topology.rank,
                ranks: topology.world_size,
                element,
                elements: (0..ELEMENTS).filter(wrong).count(),
                expected: expected[element % PERIOD],
                found: buffer[element],
            });
        }
    }
    Ok(Some(Bandwidth {
        bytes: ELEMENTS * size_of::<f32>(),
        elapsed,
        ranks: topology.world_size,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Single;

    #[test]
    fn a_single_rank_has_nothing_to_check() {
        assert_eq!(self_check(&Single).unwrap(), None);
    }

    #[test]
    fn values_tell_ranks_and_places_apart() {
        assert_ne!(value(0, 3), value(1, 3));
        assert_ne!(value(0, 3), value(0, 4));
        assert_eq!(value(4, 0), 5.0);
    }

    #[test]
    fn bandwidth_is_said_in_one_line() {
        let measured = Bandwidth {
            bytes: 4 << 20,
            elapsed: Duration::from_millis(2),
            ranks: 8,
        };
        assert_eq!(
            measured.to_string(),
            "all-reduce of 8 ranks: sum checked, 4.0 MiB in 2.00 ms, 2.10 GB/s"
        );
    }
}
