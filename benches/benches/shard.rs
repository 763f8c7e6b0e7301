//! A step of the full-size scGPT on two ranks of one machine, with the frozen blocks shared by the
//! ranks and with a whole copy on each: time and memory per rank.
//!
//! Identification of 18 types with random weights, LoRA or encoder in the first six blocks, 12
//! blocks x 512, vocabulary 60,697, residual dropout 0.2; one micro-batch of 4 cells x 512 tokens
//! and one thread per rank; blocks recomputed in the backward pass in both. Prints two Markdown
//! tables. `frozen` is what a rank holds of the blocks by the store's own count, `gathered` the most
//! that it held of gathered blocks. The rest is what the kernel says, in MiB: memory of the process
//! itself (`anon`), mapped from files (`file`) and shared with other processes (`shmem`), before the
//! first step, at its largest during the steps (looked at every few milliseconds), and after them.
//!
//! `cargo bench --bench shard -- [--steps N] [--tokens N]`, on a machine that does nothing else.

use scpeft_bench::full_size::{batch, blueprint, micro_batch};
use scpeft_bench::stepping::{Recipe, Training};
use scpeft_bench::usage::{Kinds, Peaks, peak_mib};
use scpeft_bench::{median, number, ranks, value};
use scpeft_collective::{Collective, discover};
use scpeft_config::Shard;
use scpeft_model::exec::ExecutorKind;
use scpeft_trainer::shard;

const RANKS: usize = 2;
const CELLS: usize = 4;

/// Runs a rank's part of one row; returns its line.
fn measure(
    world: &dyn Collective,
    kind: &str,
    share: Shard,
    steps: usize,
    tokens: usize,
) -> String {
    let rank = world.topology().rank;
    let blueprint = blueprint(kind);
    let mut recipe = Recipe::new(&blueprint, 0.2, 1);
    recipe.executor = ExecutorKind::Recompute;
    recipe.gather = shard::gather(world, share).expect("a group");
    let mut training = Training::new(world, &recipe);
    let batches: Vec<_> = (0..=steps)
        .map(|_| batch(vec![micro_batch(rank, CELLS, tokens)], RANKS * CELLS))
        .collect();
    world.barrier().expect("a barrier");
    let before = Kinds::now();
    let peaks = Peaks::start();
    let timed = training.steps(world, &batches);
    let (most, after) = (peaks.end(), Kinds::now());
    let last = &timed.last().expect("a step").report;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let usage = training.params().store().map(|store| store.usage());
    format!(
        "| {kind} | {} | {rank} | {:.3} | {:.1} | {:.1} | {:.1} | {before} | {most} | {after} | {:.0} | {:.6} |",
        share.as_str(),
        median(timed.iter().map(|t| t.wall_s).collect()),
        mib(last.gathered_bytes as usize),
        mib(usage.map_or(training.frozen_block_bytes(), |u| u.resident_bytes)),
        mib(usage.map_or(0, |u| u.peak_gathered_bytes)),
        peak_mib(),
        last.loss
    )
}

/// One rank of a row; rank 0 prints the lines of all.
fn rank(args: &[String], kind: &str, steps: usize, tokens: usize) {
    let share = match value(args, "--shard") {
        Some("world") => Shard::World,
        _ => Shard::None,
    };
    let world = discover().expect("a world");
    let line = measure(world.as_ref(), kind, share, steps, tokens);
    let lines = world.gather(line.as_bytes()).expect("lines");
    for line in lines.into_iter().flatten() {
        println!("{}", String::from_utf8_lossy(&line));
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (steps, tokens) = (number(&args, "--steps", 5), number(&args, "--tokens", 512));
    if let Some(kind) = value(&args, "--row") {
        rank(&args, kind, steps, tokens);
        return;
    }
    println!(
        "| adapter | shard | rank | step s | received MiB a step | frozen | gathered \
         | before: anon, file, shmem | most | after | peak | loss |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let (steps, tokens) = (steps.to_string(), tokens.to_string());
    for kind in ["encoder", "lora"] {
        for share in ["none", "world"] {
            let of_row = ["--row", kind, "--shard", share];
            let sizes = ["--steps", &steps, "--tokens", &tokens];
            print!("{}", ranks::start(RANKS, &[of_row, sizes].concat()));
        }
    }
}
