//! The full-size scGPT with random weights, its task and its batches, for benches of whole steps.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "every bench uses its own part of it"
)]

use scpeft_config::{ClassWeights, Select};
use scpeft_data::{MicroBatch, StepBatches};
use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, Projection,
};
use scpeft_model::backbone::scgpt::Shape;
use scpeft_trainer::task::{Identification, IdentificationOptions, LabelInfo};

/// Types that the task tells apart.
pub const CLASSES: usize = 18;
/// Sizes of the published model.
pub const SHAPE: Shape = Shape {
    vocab: 60_697,
    d_model: 512,
    n_heads: 8,
    d_hid: 512,
    n_layers: 12,
    pad_id: 60_694,
};

/// The adapter of the published experiments: `lora`, or else `encoder`.
pub fn adapter(kind: &str) -> AdapterOptions {
    let layers = LayerSelection::FirstHalf;
    if kind == "lora" {
        return AdapterOptions::Lora(LoraOptions {
            layers,
            r: 8,
            lora_alpha: 1.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        });
    }
    AdapterOptions::Encoder(EncoderOptions {
        layers,
        mlp_ratio: 0.25,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init: false,
    })
}

/// A task of as many types as the peer has.
pub fn task() -> Identification {
    let options = IdentificationOptions {
        label: "type".into(),
        class_weights: ClassWeights::None,
        classifier_layers: 3,
        select: Select::Auto,
    };
    let labels = LabelInfo {
        categories: (0..CLASSES).map(|i| i.to_string()).collect(),
        train_counts: vec![10; CLASSES],
        valid_counts: vec![1; CLASSES],
        all_counts: vec![11; CLASSES],
    };
    Identification::for_training(options, &labels).expect("18 types")
}

/// Micro-batch `index` of cells without padding: every slot counts.
pub fn micro_batch(index: usize, cells: usize, tokens: usize) -> MicroBatch {
    let slots = cells * tokens;
    let gene = |i: usize| (i * 7919 % 60_690) as i32;
    let values: Vec<f32> = (0..slots).map(|i| (i * 31 % 51) as f32).collect();
    MicroBatch {
        index,
        cells: (0..cells as u64).collect(),
        rows: cells,
        len: tokens,
        gene_ids: (0..slots).map(gene).collect(),
        targets: values.clone(),
        values,
        labels: (0..cells as i64).collect(),
        tokens: slots,
        ..MicroBatch::default()
    }
}

/// A global batch of these micro-batches.
pub fn batch(micro: Vec<MicroBatch>, global_cells: usize) -> StepBatches {
    StepBatches {
        epoch: 0,
        batch: 0,
        global_cells,
        micro,
    }
}

/// The middle of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident size now.
pub fn resident_mib() -> f64 {
    status_mib("VmRSS")
}

/// Largest resident size so far.
pub fn peak_mib() -> f64 {
    status_mib("VmHWM")
}

fn status_mib(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|l| l.starts_with(key)).expect(key);
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("KiB");
    kib / 1024.0
}

/// User and system time of this process.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let after = stat.rsplit(')').next().expect("a command name");
    let ticks: f64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse::<f64>().expect("ticks"))
        .sum();
    // Linux reports 100 ticks a second to programs, whatever its own clock.
    ticks / 100.0
}

/// The largest sizes by kind of memory while something runs.
pub struct Peaks {
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
    watcher: std::thread::JoinHandle<[f64; 3]>,
}

impl Peaks {
    /// Starts to look every few milliseconds.
    pub fn start() -> Self {
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = over.clone();
        let watcher = std::thread::spawn(move || {
            let mut most = [0.0_f64; 3];
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                let now = ["RssAnon", "RssFile", "RssShmem"].map(status_mib);
                most = std::array::from_fn(|i| most[i].max(now[i]));
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            most
        });
        Self { over, watcher }
    }

    /// Ends it: MiB of the process's own memory, of mapped files, and shared with other processes.
    pub fn end(self) -> [f64; 3] {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
        self.watcher.join().expect("the watcher")
    }
}
