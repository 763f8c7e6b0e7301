//! Every metric on 1,000 perturbations of 2,000 genes and 100 cells each, beside one real side:
//! seconds and peak memory, printed. Not by criterion: one run says enough and takes its time.

use std::time::Instant;

use scpeft_data::rng::{Purpose, Rng};
use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::evaluate::{Condition, Options, Prediction, evaluate};

const PERTURBATIONS: usize = 1_000;
const GENES: usize = 2_000;
const CELLS: usize = 100;

/// log1p of counts, six of ten zero.
fn cells(purpose: Purpose, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(1, purpose, 0, 0);
    let mut value = || {
        let count = (10.0 * (rng.uniform() - 0.6)).ceil().max(0.0);
        // Normalised counts are rarely equal.
        (count * (1.0 + 0.2 * rng.uniform())).ln_1p() as f32
    };
    (0..n * GENES).map(|_| value()).collect()
}

fn main() {
    let control = cells(Purpose::Split, 10 * CELLS);
    let real = cells(Purpose::Mask, PERTURBATIONS * CELLS);
    let predicted = cells(Purpose::Sampling, PERTURBATIONS * CELLS);
    let of = |values| Cells::new("a condition", values, GENES).expect("finite cells");
    let part = |i: usize| i * CELLS * GENES..(i + 1) * CELLS * GENES;
    let conditions: Vec<Condition<'_>> = (0..PERTURBATIONS)
        .map(|i| Condition {
            name: format!("drug {i}"),
            control: 0,
            real: of(&real[part(i)]),
            target: None,
            predictions: vec![Prediction::Cells(of(&predicted[part(i)]))],
        })
        .collect();
    let start = Instant::now();
    let options = Options::default();
    let scores = evaluate(&["model".into()], &[of(&control)], &conditions, &options);
    let scores = scores.expect("conditions fit together");
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or("VmHWM unknown");
    println!(
        "{} metrics of {PERTURBATIONS} perturbations x {GENES} genes x {CELLS} cells, {} control cells: {seconds:.1} s, {peak}",
        scores[0].by_condition.len() + scores[0].overall.len(),
        10 * CELLS,
    );
}
