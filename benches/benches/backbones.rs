//! One training step of a Geneformer: wall and CPU time, peak memory and cells per second, beside
//! Hugging Face transformers and peft on the same shapes in the same run. And one of an scBERT over all
//! its genes, with the bottlenecks of its ENCODER adapter, recomputed in parts; without a peer.
//!
//! Identification of 18 types with random weights and LoRA of rank 8 on query and value, dropout
//! 0.02, none on attention, 2 threads, one process; the whole step of the trainer. Each row runs in a
//! process of its own, so that peak memory is its own. Prints a Markdown table.
//!
//! `cargo bench --bench backbones -- [--python PYTHON] [--steps N] [--only TEXT] [--lengths FILE]`;
//! with `--python` (one that has torch, transformers and peft) the peer
//! `benches/peers/geneformer_hf_peft.py` runs too. `FILE` has one cell length a line: the peer takes
//! cells as they come, we put cells of like length into a batch, as `data.length_buckets` does.

use std::process::Command;

use scpeft_bench::full_size::batch;
use scpeft_bench::stepping::{ADAM, Recipe, Training};
use scpeft_bench::usage::peak_mib;
use scpeft_bench::{median, number, value};
use scpeft_collective::Single;
use scpeft_data::MicroBatch;
use scpeft_model::Precision;
use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, Projection,
};
use scpeft_model::backbone::geneformer::{
    Activation, Blueprint, CellEmbedding, CellStyle, FreezeRule, Head,
};
use scpeft_model::backbone::performer::{KeyMax, PerformerShape};
use scpeft_model::backbone::scbert;
use scpeft_model::backbone::{Architecture, Shape};
use scpeft_model::exec::ExecutorKind;
use scpeft_trainer::optim::AdamOptions;

const THREADS: usize = 2;
const CLASSES: i64 = 18;
const PAD: i32 = 0;

/// A model: the peer's name of it, and its sizes.
#[derive(Debug, Clone, Copy)]
struct Model {
    name: &'static str,
    shape: Shape,
    positions: i64,
}

const fn model(name: &'static str, sizes: [i64; 6]) -> Model {
    let [layers, d_model, n_heads, d_hid, positions, vocab] = sizes;
    Model {
        name,
        shape: Shape {
            vocab,
            d_model,
            n_heads,
            d_hid,
            n_layers: layers as usize,
            pad_id: PAD as i64,
        },
        positions,
    }
}

const V1_10M: Model = model("v1-10m", [6, 256, 4, 512, 2048, 25_426]);
const SCBERT: Model = model("scbert", [6, 200, 10, 800, 16_907, 7]);
const V2_104M: Model = model("v2-104m", [12, 768, 12, 3072, 4096, 20_275]);

/// One row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    model: Model,
    bf16: bool,
    tokens: usize,
    cells: usize,
    /// Lengths of cells come from the file.
    lengths: bool,
}

impl Row {
    fn is_scbert(&self) -> bool {
        self.model.name == SCBERT.name
    }

    fn name(&self) -> String {
        let format = if self.bf16 { "bf16" } else { "f32" };
        let length = if self.lengths { "up to " } else { "" };
        let Self {
            model,
            cells,
            tokens,
            ..
        } = self;
        format!("{} {format} {cells} x {length}{tokens}", model.name)
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (model, tokens) in [(V1_10M, 1024), (V1_10M, 2048), (V2_104M, 1024)] {
        for bf16 in [false, true] {
            for lengths in [false, true] {
                if lengths && model.name != V1_10M.name {
                    continue;
                }
                rows.push(Row {
                    model,
                    bf16,
                    tokens,
                    cells: 4,
                    lengths,
                });
            }
        }
    }
    for bf16 in [false, true] {
        rows.push(Row {
            model: SCBERT,
            bf16,
            tokens: SCBERT.positions as usize,
            cells: 1,
            lengths: false,
        });
    }
    rows
}

fn architecture(row: &Row) -> Box<dyn Architecture> {
    if row.is_scbert() {
        Box::new(scbert_blueprint(row))
    } else {
        Box::new(blueprint(row))
    }
}

fn scbert_blueprint(row: &Row) -> scbert::Blueprint {
    scbert::Blueprint {
        shape: row.model.shape,
        d_head: 64,
        features: PerformerShape::default_features(64),
        positions: row.model.positions,
        key_max: KeyMax::Cell,
        redrawn: false,
        qkv_bias: false,
        head: scbert::Head::Cell {
            classes: CLASSES,
            hidden: [512, 128],
        },
        freeze: scbert::FreezeRule::Adapters,
        adapters: vec![AdapterOptions::Encoder(EncoderOptions {
            layers: LayerSelection::All,
            mlp_ratio: 0.5,
            skip_connect: true,
            placement: Placement::AfterNorm,
            zero_init: false,
        })],
    }
}

fn blueprint(row: &Row) -> Blueprint {
    Blueprint {
        shape: row.model.shape,
        positions: row.model.positions,
        token_types: 2,
        activation: Activation::Relu,
        norm_eps: 1e-12,
        special: Vec::new(),
        cell: CellEmbedding {
            style: CellStyle::Mean,
            second_to_last: true,
        },
        head: Head::Sequence { classes: CLASSES },
        freeze: FreezeRule::Tutorial,
        // As the peer's.
        adapters: vec![AdapterOptions::Lora(LoraOptions {
            layers: LayerSelection::All,
            r: 8,
            lora_alpha: 16.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: false,
        })],
    }
}

/// A micro-batch of cells of these lengths.
fn micro_batch(row: &Row, lengths: &[usize]) -> MicroBatch {
    // Bins 0 to 5, or genes.
    let (first, different) = if row.is_scbert() { (0, 6) } else { (3, 20_000) };
    let len = lengths.iter().copied().max().unwrap_or(0);
    let mut gene_ids = vec![PAD; lengths.len() * len];
    for (cell, &length) in lengths.iter().enumerate() {
        for place in 0..length {
            gene_ids[cell * len + place] =
                first + ((cell * 7919 + place * 104_729) % different) as i32;
        }
    }
    let labels = (0..lengths.len() as i64).map(|c| c % CLASSES).collect();
    MicroBatch {
        cells: (0..lengths.len() as u64).collect(),
        rows: lengths.len(),
        len,
        values: vec![0.0; gene_ids.len()],
        targets: vec![0.0; gene_ids.len()],
        gene_ids,
        labels,
        tokens: lengths.iter().sum(),
        ..MicroBatch::default()
    }
}

/// The lengths of the cells of each step.
fn batches(row: &Row, steps: usize, file: Option<&str>) -> Vec<Vec<usize>> {
    if !row.lengths {
        return vec![vec![row.tokens; row.cells]; steps];
    }
    let path = file.expect("--lengths FILE");
    let text = std::fs::read_to_string(path).expect("a readable file");
    let lengths = text
        .lines()
        .map(|l| l.trim().parse::<usize>().expect("a length"));
    let mut lengths: Vec<usize> = lengths.map(|n| n.min(row.tokens)).collect();
    lengths.truncate(lengths.len() / row.cells * row.cells);
    lengths.sort_unstable();
    lengths.chunks(row.cells).map(<[usize]>::to_vec).collect()
}

/// Runs one row in this process and prints four numbers.
fn measure(row: &Row, steps: usize, file: Option<&str>) {
    let blueprint = architecture(row);
    let dropout = if row.is_scbert() { 0.0 } else { 0.02 };
    let mut recipe = Recipe::new(blueprint.as_ref(), dropout, THREADS);
    recipe.adam = AdamOptions {
        weight_decay: 0.01,
        decoupled: true,
        ..ADAM
    };
    if row.bf16 {
        recipe.precision = Precision::Bf16;
    }
    if row.is_scbert() {
        recipe.executor = ExecutorKind::Recompute;
    }
    let lengths = batches(row, steps, file);
    // The first step warms up.
    let batches: Vec<_> = std::iter::once(&lengths[0])
        .chain(&lengths)
        .map(|lengths| batch(vec![micro_batch(row, lengths)], lengths.len()))
        .collect();
    let timed = Training::new(&Single, &recipe).steps(&Single, &batches);
    let (wall, cpu): (Vec<f64>, _) = timed.iter().map(|t| (t.wall_s, t.cpu_s)).unzip();
    let rate = (row.cells * lengths.len()) as f64 / wall.iter().sum::<f64>();
    println!("{} {} {} {rate}", median(wall), median(cpu), peak_mib());
}

/// Wall and CPU seconds of a step, peak MiB, cells per second.
type Measured = [f64; 4];

/// The numbers that a child prints.
fn numbers(mut command: Command, what: &str) -> Measured {
    let output = command.output().expect("a child process");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {said}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parsed = text
        .split_whitespace()
        .map(|n| n.parse().expect("a number"));
    let numbers: Vec<f64> = parsed.collect();
    numbers.try_into().expect("four numbers")
}

fn ours(row: &Row, index: usize, steps: usize, file: Option<&str>) -> Measured {
    let own = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(own);
    command.args(["--row", &index.to_string(), "--steps", &steps.to_string()]);
    if let Some(file) = file {
        command.args(["--lengths", file]);
    }
    numbers(command, &row.name())
}

fn peer(row: &Row, steps: usize, file: Option<&str>, python: &str) -> Measured {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/geneformer_hf_peft.py");
    let mut command = Command::new(python);
    command.arg(script).args(["--shape", row.model.name]);
    command.args(["--dtype", if row.bf16 { "bf16" } else { "f32" }]);
    command.args(["--seq", &row.tokens.to_string()]);
    command.args(["--batch", &row.cells.to_string()]);
    command.args(["--steps", &steps.to_string()]);
    if let Some(file) = file.filter(|_| row.lengths) {
        command.args(["--lengths", file]);
    }
    numbers(command, &format!("peer of {}", row.name()))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let steps = number(&args, "--steps", 3);
    let file = value(&args, "--lengths");
    let rows = rows();
    if let Some(index) = value(&args, "--row") {
        let index: usize = index.parse().expect("--row N");
        measure(&rows[index], steps, file);
        return;
    }
    let python = value(&args, "--python");
    let only = value(&args, "--only").unwrap_or("");
    println!("| step | who | wall s | CPU s | peak MiB | cells/s |");
    println!("|---|---|---|---|---|---|");
    let print = |row: &Row, who: &str, [wall, cpu, peak, rate]: Measured| {
        println!(
            "| {} | {who} | {wall:.3} | {cpu:.2} | {peak:.0} | {rate:.2} |",
            row.name()
        );
    };
    for (index, row) in rows.iter().enumerate() {
        if !row.name().contains(only) || (row.lengths && file.is_none()) {
            continue;
        }
        if let Some(python) = python.filter(|_| !row.is_scbert()) {
            print(row, "transformers + peft", peer(row, steps, file, python));
        }
        print(row, "scpeft", ours(row, index, steps, file));
    }
}
