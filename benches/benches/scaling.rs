//! Weak scaling of a step of the full-size scGPT from one rank to two ranks of one machine, one thread each,
//! and the communication in it that nothing hides. Prints a Markdown table.
//!
//! Identification of 18 types with random weights, LoRA in the first six blocks, 12 blocks x 512,
//! vocabulary 60,697, residual dropout 0.2; one micro-batch of 4 cells x 512 tokens per rank. The time of a
//! step is that of the slower rank; its communication that of the rank that waited least, for the rest is
//! waiting for the other one. Efficiency is the time of one rank divided by that of two.
//!
//! `cargo bench --bench scaling -- [--steps N] [--tokens N] [--rounds N]`, on a machine that does nothing
//! else. Each round measures one rank and two, in turn, so that what drifts falls on both.

mod full_size;
mod ranks;

use std::time::Instant;

use scpeft_collective::{Collective, discover};
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{Blueprint, InputOptions, Scgpt};
use scpeft_model::exec::{Dropout, ExecutorKind};
use scpeft_model::{Layout, Params, TensorSpec, device};
use scpeft_trainer::Watch;
use scpeft_trainer::optim::{Adam, AdamOptions, Schedule, Shape as Curve};
use scpeft_trainer::step::{Asked, Stepper, tail_len};
use scpeft_trainer::task::{Staging, Task};
use tch::Device;

use full_size::{SHAPE, adapter, batch, median, micro_batch, task};

const CELLS: usize = 4;

/// Seconds of each step of this rank, and of the collectives in it.
fn measure(world: &dyn Collective, steps: usize, tokens: usize) -> Vec<(f64, f64)> {
    device::set_threads(1);
    let task = task();
    let blueprint = Blueprint {
        shape: SHAPE,
        inputs: InputOptions::default(),
        heads: task.heads(),
        adapters: vec![adapter("lora")],
    };
    let unfrozen = blueprint.unfreezes().expect("a valid blueprint");
    let layout = Layout {
        tail: tail_len(&task, blueprint.inputs.norm, SHAPE.d_model as usize),
        ..Layout::cpu(0)
    };
    let specs = blueprint.specs().expect("a valid blueprint");
    let trains = |s: &TensorSpec| blueprint.adapts(task.purpose(), s, &unfrozen);
    let mut params = Params::build(&specs, |_| Ok(None), trains, layout).expect("memory");
    let model = Scgpt::bind(&blueprint, &params, ExecutorKind::Plain).expect("a bound model");
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
    let topology = world.topology();
    let own = micro_batch(topology.rank, CELLS, tokens);
    let batch = batch(vec![own], topology.world_size * CELLS);
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
    let mut measured = Vec::new();
    for step in 0..=steps {
        world.barrier().expect("a barrier");
        let begun = Instant::now();
        let report = stepper.step(world, step as u64, &batch, Asked::default());
        let report = report.expect("a step");
        assert!(report.loss.is_finite() && report.skipped.is_none());
        // The first step warms up.
        if step > 0 {
            measured.push((begun.elapsed().as_secs_f64(), report.collective_seconds));
        }
    }
    measured
}

/// One rank; rank 0 prints seconds and exposed communication of every step.
fn rank(steps: usize, tokens: usize) {
    let world = discover().expect("a world");
    let measured = measure(world.as_ref(), steps, tokens);
    let flat = measured.iter().flat_map(|&(wall, waited)| [wall, waited]);
    let bytes: Vec<u8> = flat.flat_map(f64::to_le_bytes).collect();
    let Some(all) = world.gather(&bytes).expect("times") else {
        return;
    };
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes[8 * at..8 * at + 8].try_into().expect("eight bytes");
        f64::from_le_bytes(bytes)
    };
    for step in 0..steps {
        let wall = all.iter().map(|rank| number(rank, 2 * step));
        let waited = all.iter().map(|rank| number(rank, 2 * step + 1));
        println!(
            "{} {}",
            wall.fold(0.0, f64::max),
            waited.fold(f64::MAX, f64::min)
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number =
        |name, default| ranks::value(&args, name).map_or(default, |n| n.parse().expect("N"));
    let (steps, tokens, rounds) = (
        number("--steps", 3),
        number("--tokens", 512),
        number("--rounds", 3),
    );
    if args.iter().any(|arg| arg == "--rank") {
        rank(steps, tokens);
        return;
    }
    let (steps, tokens) = (steps.to_string(), tokens.to_string());
    let mut times = [1, 2].map(|count| (count, Vec::new(), Vec::new()));
    for _ in 0..rounds {
        for (count, walls, waits) in &mut times {
            let said = ranks::start(*count, &["--rank", "--steps", &steps, "--tokens", &tokens]);
            for line in said.lines() {
                let (wall, waited) = line.split_once(' ').expect("two numbers");
                walls.push(wall.parse().expect("seconds"));
                waits.push(waited.parse().expect("seconds"));
            }
        }
    }
    println!(
        "| ranks | cells a step | step s | communication ms | share of the step | efficiency |"
    );
    println!("|---|---|---|---|---|---|");
    let mut alone = None;
    for (count, walls, waits) in times {
        let (wall, waited) = (median(walls), median(waits));
        let alone = *alone.get_or_insert(wall);
        println!(
            "| {count} | {} | {wall:.3} | {:.3} | {:.3} % | {:.3} |",
            count * CELLS,
            1e3 * waited,
            1e2 * waited / wall,
            alone / wall
        );
    }
}
