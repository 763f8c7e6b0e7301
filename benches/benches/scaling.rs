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

use scpeft_bench::full_size::{batch, blueprint, micro_batch};
use scpeft_bench::stepping::{Recipe, Training};
use scpeft_bench::{median, number, ranks};
use scpeft_collective::{Collective, discover};

const CELLS: usize = 4;

/// Seconds of each step of this rank, and of the collectives in it.
fn measure(world: &dyn Collective, steps: usize, tokens: usize) -> Vec<(f64, f64)> {
    let topology = world.topology();
    let own = |_| micro_batch(topology.rank, CELLS, tokens);
    let batches: Vec<_> = (0..=steps)
        .map(|step| batch(vec![own(step)], topology.world_size * CELLS))
        .collect();
    let blueprint = blueprint("lora");
    let timed = Training::new(world, &Recipe::new(&blueprint, 0.2, 1)).steps(world, &batches);
    let times = timed
        .iter()
        .map(|t| (t.wall_s, t.report.collective_seconds));
    times.collect()
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
    let value = |bytes: &[u8], at: usize| {
        let bytes = bytes[8 * at..8 * at + 8].try_into().expect("eight bytes");
        f64::from_le_bytes(bytes)
    };
    for step in 0..steps {
        let wall = all.iter().map(|rank| value(rank, 2 * step));
        let waited = all.iter().map(|rank| value(rank, 2 * step + 1));
        println!(
            "{} {}",
            wall.fold(0.0, f64::max),
            waited.fold(f64::MAX, f64::min)
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [steps, tokens, rounds] = [("--steps", 3), ("--tokens", 512), ("--rounds", 3)]
        .map(|(name, default)| number(&args, name, default));
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
