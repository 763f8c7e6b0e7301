//! What is known of the ranks of an attempt, from their heartbeats and the ends that guards report.

use crate::policy::Reached;
use scpeft_protocol::heartbeat::{Beat, Bye, Hello, Message, Role};
use std::collections::BTreeMap;
use std::time::Instant;

/// One rank.
#[derive(Debug, Clone)]
pub struct Rank {
    /// Who it is, without the token.
    pub hello: Hello,
    /// Where it is.
    pub beat: Beat,
    /// When it or its guard was last heard.
    pub heard: Instant,
    /// When the rank itself was last heard.
    pub spoke: Option<Instant>,
    /// Since when it has been in this section of this step.
    pub since: Instant,
    /// How it ended.
    pub bye: Option<Bye>,
}

/// The ranks of one attempt.
#[derive(Debug, Clone, Default)]
pub struct Board {
    ranks: BTreeMap<u32, Rank>,
    first_failure: Option<u32>,
}

impl Board {
    /// Takes in a message on a connection that said `hello` first.
    pub fn hear(&mut self, hello: &Hello, message: Message, now: Instant) {
        let rank = self.ranks.entry(hello.rank).or_insert_with(|| Rank {
            hello: without_token(hello),
            beat: Beat::default(),
            heard: now,
            spoke: None,
            since: now,
            bye: None,
        });
        rank.heard = now;
        if hello.role == Role::Rank {
            rank.spoke = Some(now);
        }
        match (hello.role, message) {
            (Role::Rank, Message::Hello(hello)) => rank.hello = without_token(&hello),
            (Role::Rank, Message::Beat(beat)) => {
                if (beat.step, beat.section) != (rank.beat.step, rank.beat.section) {
                    rank.since = now;
                }
                rank.beat = beat;
            }
            (Role::Guard, Message::Bye(bye)) => {
                if bye.code != 0 {
                    self.first_failure.get_or_insert(hello.rank);
                }
                rank.bye = Some(bye);
            }
            // The beats of a guard mean that it lives; how a rank itself says it ends is less than
            // what its guard sees.
            (Role::Guard, Message::Hello(_) | Message::Beat(_)) | (Role::Rank, Message::Bye(_)) => {
            }
        }
    }

    /// The ranks in order.
    pub fn ranks(&self) -> impl Iterator<Item = &Rank> {
        self.ranks.values()
    }

    /// The first rank that failed, and its end.
    pub fn first_failure(&self) -> Option<(&Rank, &Bye)> {
        let rank = self.ranks.get(&self.first_failure?)?;
        Some((rank, rank.bye.as_ref()?))
    }

    /// Whether any rank has started.
    pub fn has_started(&self) -> bool {
        !self.ranks.is_empty()
    }

    /// How far the ranks have come.
    pub fn reached(&self) -> Reached {
        Reached {
            checkpoint_step: self
                .ranks()
                .filter_map(|r| r.beat.checkpoint_step)
                .max()
                .unwrap_or(0),
            step: self.ranks().map(|r| r.beat.step).max().unwrap_or(0),
        }
    }
}

fn without_token(hello: &Hello) -> Hello {
    Hello {
        token: String::new(),
        ..hello.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(role: Role, rank: u32) -> Hello {
        Hello {
            token: "secret".into(),
            role,
            rank,
            ..Hello::default()
        }
    }

    fn bye(code: i32) -> Message {
        Message::Bye(Bye {
            code,
            ..Bye::default()
        })
    }

    #[test]
    fn the_first_guard_that_reports_a_failure_names_the_rank() {
        let mut board = Board::default();
        let now = Instant::now();
        assert!(!board.has_started());
        board.hear(&hello(Role::Guard, 0), bye(0), now);
        board.hear(&hello(Role::Rank, 3), bye(9), now);
        assert!(board.first_failure().is_none());
        board.hear(&hello(Role::Guard, 2), bye(3), now);
        board.hear(&hello(Role::Guard, 1), bye(143), now);
        let (rank, end) = board.first_failure().unwrap();
        assert_eq!((rank.hello.rank, end.code), (2, 3));
        assert!(board.has_started());
    }

    #[test]
    fn progress_is_that_of_the_furthest_rank_and_no_token_is_kept() {
        let mut board = Board::default();
        let now = Instant::now();
        for (rank, step, saved) in [(0, 7, Some(4)), (1, 8, None)] {
            let beat = Beat {
                step,
                checkpoint_step: saved,
                ..Beat::default()
            };
            board.hear(&hello(Role::Rank, rank), Message::Beat(beat), now);
            board.hear(
                &hello(Role::Guard, rank),
                Message::Beat(Beat::default()),
                now,
            );
        }
        let reached = Reached {
            checkpoint_step: 4,
            step: 8,
        };
        assert_eq!(board.reached(), reached);
        assert!(board.ranks().all(|rank| rank.hello.token.is_empty()));
    }
}
