//! Which checkpoints may be deleted: a pure function of what exists.

/// A checkpoint as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its step.
    pub step: u64,
    /// Whether it is complete and undamaged.
    pub good: bool,
}

/// The steps to delete so that the newest `keep_last` good checkpoints and the best one remain.
///
/// The newest good checkpoint always stays, `keep_last` of 0 counting as 1. Damaged ones are
/// deleted only when a newer good one exists, and never the best, so that a mistaken verdict
/// cannot cost the last usable state.
pub fn to_delete(candidates: &[Candidate], best: Option<u64>, keep_last: usize) -> Vec<u64> {
    let mut newest_first = candidates.to_vec();
    newest_first.sort_by_key(|c| std::cmp::Reverse(c.step));
    let mut good_seen = 0;
    let mut delete = Vec::new();
    for candidate in newest_first {
        let keep = Some(candidate.step) == best
            || if candidate.good {
                good_seen < keep_last.max(1)
            } else {
                good_seen == 0
            };
        good_seen += usize::from(candidate.good);
        if !keep {
            delete.push(candidate.step);
        }
    }
    delete
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_newest_good_and_the_best_survive(
            map in proptest::collection::btree_map(0_u64..50, any::<bool>(), 0..12),
            best in proptest::option::of(0_u64..50),
            keep_last in 0_usize..5,
        ) {
            let candidates: Vec<_> =
                map.iter().map(|(&step, &good)| Candidate { step, good }).collect();
            let delete = to_delete(&candidates, best, keep_last);
            let left: BTreeMap<_, _> =
                map.iter().filter(|(step, _)| !delete.contains(step)).collect();
            let good: Vec<_> = map.iter().filter(|(_, good)| **good).map(|(s, _)| *s).collect();
            for step in good.iter().rev().take(keep_last.max(1)) {
                prop_assert!(left.contains_key(step), "{step} of the newest good was deleted");
            }
            if let Some(best) = best.filter(|best| map.contains_key(best)) {
                prop_assert!(left.contains_key(&best), "the best was deleted");
            }
            let kept = left.iter().filter(|(step, good)| ***good && Some(***step) != best).count();
            prop_assert!(kept <= keep_last.max(1), "{kept} good ones were kept");
            prop_assert!(delete.iter().all(|step| map.contains_key(step)));
        }
    }

    #[test]
    fn damaged_ones_go_once_something_newer_is_good() {
        let all = |list: &[(u64, bool)]| -> Vec<Candidate> {
            list.iter()
                .map(|&(step, good)| Candidate { step, good })
                .collect()
        };
        assert_eq!(
            to_delete(&all(&[(1, false), (2, true), (3, false)]), None, 2),
            [1]
        );
        assert_eq!(
            to_delete(&all(&[(1, false), (2, false)]), None, 1),
            Vec::<u64>::new()
        );
        assert_eq!(
            to_delete(&all(&[(1, true), (2, true), (3, true)]), Some(1), 1),
            [2]
        );
    }
}
