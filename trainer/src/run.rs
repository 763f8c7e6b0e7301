//! The training loop.

use std::path::Path;
use std::time::Instant;

use scpeft_checkpoint::Score;
use scpeft_collective::{Collective, Topology};
use scpeft_config::{Config, Resolved};
use scpeft_data::{EpochStream, Loader, StepBatches};
use scpeft_protocol::{exit, metrics};
use serde_json::json;

use crate::Outcome;
use crate::args::{ParametersArgs, RunArgs};
use crate::assembly::{Assembly, SplitLoaders};
use crate::checkpointing::{self, Cursor, Evaluated, Finished, Progress, RunDir, Saver};
use crate::consensus::agree;
use crate::evaluate::evaluate;
use crate::exporter::Exporter;
use crate::failure::{Failure, Result};
use crate::identity::Allowed;
use crate::loading::LoaderWatch;
use crate::movement::Movement;
use crate::optim::{Adam, AdamOptions, Schedule, Shape};
use crate::record::{Facts, Recorder, peak_rss_bytes};
use crate::report::Reporter;
use crate::selection::ModelSelection;
use crate::settings;
use crate::step::{Skip, StepReport, Stepper};
use crate::stop::StopFlag;
use crate::task::{Evaluation, NamedValue};

/// Trains as `args` say; the whole of `scpeft-train run`.
///
/// # Collective
/// Must be called by all ranks. Failures before the first step are returned on every rank; a
/// failure of one rank later ends the job.
///
/// # Errors
/// Anything from a misspelt key to a full disk, with its exit code.
pub fn run(world: &dyn Collective, args: &RunArgs, stop: &StopFlag) -> Result<Outcome> {
    let resolved = agree(world, load_config(args.config.as_deref(), &args.overrides))?;
    let config = &resolved.config;
    let run_dir = RunDir::new(&config.run.dir);
    let root = world.topology().is_root();
    let from = agree(
        world,
        if root {
            run_dir.resume_point(args)
        } else {
            Ok(None)
        },
    )?;
    let from = checkpointing::broadcast_path(world, from)?;
    let assembly = agree(world, Assembly::for_training(config, world.topology()))?;
    let (training, loaders) = agree(
        world,
        Training::begin(world, &resolved, args, assembly, from.as_deref()),
    )?;
    match training.drive(world, &loaders, stop) {
        Err(failure) if world.topology().world_size > 1 => {
            tracing::error!("rank {}: {failure}", world.topology().rank);
            world.abort(failure.code)
        }
        outcome => outcome,
    }
}

/// Every tensor of the model that a configuration describes; the whole of `scpeft-train parameters`.
///
/// # Errors
/// Whatever is wrong with configuration, corpus or weights.
pub fn parameters(args: &ParametersArgs) -> Result<String> {
    let config = load_config(args.config.as_deref(), &args.overrides)?.config;
    let assembly = Assembly::for_training(&config, &Topology::SINGLE)?;
    Ok(assembly.parameter_table())
}

fn load_config(file: Option<&Path>, overrides: &[String]) -> Result<Resolved> {
    match file {
        Some(path) => Ok(scpeft_config::load(path, overrides)?),
        None if overrides.is_empty() => Err(Failure::config(
            "no configuration\nhelp: `scpeft-train --config FILE`; `scpeft-train keys` lists every key",
        )),
        None => Ok(scpeft_config::resolve(None, overrides)?),
    }
}

/// Rank 0's outputs; other ranks have none.
struct Outputs {
    reporter: Reporter,
    recorder: Recorder,
    saver: Saver,
}

/// A run between its steps.
struct Training {
    config: Config,
    assembly: Assembly,
    adam: Adam,
    schedule: Schedule,
    cursor: Cursor,
    selection: ModelSelection,
    exporter: Exporter,
    outputs: Option<Outputs>,
    loading: LoaderWatch,
    bad_steps: u64,
    world_size: usize,
    /// Until its verdict.
    movement: Option<Movement>,
    /// What changed on resumption with the user's leave.
    changed: Vec<String>,
}

impl Training {
    fn begin(
        world: &dyn Collective,
        resolved: &Resolved,
        args: &RunArgs,
        mut assembly: Assembly,
        from: Option<&Path>,
    ) -> Result<(Self, SplitLoaders)> {
        let config = resolved.config.clone();
        let loaders = assembly.loaders(&config, world.topology())?;
        let mut adam = Adam::new(adam_options(&config), assembly.params.flat())?;
        let (_, larger) = assembly.task.selection();
        let mut selection = ModelSelection::new(larger, config.train.early_stop_patience);
        let mut cursor = Cursor::default();
        let mut changed = Vec::new();
        let allowed = Allowed::new(&args.allow_change)?;
        if let Some(path) = from {
            (cursor, changed) = checkpointing::restore(
                path,
                &config,
                &mut assembly,
                &mut adam,
                &mut selection,
                &allowed,
            )?;
        }
        let schedule = schedule(&config, loaders.train.batches_per_epoch());
        let exporter = start_exporter(&config, world, &assembly, &schedule)?;
        let mut training = Self {
            movement: Some(Movement::new(&assembly.params)?),
            changed,
            config,
            assembly,
            adam,
            schedule,
            cursor,
            selection,
            exporter,
            outputs: None,
            loading: LoaderWatch::default(),
            bad_steps: 0,
            world_size: world.topology().world_size,
        };
        if world.topology().is_root() {
            training.outputs = Some(Outputs::open(
                resolved, args, from, &training, world, &loaders,
            )?);
        }
        Ok((training, loaders))
    }

    /// Epochs until the planned steps are done, patience runs out, or a stop is asked for.
    fn drive(
        mut self,
        world: &dyn Collective,
        loaders: &SplitLoaders,
        stop: &StopFlag,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::Done;
        while !self.is_complete() {
            if self.epoch(world, &loaders.train, stop)? {
                self.save(None)?;
                outcome = Outcome::Preempted;
                break;
            }
            self.end_epoch(world, loaders)?;
            self.list_skipped(loaders)?;
        }
        self.list_skipped(loaders)?;
        self.last_save()?;
        self.finish(world, outcome)?;
        Ok(outcome)
    }

    /// Every planned step is done and the result evaluated, or patience ran out.
    fn is_complete(&self) -> bool {
        let Cursor {
            step, evaluated, ..
        } = self.cursor;
        (step >= self.schedule.planned_steps && evaluated == step) || self.selection.exhausted()
    }

    /// Steps to the end of the epoch or of the run; true when asked to stop.
    fn epoch(&mut self, world: &dyn Collective, loader: &Loader, stop: &StopFlag) -> Result<bool> {
        let mut stream = loader.epoch(self.cursor.epoch, self.cursor.batch);
        while self.cursor.step < self.schedule.planned_steps {
            let begun = Instant::now();
            let Some(batch) = next(&mut stream)? else {
                break;
            };
            let data_seconds = begun.elapsed().as_secs_f64();
            self.loading.record(&self.exporter, loader, stream.ready());
            let report = self.step(world, &batch, stop.is_set())?;
            self.cursor.step += 1;
            self.cursor.batch += 1;
            self.account(&report, begun.elapsed().as_secs_f64(), data_seconds)?;
            self.check_movement(&report)?;
            if report.stop {
                return Ok(true);
            }
            let every = self.config.checkpoint.every_steps;
            if every > 0 && self.cursor.step.is_multiple_of(every) {
                self.save(None)?;
            }
        }
        Ok(false)
    }

    fn step(
        &mut self,
        world: &dyn Collective,
        batch: &StepBatches,
        stop: bool,
    ) -> Result<StepReport> {
        let Assembly {
            model,
            params,
            task,
            staging,
            ..
        } = &mut self.assembly;
        let mut stepper = Stepper {
            model,
            params,
            task: task.as_ref(),
            adam: &mut self.adam,
            schedule: self.schedule,
            dropout: settings::dropout(&self.config, staging.device),
            clip_norm: self.config.train.clip_norm,
            seed: self.config.run.seed,
            staging,
        };
        let report = stepper.step(world, self.cursor.step, batch, stop)?;
        self.bad_steps = match report.skipped {
            Some(Skip::NonFinite) => self.bad_steps + 1,
            _ => 0,
        };
        if self.bad_steps > self.config.train.non_finite_limit {
            return Err(Failure::new(
                exit::NON_FINITE,
                format!(
                    "{} steps in a row had a gradient that is not finite, the last at step {} (epoch {}, batch {})\n\
                     help: lower `train.lr`, set `train.clip_norm`, or look for extreme values in the corpus with `scpeft-data verify`",
                    self.bad_steps, self.cursor.step, batch.epoch, batch.batch
                ),
            ));
        }
        Ok(report)
    }

    /// Metrics and log of one step.
    fn account(&mut self, report: &StepReport, seconds: f64, data_seconds: f64) -> Result<()> {
        let e = &self.exporter;
        let section = |name: &str, seconds: f64| e.add(&metrics::SECTION_SECONDS, &[name], seconds);
        section("data", data_seconds);
        section("compute", report.compute_seconds);
        section("collective", report.collective_seconds);
        section("optimizer", report.optimizer_seconds);
        e.observe(&metrics::STEP_SECONDS, seconds);
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
        e.add(
            &metrics::COLLECTIVE_BYTES,
            &["all_reduce"],
            report.collective_bytes as f64,
        );
        if let Some(reason) = report.skipped {
            e.add(&metrics::SKIPPED_STEPS, &[reason.name()], 1.0);
        }
        e.set_now(&metrics::HEARTBEAT);
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        if let Some(finished) = outputs.saver.poll()? {
            note_save(&self.exporter, &finished);
        }
        outputs.reporter.advance(self.cursor.step, report.loss);
        if let Some(reason) = report.skipped {
            outputs.reporter.warn(&format!(
                "step {}: no update, {}",
                self.cursor.step,
                reason.explanation()
            ));
        }
        if self
            .cursor
            .step
            .is_multiple_of(self.config.log.every_steps.max(1))
        {
            let mut values: Vec<NamedValue> = vec![
                ("loss", report.loss),
                ("grad_norm", report.grad_norm),
                ("lr", report.lr),
                ("cells_per_second", report.cells as f64 / seconds),
                ("step_seconds", seconds),
                ("data_seconds", data_seconds),
                ("collective_seconds", report.collective_seconds),
                ("padding_ratio", padding),
            ];
            if report.parts.len() > 1 {
                values.extend(
                    self.assembly
                        .task
                        .terms()
                        .iter()
                        .map(|term| term.name)
                        .zip(report.parts.iter().copied()),
                );
            }
            values.extend(report.contrast.map(|loss| ("cce", loss)));
            outputs
                .reporter
                .train(self.cursor.step, self.cursor.epoch, &values)?;
        }
        Ok(())
    }

    fn list_skipped(&mut self, loaders: &SplitLoaders) -> Result<()> {
        let Some(outputs) = &self.outputs else {
            return Ok(());
        };
        let corpus = &self.assembly.feed.corpus;
        let both = [&loaders.train, &loaders.valid];
        (self.loading).list_skipped(&self.config.run.dir, corpus, &both, &outputs.reporter)
    }

    /// Evaluation, model selection and checkpoint at the end of an epoch or of the run.
    fn end_epoch(&mut self, world: &dyn Collective, loaders: &SplitLoaders) -> Result<()> {
        let begun = Instant::now();
        let Assembly {
            model,
            task,
            staging,
            ..
        } = &self.assembly;
        let evaluation = evaluate(world, model, task.as_ref(), &loaders.valid, staging)?;
        self.exporter.add(
            &metrics::SECTION_SECONDS,
            &["eval"],
            begun.elapsed().as_secs_f64(),
        );
        let (name, _) = task.selection();
        let value = evaluation.metric(name).unwrap_or(f64::NAN);
        let is_best = self.selection.observe(value, self.cursor.step);
        if let Some(outputs) = self.outputs.as_ref().filter(|_| !value.is_finite()) {
            outputs.reporter.warn(&format!(
                "step {}: `{name}` of the evaluation is {value}; such a model is never the best\n\
                 help: lower `train.lr` or set `train.clip_norm`",
                self.cursor.step
            ));
        }
        let epoch = self.cursor.epoch;
        self.cursor.evaluated = self.cursor.step;
        self.exporter.set_now(&metrics::HEARTBEAT);
        if self.cursor.batch >= loaders.train.batches_per_epoch() {
            self.cursor.epoch += 1;
            self.cursor.batch = 0;
        }
        let (name, larger_is_better) = self.assembly.task.selection();
        self.show(&evaluation, name, epoch)?;
        let score = Score {
            metric: name.to_owned(),
            value,
            larger_is_better,
        };
        self.save(value.is_finite().then_some(Evaluated { score, is_best }))
    }

    fn show(&mut self, evaluation: &Evaluation, selecting: &str, epoch: u64) -> Result<()> {
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
                outputs
                    .reporter
                    .evaluation("valid", self.cursor.step, epoch, &evaluation.metrics)
            }
            None => Ok(()),
        }
    }

    /// Has a checkpoint written in the background (rank 0). The loop waits for the one before it
    /// and for the copy of its state, no longer.
    fn save(&mut self, evaluated: Option<Evaluated>) -> Result<()> {
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let begun = Instant::now();
        if let Some(finished) = outputs.saver.wait()? {
            note_save(&self.exporter, &finished);
        }
        let progress = Progress {
            cursor: &self.cursor,
            selection: &self.selection,
            world_size: self.world_size,
        };
        let Self {
            config,
            assembly,
            adam,
            ..
        } = self;
        (outputs.saver).start(config, assembly, adam, &progress, evaluated)?;
        let seconds = begun.elapsed().as_secs_f64();
        let e = &self.exporter;
        e.add(&metrics::SECTION_SECONDS, &["checkpoint"], seconds);
        e.observe(&metrics::CHECKPOINT_STALL, seconds);
        Ok(())
    }

    /// Waits for the last checkpoint of this start: a run that says it ended has saved its state.
    fn last_save(&mut self) -> Result<()> {
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let Some(finished) = outputs.saver.wait()? else {
            return Ok(());
        };
        note_save(&self.exporter, &finished);
        match finished.outcome {
            Ok(_) => Ok(()),
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
    fn check_movement(&mut self, report: &StepReport) -> Result<()> {
        let updated = report.skipped.is_none() && report.lr > 0.0;
        let Some(movement) = self.movement.as_mut().filter(|_| updated) else {
            return Ok(());
        };
        let Some(verdict) = movement.observe(&self.assembly.params)? else {
            return Ok(());
        };
        self.movement = None;
        if let (Some(warning), Some(outputs)) = (verdict, &self.outputs) {
            outputs.reporter.warn(&warning);
        }
        Ok(())
    }

    fn finish(&mut self, world: &dyn Collective, outcome: Outcome) -> Result<()> {
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

impl Outputs {
    fn open(
        resolved: &Resolved,
        args: &RunArgs,
        from: Option<&Path>,
        training: &Training,
        world: &dyn Collective,
        loaders: &SplitLoaders,
    ) -> Result<Self> {
        let Training {
            assembly,
            cursor,
            schedule,
            selection,
            ..
        } = training;
        let config = &resolved.config;
        let run_dir = RunDir::new(&config.run.dir);
        if args.overwrite {
            run_dir.clear()?;
        }
        run_dir.describe(resolved, assembly)?;
        let facts = Facts {
            model: assembly.describe(config),
            data: json!({
                "corpus": config.data.corpus,
                "fingerprint": assembly.feed.corpus.fingerprint(),
                "train_cells": loaders.train.cells(),
                "valid_cells": loaders.valid.cells(),
                "genes_matched": assembly.feed.overlap.matched,
                "genes": assembly.feed.overlap.corpus_genes,
            }),
            trainable_parameters: assembly.params.trainable_count(),
            total_parameters: assembly.params.total_count(),
            seed: config.run.seed,
            changed: training.changed.clone(),
        };
        let device = format!("{:?}", assembly.staging.device).to_lowercase();
        let recorder = Recorder::begin(
            &config.run.dir,
            &facts,
            world.topology(),
            cursor.step,
            &device,
            assembly.threads,
        )?;
        let reporter = Reporter::open(
            &config.run.dir,
            args.progress,
            schedule.planned_steps,
            cursor.step,
        )?;
        reporter.say(&assembly.summary(config, world.topology(), loaders));
        if cursor.step > 0 {
            reporter.say(&format!(
                "resumed at step {} (epoch {}, batch {})",
                cursor.step, cursor.epoch, cursor.batch
            ));
        }
        for change in &training.changed {
            reporter.warn(&format!("changed, as allowed: {change}"));
        }
        Ok(Self {
            reporter,
            recorder,
            saver: Saver::new(
                &run_dir,
                from,
                selection.best.map(|best| best.step),
                config,
                assembly,
            )?,
        })
    }
}

/// Metrics of a save that has ended.
fn note_save(exporter: &Exporter, finished: &Finished) {
    exporter.observe(&metrics::CHECKPOINT_WRITE, finished.write_seconds);
    match &finished.outcome {
        Ok(bytes) => {
            exporter.set(&metrics::CHECKPOINT_BYTES, &[], *bytes as f64);
            exporter.set_now(&metrics::LAST_CHECKPOINT);
        }
        Err(_) => exporter.add(&metrics::CHECKPOINT_FAILURES, &[], 1.0),
    }
}

fn next(stream: &mut EpochStream) -> Result<Option<StepBatches>> {
    Ok(stream.next().transpose()?)
}

fn adam_options(config: &Config) -> AdamOptions {
    let t = &config.train;
    AdamOptions {
        beta1: t.beta1,
        beta2: t.beta2,
        eps: t.eps,
        weight_decay: t.weight_decay,
        decoupled: t.optimizer == scpeft_config::Optimizer::AdamW,
    }
}

fn schedule(config: &Config, steps_per_epoch: u64) -> Schedule {
    let t = &config.train;
    let by_epochs = t.epochs.saturating_mul(steps_per_epoch);
    let planned_steps = t.max_steps.map_or(by_epochs, |limit| limit.min(by_epochs));
    Schedule {
        lr: t.lr,
        warmup_steps: t.warmup_steps,
        shape: match t.schedule {
            scpeft_config::Schedule::Constant => Shape::Constant,
            scpeft_config::Schedule::Step => Shape::Step {
                gamma: t.step_gamma,
            },
            scpeft_config::Schedule::Linear => Shape::Linear {
                min_ratio: t.min_lr_ratio,
            },
            scpeft_config::Schedule::Wsd => Shape::Wsd {
                decay_steps: match t.decay_steps {
                    0 => (planned_steps / 10).max(1),
                    steps => steps,
                },
                min_ratio: t.min_lr_ratio,
            },
            scpeft_config::Schedule::Cosine => Shape::Cosine {
                min_ratio: t.min_lr_ratio,
            },
        },
        steps_per_epoch,
        planned_steps,
    }
}

fn start_exporter(
    config: &Config,
    world: &dyn Collective,
    assembly: &Assembly,
    schedule: &Schedule,
) -> Result<Exporter> {
    let broken = |e: prometheus::Error| Failure::new(exit::INTERNAL, format!("metrics: {e}"));
    let exporter = Exporter::new().map_err(broken)?;
    let adapter = config.adapter.kind.to_string();
    let labels = [
        config.run.name.as_str(),
        config.backbone.architecture.as_str(),
        adapter.as_str(),
        config.task.kind.as_str(),
    ];
    exporter.set(&metrics::RUN_INFO, &labels, 1.0);
    exporter.set(&metrics::PLANNED_STEPS, &[], schedule.planned_steps as f64);
    exporter.set(
        &metrics::TRAINABLE_PARAMETERS,
        &[],
        assembly.params.trainable_count() as f64,
    );
    exporter.set(
        &metrics::WORLD_SIZE,
        &[],
        world.topology().world_size as f64,
    );
    if config.metrics.port > 0 {
        let port = config
            .metrics
            .port
            .saturating_add(world.topology().local_rank as u16);
        match exporter.serve(&config.metrics.bind, port) {
            Ok(address) if address.port() != port => tracing::warn!(
                "rank {}: port {port} is taken, metrics are at http://{address}/metrics",
                world.topology().rank
            ),
            Ok(_) => {}
            // Training goes on without a scrape target.
            Err(e) => tracing::warn!(
                "rank {}: no metrics, `{}:{port}`: {e}",
                world.topology().rank,
                config.metrics.bind
            ),
        }
    }
    Ok(exporter)
}
