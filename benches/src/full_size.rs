//! The full-size scGPT with random weights, its task and its batches, for benches of whole steps.

use scpeft_config::{ClassWeights, Select};
use scpeft_data::{MicroBatch, StepBatches};
use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, Projection,
};
use scpeft_model::backbone::scgpt::{Blueprint, InputOptions, Shape};
use scpeft_trainer::task::{Identification, IdentificationOptions, LabelInfo, Task as _};

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

/// The model for [`task`] with this adapter.
pub fn blueprint(kind: &str) -> Blueprint {
    Blueprint {
        shape: SHAPE,
        inputs: InputOptions::default(),
        heads: task().heads(),
        adapters: vec![adapter(kind)],
    }
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
