//! From a configuration to a run that is ready for its first step.

use std::path::Path;
use std::rc::Rc;

use scpeft_collective::Collective;
use scpeft_config::{Config, Resolved};
use scpeft_protocol::{exit, metrics};
use serde_json::json;

use super::{Outputs, Training};
use crate::args::RunArgs;
use crate::assembly::{Assembly, SplitLoaders};
use crate::checkpointing::{self, Cursor, RunDir, Saver, mirroring};
use crate::exporter::Exporter;
use crate::failure::{Failure, Result};
use crate::identity::Allowed;
use crate::ledger::Ledger;
use crate::loading::LoaderWatch;
use crate::movement::Movement;
use crate::optim::{Adam, AdamOptions, Ema, Schedule, Shape};
use crate::record::{Facts, Recorder};
use crate::report::Reporter;
use crate::selection::ModelSelection;
use crate::step::Skip;
use crate::straggler::Pace;
use crate::watch::Watch;
use crate::watch::trace::Window;

impl Training {
    pub(super) fn begin(
        world: &dyn Collective,
        watch: &Watch,
        ledger: Rc<Ledger>,
        resolved: &Resolved,
        args: &RunArgs,
        mut assembly: Assembly,
        from: Option<&Path>,
    ) -> Result<(Self, SplitLoaders)> {
        let config = resolved.config.clone();
        let loaders = assembly.loaders(&config, world.topology())?;
        let mut adam = Adam::new(adam_options(&config), assembly.params.flat())?;
        let mut ema = match config.train.ema_decay {
            0.0 => None,
            decay => Some(Ema::new(decay, assembly.params.flat())?),
        };
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
                ema.as_mut(),
                &mut selection,
                &allowed,
            )?;
        }
        let schedule = schedule(&config, loaders.train.batches_per_epoch());
        let log = &config.log;
        let traced = Window::new(cursor.step, log.trace_after, log.trace_steps);
        let exporter = Rc::new(start_exporter(&config, world, watch, &assembly, &schedule)?);
        ledger.export_to(&exporter);
        introduce(watch, &config, &assembly);
        let mut training = Self {
            movement: Some(Movement::new(&assembly.params)?),
            changed,
            config,
            assembly,
            adam,
            ema,
            schedule,
            cursor,
            selection,
            exporter,
            ledger,
            pace: Pace::default(),
            outputs: None,
            loading: LoaderWatch::default(),
            bad_steps: 0,
            world_size: world.topology().world_size,
            watch: watch.clone(),
            traced,
        };
        if world.topology().is_root() {
            training.outputs = Some(Outputs::open(
                resolved, args, from, &training, world, &loaders,
            )?);
        }
        Ok((training, loaders))
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
            run_dir.clear(mirroring::open(config)?.as_ref())?;
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
        let device = assembly.device_name();
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
            &config.log.sinks,
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

pub(crate) fn adam_options(config: &Config) -> AdamOptions {
    let t = &config.train;
    AdamOptions {
        beta1: t.beta1,
        beta2: t.beta2,
        eps: t.eps,
        weight_decay: t.weight_decay,
        decoupled: t.optimizer == scpeft_config::Optimizer::AdamW,
    }
}

pub(crate) fn schedule(config: &Config, steps_per_epoch: u64) -> Schedule {
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

/// Tells the launcher what is known of the rank now.
fn introduce(watch: &Watch, config: &Config, assembly: &Assembly) {
    let device = assembly.device_name();
    let directory = std::path::absolute(&config.run.dir).unwrap_or(config.run.dir.clone());
    watch.describe(|hello| {
        hello.device = device;
        hello.run_dir = Some(directory.display().to_string());
    });
}

fn start_exporter(
    config: &Config,
    world: &dyn Collective,
    watch: &Watch,
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
    // Counters start at 0 before anything happens: a rate over the first event needs that.
    for reason in [Skip::NonFinite, Skip::Empty] {
        exporter.add(&metrics::SKIPPED_STEPS, &[reason.name()], 0.0);
    }
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
            Ok(address) => {
                watch.describe(|hello| hello.metrics_port = Some(address.port()));
                if address.port() != port {
                    tracing::warn!(
                        "rank {}: port {port} is taken, metrics are at http://{address}/metrics",
                        world.topology().rank
                    );
                }
            }
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
