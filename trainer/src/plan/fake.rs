//! `plan --fake-world N`: one step of one rank of a run of N ranks, of which the others do not exist, and
//! what follows from its time for larger runs.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use scpeft_collective::{Collective, Fake, Observed};
use scpeft_config::{Config, Shard};
use serde::Serialize;

use super::scaling::{FORMULA, Links, Load, Row, simulate};
use super::{MIB, Plan};
use crate::args::PlanArgs;
use crate::assembly::Assembly;
use crate::failure::{Failure, Result};
use crate::ledger::Ledger;
use crate::optim::Adam;
use crate::record::peak_rss_bytes;
use crate::run::{adam_options, schedule};
use crate::step::{Asked, Stepper};
use crate::watch::Watch;
use crate::{settings, shard};

/// Memory of a rank with one way of sharing frozen layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sharing {
    /// Which ranks share them.
    pub shard: Shard,
    /// Bytes of a rank.
    pub memory_bytes: u64,
    /// Bytes of layers that it receives in a step.
    pub gathered_bytes: u64,
}

/// What the fake world showed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FakeWorld {
    /// Seconds of a step of one rank, without communication.
    pub step_seconds: f64,
    /// Whether they were measured here; else they were given.
    pub measured: bool,
    /// Bytes that the rank handed to collectives in that step, by operation.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Largest resident memory of this process.
    pub peak_bytes: u64,
    /// Memory with each way of sharing.
    pub sharing: Vec<Sharing>,
    /// The links that were stated.
    pub links: Links,
    /// 8 to 1,024 GPUs, with gradients of what trains.
    pub scaling: Vec<Row>,
    /// The same, in full fine-tuning with the same time of a step.
    pub full_scaling: Vec<Row>,
}

impl FakeWorld {
    /// Runs the step, and works out the rest.
    ///
    /// # Errors
    /// Whatever is wrong with configuration, corpus or weights; when libtorch fails.
    pub(super) fn of(config: &Config, args: &PlanArgs, ranks: usize, plan: &Plan) -> Result<Self> {
        let links = links(args);
        let (seconds, bytes) = step(config, ranks, plan.ranks_per_node)?;
        let step_seconds = args.step_seconds.unwrap_or(seconds);
        let rows = |parameters: u64| {
            let load = Load {
                step_seconds,
                all_reduce_bytes: parameters as f64,
            };
            simulate(&load, &links)
        };
        Ok(Self {
            step_seconds,
            measured: args.step_seconds.is_none(),
            bytes,
            peak_bytes: peak_rss_bytes(),
            sharing: sharing(config, args)?,
            links,
            scaling: rows(plan.step.all_reduce_bytes),
            full_scaling: rows(plan.step.full_all_reduce_bytes),
        })
    }

    /// Lines for the user.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![format!(
            "one step of rank 0, the other ranks left out: {:.3} s{}, this process at most {:.1} MiB",
            self.step_seconds,
            if self.measured {
                " measured here"
            } else {
                " as given"
            },
            self.peak_bytes as f64 / MIB,
        )];
        for (op, bytes) in &self.bytes {
            lines.push(format!(
                "  {:44} {bytes:>16} bytes",
                format!("handed to {op}")
            ));
        }
        lines.push("memory of a rank by `backbone.shard`, and layers received in a step".into());
        for row in &self.sharing {
            lines.push(format!(
                "  {:44} {:>12.1} MiB {:>12.1} MiB",
                row.shard.as_str(),
                row.memory_bytes as f64 / MIB,
                row.gathered_bytes as f64 / MIB
            ));
        }
        let l = &self.links;
        lines.push(format!(
            "simulated, not measured: {} GPUs a node, {} GB/s a GPU within it, {} GB/s a node between, \
             {} and {} us a hop",
            l.per_node,
            l.node_bytes_per_second / 1e9,
            l.network_bytes_per_second / 1e9,
            l.node_latency * 1e6,
            l.network_latency * 1e6,
        ));
        lines.push("    GPUs   all-reduce ms   efficiency   in full fine-tuning".into());
        for (row, full) in self.scaling.iter().zip(&self.full_scaling) {
            lines.push(format!(
                "  {:>6} {:>15.3} {:>12.4} {:>21.4}",
                row.gpus,
                1e3 * row.communication_seconds,
                row.efficiency,
                full.efficiency
            ));
        }
        lines.push(FORMULA.into());
        lines.join("\n")
    }
}

fn links(args: &PlanArgs) -> Links {
    Links {
        per_node: args.gpus_per_node,
        node_bytes_per_second: args.node_gbs * 1e9,
        network_bytes_per_second: args.network_gbs * 1e9,
        node_latency: args.node_latency_us * 1e-6,
        network_latency: args.network_latency_us * 1e-6,
    }
}

/// Plans with each way of sharing; those that the configuration cannot have are left out.
fn sharing(config: &Config, args: &PlanArgs) -> Result<Vec<Sharing>> {
    let ways = match config.task.trainable {
        // No layer is frozen.
        scpeft_config::Trainable::All => &[Shard::None][..],
        _ => &[Shard::None, Shard::Node, Shard::World],
    };
    ways.iter()
        .map(|&shard| {
            let mut config = config.clone();
            config.backbone.shard = shard;
            let plan = Plan::of(&config, args)?;
            Ok(Sharing {
                shard,
                memory_bytes: plan.memory_bytes,
                gathered_bytes: plan.step.gathered_bytes,
            })
        })
        .collect()
}

/// Seconds of the second of two steps of rank 0 on the first batch, and the bytes that it handed over.
fn step(
    config: &Config,
    ranks: usize,
    per_node: usize,
) -> Result<(f64, BTreeMap<&'static str, u64>)> {
    let fake = Fake::new(ranks, per_node);
    let ledger = Rc::new(Ledger::default());
    let observed = Observed::new(&fake, Rc::new(Rc::clone(&ledger)));
    let world: &dyn Collective = &observed;
    let gather = shard::gather(world, config.backbone.shard)?;
    let mut assembly = Assembly::for_training(config, world.topology(), gather)?;
    let loaders = assembly.loaders(config, world.topology())?;
    let mut adam = Adam::new(adam_options(config), assembly.params.flat())?;
    let watch = Watch::unattended(world)?;
    let batch = loaders.train.epoch(0, 0).next().transpose()?;
    let batch = batch.ok_or_else(|| Failure::config("the training split has no batch"))?;
    let Assembly {
        model,
        params,
        task,
        staging,
        ..
    } = &mut assembly;
    let mut stepper = Stepper {
        model: model.as_ref(),
        params,
        task: task.as_ref(),
        adam: &mut adam,
        schedule: schedule(config, loaders.train.batches_per_epoch()),
        dropout: settings::dropout(config, staging.device),
        clip_norm: config.train.clip_norm,
        seed: config.run.seed,
        staging,
        watch: &watch,
    };
    stepper.step(world, 0, &batch, Asked::default())?;
    let (before, begun) = (ledger.by_op(), Instant::now());
    stepper.step(world, 1, &batch, Asked::default())?;
    let seconds = begun.elapsed().as_secs_f64();
    let earlier: BTreeMap<_, _> = before.into_iter().collect();
    let moved = ledger.by_op().into_iter().map(|(op, total)| {
        let bytes = earlier.get(op).map_or(0, |before| before.bytes);
        (op, total.bytes - bytes)
    });
    Ok((seconds, moved.filter(|(_, bytes)| *bytes > 0).collect()))
}
