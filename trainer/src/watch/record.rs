//! The flight record: the last collectives of a rank, and what it and its neighbours were doing.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use scpeft_checkpoint::fsx;
use scpeft_protocol::heartbeat::Section;
use serde_json::{Value, json};

use super::board::State;
use super::verdict::Expired;

/// Collectives that are remembered.
const REMEMBERED: usize = 256;

/// One collective. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    number: u64,
    op: &'static str,
    bytes: u64,
    begun: u64,
    ended: Option<u64>,
}

/// The last collectives of a rank.
#[derive(Debug, Clone, Default)]
pub(super) struct Flight {
    entries: VecDeque<Entry>,
}

impl Flight {
    pub(super) fn begin(&mut self, number: u64, op: &'static str, bytes: u64, begun: u64) {
        if self.entries.len() == REMEMBERED {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            number,
            op,
            bytes,
            begun,
            ended: None,
        });
    }

    /// The collective that began last has ended; its operation, bytes and begin.
    pub(super) fn end(&mut self, ended: u64) -> Option<(&'static str, u64, u64)> {
        let last = self.entries.back_mut()?;
        last.ended = Some(ended);
        Some((last.op, last.bytes, last.begun))
    }
}

/// All that is known when a rank gives up.
pub(super) struct Report {
    pub(super) own: State,
    pub(super) others: Vec<State>,
    pub(super) world_size: usize,
    /// `None` for a rank that was told by another one.
    pub(super) expired: Option<Expired>,
    pub(super) flight: Flight,
    pub(super) now: u64,
}

impl Report {
    /// Says what happened when this rank `speaks`, then writes `flight-rank-N.json`.
    pub(super) fn publish(&self, directory: Option<&Path>, speaks: bool) {
        let rank = self.own.rank;
        if let Some(expired) = self.expired.as_ref().filter(|_| speaks) {
            eprintln!("error: {}", self.message(expired, directory));
        }
        let Some(directory) = directory else { return };
        let path = directory.join(format!("flight-rank-{rank}.json"));
        let text = serde_json::to_string_pretty(&self.to_json()).unwrap_or_default() + "\n";
        let written =
            fsx::create_dir_all(directory).and_then(|()| fsx::write_atomic(&path, text.as_bytes()));
        if let Err(error) = written {
            eprintln!("rank {rank}: no flight record: {error}");
        }
    }

    fn message(&self, expired: &Expired, directory: Option<&Path>) -> String {
        let State { rank, step, .. } = self.own;
        let Expired {
            section,
            waited,
            deadline,
            behind,
        } = expired;
        let mut lines = vec![format!(
            "rank {rank}: no progress in section `{}` for {:.1} s (the deadline is {} s), step {step}",
            section.name(),
            waited.as_secs_f64(),
            deadline.as_secs()
        )];
        if *section == Section::Collective {
            if let Some(last) = self.flight.entries.back() {
                lines.push(format!(
                    "  it waits in collective {} ({}, {} bytes)",
                    last.number, last.op, last.bytes
                ));
            }
            lines.extend(behind.iter().map(|other| self.describe(other)));
            if behind.is_empty() {
                lines.push(if self.others.len() + 1 < self.world_size {
                    "  every rank of this host is in it: look at those of the other hosts"
                        .to_owned()
                } else {
                    "  every rank is in it: the transport hangs".to_owned()
                });
            }
        }
        let records = directory.map_or(String::new(), |directory| {
            format!(
                "`{}/flight-rank-*.json` has the last collectives; ",
                directory.display()
            )
        });
        lines.push(format!(
            "help: {records}`--resume` continues from the last checkpoint; \
             raise `watchdog.{}` if this may take longer",
            section.name()
        ));
        lines.join("\n")
    }

    fn describe(&self, other: &State) -> String {
        format!(
            "  rank {} is behind (process {}, {}): section `{}` of step {}, no progress for {:.1} s",
            other.rank,
            other.pid,
            process_state(other.pid),
            other.section.name(),
            other.step,
            self.seconds_since(other.beat)
        )
    }

    fn seconds_since(&self, time: u64) -> f64 {
        Duration::from_nanos(self.now.saturating_sub(time)).as_secs_f64()
    }

    fn to_json(&self) -> Value {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let at = |time: u64| unix - self.seconds_since(time);
        let state = |state: &State| {
            json!({
                "rank": state.rank,
                "pid": state.pid,
                "process": process_state(state.pid),
                "section": state.section.name(),
                "step": state.step,
                "section_begun": at(state.since),
                "last_progress": at(state.beat),
                "collectives": state.entered,
            })
        };
        let collectives: Vec<Value> = (self.flight.entries.iter())
            .map(|entry| {
                json!({
                    "number": entry.number,
                    "op": entry.op,
                    "bytes": entry.bytes,
                    "begun": at(entry.begun),
                    "ended": entry.ended.map(at),
                })
            })
            .collect();
        let behind = self.expired.as_ref().map(|expired| &expired.behind);
        json!({
            "format_version": 1,
            "time": unix,
            "world_size": self.world_size,
            "expired": self.expired.as_ref().map(|expired| json!({
                "section": expired.section.name(),
                "seconds": expired.waited.as_secs_f64(),
                "deadline_seconds": expired.deadline.as_secs(),
            })),
            "ranks_behind": behind.map_or(Vec::new(), |b| b.iter().map(|s| s.rank).collect()),
            "own": state(&self.own),
            "others_on_this_host": self.others.iter().map(state).collect::<Vec<_>>(),
            "collectives": collectives,
        })
    }
}

const STOPPED: &str = "stopped by a signal or debugger";

/// Whether the process of a rank of this host has been stopped.
pub(super) fn is_stopped(rank: &State) -> bool {
    process_state(rank.pid) == STOPPED
}

/// What the kernel says a process is doing.
fn process_state(pid: u64) -> &'static str {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return "gone";
    };
    // The name in parentheses may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    match state {
        Some('R') => "running",
        Some('S') => "sleeping",
        Some('D') => "waiting for a disk or device",
        Some('T' | 't') => STOPPED,
        Some('Z' | 'X') => "dead",
        _ => "in an unknown state",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_256_collectives_are_kept() {
        let mut flight = Flight::default();
        for number in 1..=300 {
            flight.begin(number, "barrier", number * 2, number * 10);
            if number < 300 {
                flight.end(number * 10 + 5);
            }
        }
        assert_eq!(flight.entries.len(), 256);
        let (first, last) = (&flight.entries[0], &flight.entries[255]);
        assert_eq!((first.number, first.ended), (45, Some(455)));
        assert_eq!((last.number, last.bytes, last.ended), (300, 600, None));
    }
}
