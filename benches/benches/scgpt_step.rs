//! One training step of the full-size scGPT: wall and CPU time, peak memory, beside a bare PyTorch
//! stack of the same shapes in the same run.
//!
//! Identification of 18 types with random weights, 12 blocks x 512, vocabulary 60,697, residual
//! dropout 0.2, 2 threads, one process; the whole step of the trainer. Each row runs in a process
//! of its own, so that peak memory is its own. Prints a Markdown table.
//!
//! `cargo bench --bench scgpt_step -- [--python PYTHON] [--steps N] [--only TEXT]`; with
//! `--python` (one that has torch 2.11.0) the peer `benches/peers/scgpt_bare_stack.py` runs too.

use std::process::Command;

use scpeft_bench::full_size::{batch, blueprint, micro_batch};
use scpeft_bench::stepping::{Recipe, Training};
use scpeft_bench::usage::peak_mib;
use scpeft_bench::{median, number, value};
use scpeft_collective::Single;
use scpeft_model::Precision;
use scpeft_model::exec::ExecutorKind;

const THREADS: usize = 2;
const CELLS: usize = 8;
/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// `encoder`, `lora`, or `bare` for the peer.
    kind: &'static str,
    bf16: bool,
    tokens: usize,
    recompute: bool,
    attention_dropout: f64,
}

impl Row {
    fn name(&self) -> String {
        let mut name = format!(
            "{} {} {CELLS} x {}",
            self.kind,
            if self.bf16 { "bf16" } else { "f32" },
            self.tokens
        );
        if self.recompute {
            name += " recompute";
        }
        if self.attention_dropout > 0.0 {
            name += " attention dropout";
        }
        name
    }
}

/// What a row measured.
#[derive(Debug, Clone, Copy)]
struct Measured {
    wall_s: f64,
    cpu_s: f64,
    peak_mib: f64,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for tokens in [512, 1200] {
        for bf16 in [false, true] {
            for kind in ["bare", "encoder", "lora"] {
                rows.push(Row {
                    kind,
                    bf16,
                    tokens,
                    recompute: false,
                    attention_dropout: 0.0,
                });
            }
            if tokens == 1200 {
                rows.push(Row {
                    kind: "encoder",
                    bf16,
                    tokens,
                    recompute: true,
                    attention_dropout: 0.0,
                });
            }
        }
    }
    for kind in ["bare", "encoder"] {
        rows.push(Row {
            kind,
            bf16: false,
            tokens: 512,
            recompute: false,
            attention_dropout: 0.2,
        });
    }
    rows
}

/// Runs one row in this process and prints three numbers.
fn measure(row: &Row, steps: usize) {
    let blueprint = blueprint(row.kind);
    let mut recipe = Recipe::new(&blueprint, 0.2, THREADS);
    recipe.dropout.attention = row.attention_dropout;
    if row.bf16 {
        recipe.precision = Precision::Bf16;
    }
    if row.recompute {
        recipe.executor = ExecutorKind::Recompute;
    }
    let batches: Vec<_> = (0..=steps)
        .map(|_| batch(vec![micro_batch(0, CELLS, row.tokens)], CELLS))
        .collect();
    let timed = Training::new(&Single, &recipe).steps(&Single, &batches);
    let (wall, cpu) = timed.iter().map(|t| (t.wall_s, t.cpu_s)).unzip();
    println!("{} {} {}", median(wall), median(cpu), peak_mib());
}

/// Runs one row in a process of its own.
fn run(row: &Row, index: usize, steps: usize, python: Option<&str>) -> Option<Measured> {
    let output = if row.kind == "bare" {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/scgpt_bare_stack.py");
        let mut command = Command::new(python?);
        command.arg(script).args(["--steps", &steps.to_string()]);
        command.args(["--dtype", if row.bf16 { "bf16" } else { "f32" }]);
        command.args(["--seq", &row.tokens.to_string()]);
        command.args(["--attention-dropout", &row.attention_dropout.to_string()]);
        command.output()
    } else {
        let own = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(own);
        command.args(["--row", &index.to_string(), "--steps", &steps.to_string()]);
        command.output()
    };
    let output = output.expect("a child process");
    assert!(
        output.status.success(),
        "{}: {}",
        row.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    let numbers: Vec<f64> = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
        .collect();
    let [wall_s, cpu_s, peak_mib] = numbers[..] else {
        panic!("{}: three numbers expected, got {numbers:?}", row.name());
    };
    Some(Measured {
        wall_s,
        cpu_s,
        peak_mib,
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let steps = number(&args, "--steps", 3);
    let rows = rows();
    if let Some(index) = value(&args, "--row") {
        let index: usize = index.parse().expect("--row N");
        measure(&rows[index], steps);
        return;
    }
    let python = value(&args, "--python");
    let only = value(&args, "--only").unwrap_or("");
    println!("| step | wall s | CPU s | peak MiB | wall / bare | peak / bare |");
    println!("|---|---|---|---|---|---|");
    let mut bare: Option<Measured> = None;
    for (index, row) in rows.iter().enumerate() {
        if row.kind == "bare" {
            bare = None;
        }
        if row.kind != "bare" && !row.name().contains(only) {
            continue;
        }
        let Some(found) = run(row, index, steps, python) else {
            continue;
        };
        if row.kind == "bare" {
            bare = Some(found);
        }
        let ratio = |of: fn(&Measured) -> f64| {
            bare.map_or(String::new(), |bare| {
                format!("{:.2}", of(&found) / of(&bare))
            })
        };
        println!(
            "| {} | {:.2} | {:.2} | {:.0} | {} | {} |",
            row.name(),
            found.wall_s,
            found.cpu_s,
            found.peak_mib,
            ratio(|m| m.wall_s),
            ratio(|m| m.peak_mib)
        );
    }
}
