//! A trace of a few steps: what each rank did when, in the Trace Event Format, which Perfetto and
//! `chrome://tracing` open.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use scpeft_checkpoint::fsx;
use scpeft_collective::Collective;
use serde_json::{Value, json};

use super::{Watch, lock, now};
use crate::failure::Result;
use crate::record::hostname;

/// The trace in a run directory.
pub(crate) const FILE: &str = "trace.json";

/// What a rank does in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// One step, from asking for its batch to its log line.
    Step(u64),
    /// Waiting for the loader.
    Data,
    /// Forward pass of a micro-batch.
    Forward,
    /// Its backward pass.
    Backward,
    /// Gathers for a micro-batch of another rank.
    Join,
    /// Clipping and update.
    Optimizer,
    /// An evaluation.
    Eval,
    /// Handing a checkpoint over.
    Checkpoint,
    /// A collective, by operation, and its bytes.
    Collective(&'static str, u64),
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Step(_) => "step",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Join => "join",
            Self::Optimizer => "optimizer",
            Self::Eval => "eval",
            Self::Checkpoint => "checkpoint",
            Self::Collective(op, _) => op,
        }
    }

    fn category(self) -> &'static str {
        match self {
            Self::Step(_) => "step",
            Self::Collective(..) => "collective",
            _ => "section",
        }
    }

    fn arguments(self) -> Value {
        match self {
            Self::Step(step) => json!({"step": step}),
            Self::Collective(_, bytes) => json!({"bytes": bytes}),
            _ => json!({}),
        }
    }
}

/// A span that has ended. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recorded {
    part: Part,
    begun: u64,
    ended: u64,
}

/// What has been recorded of a rank.
#[derive(Debug, Default)]
pub(super) struct Trace {
    is_on: bool,
    spans: Vec<Recorded>,
}

impl Trace {
    pub(super) fn record(&mut self, part: Part, begun: u64, ended: u64) {
        if self.is_on {
            self.spans.push(Recorded { part, begun, ended });
        }
    }
}

/// A span of time under way; it ends when this is dropped.
#[must_use = "the span ends when this is dropped"]
pub(crate) struct Span {
    watch: Watch,
    part: Part,
    begun: u64,
}

impl Span {
    /// Leaves the span out of the trace.
    pub(crate) fn discard(self) {
        // Nothing is recorded of what never began.
        let mut span = self;
        span.begun = u64::MAX;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.begun != u64::MAX {
            lock(&self.watch.0.trace).record(self.part, self.begun, now());
        }
    }
}

/// The steps of a start that are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Steps that were done before the first one.
    first: u64,
    /// Steps that are done with the last one.
    last: u64,
}

impl Window {
    /// `steps` steps, after the first `skipped` of a start at step `begun`.
    pub(crate) fn new(begun: u64, skipped: u64, steps: u64) -> Self {
        let first = begun.saturating_add(skipped);
        Self {
            first,
            last: first.saturating_add(steps),
        }
    }

    /// Whether the step after `done` steps is traced.
    fn has(self, done: u64) -> bool {
        (self.first..self.last).contains(&done)
    }
}

impl Watch {
    /// Begins a span, which lasts as long as what is returned.
    pub(crate) fn span(&self, part: Part) -> Span {
        Span {
            watch: self.clone(),
            part,
            begun: now(),
        }
    }

    /// Records from here on while `window` has the step after `done` steps. What was recorded is
    /// written to `directory` as soon as it is complete.
    ///
    /// # Collective
    /// Must be called by all ranks, after the same steps.
    ///
    /// # Errors
    /// When the transport fails or the file cannot be written.
    pub(crate) fn trace(
        &self,
        world: &dyn Collective,
        window: Window,
        done: u64,
        directory: &Path,
    ) -> Result<()> {
        if window.has(done) {
            lock(&self.0.trace).is_on = true;
            return Ok(());
        }
        self.end_trace(world, directory)
    }

    /// Ends the recording, if there is one, and has rank 0 write it.
    ///
    /// # Collective
    /// Must be called by all ranks, after the same steps.
    ///
    /// # Errors
    /// When the transport fails or the file cannot be written.
    pub(crate) fn end_trace(&self, world: &dyn Collective, directory: &Path) -> Result<()> {
        let recorded = std::mem::take(&mut *lock(&self.0.trace));
        if !recorded.is_on {
            return Ok(());
        }
        let own = events(&recorded.spans, world.topology().rank, &hostname(), epoch());
        let Some(all) = world.gather(own.join(",\n").as_bytes())? else {
            return Ok(());
        };
        let ranks: Vec<_> = all.iter().map(|own| String::from_utf8_lossy(own)).collect();
        let text = format!(
            "{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n{}\n]}}\n",
            ranks.join(",\n")
        );
        let path = directory.join(FILE);
        fsx::write_atomic(&path, text.as_bytes())?;
        tracing::info!(
            "`{}` has the trace; https://ui.perfetto.dev or chrome://tracing shows it",
            path.display()
        );
        Ok(())
    }
}

/// Unix time, in nanoseconds, at which the monotonic clock was 0.
fn epoch() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |unix| {
        u64::try_from(unix.as_nanos())
            .unwrap_or(0)
            .saturating_sub(now())
    })
}

/// The events of a rank, which is a process of the trace; times in whole microseconds of Unix time.
fn events(spans: &[Recorded], rank: usize, host: &str, epoch: u64) -> Vec<String> {
    let about = |name: &str, arguments: Value| json!({"name": name, "ph": "M", "pid": rank, "tid": 0, "args": arguments});
    let mut events = vec![
        about(
            "process_name",
            json!({"name": format!("rank {rank} on {host}")}),
        ),
        about("process_sort_index", json!({"sort_index": rank})),
    ];
    // Both ends are rounded down, so that what is inside stays inside.
    let micros = |time: u64| epoch.saturating_add(time) / 1000;
    events.extend(spans.iter().map(|span| {
        let begun = micros(span.begun);
        json!({
            "name": span.part.name(),
            "cat": span.part.category(),
            "ph": "X",
            "ts": begun,
            "dur": micros(span.ended) - begun,
            "pid": rank,
            "tid": 0,
            "args": span.part.arguments(),
        })
    }));
    events.iter().map(Value::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::Single;

    #[test]
    fn a_window_counts_from_the_start_of_the_process() {
        let window = Window::new(40, 2, 3);
        let has: Vec<u64> = (0..100).filter(|&done| window.has(done)).collect();
        assert_eq!(has, [42, 43, 44]);
        let none = Window::new(40, 2, 0);
        assert!((0..100).all(|done| !none.has(done)));
    }

    #[test]
    fn spans_inside_others_stay_inside_and_carry_what_they_are() {
        let spans = [
            Recorded {
                part: Part::Collective("all_reduce_f32", 96),
                begun: 2_999,
                ended: 4_001,
            },
            Recorded {
                part: Part::Step(7),
                begun: 2_998,
                ended: 4_001,
            },
        ];
        let parsed: Vec<Value> = events(&spans, 1, "h", 5_000_000)
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        assert_eq!(parsed[0]["args"]["name"], "rank 1 on h");
        let event = |name, category, arguments| {
            json!({"name": name, "cat": category, "ph": "X", "ts": 5002, "dur": 2,
                "pid": 1, "tid": 0, "args": arguments})
        };
        assert_eq!(
            parsed[2..],
            [
                event("all_reduce_f32", "collective", json!({"bytes": 96})),
                event("step", "step", json!({"step": 7})),
            ]
        );
    }

    #[test]
    fn nothing_is_kept_outside_the_window_and_what_is_discarded_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::unattended(&Single).unwrap();
        let window = Window::new(0, 1, 1);
        for done in 0..3 {
            watch.trace(&Single, window, done, folder.path()).unwrap();
            drop(watch.span(Part::Step(done + 1)));
            watch.span(Part::Data).discard();
        }
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let events = parsed["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 3, "{text}");
        assert_eq!(events[2]["args"], json!({"step": 2}));
        assert!(lock(&watch.0.trace).spans.is_empty());
    }
}
