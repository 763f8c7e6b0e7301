//! The training loop. `start` makes a run out of a configuration, `account` is its metrics and log,
//! `saving` its checkpoints.

mod account;
mod saving;
mod start;

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use scpeft_checkpoint::Score;
use scpeft_collective::{Collective, Observed, Observer, Topology};
use scpeft_config::{Config, Resolved};
use scpeft_data::{EpochStream, Loader, StepBatches};
use scpeft_protocol::heartbeat::{Command, Section};
use scpeft_protocol::{exit, metrics};

use crate::Outcome;
use crate::args::{ParametersArgs, RunArgs};
use crate::assembly::{Assembly, SplitLoaders};
use crate::checkpointing::{self, Cursor, Evaluated, RunDir, Saver, mirroring};
use crate::consensus::agree;
use crate::evaluate::evaluate;
use crate::exporter::Exporter;
use crate::failure::{Failure, Result, exit_code};
use crate::ledger::Ledger;
use crate::loading::LoaderWatch;
use crate::movement::Movement;
use crate::non_finite::Search;
use crate::optim::{Adam, Ema, Schedule};
use crate::record::{Recorder, return_free_memory};
use crate::report::Reporter;
use crate::selection::ModelSelection;
use crate::settings;
use crate::shard;
use crate::startup::{self, Threads};
use crate::step::{Asked, Skip, StepReport, Stepper};
use crate::stop::StopFlag;
use crate::straggler::Pace;
use crate::transport;
use crate::watch::Watch;
use crate::watch::trace::{Part, Window};

use account::Took;
pub(crate) use start::{adam_options, schedule};

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
    let ledger = Rc::new(Ledger::default());
    let observer: Rc<dyn Observer> = if world.topology().world_size == 1 {
        // Nothing leaves a rank that is alone.
        Rc::new(watch.clone())
    } else {
        Rc::new((watch.clone(), Rc::clone(&ledger)))
    };
    let observed = Observed::new(world, Rc::clone(&observer));
    let result = train(&observed, args, stop, &watch, ledger, observer);
    watch.say_goodbye(exit_code(&result));
    result
}

fn train(
    world: &dyn Collective,
    args: &RunArgs,
    stop: &StopFlag,
    watch: &Watch,
    ledger: Rc<Ledger>,
    observer: Rc<dyn Observer>,
) -> Result<Outcome> {
    if let Err(failure) = startup::check_transport(world) {
        leave(world, watch, &failure);
    }
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
    let threads = Threads {
        compute: assembly.threads,
        chosen: config.run.threads > 0,
        loader: config.data.loader_threads,
    };
    let compared = startup::compare_places(world, assembly.staging.device, threads);
    agree(world, compared)?;
    let (choice, device) = (config.run.transport, assembly.staging.device);
    let nccl = transport::on_devices(world, observer, choice, device)?;
    let world: &dyn Collective = nccl.as_ref().map_or(world, |nccl| nccl);
    let (training, loaders) = agree(
        world,
        Training::begin(
            world,
            watch,
            ledger,
            &resolved,
            args,
            assembly,
            from.as_deref(),
        ),
    )?;
    return_free_memory();
    match training.drive(world, &loaders, stop) {
        Err(failure) if world.topology().world_size > 1 => leave(world, watch, &failure),
        outcome => outcome,
    }
}

/// Brings the whole job down for a failure that the other ranks may not share.
fn leave(world: &dyn Collective, watch: &Watch, failure: &Failure) -> ! {
    tracing::error!("rank {}: {failure}", world.topology().rank);
    watch.say_goodbye(failure.code);
    world.abort(failure.code)
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
    exporter: Rc<Exporter>,
    ledger: Rc<Ledger>,
    pace: Pace,
    outputs: Option<Outputs>,
    loading: LoaderWatch,
    bad_steps: u64,
    world_size: usize,
    watch: Watch,
    /// Steps of this start that are traced.
    traced: Window,
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
        if self.config.run.deterministic {
            self.rehearse(world, &loaders.train)?;
        }
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
        self.watch.end_trace(world, &self.config.run.dir)?;
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
            let (traced, dir) = (self.traced, &self.config.run.dir);
            self.watch.trace(world, traced, self.cursor.step, dir)?;
            let begun = Instant::now();
            let whole = self.watch.span(Part::Step(self.cursor.step + 1));
            self.watch.set_step(self.cursor.step + 1);
            self.watch.enter(Section::Data);
            let waiting = self.watch.span(Part::Data);
            let Some(batch) = next(&mut stream)? else {
                whole.discard();
                break;
            };
            drop(waiting);
            let data_seconds = begun.elapsed().as_secs_f64();
            self.loading.record(&self.exporter, loader, stream.ready());
            self.redraw()?;
            let before = self.ledger.all();
            let report = self.step(world, &batch, self.asked(stop))?;
            self.cursor.step += 1;
            self.cursor.batch += 1;
            let moved = self.ledger.all().since(before);
            let took = Took {
                seconds: begun.elapsed().as_secs_f64(),
                data_seconds,
                moved,
            };
            self.pace.add(took.seconds, moved.seconds);
            let standing = if self.logs() {
                self.pace.compare(world)?
            } else {
                None
            };
            self.account(&report, &took, standing)?;
            drop(whole);
            self.check_movement(&report)?;
            if report.asked.stop {
                return Ok(true);
            }
            let every = self.config.checkpoint.every_steps;
            let due = every > 0 && self.cursor.step.is_multiple_of(every);
            if due || report.asked.save {
                self.save(None)?;
            }
        }
        Ok(false)
    }

    /// New random features before the step, where it is time for them: a function of seed and step.
    fn redraw(&self) -> Result<()> {
        let (every, step) = (self.config.backbone.redraw_steps, self.cursor.step);
        if every == 0 || step == 0 || !step.is_multiple_of(every) {
            return Ok(());
        }
        let seed = self.config.run.seed;
        Ok(self.assembly.model.redraw(seed, step / every)?)
    }

    /// Whether this step is one that is logged.
    fn logs(&self) -> bool {
        let every = self.config.log.every_steps.max(1);
        self.cursor.step.is_multiple_of(every)
    }

    /// What this rank was asked to do after the step: by a signal, or by the launcher.
    fn asked(&self, stop: &StopFlag) -> Asked {
        let command = self.watch.take_command();
        Asked {
            stop: stop.is_set() || command == Some(Command::Drain),
            save: command == Some(Command::Save),
        }
    }

    fn stepper(&mut self) -> Stepper<'_> {
        let assembly = &mut self.assembly;
        Stepper {
            model: assembly.model.as_ref(),
            params: &mut assembly.params,
            task: assembly.task.as_ref(),
            adam: &mut self.adam,
            schedule: self.schedule,
            dropout: settings::dropout(&self.config, assembly.staging.device),
            clip_norm: self.config.train.clip_norm,
            seed: self.config.run.seed,
            staging: &assembly.staging,
            watch: &self.watch,
        }
    }

    /// Computes the gradients of the next step twice and refuses to go on when they differ.
    fn rehearse(&mut self, world: &dyn Collective, loader: &Loader) -> Result<()> {
        self.watch.enter(Section::Data);
        let Cursor {
            step, epoch, batch, ..
        } = self.cursor;
        let Some(batch) = next(&mut loader.epoch(epoch, batch))? else {
            return Ok(());
        };
        let same = self.stepper().rehearse(world, step, &batch)?;
        agree(
            world,
            if same {
                Ok(())
            } else {
                Err(Failure::new(
                    exit::INTERNAL,
                    "`run.deterministic`: the gradients of the first step differ when they are computed again\n\
                     help: please report it; `run.deterministic = false` goes on without that promise",
                ))
            },
        )?;
        if let Some(outputs) = &self.outputs {
            let said = "deterministic: the gradients of the first step are the same bits twice";
            outputs.reporter.say(said);
        }
        Ok(())
    }

    fn step(
        &mut self,
        world: &dyn Collective,
        batch: &StepBatches,
        asked: Asked,
    ) -> Result<StepReport> {
        let step = self.cursor.step;
        let report = self.stepper().step(world, step, batch, asked)?;
        if let Some(ema) = self.ema.as_mut().filter(|_| report.skipped.is_none()) {
            ema.observe(self.assembly.params.flat())?;
        }
        if report.skipped == Some(Skip::NonFinite) {
            self.bad_steps += 1;
            self.blame(world, batch, &report)?;
        } else {
            self.bad_steps = 0;
        }
        Ok(report)
    }

    /// Lists the cells behind a gradient that is not finite.
    ///
    /// # Errors
    /// When there were too many such steps in a row.
    fn blame(
        &self,
        world: &dyn Collective,
        batch: &StepBatches,
        report: &StepReport,
    ) -> Result<()> {
        let Assembly {
            model,
            task,
            staging,
            feed,
            ..
        } = &self.assembly;
        let search = Search {
            model: model.as_ref(),
            task: task.as_ref(),
            staging,
            corpus: &feed.corpus,
            watch: &self.watch,
        };
        self.watch.enter(Section::Forward);
        let step = self.cursor.step + 1;
        let directory = &self.config.run.dir;
        let cells = search.list(world, directory, step, batch, &report.suspects)?;
        if self.bad_steps > self.config.train.non_finite_limit {
            return Err(Failure::new(
                exit::NON_FINITE,
                format!(
                    "{} steps in a row had a gradient that is not finite, the last at step {step} (epoch {}, batch {}): {cells}\n\
                     help: lower `train.lr`, set `train.clip_norm`, or look for extreme values in the corpus with `scpeft-data verify`",
                    self.bad_steps, batch.epoch, batch.batch
                ),
            ));
        }
        if let Some(outputs) = &self.outputs {
            outputs
                .reporter
                .warn(&format!("step {step}: suspected: {cells}"));
        }
        Ok(())
    }

    /// Evaluation, model selection and checkpoint at the end of an epoch or of the run.
    fn end_epoch(&mut self, world: &dyn Collective, loaders: &SplitLoaders) -> Result<()> {
        let begun = Instant::now();
        self.watch.enter(Section::Eval);
        let span = self.watch.span(Part::Eval);
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
        drop(span);
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
