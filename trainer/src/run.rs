//! The training loop.

use std::path::Path;
use std::time::Instant;

use scpeft_collective::{Collective, Topology};
use scpeft_config::{Config, Resolved};
use scpeft_data::{EpochStream, Loader, StepBatches};
use scpeft_protocol::{exit, metrics};
use serde_json::json;

use crate::Outcome;
use crate::args::{ParametersArgs, RunArgs};
use crate::assembly::{Assembly, SplitLoaders};
use crate::checkpointing::{self, Cursor, Progress, RunDir, Saver};
use crate::consensus::agree;
use crate::evaluate::evaluate;
use crate::exporter::Exporter;
use crate::failure::{Failure, Result};
use crate::loading::LoaderWatch;
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
        if let Some(path) = from {
            cursor =
                checkpointing::restore(path, &config, &mut assembly, &mut adam, &mut selection)?;
        }
        let schedule = schedule(&config, loaders.train.batches_per_epoch());
        let exporter = start_exporter(&config, world, &assembly, &schedule)?;
        let mut training = Self {
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
                self.save(false)?;
                outcome = Outcome::Preempted;
                break;
            }
            self.end_epoch(world, loaders)?;
            self.list_skipped(loaders)?;
        }
        self.list_skipped(loaders)?;
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
            if report.stop {
                return Ok(true);
            }
            let every = self.config.checkpoint.every_steps;
            if every > 0 && self.cursor.step.is_multiple_of(every) {
                self.save(false)?;
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
        self.show(&evaluation, name, epoch)?;
        self.save(is_best)
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

    /// Writes a checkpoint (rank 0), and makes it the best one when it is.
    fn save(&mut self, is_best: bool) -> Result<()> {
        let Some(outputs) = &mut self.outputs else {
            return Ok(());
        };
        let begun = Instant::now();
        let progress = Progress {
            cursor: &self.cursor,
            selection: &self.selection,
            world_size: self.world_size,
        };
        let saved =
            outputs
                .saver
                .save(&self.config, &self.assembly, &self.adam, &progress, is_best)?;
        let seconds = begun.elapsed().as_secs_f64();
        let e = &self.exporter;
        e.add(&metrics::SECTION_SECONDS, &["checkpoint"], seconds);
        e.add(&metrics::CHECKPOINT_SECONDS, &[], seconds);
        e.set(&metrics::CHECKPOINT_BYTES, &[], saved as f64);
        e.set_now(&metrics::LAST_CHECKPOINT);
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
        Ok(Self {
            reporter,
            recorder,
            saver: Saver::new(&run_dir, from, selection.best.map(|best| best.step))?,
        })
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
    Schedule {
        lr: t.lr,
        warmup_steps: t.warmup_steps,
        shape: match t.schedule {
            scpeft_config::Schedule::Constant => Shape::Constant,
            scpeft_config::Schedule::Step => Shape::Step {
                gamma: t.step_gamma,
            },
            scpeft_config::Schedule::Cosine => Shape::Cosine {
                min_ratio: t.min_lr_ratio,
            },
        },
        steps_per_epoch,
        planned_steps: t.max_steps.map_or(by_epochs, |limit| limit.min(by_epochs)),
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
