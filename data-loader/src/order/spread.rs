//! Sequences in which everything comes as evenly as its share allows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A sequence in which category `c` comes `counts[c]` times, such that at every place each category has
/// come as often as its share says, give or take less than one time (Tijdeman 1980, the chairman assignment
/// problem): of those whose next turn has begun, the one whose turn ends first comes.
pub(super) fn spread(counts: &[usize]) -> Vec<u32> {
    let total = counts.iter().sum::<usize>();
    let present = counts.iter().filter(|&&n| n > 0).count();
    if present <= 1 {
        let only = counts.iter().position(|&n| n > 0).unwrap_or(0);
        return vec![only as u32; total];
    }
    let slack = 1.0 / (2 * present - 2) as f64;
    let turn = |category: u32, times: usize, offset: f64| {
        (times as f64 + offset) * total as f64 / counts[category as usize] as f64
    };
    // Both heaps give out the smallest first. Times are compared exactly, equal ones by category.
    let mut waiting: BinaryHeap<Reverse<Turn>> = (0..counts.len() as u32)
        .filter(|&c| counts[c as usize] > 0)
        .map(|c| Reverse(Turn(turn(c, 0, slack), c, 0)))
        .collect();
    let mut open: BinaryHeap<Reverse<Turn>> = BinaryHeap::new();
    let mut sequence = Vec::with_capacity(total);
    for place in 1..=total {
        while let Some(&Reverse(Turn(begin, category, times))) = waiting.peek() {
            // With rounding it may happen that no turn has begun: then the next one does.
            if begin > place as f64 && !open.is_empty() {
                break;
            }
            waiting.pop();
            open.push(Reverse(Turn(
                turn(category, times + 1, -slack),
                category,
                times,
            )));
        }
        let Some(Reverse(Turn(_, category, times))) = open.pop() else {
            break;
        };
        sequence.push(category);
        if times + 1 < counts[category as usize] {
            let begin = turn(category, times + 1, slack);
            waiting.push(Reverse(Turn(begin, category, times + 1)));
        }
    }
    sequence
}

/// When a turn begins or ends, whose it is, and which of theirs.
#[derive(Debug, Clone, Copy)]
struct Turn(f64, u32, usize);

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Turn {}
