//! What a run says of itself: metrics and log of each step and evaluation, and the end.

use scpeft_collective::Collective;
use scpeft_protocol::heartbeat::Section;
use scpeft_protocol::metrics;
use serde_json::json;

use super::Training;
use super::saving::note_save;
use crate::Outcome;
use crate::assembly::SplitLoaders;
use crate::checkpointing::Cursor;
use crate::failure::Result;
use crate::ledger::Total;
use crate::record::{peak_rss_bytes, resident_bytes};
use crate::step::StepReport;
use crate::straggler::Standing;
use crate::task::{Evaluation, NamedValue};

/// What one step took on this rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// Wall time, in seconds.
    pub(super) seconds: f64,
    /// Of it, waiting for the loader.
    pub(super) data_seconds: f64,
    /// What went through collectives.
    pub(super) moved: Total,
}

impl Training {
    /// Metrics, heartbeat and log of one step.
    pub(super) fn account(
        &mut self,
        report: &StepReport,
        took: &Took,
        standing: Option<Standing>,
    ) -> Result<()> {
        let padding = self.export_step(report, took, standing);
        self.beat(report, took);
        let logs = self.logs();
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        if let Some(finished) = outputs.saver.poll()? {
            note_save(&self.exporter, &self.watch, &finished);
        }
        let failures = outputs.saver.mirror_failures();
        (self.exporter).add(&metrics::CHECKPOINT_FAILURES, &[], failures as f64);
        outputs.reporter.advance(self.cursor.step, report.loss);
        if let Some(reason) = report.skipped {
            outputs.reporter.warn(&format!(
                "step {}: no update, {}",
                self.cursor.step,
                reason.explanation()
            ));
        }
        if !logs {
            return Ok(());
        }
        let mut values: Vec<NamedValue> = vec![
            ("loss", report.loss),
            ("grad_norm", report.grad_norm),
            ("lr", report.lr),
            ("cells_per_second", report.cells as f64 / took.seconds),
            ("step_seconds", took.seconds),
            ("data_seconds", took.data_seconds),
            ("collective_seconds", report.collective_seconds),
            ("collective_bytes", took.moved.bytes as f64),
            ("padding_ratio", padding),
        ];
        if let Some(standing) = standing {
            values.push(("slowest_rank", standing.slowest as f64));
            values.push(("straggler_score", standing.slowest_score));
        }
        if report.parts.len() > 1 {
            let terms = self.assembly.task.terms().iter().map(|term| term.name);
            values.extend(terms.zip(report.parts.iter().copied()));
        }
        values.extend(report.contrast.map(|loss| ("cce", loss)));
        outputs
            .reporter
            .train(self.cursor.step, self.cursor.epoch, &values)
    }

    /// Sets the metrics of one step; returns the share of padding.
    fn export_step(&self, report: &StepReport, took: &Took, standing: Option<Standing>) -> f64 {
        let e = &self.exporter;
        let section = |name: &str, seconds: f64| e.add(&metrics::SECTION_SECONDS, &[name], seconds);
        section("data", took.data_seconds);
        section("compute", report.compute_seconds);
        section("collective", report.collective_seconds);
        section("optimizer", report.optimizer_seconds);
        e.observe(&metrics::STEP_SECONDS, took.seconds);
        e.set(&metrics::STEP, &[], self.cursor.step as f64);
        e.set(&metrics::LOSS, &["train"], report.loss);
        e.set(&metrics::LEARNING_RATE, &[], report.lr);
        e.set(&metrics::GRAD_NORM, &[], report.grad_norm);
        e.add(&metrics::CELLS, &[], report.own_cells as f64);
        e.add(&metrics::TOKENS, &[], report.own_tokens as f64);
        let padding = match report.own_slots {
            0 => 0.0,
            slots => 1.0 - report.own_tokens as f64 / slots as f64,
        };
        e.set(&metrics::PADDING_RATIO, &[], padding);
        if let Some(standing) = standing {
            e.set(&metrics::STRAGGLER_SCORE, &[], standing.score);
        }
        if let Some(reason) = report.skipped {
            e.add(&metrics::SKIPPED_STEPS, &[reason.name()], 1.0);
        }
        e.set_now(&metrics::HEARTBEAT);
        padding
    }

    /// Tells the launcher how far the rank is.
    fn beat(&self, report: &StepReport, took: &Took) {
        let Cursor { step, epoch, .. } = self.cursor;
        let planned_steps = self.schedule.planned_steps;
        let memory_bytes = resident_bytes();
        let speaks = self.outputs.is_some();
        self.watch.tell(|beat| {
            beat.step = step;
            beat.epoch = epoch;
            beat.planned_steps = planned_steps;
            beat.memory_bytes = memory_bytes;
            if speaks {
                beat.loss = Some(report.loss);
                beat.cells_per_second = Some(report.cells as f64 / took.seconds);
            }
        });
    }

    pub(super) fn list_skipped(&mut self, loaders: &SplitLoaders) -> Result<()> {
        let Some(outputs) = &self.outputs else {
            return Ok(());
        };
        let corpus = &self.assembly.feed.corpus;
        let both = [&loaders.train, &loaders.valid];
        (self.loading).list_skipped(&self.config.run.dir, corpus, &both, &outputs.reporter)
    }

    pub(super) fn show(
        &mut self,
        evaluation: &Evaluation,
        selecting: &str,
        epoch: u64,
    ) -> Result<()> {
        let e = &self.exporter;
        for (name, value) in &evaluation.metrics {
            e.set(&metrics::EVAL_METRIC, &[name], *value);
        }
        e.set(
            &metrics::LOSS,
            &["valid"],
            evaluation.metric("loss").unwrap_or(f64::NAN),
        );
        e.set(&metrics::EPOCH, &[], self.cursor.epoch as f64);
        if let Some(best) = self.selection.best {
            e.set(&metrics::BEST_METRIC, &[selecting], best.value);
        }
        match &mut self.outputs {
            Some(outputs) => {
                let metric = evaluation.metric(selecting);
                self.watch.tell(|beat| beat.metric = metric);
                outputs
                    .reporter
                    .evaluation("valid", self.cursor.step, epoch, &evaluation.metrics)
            }
            None => Ok(()),
        }
    }

    pub(super) fn finish(&mut self, world: &dyn Collective, outcome: Outcome) -> Result<()> {
        self.watch.enter(Section::Checkpoint);
        let peaks = world.gather(&peak_rss_bytes().to_le_bytes())?;
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let peaks: Vec<u64> = peaks
            .unwrap_or_default()
            .iter()
            .map(|bytes| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes))
            .collect();
        let (status, said) = match outcome {
            Outcome::Done if self.selection.exhausted() => {
                ("done", "stopped early: no better evaluation")
            }
            Outcome::Done => ("done", "done"),
            Outcome::Preempted => ("preempted", "stopped as asked; `--resume` continues"),
        };
        let (name, _) = self.assembly.task.selection();
        let best = self
            .selection
            .best
            .map(|b| json!({"metric": name, "value": b.value, "step": b.step}));
        let adapter_bytes = outputs.saver.adapter_bytes()?;
        outputs.recorder.end(
            status,
            self.cursor.step,
            &json!(best),
            &peaks,
            adapter_bytes,
        )?;
        outputs.reporter.finish();
        let best = best.map_or(String::new(), |b| {
            format!(", best {name} {} at step {}", b["value"], b["step"])
        });
        outputs.reporter.say(&format!(
            "{said} after {} steps, {:.1} s{best}; results in `{}`",
            self.cursor.step,
            outputs.recorder.seconds(),
            self.config.run.dir.display()
        ));
        Ok(())
    }
}
