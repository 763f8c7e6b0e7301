//! The training loop. `start` makes a run out of a configuration, `account` is its metrics and log,
//! `saving` its checkpoints.

mod account;
mod saving;
mod start;

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use scpeft_checkpoint::Score;
use scpeft_collective::{Collective, Observed, Topology};
use scpeft_config::{Config, Resolved};
use scpeft_data::{EpochStream, Loader, StepBatches};
use scpeft_protocol::heartbeat::Section;
use scpeft_protocol::{exit, metrics};

use crate::Outcome;
use crate::args::{ParametersArgs, RunArgs};
use crate::assembly::{Assembly, SplitLoaders};
use crate::checkpointing::{self, Cursor, Evaluated, RunDir, Saver, mirroring};
use crate::consensus::agree;
use crate::evaluate::evaluate;
use crate::exporter::Exporter;
use crate::failure::{Failure, Result};
use crate::loading::LoaderWatch;
use crate::movement::Movement;
use crate::optim::{Adam, Ema, Schedule};
use crate::record::Recorder;
use crate::report::Reporter;
use crate::selection::ModelSelection;
use crate::settings;
use crate::shard;
use crate::step::{Skip, StepReport, Stepper};
use crate::stop::StopFlag;
use crate::watch::Watch;

/// Trains as `args` say; the whole of `scpeft-train run`.
///
/// # Collective
/// Must be called by all ranks. Failures before the first step are returned on every rank; a
/// failure of one rank later ends the job.
///
/// # Errors
/// Anything from a misspelt key to a full disk, with its exit code.
pub fn run(world: &dyn Collective, args: &RunArgs, stop: &StopFlag) -> Result<Outcome> {
    let watch = Watch::start(world)?;
    let observed = Observed::new(world, Rc::new(watch.clone()));
    let world: &dyn Collective = &observed;
    let resolved = agree(world, load_config(args.config.as_deref(), &args.overrides))?;
    let config = &resolved.config;
    watch.configure(&config.watchdog, &config.run.dir);
    let run_dir = RunDir::new(&config.run.dir);
    let root = world.topology().is_root();
    let from = agree(
        world,
        if root {
            mirroring::open(config).and_then(|m| run_dir.resume_point(args, m.as_ref()))
        } else {
            Ok(None)
        },
    )?;
    let from = checkpointing::broadcast_path(world, from)?;
    let gather = shard::gather(world, config.backbone.shard)?;
    let assembly = Assembly::for_training(config, world.topology(), gather);
    let assembly = agree(world, assembly)?;
    let (training, loaders) = agree(
        world,
        Training::begin(world, &watch, &resolved, args, assembly, from.as_deref()),
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
    let assembly = Assembly::for_training(&config, &Topology::SINGLE, None)?;
    Ok(assembly.parameter_table())
}

/// The configuration of a file and overrides; one of them must be there.
pub(crate) fn load_config(file: Option<&Path>, overrides: &[String]) -> Result<Resolved> {
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
    /// Moving average of the parameters, when the run keeps one.
    ema: Option<Ema>,
    schedule: Schedule,
    cursor: Cursor,
    selection: ModelSelection,
    exporter: Exporter,
    outputs: Option<Outputs>,
    loading: LoaderWatch,
    bad_steps: u64,
    world_size: usize,
    watch: Watch,
    /// Until its verdict.
    movement: Option<Movement>,
    /// What changed on resumption with the user's leave.
    changed: Vec<String>,
}

impl Training {
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
            self.watch.set_step(self.cursor.step + 1);
            self.watch.enter(Section::Data);
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
            model: model.as_ref(),
            params,
            task: task.as_ref(),
            adam: &mut self.adam,
            schedule: self.schedule,
            dropout: settings::dropout(&self.config, staging.device),
            clip_norm: self.config.train.clip_norm,
            seed: self.config.run.seed,
            staging,
            watch: &self.watch,
        };
        let report = stepper.step(world, self.cursor.step, batch, stop)?;
        if let Some(ema) = self.ema.as_mut().filter(|_| report.skipped.is_none()) {
            ema.observe(params.flat())?;
        }
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

    /// Evaluation, model selection and checkpoint at the end of an epoch or of the run.
    fn end_epoch(&mut self, world: &dyn Collective, loaders: &SplitLoaders) -> Result<()> {
        let begun = Instant::now();
        self.watch.enter(Section::Eval);
        let Assembly {
            model,
            params,
            task,
            staging,
            ..
        } = &self.assembly;
        let valid = &loaders.valid;
        let model = model.as_ref();
        let run = || evaluate(world, model, task.as_ref(), valid, staging, &self.watch);
        let averaged = self.config.train.ema_evaluate;
        let evaluation = match self.ema.as_ref().filter(|e| averaged && e.is_known()) {
            Some(ema) => ema.in_place_of(params.flat(), run)?,
            None => run()?,
        };
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
}

fn next(stream: &mut EpochStream) -> Result<Option<StepBatches>> {
    Ok(stream.next().transpose()?)
}
