//! Hosts that fall silent in mid-run, and whether the run can go on without them.

use crate::board::{Board, Rank};
use crate::command::Request;
use crate::hosts::Host;
use crate::server::Server;
use crate::training::Batch;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often the hosts are looked at. Guards speak every second.
const TICK: Duration = Duration::from_secs(1);

/// A host none of whose ranks has been heard for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// As it was asked for, or as it calls itself.
    pub host: String,
    /// Its ranks, in order.
    pub ranks: Vec<u32>,
    /// How long nothing has been heard.
    pub silence: Duration,
}

impl Silent {
    /// One line for the user.
    pub fn tell(&self) -> String {
        let ranks: Vec<String> = self.ranks.iter().map(u32::to_string).collect();
        format!(
            "host {} is cut off: nothing heard of its ranks ({}) for {} s",
            self.host,
            ranks.join(", "),
            self.silence.as_secs()
        )
    }
}

/// Waits until a host has been silent for `patience`. Two looks in a row must agree: after a pause of
/// our own, what has arrived meanwhile is read between them.
pub async fn watch(server: &Server, request: &Request, patience: Duration) -> Vec<Silent> {
    let mut before: Vec<String> = Vec::new();
    loop {
        tokio::time::sleep(TICK).await;
        let place = |rank: &Rank| {
            let asked = request.host_of(rank.hello.rank);
            asked.map_or_else(|| rank.hello.host.clone(), |host| host.name.clone())
        };
        let silent = silent(&server.board(), place, Instant::now(), patience);
        let confirmed: Vec<Silent> = silent
            .iter()
            .filter(|s| before.contains(&s.host))
            .cloned()
            .collect();
        if !confirmed.is_empty() {
            return confirmed;
        }
        before = silent.into_iter().map(|silent| silent.host).collect();
    }
}

/// The hosts whose ranks have all been silent for `patience` and have not all said how they ended.
fn silent(
    board: &Board,
    place: impl Fn(&Rank) -> String,
    now: Instant,
    patience: Duration,
) -> Vec<Silent> {
    let mut hosts: BTreeMap<String, Vec<&Rank>> = BTreeMap::new();
    for rank in board.ranks() {
        hosts.entry(place(rank)).or_default().push(rank);
    }
    let mut found = Vec::new();
    for (host, ranks) in hosts {
        let silences = ranks
            .iter()
            .map(|rank| now.saturating_duration_since(rank.heard));
        let silence = silences.min().unwrap_or_default();
        if silence >= patience && ranks.iter().any(|rank| rank.bye.is_none()) {
            found.push(Silent {
                host,
                ranks: ranks.iter().map(|rank| rank.hello.rank).collect(),
                silence,
            });
        }
    }
    found
}

/// The hosts that are left and how many ranks they take, at most `ranks`.
///
/// # Errors
/// With a text for the user: when none is left, or they do not divide the batch.
pub fn shrink(
    hosts: &[Host],
    lost: &[Silent],
    ranks: u32,
    batch: Batch,
) -> Result<(Vec<Host>, u32), String> {
    let is_left = |host: &&Host| lost.iter().all(|silent| silent.host != host.name);
    let left: Vec<Host> = hosts.iter().filter(is_left).cloned().collect();
    let slots = left
        .iter()
        .fold(0_u32, |sum, host| sum.saturating_add(host.slots));
    let fewer = ranks.min(slots);
    if fewer == 0 {
        return Err("no host is left".into());
    }
    let cells = batch.cells;
    if batch.divided_by_ranks && !cells.is_multiple_of(fewer as usize) {
        return Err(format!(
            "the {fewer} ranks that are left do not divide `train.batch_cells`: {cells} / {fewer} = \
             {:.2}; set `train.micro_batch_cells`, which any number of ranks can share out",
            cells as f64 / f64::from(fewer)
        ));
    }
    Ok((left, fewer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::parse_list;
    use scpeft_protocol::heartbeat::{Beat, Bye, Hello, Message, Role};

    fn hear(board: &mut Board, rank: u32, host: &str, message: Message, at: Instant) {
        let hello = Hello {
            role: Role::Guard,
            rank,
            host: host.into(),
            ..Hello::default()
        };
        board.hear(&hello, message, at);
    }

    fn names(board: &Board, now: Instant) -> Vec<(String, Vec<u32>, u64)> {
        let place = |rank: &Rank| rank.hello.host.clone();
        silent(board, place, now, Duration::from_secs(15))
            .into_iter()
            .map(|s| (s.host, s.ranks, s.silence.as_secs()))
            .collect()
    }

    #[test]
    fn a_host_is_silent_when_all_of_its_ranks_are() {
        let begun = Instant::now();
        let later = |seconds| begun + Duration::from_secs(seconds);
        let mut board = Board::default();
        for (rank, host) in [(0, "a"), (1, "a"), (2, "b"), (3, "b")] {
            hear(
                &mut board,
                rank,
                host,
                Message::Beat(Beat::default()),
                begun,
            );
        }
        assert_eq!(names(&board, later(14)), []);
        hear(
            &mut board,
            1,
            "a",
            Message::Beat(Beat::default()),
            later(10),
        );
        hear(&mut board, 2, "b", Message::Beat(Beat::default()), later(2));
        // Rank 0 alone is late: that is no matter of its host.
        assert_eq!(names(&board, later(16)), []);
        let expected = ("b".to_owned(), vec![2, 3], 16);
        assert_eq!(names(&board, later(18)), [expected]);
        for rank in [2, 3] {
            hear(
                &mut board,
                rank,
                "b",
                Message::Bye(Bye::default()),
                later(18),
            );
        }
        assert_eq!(names(&board, later(24)), []);
        assert_eq!(names(&board, later(90)).len(), 1, "b has ended, a has not");
    }

    #[test]
    fn what_is_left_takes_over_when_the_batch_can_be_shared_out() {
        let hosts = parse_list("a:4,b:4,c:2").unwrap();
        let lost = |name: &str| Silent {
            host: name.into(),
            ranks: vec![4, 5, 6, 7],
            silence: Duration::from_secs(61),
        };
        let batch = |cells, divided_by_ranks| Batch {
            cells,
            divided_by_ranks,
        };
        let (left, ranks) = shrink(&hosts, &[lost("b")], 10, batch(48, true)).unwrap();
        assert_eq!((left, ranks), (parse_list("a:4,c:2").unwrap(), 6));
        let few = shrink(&hosts, &[lost("b")], 3, batch(48, true)).unwrap();
        assert_eq!(few.1, 3);
        let error = shrink(&hosts, &[lost("b")], 10, batch(32, true)).unwrap_err();
        assert!(
            error.starts_with(
                "the 6 ranks that are left do not divide `train.batch_cells`: 32 / 6 = 5.33;"
            ),
            "{error}"
        );
        assert_eq!(
            shrink(&hosts, &[lost("b")], 10, batch(32, false))
                .unwrap()
                .1,
            6
        );
        let all = [lost("a"), lost("b"), lost("c")];
        assert_eq!(
            shrink(&hosts, &all, 10, batch(48, true)),
            Err("no host is left".into())
        );
        let expected = "host b is cut off: nothing heard of its ranks (4, 5, 6, 7) for 61 s";
        assert_eq!(lost("b").tell(), expected);
    }
}
