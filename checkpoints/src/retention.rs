//! Which checkpoints may be deleted: a pure function of what exists.

use std::collections::BTreeSet;

/// A checkpoint as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its step.
    pub step: u64,
    /// Whether it is complete and undamaged.
    pub good: bool,
    /// Value of the selecting metric, larger being better; `None` when it was not evaluated.
    pub merit: Option<f64>,
}

/// What is kept: the union of all rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Newest good checkpoints; 0 counts as 1.
    pub keep_last: usize,
    /// Good checkpoints with the greatest merit; of equals the older.
    pub keep_best: usize,
    /// Good checkpoints whose step is a multiple of this; 0 is off.
    pub keep_every_steps: u64,
}

/// The steps to delete, newest first. `best` is the step that is marked best; it stays, good or not.
///
/// The newest good checkpoint always stays. Damaged ones are deleted only when a newer good one
/// exists, and never the best, so that a mistaken verdict cannot cost the last usable state.
pub fn to_delete(candidates: &[Candidate], best: Option<u64>, policy: Policy) -> Vec<u64> {
    let mut newest_first = candidates.to_vec();
    newest_first.sort_by_key(|c| std::cmp::Reverse(c.step));
    let good = || newest_first.iter().filter(|c| c.good);
    let mut keep: BTreeSet<u64> = best.into_iter().collect();
    keep.extend(good().take(policy.keep_last.max(1)).map(|c| c.step));
    let mut ranked: Vec<(f64, u64)> = good()
        .filter_map(|c| Some((c.merit.filter(|m| !m.is_nan())?, c.step)))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keep.extend(ranked.iter().take(policy.keep_best).map(|(_, step)| step));
    if policy.keep_every_steps > 0 {
        let every = |c: &&Candidate| c.step.is_multiple_of(policy.keep_every_steps);
        keep.extend(good().filter(every).map(|c| c.step));
    }
    let newest_good = good().next().map(|c| c.step);
    newest_first
        .iter()
        .filter(|c| newest_good.is_some_and(|newest| c.good || c.step < newest))
        .map(|c| c.step)
        .filter(|step| !keep.contains(step))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAST_TWO: Policy = Policy {
        keep_last: 2,
        keep_best: 0,
        keep_every_steps: 0,
    };

    fn candidate((&step, &(good, merit)): (&u64, &(bool, Option<i8>))) -> Candidate {
        let merit = merit.map(f64::from);
        Candidate { step, good, merit }
    }

    proptest! {
        #[test]
        fn every_rule_keeps_its_own_and_nothing_else_stays(
            map in proptest::collection::btree_map(
                0_u64..50, (any::<bool>(), proptest::option::of(-3_i8..3)), 0..14),
            best in proptest::option::of(0_u64..50),
            keep_last in 0_usize..5,
            keep_best in 0_usize..4,
            keep_every_steps in 0_u64..8,
        ) {
            let all: Vec<Candidate> = map.iter().map(candidate).collect();
            let policy = Policy { keep_last, keep_best, keep_every_steps };
            let delete = to_delete(&all, best, policy);
            prop_assert!(delete.iter().all(|step| map.contains_key(step)));
            let stays = |c: &Candidate| !delete.contains(&c.step);
            let good: Vec<&Candidate> = all.iter().filter(|c| c.good).collect();
            prop_assert_eq!(good.is_empty(), !good.iter().any(|c| stays(c)), "the last good one went");
            for c in &all {
                let newer = good.iter().filter(|g| g.step > c.step).count();
                let better = good
                    .iter()
                    .filter(|g| g.merit > c.merit || (g.merit == c.merit && g.step < c.step))
                    .count();
                let wanted = Some(c.step) == best
                    || if c.good {
                        newer < keep_last.max(1)
                            || (c.merit.is_some() && better < keep_best)
                            || (keep_every_steps > 0 && c.step % keep_every_steps == 0)
                    } else {
                        newer == 0
                    };
                prop_assert_eq!(stays(c), wanted, "{:?} of {:?}, {:?}", c, all, policy);
            }
        }
    }

    fn all(list: &[(u64, bool)]) -> Vec<Candidate> {
        let one = |&(step, good)| Candidate {
            step,
            good,
            merit: None,
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn damaged_ones_go_once_something_newer_is_good() {
        let damaged = all(&[(1, false), (2, true), (3, false)]);
        assert_eq!(to_delete(&damaged, None, LAST_TWO), [1]);
        let none_good = all(&[(1, false), (2, false)]);
        assert_eq!(to_delete(&none_good, None, LAST_TWO), Vec::<u64>::new());
        let one = Policy {
            keep_last: 1,
            ..LAST_TWO
        };
        let three = all(&[(1, true), (2, true), (3, true)]);
        assert_eq!(to_delete(&three, Some(1), one), [2]);
    }

    #[test]
    fn the_best_and_every_nth_stay_beside_the_newest() {
        let merits = [(10, 0.5), (20, 0.9), (30, 0.7), (40, f64::NAN), (50, 0.1)];
        let evaluated: Vec<Candidate> = merits
            .iter()
            .map(|&(step, merit)| Candidate {
                step,
                good: true,
                merit: Some(merit),
            })
            .collect();
        let policy = Policy {
            keep_last: 1,
            keep_best: 2,
            keep_every_steps: 0,
        };
        assert_eq!(to_delete(&evaluated, Some(20), policy), [40, 10]);
        let every = Policy {
            keep_best: 0,
            keep_every_steps: 20,
            ..policy
        };
        assert_eq!(to_delete(&evaluated, None, every), [30, 10]);
    }
}
