//! The all-reduce of flat f32 buffers over two ranks of one machine, from the self-check of a start to all
//! parameters of the full-size scGPT: time and bandwidth. Prints a Markdown table.
//!
//! `cargo bench --bench collective -- [--ranks N] [--times N]`, on a machine that does nothing else.

use std::time::Instant;

use scpeft_bench::{number, ranks};
use scpeft_collective::{Collective, discover};

/// Scalars of a buffer, and what has as many.
const SIZES: [(usize, &str); 6] = [
    (5, "tail alone"),
    (16_384, "64 KiB"),
    (644_119, "LoRA and head, 18 types"),
    (1_326_871, "encoder and head, 18 types"),
    (1 << 22, "16 MiB"),
    (51_340_824, "full fine-tuning"),
];
/// All-reduces before the first that counts.
const WARM: usize = 3;

/// Seconds of each of `times` all-reduces of `scalars`, on this rank.
fn measure(world: &dyn Collective, scalars: usize, times: usize) -> Vec<f64> {
    let mut buffer = vec![1.0f32; scalars];
    let mut seconds = Vec::with_capacity(times);
    for time in 0..WARM + times {
        buffer.fill(1.0);
        world.barrier().expect("a barrier");
        let begun = Instant::now();
        world.all_reduce_sum(&mut buffer).expect("a sum");
        if time >= WARM {
            seconds.push(begun.elapsed().as_secs_f64());
        }
        assert_eq!(buffer[scalars - 1], world.topology().world_size as f32);
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}

fn rank(times: usize) {
    let world = discover().expect("a world");
    for (scalars, name) in SIZES {
        let seconds = measure(world.as_ref(), scalars, times);
        if world.topology().is_root() {
            let bytes = (4 * scalars) as f64;
            let (middle, best) = (seconds[seconds.len() / 2], seconds[0]);
            println!(
                "| {name} | {:.3} | {:.3} | {:.3} | {:.2} |",
                bytes / 1e6,
                1e3 * middle,
                1e3 * best,
                bytes / middle / 1e9
            );
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (count, times) = (number(&args, "--ranks", 2), number(&args, "--times", 21));
    if args.iter().any(|arg| arg == "--rank") {
        rank(times);
        return;
    }
    println!(
        "{count} ranks\n\n| buffer | MB | median ms | best ms | GB/s |\n|---|---|---|---|---|"
    );
    print!(
        "{}",
        ranks::start(count, &["--rank", "--times", &times.to_string()])
    );
}
