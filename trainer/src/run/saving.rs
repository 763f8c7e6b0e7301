//! Checkpoints as the loop asks for them, and the check of the first updates.

use std::time::Instant;

use scpeft_protocol::heartbeat::Section;
use scpeft_protocol::metrics;

use super::Training;
use crate::checkpointing::{Evaluated, Finished, Progress};
use crate::exporter::Exporter;
use crate::failure::{Failure, Result};
use crate::movement::Verdict;
use crate::step::StepReport;
use crate::watch::Watch;
use crate::watch::trace::Part;

impl Training {
    /// Has a checkpoint written in the background (rank 0). The loop waits for the one before it
    /// and for the copy of its state, no longer.
    pub(super) fn save(&mut self, evaluated: Option<Evaluated>) -> Result<()> {
        self.watch.enter(Section::Checkpoint);
        let _span = self.watch.span(Part::Checkpoint);
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let begun = Instant::now();
        if let Some(finished) = outputs.saver.wait()? {
            note_save(&self.exporter, &self.watch, &finished);
        }
        let waited = begun.elapsed().as_secs_f64();
        let progress = Progress {
            cursor: &self.cursor,
            selection: &self.selection,
            world_size: self.world_size,
        };
        let Self {
            config,
            assembly,
            adam,
            ema,
            ..
        } = self;
        (outputs.saver).start(config, assembly, adam, ema.as_ref(), &progress, evaluated)?;
        let seconds = begun.elapsed().as_secs_f64();
        let e = &self.exporter;
        e.add(&metrics::SECTION_SECONDS, &["checkpoint"], seconds);
        e.observe(&metrics::CHECKPOINT_STALL, seconds);
        tracing::debug!(
            step = self.cursor.step,
            waited_ms = 1e3 * waited,
            copied_ms = 1e3 * (seconds - waited),
            "handed a checkpoint over"
        );
        Ok(())
    }

    /// Waits for the last checkpoint of this start: a run that says it ended has saved its state.
    pub(super) fn last_save(&mut self) -> Result<()> {
        self.watch.enter(Section::Checkpoint);
        let _span = self.watch.span(Part::Checkpoint);
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let Some(finished) = outputs.saver.wait()? else {
            return outputs.saver.settle_mirror();
        };
        note_save(&self.exporter, &self.watch, &finished);
        match finished.outcome {
            Ok(_) => outputs.saver.settle_mirror(),
            Err(failure) => Err(Failure::new(
                failure.code,
                format!(
                    "the last checkpoint of the run, of step {}, was not saved: {failure}\n\
                     help: make room or give access, then `--resume` goes on from the checkpoint before it",
                    self.cursor.step
                ),
            )),
        }
    }

    /// Whether everything that should train does, after the first updates of this start.
    pub(super) fn check_movement(&mut self, report: &StepReport) -> Result<()> {
        let updated = report.skipped.is_none() && report.lr > 0.0;
        let Some(movement) = self.movement.as_mut().filter(|_| updated) else {
            return Ok(());
        };
        let Verdict::Given(warning) = movement.observe(&self.assembly.params)? else {
            return Ok(());
        };
        self.movement = None;
        if let (Some(warning), Some(outputs)) = (warning, &self.outputs) {
            outputs.reporter.warn(&warning);
        }
        Ok(())
    }
}

/// Metrics and heartbeat of a save that has ended.
pub(super) fn note_save(exporter: &Exporter, watch: &Watch, finished: &Finished) {
    exporter.observe(&metrics::CHECKPOINT_WRITE, finished.write_seconds);
    tracing::debug!(
        write_ms = 1e3 * finished.write_seconds,
        "a checkpoint has been written"
    );
    match &finished.outcome {
        Ok(bytes) => {
            exporter.set(&metrics::CHECKPOINT_BYTES, &[], *bytes as f64);
            exporter.set_now(&metrics::LAST_CHECKPOINT);
            watch.tell(|beat| beat.checkpoint_step = Some(finished.step));
        }
        Err(_) => exporter.add(&metrics::CHECKPOINT_FAILURES, &[], 1.0),
    }
}
