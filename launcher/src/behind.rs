//! Which rank a hang waits for. The ranks of a host see each other; those of different hosts are seen
//! side by side by the launcher alone.

use crate::board::{Board, Rank};
use scpeft_protocol::heartbeat::Section;
use std::time::Instant;

/// The ranks that had entered fewer collectives than another one when they were last heard, the
/// furthest behind first. None when all were in the same: then the transport hangs.
fn behind(board: &Board) -> Vec<&Rank> {
    let spoke = || board.ranks().filter(|rank| rank.spoke.is_some());
    let most = spoke().map(|rank| rank.beat.collectives).max().unwrap_or(0);
    let mut behind: Vec<&Rank> = spoke()
        .filter(|rank| rank.beat.collectives < most && rank.beat.section != Section::Done)
        .collect();
    behind.sort_by_key(|rank| rank.beat.collectives);
    behind
}

/// A line for each rank that a hang waited for.
pub fn tell(board: &Board, now: Instant) -> Vec<String> {
    let ago = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
    behind(board)
        .into_iter()
        .map(|rank| {
            format!(
                "rank {} on {} is behind: section `{}`, {} steps done, there for {:.1} s, last heard {:.1} s ago",
                rank.hello.rank,
                rank.hello.host,
                rank.beat.section.name(),
                rank.beat.step,
                ago(rank.since),
                rank.spoke.map_or(0.0, ago)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_protocol::heartbeat::{Beat, Hello, Message, Role};
    use std::time::Duration;

    fn board(ranks: &[(u32, Section, u64)], now: Instant) -> Board {
        let mut board = Board::default();
        for &(rank, section, collectives) in ranks {
            let hello = Hello {
                role: Role::Rank,
                rank,
                host: format!("n{rank}"),
                ..Hello::default()
            };
            let beat = Beat {
                step: 7,
                section,
                collectives,
                ..Beat::default()
            };
            board.hear(&hello, Message::Beat(beat), now);
        }
        board
    }

    #[test]
    fn who_has_entered_fewer_collectives_is_named_the_furthest_behind_first() {
        let then = Instant::now();
        let ranks = [
            (0, Section::Collective, 9),
            (1, Section::Forward, 8),
            (2, Section::Collective, 9),
            (3, Section::Data, 5),
        ];
        let now = then + Duration::from_millis(2500);
        let expected = [
            "rank 3 on n3 is behind: section `data`, 7 steps done, there for 2.5 s, last heard 2.5 s ago",
            "rank 1 on n1 is behind: section `forward`, 7 steps done, there for 2.5 s, last heard 2.5 s ago",
        ];
        assert_eq!(tell(&board(&ranks, then), now), expected);
    }

    #[test]
    fn nobody_is_behind_where_all_wait() {
        let now = Instant::now();
        let ranks = [(0, Section::Collective, 9), (1, Section::Collective, 9)];
        assert!(tell(&board(&ranks, now), now).is_empty());
        assert!(tell(&Board::default(), now).is_empty());
    }
}
