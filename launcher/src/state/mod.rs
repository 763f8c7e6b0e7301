//! The state of a run as the page and the JSON beside it show it: one structure, built from what the
//! run directory says, from the heartbeats of a launcher that watches, and from the clock. After the
//! end it is built from the run directory alone.

mod curves;
mod events;
mod folder;
mod follow;
mod pace;
mod ranks;
mod redact;
mod settings;
mod summary;

pub use curves::{Curve, Curves};
pub use events::{Event, Tone};
pub use folder::Folder;
pub use pace::Pace;
pub use ranks::{Health, RankEnd, RankFacts, RankRow, of_board, rows};
pub use redact::Redactor;
pub use settings::Setting;
pub use summary::Summary;

use crate::checkpoints::Checkpoint;
use crate::relay::Outcome;
use scpeft_protocol::exit;
use scpeft_protocol::heartbeat::Section;
use serde::Serialize;
use serde_json::Value;

/// Version of the JSON.
const FORMAT_VERSION: u32 = 1;
/// Rows of checkpoints that are shown, the newest.
const CHECKPOINTS_MAX: usize = 200;
/// A run without a launcher whose metrics are not older is taken to be at work.
const WRITES_SECONDS: f64 = 120.0;

/// Where a run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The ranks start, find each other, and load.
    Starting,
    /// At work; the ranks do not say on what.
    Running,
    /// Steps.
    Training,
    /// Evaluation.
    Evaluating,
    /// Waiting for a checkpoint.
    Saving,
    /// Asked to stop: it saves and leaves.
    Draining,
    /// Between a failure and the next start.
    Pausing,
    /// Everything was done.
    Done,
    /// Stopped on request.
    Stopped,
    /// Ended by a failure.
    Failed,
    /// Nobody watches it and nobody said how it ended.
    Lost,
}

/// What a watching launcher knows beside the heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Ranks in the run.
    pub world_size: u32,
    /// Whether somebody has asked the run to stop.
    pub stop_requested: bool,
    /// Whether it can be asked from here; not through the run directory of another launcher.
    pub controls: bool,
}

/// How far the run is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Steps planned; `None` while unknown.
    pub planned_steps: Option<u64>,
    /// Epoch of the last record, from 0.
    pub epoch: u64,
    /// Seconds since it was launched, up to its end.
    pub elapsed_seconds: Option<f64>,
    /// Seconds to the end at the present pace.
    pub eta_seconds: Option<f64>,
    /// Steps per second.
    pub steps_per_second: Option<f64>,
    /// Cells per second of all ranks.
    pub cells_per_second: Option<f64>,
}

/// Seconds in a section, summed over ranks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spent {
    /// The section.
    pub section: &'static str,
    /// Seconds.
    pub seconds: f64,
}

/// The failure that the run ended with, or that it is being restarted from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// Unix time.
    pub time: f64,
    /// Exit code.
    pub code: Option<i64>,
    /// What the code means.
    pub meaning: Option<String>,
    /// The first rank that failed.
    pub rank: Option<u64>,
    /// Its host.
    pub host: Option<String>,
    /// The likely cause.
    pub cause: Option<String>,
    /// Its last lines.
    pub last_lines: Vec<String>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunState {
    /// Of this structure.
    pub format_version: u32,
    /// Unix time at which it was built.
    pub time: f64,
    /// Whether a launcher watches the run.
    pub live: bool,
    /// Whether it can be asked to save or stop from here.
    pub controls: bool,
    /// What runs.
    pub summary: Summary,
    /// Where it is.
    pub phase: Phase,
    /// What went wrong, unless the run has gone on since.
    pub failure: Option<Failure>,
    /// Times that this launch was started again.
    pub restarts: u64,
    /// Unix time of the next start, while pausing.
    pub next_start: Option<f64>,
    /// How far it is.
    pub progress: Progress,
    /// Where the time goes.
    pub sections: Vec<Spent>,
    /// The ranks.
    pub ranks: Vec<RankRow>,
    /// What was measured.
    pub curves: Vec<Curve>,
    /// What happened, newest first.
    pub events: Vec<Event>,
    /// Checkpoints, newest first.
    pub checkpoints: Vec<CheckpointRow>,
    /// The configuration in force.
    pub settings: Vec<Setting>,
    /// What the run was expected to need, as `scpeft-train plan --json` says it.
    pub plan: Value,
}

/// A checkpoint with what points to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointRow {
    /// What its directory says.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// A resumed run would begin here.
    pub is_latest: bool,
    /// The best by the selecting metric.
    pub is_best: bool,
}

impl RunState {
    /// Builds it at Unix time `now`. `ranks` are those of the board of a launcher that watches; what
    /// `ranks.json` keeps otherwise.
    pub fn new(
        folder: &Folder,
        ranks: &[RankFacts],
        watched: Option<Watched>,
        pace: &mut Pace,
        now: f64,
    ) -> Self {
        let phase = phase(folder, ranks, watched, now);
        let progress = progress(folder, ranks, phase, pace, now);
        let world_size = watched.map_or(0, |watched| watched.world_size);
        let listening = watched.filter(|_| !is_over(phase)).map(|_| now);
        let newest = folder.checkpoints.iter().rev().take(CHECKPOINTS_MAX);
        Self {
            format_version: FORMAT_VERSION,
            time: now,
            live: watched.is_some(),
            controls: watched.is_some_and(|watched| watched.controls),
            summary: Summary::of(folder),
            phase,
            failure: failure(folder, ranks, phase),
            restarts: folder.restarts,
            next_start: (phase == Phase::Pausing)
                .then(|| next_start(folder))
                .flatten(),
            progress,
            sections: sections(folder, ranks),
            ranks: rows(ranks, world_size, listening),
            curves: folder.curves.shown(),
            events: folder.events.iter().rev().map(Event::of).collect(),
            checkpoints: newest
                .map(|checkpoint| CheckpointRow {
                    is_latest: folder.latest.as_ref() == Some(&checkpoint.name),
                    is_best: folder.best.as_ref() == Some(&checkpoint.name),
                    checkpoint: checkpoint.clone(),
                })
                .collect(),
            settings: folder.settings.clone(),
            plan: folder.plan.clone(),
        }
    }

    /// The JSON that is served, without secrets.
    pub fn json(&self, redactor: &Redactor) -> String {
        let mut state = self.clone();
        for setting in &mut state.settings {
            setting.value =
                (setting.value.as_ref()).map(|value| redactor.setting(&setting.key, value));
        }
        let mut value = serde_json::to_value(state).unwrap_or_default();
        redactor.value(&mut value);
        value.to_string()
    }
}

/// Whether no rank is at work any more, or will be.
fn is_over(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Done | Phase::Stopped | Phase::Failed | Phase::Lost | Phase::Pausing
    )
}

/// Events that move a run to another phase.
const TURNS: &[&str] = &["start", "restart", "failure", "give-up", "stop", "done"];

fn phase(folder: &Folder, ranks: &[RankFacts], watched: Option<Watched>, now: f64) -> Phase {
    let last = folder.last_event(TURNS);
    match (last.and_then(|event| event["kind"].as_str()), watched) {
        (Some("done"), _) => Phase::Done,
        (Some("stop"), _) => Phase::Stopped,
        (Some("failure" | "give-up"), _) => Phase::Failed,
        (Some("restart"), Some(_)) => Phase::Pausing,
        (_, Some(watched)) if watched.stop_requested => Phase::Draining,
        (_, Some(_)) => at_work(ranks),
        // Started without a launcher: only the record of the run tells.
        (None, None) => match folder.record["status"].as_str() {
            Some("done") => Phase::Done,
            Some("preempted") => Phase::Stopped,
            _ if folder.written.is_some_and(|at| now - at < WRITES_SECONDS) => Phase::Running,
            _ => Phase::Lost,
        },
        (Some(_), None) => Phase::Lost,
    }
}

/// The phase of a run at work: what the first rank that speaks is doing.
fn at_work(ranks: &[RankFacts]) -> Phase {
    match ranks.iter().find_map(|rank| rank.section) {
        None if ranks.is_empty() => Phase::Starting,
        None => Phase::Running,
        Some(Section::Setup) => Phase::Starting,
        Some(Section::Eval) => Phase::Evaluating,
        Some(Section::Checkpoint | Section::Done) => Phase::Saving,
        Some(Section::Data | Section::Forward | Section::Collective | Section::Optimizer) => {
            Phase::Training
        }
    }
}

fn next_start(folder: &Folder) -> Option<f64> {
    let event = folder.last_event(&["restart"])?;
    Some(event["time"].as_f64()? + event["after_seconds"].as_f64()?)
}

fn failure(folder: &Folder, ranks: &[RankFacts], phase: Phase) -> Option<Failure> {
    if !matches!(phase, Phase::Failed | Phase::Pausing) {
        return None;
    }
    let event = folder.last_event(&["failure"])?;
    let word = |name: &str| event[name].as_str().map(str::to_owned);
    let code = event["code"].as_i64();
    let culprit = ranks.iter().filter_map(|rank| rank.end.as_ref());
    Some(Failure {
        time: event["time"].as_f64().unwrap_or(0.0),
        code,
        meaning: code
            .and_then(|code| i32::try_from(code).ok())
            .and_then(|code| Outcome::with(code).message),
        rank: event["rank"].as_u64(),
        host: word("host"),
        cause: word("cause"),
        last_lines: culprit
            .filter(|end| end.first && end.code != exit::OK)
            .map(|end| end.last_lines.clone())
            .next()
            .unwrap_or_default(),
    })
}

fn progress(
    folder: &Folder,
    ranks: &[RankFacts],
    phase: Phase,
    pace: &mut Pace,
    now: f64,
) -> Progress {
    let told = ranks.iter().map(|rank| rank.step).max().unwrap_or(0);
    let ended = folder.record["steps"].as_u64().unwrap_or(0);
    let step = told.max(folder.curves.last_step()).max(ended);
    let planned_steps = ranks
        .iter()
        .map(|r| r.planned_steps)
        .find(|steps| *steps > 0);
    let planned_steps = planned_steps.or_else(|| folder.plan["planned_steps"].as_u64());
    let over = is_over(phase);
    let steps_per_second = if over { None } else { pace.observe(now, step) };
    let left = planned_steps.map(|planned| planned.saturating_sub(step) as f64);
    let heard = ranks.iter().map(|rank| rank.heard).fold(0.0, f64::max);
    let end = match folder.events.back() {
        // Of a run whose end nobody wrote down, the last sign of life.
        Some(event) if phase == Phase::Lost => event["time"].as_f64().map(|at| at.max(heard)),
        Some(event) if over && phase != Phase::Pausing => event["time"].as_f64(),
        _ => Some(now),
    };
    let elapsed = folder
        .launched
        .zip(end)
        .map(|(first, end)| (end - first).max(0.0));
    let told = ranks.iter().find_map(|rank| rank.cells_per_second);
    Progress {
        step,
        planned_steps,
        epoch: folder.curves.last_epoch(),
        // Without a launcher only the record of the run knows.
        elapsed_seconds: elapsed.or_else(|| folder.record["seconds"].as_f64()),
        eta_seconds: left.zip(steps_per_second).map(|(left, pace)| left / pace),
        steps_per_second,
        cells_per_second: told.or_else(|| folder.curves.last("cells_per_second")),
    }
}

/// From the heartbeats; without them from the means of what was logged of rank 0.
fn sections(folder: &Folder, ranks: &[RankFacts]) -> Vec<Spent> {
    let spent = |section: Section, seconds| Spent {
        section: section.name(),
        seconds,
    };
    let told: Vec<Spent> = Section::ALL
        .into_iter()
        .filter(|section| *section != Section::Done)
        .map(|section| {
            let seconds = ranks
                .iter()
                .map(|rank| rank.section_seconds[section as usize]);
            spent(section, seconds.sum())
        })
        .filter(|spent| spent.seconds > 0.0)
        .collect();
    if !told.is_empty() {
        return told;
    }
    let mean = |name| folder.curves.mean(name);
    let (Some(data), Some(collective), Some(step)) = (
        mean("data_seconds"),
        mean("collective_seconds"),
        mean("step_seconds"),
    ) else {
        return Vec::new();
    };
    let steps = folder.curves.last_step() as f64;
    vec![
        spent(Section::Data, data * steps),
        spent(
            Section::Forward,
            (step - data - collective).max(0.0) * steps,
        ),
        spent(Section::Collective, collective * steps),
    ]
}

#[cfg(test)]
mod tests;
