//! The ranks as the page shows them and as `ranks.json` keeps them for later.

use crate::board::{Board, Rank};
use crate::diagnosis::likely_cause;
use scpeft_protocol::heartbeat::{Bye, Section};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;

/// Ranks speak every second: a beat that is older says that something is in its way.
const LATE_SECONDS: f64 = 5.0;
/// Beats that old say that the process or its host is gone or stopped.
const SILENT_SECONDS: f64 = 15.0;
/// Longer than this in one section of one step is worth a look.
const STUCK_SECONDS: f64 = 120.0;
/// More ranks than this are shown only once they are heard of.
const RANKS_SHOWN_MAX: u32 = 10_000;

/// What is known of a rank; times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankFacts {
    /// Global rank.
    pub rank: u32,
    /// Rank among those of its host.
    pub local_rank: u32,
    /// Host name.
    pub host: String,
    /// Device; empty while unknown.
    pub device: String,
    /// Process id on its host.
    pub pid: u32,
    /// Port of its metrics.
    pub metrics_port: Option<u16>,
    /// Optimizer steps done.
    pub step: u64,
    /// Steps planned; 0 while unknown.
    pub planned_steps: u64,
    /// What it is doing; `None` when the rank itself has not spoken yet.
    pub section: Option<Section>,
    /// Since when.
    pub since: f64,
    /// Seconds by section, in the order of [`Section::ALL`].
    pub section_seconds: [f64; Section::ALL.len()],
    /// Resident memory in bytes; 0 while unknown.
    pub memory_bytes: u64,
    /// Device memory in use in bytes.
    pub device_memory_bytes: Option<u64>,
    /// Cells per second of the run (rank 0).
    pub cells_per_second: Option<f64>,
    /// Step of the last complete checkpoint (rank 0).
    pub checkpoint_step: Option<u64>,
    /// When it was last heard, or its guard where it does not speak itself.
    pub heard: f64,
    /// How it ended.
    pub end: Option<RankEnd>,
}

/// The end of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankEnd {
    /// Exit code.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The likely cause.
    pub cause: Option<String>,
    /// The last lines that it wrote.
    pub last_lines: Vec<String>,
    /// Whether it was the first to fail.
    pub first: bool,
}

/// How a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not heard of yet.
    Waiting,
    /// Heard lately and at work.
    Ok,
    /// In one section of one step for long.
    Stuck,
    /// Not heard for some seconds.
    Late,
    /// Not heard for long.
    Silent,
    /// Ended as it should.
    Ended,
    /// Ended with a failure, after another rank.
    Failed,
    /// The first that failed.
    Culprit,
    /// Nothing is known of its end.
    Unknown,
}

/// A row of the rank grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankRow {
    /// What is known.
    #[serde(flatten)]
    pub facts: RankFacts,
    /// How it is.
    pub health: Health,
    /// Seconds since it was last heard; `None` after the end.
    pub age_seconds: Option<f64>,
    /// Seconds in this section of this step; `None` after the end.
    pub section_age_seconds: Option<f64>,
    /// Its own work per step over that of the median rank: more than 1 keeps the others waiting.
    pub skew: Option<f64>,
}

impl RankFacts {
    /// One that has not been heard of.
    pub fn unheard(rank: u32) -> Self {
        Self {
            rank,
            local_rank: 0,
            host: String::new(),
            device: String::new(),
            pid: 0,
            metrics_port: None,
            step: 0,
            planned_steps: 0,
            section: None,
            since: 0.0,
            section_seconds: [0.0; Section::ALL.len()],
            memory_bytes: 0,
            device_memory_bytes: None,
            cells_per_second: None,
            checkpoint_step: None,
            heard: 0.0,
            end: None,
        }
    }

    fn of(rank: &Rank, first_failure: Option<u32>, now: (Instant, f64)) -> Self {
        let Rank { hello, beat, .. } = rank;
        let time = |at: Instant| now.1 - now.0.saturating_duration_since(at).as_secs_f64();
        Self {
            rank: hello.rank,
            local_rank: hello.local_rank,
            host: hello.host.clone(),
            device: hello.device.clone(),
            pid: hello.pid,
            metrics_port: hello.metrics_port,
            step: beat.step,
            planned_steps: beat.planned_steps,
            section: rank.spoke.map(|_| beat.section),
            since: time(rank.since),
            section_seconds: beat.section_seconds,
            memory_bytes: beat.memory_bytes,
            device_memory_bytes: beat.device_memory_bytes,
            cells_per_second: beat.cells_per_second,
            checkpoint_step: beat.checkpoint_step,
            heard: time(rank.spoke.unwrap_or(rank.heard)),
            end: rank
                .bye
                .as_ref()
                .map(|bye| RankEnd::of(bye, first_failure == Some(hello.rank))),
        }
    }

    /// Seconds of its own work: everything but waiting for others, evaluation and checkpoints.
    fn work_seconds(&self) -> f64 {
        [Section::Data, Section::Forward, Section::Optimizer]
            .map(|section| self.section_seconds[section as usize])
            .iter()
            .sum()
    }
}

impl RankEnd {
    fn of(bye: &Bye, first: bool) -> Self {
        Self {
            code: bye.code,
            signal: bye.signal,
            cause: likely_cause(bye).map(str::to_owned),
            last_lines: bye.last_lines.clone(),
            first,
        }
    }
}

/// The ranks of a board; `now` is the same moment on both clocks.
pub fn of_board(board: &Board, now: (Instant, f64)) -> Vec<RankFacts> {
    let first = board.first_failure().map(|(rank, _)| rank.hello.rank);
    board
        .ranks()
        .map(|rank| RankFacts::of(rank, first, now))
        .collect()
}

/// Rows for `world_size` ranks, those that were not heard of among them. `now` is `None` when
/// nobody listens any more.
pub fn rows(facts: &[RankFacts], world_size: u32, now: Option<f64>) -> Vec<RankRow> {
    let median = median_work(facts);
    let mut rows: Vec<RankRow> = facts
        .iter()
        .map(|facts| RankRow {
            health: health(facts, now),
            age_seconds: now.map(|now| (now - facts.heard).max(0.0)),
            section_age_seconds: now.map(|now| (now - facts.since).max(0.0)),
            skew: median.map(|median| facts.work_seconds() / median),
            facts: facts.clone(),
        })
        .collect();
    let heard: BTreeSet<u32> = rows.iter().map(|row| row.facts.rank).collect();
    // A made-up world size must not cost memory.
    let ranks = 0..world_size.min(RANKS_SHOWN_MAX);
    rows.extend(
        ranks
            .filter(|rank| !heard.contains(rank))
            .map(|rank| RankRow {
                facts: RankFacts::unheard(rank),
                health: Health::Waiting,
                age_seconds: None,
                section_age_seconds: None,
                skew: None,
            }),
    );
    rows.sort_by_key(|row| row.facts.rank);
    rows
}

/// Median of the ranks' own work; `None` with fewer than two ranks or before there is any.
fn median_work(facts: &[RankFacts]) -> Option<f64> {
    let mut work: Vec<f64> = facts.iter().map(RankFacts::work_seconds).collect();
    work.sort_by(f64::total_cmp);
    let median = *work.get(work.len() / 2)?;
    (work.len() > 1 && median > 0.0).then_some(median)
}

fn health(facts: &RankFacts, now: Option<f64>) -> Health {
    match (&facts.end, now) {
        (Some(end), _) if end.first => Health::Culprit,
        // A rank that was asked to stop and saved has done what it should.
        (Some(end), _) if [0, scpeft_protocol::exit::PREEMPTED].contains(&end.code) => {
            Health::Ended
        }
        (Some(_), _) => Health::Failed,
        (None, None) => Health::Unknown,
        (None, Some(now)) if now - facts.heard > SILENT_SECONDS => Health::Silent,
        (None, Some(now)) if now - facts.heard > LATE_SECONDS => Health::Late,
        (None, Some(now)) if facts.section.is_some() && now - facts.since > STUCK_SECONDS => {
            match facts.section {
                Some(Section::Setup | Section::Eval | Section::Checkpoint | Section::Done) => {
                    Health::Ok
                }
                _ => Health::Stuck,
            }
        }
        (None, Some(_)) => Health::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_work(rank: u32, forward_seconds: f64) -> RankFacts {
        let mut facts = RankFacts::unheard(rank);
        facts.section = Some(Section::Forward);
        facts.section_seconds[Section::Forward as usize] = forward_seconds;
        (facts.heard, facts.since) = (100.0, 100.0);
        facts
    }

    fn ended(code: i32, first: bool) -> RankFacts {
        let mut facts = at_work(0, 1.0);
        facts.end = Some(RankEnd {
            code,
            signal: None,
            cause: None,
            last_lines: Vec::new(),
            first,
        });
        facts
    }

    #[test]
    fn health_tells_who_failed_who_is_silent_and_who_waits() {
        let facts = at_work(0, 1.0);
        for (now, expected) in [
            (Some(101.0), Health::Ok),
            (Some(106.0), Health::Late),
            (Some(116.0), Health::Silent),
            (None, Health::Unknown),
        ] {
            assert_eq!(health(&facts, now), expected, "{now:?}");
        }
        let mut stuck = at_work(0, 1.0);
        stuck.heard = 300.0;
        assert_eq!(health(&stuck, Some(300.0)), Health::Stuck);
        stuck.section = Some(Section::Eval);
        assert_eq!(health(&stuck, Some(300.0)), Health::Ok);
        assert_eq!(health(&ended(137, true), Some(101.0)), Health::Culprit);
        assert_eq!(health(&ended(143, false), None), Health::Failed);
        assert_eq!(health(&ended(85, false), None), Health::Ended);
    }

    #[test]
    fn the_rank_that_the_others_wait_for_has_the_largest_skew() {
        let facts = [at_work(0, 10.0), at_work(1, 15.0), at_work(2, 10.0)];
        let rows = rows(&facts, 4, Some(101.0));
        let skew: Vec<_> = rows.iter().map(|row| row.skew).collect();
        assert_eq!(skew, [Some(1.0), Some(1.5), Some(1.0), None]);
        assert_eq!(rows[3].health, Health::Waiting);
        let alone = super::rows(&facts[..1], 1, None);
        assert_eq!(alone[0].skew, None);
    }

    #[test]
    fn facts_survive_their_file() {
        let facts = vec![ended(137, true), at_work(1, 2.0)];
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<RankFacts>>(&text).unwrap(),
            facts
        );
    }
}
