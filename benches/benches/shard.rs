//! A step of the full-size scGPT on two ranks of one machine, with the frozen blocks shared by the
//! ranks and with a whole copy on each: time and memory per rank.
//!
//! Identification of 18 types with random weights, LoRA or encoder in the first six blocks, 12
//! blocks x 512, vocabulary 60,697, residual dropout 0.2; one micro-batch of 4 cells x 512 tokens
//! and one thread per rank; blocks recomputed in the backward pass in both. Prints a Markdown
//! table. `frozen` is what a rank holds of the blocks, `gathered` the most that it held of gathered
//! blocks, `start` its resident memory before the first step, `peak` the most it ever was; `anon` is
//! the largest of it that is the process's own during the steps, looked at every few milliseconds,
//! `file` what is mapped from files, `shmem` what it shares with others.
//!
//! `cargo bench --bench shard -- [--steps N] [--tokens N]`, on a machine that does nothing else.

mod full_size;

use std::process::Command;
use std::time::Instant;

use scpeft_collective::{Collective, discover};
use scpeft_config::Shard;
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{Blueprint, InputOptions, Scgpt};
use scpeft_model::exec::{Dropout, ExecutorKind};
use scpeft_model::{Layout, Params, TensorSpec, device};
use scpeft_trainer::Watch;
use scpeft_trainer::optim::{Adam, AdamOptions, Schedule, Shape as Curve};
use scpeft_trainer::shard;
use scpeft_trainer::step::{Asked, Stepper, tail_len};
use scpeft_trainer::task::{Staging, Task};
use tch::Device;

use full_size::{Peaks, SHAPE, adapter, batch, median, micro_batch, peak_mib, resident_mib, task};

const RANKS: usize = 2;
const CELLS: usize = 4;

/// What a rank measured.
struct Measured {
    wall_s: f64,
    received_mib: f64,
    frozen_mib: f64,
    gathered_mib: f64,
    start_mib: f64,
    peak_mib: f64,
    kinds_mib: [f64; 3],
    loss: f64,
}

/// Runs a rank's part of one row.
fn measure(
    world: &dyn Collective,
    kind: &str,
    share: Shard,
    steps: usize,
    tokens: usize,
) -> Measured {
    device::set_threads(1);
    let task = task();
    let blueprint = Blueprint {
        shape: SHAPE,
        inputs: InputOptions::default(),
        heads: task.heads(),
        adapters: vec![adapter(kind)],
    };
    let unfrozen = blueprint.unfreezes().expect("a valid blueprint");
    let layout = Layout {
        tail: tail_len(&task, blueprint.inputs.norm, SHAPE.d_model as usize),
        ..Layout::cpu(0)
    };
    let specs = blueprint.specs().expect("a valid blueprint");
    let trains = |s: &TensorSpec| blueprint.adapts(task.purpose(), s, &unfrozen);
    let gather = shard::gather(world, share).expect("a group");
    let mut params =
        Params::build_sharded(&specs, |_| Ok(None), trains, layout, gather).expect("memory");
    let whole: usize = specs
        .iter()
        .filter(|s| s.block.is_some() && !trains(s))
        .map(|s| s.numel() * size_of::<f32>())
        .sum();
    let model = Scgpt::bind(&blueprint, &params, ExecutorKind::Recompute).expect("a bound model");
    let options = AdamOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decoupled: false,
    };
    let mut adam = Adam::new(options, params.flat()).expect("memory");
    let staging = Staging {
        device: Device::Cpu,
        pad_id: SHAPE.pad_id as i32,
        batches: None,
        responses: None,
        reference: None,
    };
    let rank = world.topology().rank;
    let batch = batch(vec![micro_batch(rank, CELLS, tokens)], RANKS * CELLS);
    let start_mib = resident_mib();
    let peaks = Peaks::start();
    let watch = Watch::unattended(world).expect("a page of memory");
    let mut stepper = Stepper {
        model: &model,
        params: &mut params,
        task: &task,
        adam: &mut adam,
        schedule: Schedule {
            lr: 1e-4,
            warmup_steps: 0,
            shape: Curve::Constant,
            steps_per_epoch: 1000,
            planned_steps: 1000,
        },
        dropout: Dropout {
            residual: 0.2,
            attention: 0.0,
        },
        clip_norm: 1.0,
        seed: 0,
        staging: &staging,
        watch: &watch,
    };
    let (mut wall, mut received, mut loss) = (Vec::new(), 0, 0.0);
    for step in 0..=steps {
        world.barrier().expect("a barrier");
        let begun = Instant::now();
        let report = stepper
            .step(world, step as u64, &batch, Asked::default())
            .expect("a step");
        assert!(report.loss.is_finite() && report.skipped.is_none());
        (received, loss) = (report.gathered_bytes, report.loss);
        // The first step warms up.
        if step > 0 {
            wall.push(begun.elapsed().as_secs_f64());
        }
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let usage = params.store().map(|store| store.usage());
    Measured {
        wall_s: median(wall),
        received_mib: mib(received as usize),
        frozen_mib: mib(usage.map_or(whole, |u| u.resident_bytes)),
        gathered_mib: mib(usage.map_or(0, |u| u.peak_gathered_bytes)),
        start_mib,
        peak_mib: peak_mib(),
        kinds_mib: peaks.end(),
        loss,
    }
}

fn value<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1).map(String::as_str)
}

/// One rank of a row; rank 0 prints the row of each.
fn rank(args: &[String], kind: &str, steps: usize, tokens: usize) {
    let share = match value(args, "--shard") {
        Some("world") => Shard::World,
        _ => Shard::None,
    };
    let world = discover().expect("a world");
    let m = measure(world.as_ref(), kind, share, steps, tokens);
    let row = format!(
        "| {kind} | {} | {} | {:.3} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.6} |",
        share.as_str(),
        world.topology().rank,
        m.wall_s,
        m.received_mib,
        m.frozen_mib,
        m.gathered_mib,
        m.start_mib,
        m.peak_mib,
        m.kinds_mib[0],
        m.kinds_mib[1],
        m.kinds_mib[2],
        m.loss
    );
    for line in world
        .gather(row.as_bytes())
        .expect("rows")
        .into_iter()
        .flatten()
    {
        println!("{}", String::from_utf8_lossy(&line));
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |name, default| value(&args, name).map_or(default, |n| n.parse().expect("N"));
    let (steps, tokens) = (number("--steps", 5), number("--tokens", 512));
    if let Some(kind) = value(&args, "--row") {
        rank(&args, kind, steps, tokens);
        return;
    }
    println!(
        "| adapter | shard | rank | step s | received MiB a step | frozen MiB | gathered MiB | start MiB | peak MiB | anon | file | shmem | loss |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for kind in ["encoder", "lora"] {
        for share in ["none", "world"] {
            let status = Command::new("mpirun")
                .args([
                    "--oversubscribe",
                    "--bind-to",
                    "none",
                    "-n",
                    &RANKS.to_string(),
                ])
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
                .arg(std::env::current_exe().expect("the path of this program"))
                .args(["--row", kind, "--shard", share])
                .args([
                    "--steps",
                    &steps.to_string(),
                    "--tokens",
                    &tokens.to_string(),
                ])
                .status();
            assert!(status.expect("mpirun").success(), "{kind} {share}");
        }
    }
}
