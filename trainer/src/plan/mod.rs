//! `scpeft-train plan`: what a run will need, from configuration, architecture and corpus alone. No
//! rank is started and no weight is read.

pub mod estimate;
pub mod fake;
pub mod scaling;

use scpeft_config::{Config, Shard};
use serde::Serialize;
use tch::Device;

use crate::args::PlanArgs;
use crate::assembly::{Draft, FreezeRule, grouped};
use crate::failure::{Failure, Result};
use crate::feed::Share;
use crate::settings;
use crate::step::tail_len;

use estimate::{Memory, Parameters, Setup, Step};
use fake::FakeWorld;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// What a run needs, per rank unless said otherwise.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// Ranks of the run.
    pub ranks: usize,
    /// Ranks of a machine.
    pub ranks_per_node: usize,
    /// Which ranks share frozen blocks.
    pub shard: Shard,
    /// Cells of a micro-batch.
    pub micro_batch_cells: usize,
    /// Tokens of the longest cell that there can be.
    pub tokens: usize,
    /// The largest number of micro-batches of a rank in a step.
    pub micro_batches: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Numbers of parameters, of the whole model.
    pub parameters: Parameters,
    /// Bytes.
    pub memory: Memory,
    /// Sum of them.
    pub memory_bytes: u64,
    /// Bytes of all ranks of a machine.
    pub node_bytes: u64,
    /// Bytes that a machine has.
    pub node_limit_bytes: u64,
    /// One step.
    pub step: Step,
    /// What a step of a fake world showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fake_world: Option<FakeWorld>,
}

/// Plans as `args` say; the whole of `scpeft-train plan`. Returns what to print.
///
/// # Errors
/// Whatever is wrong with configuration, corpus or backbone; ranks that do not divide the global
/// batch; a run that does not fit.
pub fn plan(args: &PlanArgs) -> Result<String> {
    let config = crate::run::load_config(args.config.as_deref(), &args.overrides)?.config;
    let args = &PlanArgs {
        world: args.fake_world.unwrap_or(args.world),
        ..args.clone()
    };
    let mut plan = Plan::of(&config, args)?;
    if let Some(ranks) = args.fake_world {
        plan.require_fit(&plan.table())?;
        plan.fake_world = Some(FakeWorld::of(&config, args, ranks, &plan)?);
    }
    let shown = if args.json {
        serde_json::to_string_pretty(&plan).unwrap_or_default()
    } else {
        plan.table()
    };
    plan.require_fit(&shown)?;
    Ok(shown)
}

impl Plan {
    fn of(config: &Config, args: &PlanArgs) -> Result<Self> {
        let ranks = args.world.max(1);
        let ranks_per_node = args.ranks_per_node.unwrap_or(ranks).clamp(1, ranks);
        let draft = Draft::open(config)?;
        // Refuses what the ranks cannot share.
        let share = Share {
            rank: 0,
            world_size: ranks,
        };
        let loader = draft.train_loader(config, share)?;
        let architecture = draft.architecture(config);
        let specs = architecture.specs()?;
        let rule = FreezeRule::new(config, architecture.as_ref(), draft.task.as_ref())?;
        let trains = |spec: &scpeft_model::TensorSpec| rule.trains(spec);
        let tokens = draft.feed.longest();
        let (cells, micro_batches) = micro_batches(config, ranks, tokens);
        let shape = architecture.shape();
        let setup = Setup {
            shape,
            first_backward: architecture.first_in_backward(&trains)?,
            precision: settings::precision(config),
            random_features: architecture.random_features(),
            executor: settings::executor(config),
            shared_by: match config.backbone.shard {
                Shard::None => None,
                Shard::Node => Some(ranks_per_node),
                Shard::World => Some(ranks),
            },
            storage: settings::storage(config),
            cells,
            tokens,
            passes: micro_batches,
            tail: tail_len(
                draft.task.as_ref(),
                architecture.norm(),
                shape.d_model as usize,
            ),
            averaged: config.train.ema_decay > 0.0,
            keeps_probabilities: settings::dropout(config, Device::Cpu).attention > 0.0,
            loader_cells: (
                config.data.prefetch_steps * config.train.batch_cells.div_ceil(ranks),
                draft.feed.cells_of_windows(config.data.shuffle_window) as usize,
            ),
            ranks,
            mapped: draft.backbone.weights.is_some()
                && settings::precision(config) == scpeft_model::Precision::F32,
        };
        let memory = estimate::memory(&specs, trains, &setup);
        Ok(Self {
            ranks,
            ranks_per_node,
            shard: config.backbone.shard,
            micro_batch_cells: cells,
            tokens,
            micro_batches,
            steps_per_epoch: loader.batches_per_epoch(),
            parameters: estimate::parameters(&specs, trains),
            memory,
            memory_bytes: memory.total(),
            node_bytes: memory.of_machine(ranks_per_node),
            node_limit_bytes: match args.memory_gib {
                Some(gib) => (gib * GIB) as u64,
                None => machine_bytes()?,
            },
            step: estimate::step(&specs, trains, &setup),
            fake_world: None,
        })
    }

    fn require_fit(&self, shown: &str) -> Result<()> {
        if self.node_bytes <= self.node_limit_bytes {
            return Ok(());
        }
        let m = &self.memory;
        Err(Failure::config(format!(
            "{shown}\n{} rank(s) of a machine need ({:.2} - {:.2}) x {} + {:.2} = {:.2} GiB, it has {:.2} GiB\n\
             help: lower `train.micro_batch_cells` (activations: {:.2} GiB a rank), set `run.recompute = true`, \
             `run.precision = \"bf16\"` or `backbone.shard`, or start fewer ranks on a machine",
            self.ranks_per_node,
            self.memory_bytes as f64 / GIB,
            m.in_common as f64 / GIB,
            self.ranks_per_node,
            m.in_common as f64 / GIB,
            self.node_bytes as f64 / GIB,
            self.node_limit_bytes as f64 / GIB,
            m.activations as f64 / GIB,
        )))
    }

    fn table(&self) -> String {
        let p = &self.parameters;
        let m = &self.memory;
        let s = &self.step;
        let count = |name: &str, n: u64| format!("  {name:44} {:>16}", grouped(n));
        let bytes = |name: &str, n: u64| format!("  {name:44} {:>12.1} MiB", n as f64 / MIB);
        let flops = |name: &str, n: f64| format!("  {name:44} {:>12.3} TFLOP", n / 1e12);
        let shared = if self.shard == Shard::None {
            "whole"
        } else {
            "this rank's share"
        };
        let mut lines = vec![
            format!(
                "{} rank(s), {} on a machine; up to {} micro-batch(es) a step of {} cells x {} tokens (the longest there can be); {} steps an epoch",
                self.ranks,
                self.ranks_per_node,
                self.micro_batches,
                self.micro_batch_cells,
                self.tokens,
                grouped(self.steps_per_epoch),
            ),
            "parameters".into(),
            count("frozen layers", p.frozen_blocks),
            count("frozen embeddings and heads", p.frozen_rest),
            count("trained: adapters", p.adapters),
            count("trained: heads", p.heads),
            count("trained: backbone", p.backbone),
            "memory of a rank".into(),
            bytes(&format!("frozen layers, {shared}"), m.frozen_blocks),
            bytes("gathered layers, at most two; unpacked ones", m.gathered),
            bytes("frozen embeddings and heads", m.frozen_rest),
            bytes("trained: weights, gradients, moments", m.trainable),
            bytes("activations (estimate)", m.activations),
            bytes("loader, at most", m.loader),
            bytes("program and allocator (estimate)", m.process),
            bytes("sum", self.memory_bytes),
            bytes("all ranks of a machine", self.node_bytes),
            bytes("memory of the machine", self.node_limit_bytes),
            "a step of a rank".into(),
            bytes("all-reduce of gradients", s.all_reduce_bytes),
            bytes(
                &format!("  of full fine-tuning, {:.1} times as much", s.saving()),
                s.full_all_reduce_bytes,
            ),
            bytes("received of shared layers", s.gathered_bytes),
            flops("forward", s.forward_flops),
            flops("backward", s.backward_flops),
            flops("recomputation", s.recompute_flops),
            "operations: two per multiply-add; layers, attention and value encoder; no gradient of frozen weights; adapters and heads left out".into(),
        ];
        lines.extend(self.fake_world.as_ref().map(FakeWorld::table));
        lines.join("\n")
    }
}

/// Cells of a micro-batch, and the most micro-batches of a rank.
fn micro_batches(config: &Config, ranks: usize, tokens: usize) -> (usize, usize) {
    let batch = config.train.batch_cells;
    let cells = match (
        config.train.micro_batch_cells,
        config.train.micro_batch_tokens,
    ) {
        (Some(cells), _) => cells,
        (None, Some(most)) => (most / tokens).max(1),
        (None, None) => batch.div_ceil(ranks),
    };
    (cells, batch.div_ceil(cells).div_ceil(ranks))
}

/// Memory of this machine.
fn machine_bytes() -> Result<u64> {
    let path = std::path::Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).map_err(crate::failure::io(path))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| Failure::config("/proc/meminfo has no MemTotal\nhelp: give `--memory-gib`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_shared_out_by_the_rank_with_the_most() {
        let mut config = Config::default();
        config.train.batch_cells = 32;
        assert_eq!(micro_batches(&config, 4, 100), (8, 1));
        config.train.micro_batch_cells = Some(4);
        assert_eq!(micro_batches(&config, 4, 100), (4, 2));
        assert_eq!(micro_batches(&config, 1024, 100), (4, 1));
        config.train.micro_batch_cells = None;
        config.train.micro_batch_tokens = Some(1000);
        assert_eq!(micro_batches(&config, 2, 100), (10, 2));
    }
}
