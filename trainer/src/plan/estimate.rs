//! The arithmetic of a plan: sizes in, bytes and operations out. Nothing here reads anything.

use scpeft_model::backbone::{RandomFeatures, Shape};
use scpeft_model::exec::ExecutorKind;
use scpeft_model::{Precision, Role, Storage, TensorSpec};
use serde::Serialize;

/// What a process takes before any tensor exists: libtorch, MPI, the program.
const PROCESS: u64 = 140 << 20;
/// What the allocator holds beyond what is in use: a share of the activations, up to a limit.
/// Measured on full-size steps, in f32 and bf16.
const ALLOCATOR_SHARE: u64 = 4;
const ALLOCATOR_MOST: u64 = 80 << 20;
/// Hidden states that a block's graph keeps for its backward pass, and feed-forward activations;
/// hidden states that embedding, heads and the forward and backward pass of one block need at their
/// peak. Fitted to the peaks of full-size steps of 8 x 512 and 8 x 1,200 tokens, f32 and bf16, plain
/// and recomputed, which they meet within 10 %
/// (`benches/reports/scgpt-step_2-core-epyc_2026-11-21.md`).
const KEPT_HIDDEN: f64 = 10.0;
const KEPT_FEED_FORWARD: f64 = 3.6;
const WORKING_HIDDEN: f64 = 41.5;
/// Feature matrices of a part, and hidden states of all tokens, that blocks in parts need at a time.
const FEATURES_OF_A_PART: f64 = 8.0;
const WORKING_HIDDEN_IN_PARTS: f64 = 12.0;
/// Copies of the attention probabilities that a block keeps when attention has dropout on a CPU.
const KEPT_PROBABILITIES: f64 = 3.25;
/// Bytes of a token before it is a tensor: gene, value, target.
const TOKEN_BYTES: u64 = 12;
/// Bytes of an expressed gene in a decoded row group.
const GENE_BYTES: u64 = 8;

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Dimensions of the backbone.
    pub shape: Shape,
    /// First block with a backward pass; the number of blocks when there is none.
    pub first_backward: usize,
    /// Random features of its attention, where it has such.
    pub random_features: Option<RandomFeatures>,
    /// Number formats.
    pub precision: Precision,
    /// How blocks are run.
    pub executor: ExecutorKind,
    /// Ranks that share a block; `None` when each has its own.
    pub shared_by: Option<usize>,
    /// How frozen matrices of blocks are kept.
    pub storage: Storage,
    /// Cells of a micro-batch.
    pub cells: usize,
    /// Tokens of its longest cell.
    pub tokens: usize,
    /// The largest number of micro-batches of a rank in a step.
    pub passes: usize,
    /// Elements behind the gradients in their all-reduce.
    pub tail: usize,
    /// A moving average of what trains is kept.
    pub averaged: bool,
    /// Attention keeps its probabilities: dropout on them, on a CPU.
    pub keeps_probabilities: bool,
    /// Cells that the loader holds ready as tokens, and decoded in row groups.
    pub loader_cells: (usize, usize),
    /// Ranks of the run.
    pub ranks: usize,
    /// Frozen tensors are views of a mapped file.
    pub mapped: bool,
}

/// Numbers of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Frozen, in blocks.
    pub frozen_blocks: u64,
    /// Frozen elsewhere: embeddings, heads that the task does not use.
    pub frozen_rest: u64,
    /// Trained, of adapters.
    pub adapters: u64,
    /// Trained, of heads.
    pub heads: u64,
    /// Trained, of the backbone itself.
    pub backbone: u64,
}

impl Parameters {
    /// All that train.
    pub fn trainable(self) -> u64 {
        self.adapters + self.heads + self.backbone
    }

    /// All of the model.
    pub fn all(self) -> u64 {
        self.frozen_blocks + self.frozen_rest + self.trainable()
    }
}

/// Bytes of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen tensors of blocks that stay.
    pub frozen_blocks: u64,
    /// Frozen tensors elsewhere.
    pub frozen_rest: u64,
    /// Gathered and unpacked blocks, at most.
    pub gathered: u64,
    /// Trained tensors, their gradients, both moments, and the moving average if there is one.
    pub trainable: u64,
    /// Activations of a micro-batch at the peak (an estimate).
    pub activations: u64,
    /// Cells of the loader, at most.
    pub loader: u64,
    /// Program, libraries, allocator (an estimate).
    pub process: u64,
    /// Of all of it, what all ranks of a machine have in common: a mapped file.
    pub in_common: u64,
}

impl Memory {
    /// The sum.
    pub fn total(self) -> u64 {
        self.frozen_blocks
            + self.frozen_rest
            + self.gathered
            + self.trainable
            + self.activations
            + self.loader
            + self.process
    }

    /// Of `ranks` ranks on one machine.
    pub fn of_machine(self, ranks: usize) -> u64 {
        (self.total() - self.in_common) * ranks as u64 + self.in_common
    }
}

/// Bytes and operations of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Step {
    /// Bytes that each rank hands to the all-reduce of gradients.
    pub all_reduce_bytes: u64,
    /// What it would be if the backbone itself trained, without adapters.
    pub full_all_reduce_bytes: u64,
    /// Bytes of shared blocks that each rank receives.
    pub gathered_bytes: u64,
    /// Operations of a rank: the forward passes.
    pub forward_flops: f64,
    /// The backward passes; frozen weights need no gradient, so about one forward pass.
    pub backward_flops: f64,
    /// Blocks run again.
    pub recompute_flops: f64,
}

impl Step {
    /// How many times less a rank sends than in full fine-tuning; 1 where nothing is sent.
    pub fn saving(self) -> f64 {
        match self.all_reduce_bytes {
            0 => 1.0,
            bytes => self.full_all_reduce_bytes as f64 / bytes as f64,
        }
    }
}

/// Counts parameters by what they belong to.
pub fn parameters(specs: &[TensorSpec], trains: impl Fn(&TensorSpec) -> bool) -> Parameters {
    let count = |wanted: &dyn Fn(&TensorSpec) -> bool| {
        let counted = specs.iter().filter(|s| s.role.is_parameter() && wanted(s));
        counted.map(|s| s.numel() as u64).sum()
    };
    let of = |role| count(&|s: &TensorSpec| trains(s) && s.role == role);
    Parameters {
        frozen_blocks: count(&|s| !trains(s) && s.block.is_some()),
        frozen_rest: count(&|s| !trains(s) && s.block.is_none()),
        adapters: of(Role::Adapter),
        heads: of(Role::Head),
        backbone: of(Role::Backbone),
    }
}

/// Bytes of the frozen tensors.
struct FrozenBytes {
    /// Of all blocks, as they are stored.
    blocks: u64,
    /// Of the largest block, as it is stored.
    largest: u64,
    /// What unpacking adds for the block that needs most.
    unpacked: u64,
    /// Elsewhere.
    rest: u64,
}

fn frozen_bytes(
    specs: &[TensorSpec],
    trains: &impl Fn(&TensorSpec) -> bool,
    setup: &Setup,
) -> FrozenBytes {
    let mut blocks = vec![(0u64, 0u64); setup.shape.n_layers];
    let mut rest = 0;
    for spec in specs.iter().filter(|s| !trains(s)) {
        let used = Storage::Full.bytes(&spec.shape, spec.kind(setup.precision)) as u64;
        let Some(layer) = spec.block else {
            rest += used;
            continue;
        };
        let storage = spec.storage(setup.storage);
        let stored = storage.bytes(&spec.shape, spec.kind(setup.precision)) as u64;
        blocks[layer].0 += stored;
        blocks[layer].1 += if storage == Storage::Full { 0 } else { used };
    }
    FrozenBytes {
        blocks: blocks.iter().map(|b| b.0).sum(),
        largest: blocks.iter().map(|b| b.0).max().unwrap_or(0),
        unpacked: blocks.iter().map(|b| b.1).max().unwrap_or(0),
        rest,
    }
}

/// Memory of a rank.
pub fn memory(specs: &[TensorSpec], trains: impl Fn(&TensorSpec) -> bool, setup: &Setup) -> Memory {
    let FrozenBytes {
        blocks,
        largest,
        unpacked,
        rest,
    } = frozen_bytes(specs, &trains, setup);
    let full = setup.precision.full().elt_size_in_bytes() as u64;
    let n = parameters(specs, &trains).trainable();
    let (frozen_blocks, gathered) = match setup.shared_by {
        Some(ranks) => (blocks.div_ceil(ranks as u64), 2 * largest + unpacked),
        None => (blocks, unpacked),
    };
    let (ready, decoded) = setup.loader_cells;
    let tokens = setup.tokens as u64;
    let as_mapped = setup.shared_by.is_none() && setup.storage == Storage::Full;
    let whole = if as_mapped { blocks } else { 0 };
    let activations = activations(setup);
    Memory {
        frozen_blocks,
        frozen_rest: rest,
        gathered,
        trainable: full * ((4 + u64::from(setup.averaged)) * n + setup.tail as u64),
        activations,
        loader: ready as u64 * tokens * TOKEN_BYTES + decoded as u64 * tokens * GENE_BYTES,
        process: PROCESS + (activations / ALLOCATOR_SHARE).min(ALLOCATOR_MOST),
        in_common: if setup.mapped { whole + rest } else { 0 },
    }
}

/// Activations of a micro-batch at the peak, of a model with random features. Kept by autograd: the
/// features of queries and keys in three forms each, in f32 whatever the format of the rest. In
/// parts: a few of those of a part, and queries, keys and values with their gradients.
fn activations_of_features(setup: &Setup, features: RandomFeatures) -> u64 {
    let element = setup.precision.compute().elt_size_in_bytes() as f64;
    let full = setup.precision.full().elt_size_in_bytes() as f64;
    let slots = (setup.cells * setup.tokens) as f64;
    let hidden = element * slots * setup.shape.d_model as f64;
    let inner = element * slots * setup.shape.d_hid as f64;
    let qkv = element * slots * 3.0 * features.d_attention as f64;
    let of_tokens = |tokens: f64| full * tokens * features.per_token as f64;
    let part = FEATURES_OF_A_PART * of_tokens((features.part as f64).min(slots));
    let trained = (setup.shape.n_layers - setup.first_backward) as f64;
    let kept = match setup.executor {
        ExecutorKind::Plain => {
            let block = KEPT_HIDDEN * hidden + KEPT_FEED_FORWARD * inner + 2.0 * qkv;
            trained * (block + 6.0 * of_tokens(slots))
        }
        ExecutorKind::Recompute => trained * hidden + qkv,
    };
    (kept + 2.0 * qkv + WORKING_HIDDEN_IN_PARTS * hidden + part) as u64
}

/// Activations of a micro-batch at the peak.
fn activations(setup: &Setup) -> u64 {
    if let Some(features) = setup.random_features {
        return activations_of_features(setup, features);
    }
    let Shape {
        d_model,
        d_hid,
        n_heads,
        n_layers,
        ..
    } = setup.shape;
    let element = setup.precision.compute().elt_size_in_bytes() as f64;
    let slots = (setup.cells * setup.tokens) as f64;
    let (hidden, inner) = (slots * d_model as f64, slots * d_hid as f64);
    let probabilities = if setup.keeps_probabilities {
        KEPT_PROBABILITIES * n_heads as f64 * slots * setup.tokens as f64
    } else {
        0.0
    };
    let block = KEPT_HIDDEN * hidden + KEPT_FEED_FORWARD * inner + probabilities;
    let trained = (n_layers - setup.first_backward) as f64;
    let kept = match setup.executor {
        ExecutorKind::Plain => trained * block,
        ExecutorKind::Recompute if trained > 0.0 => trained * hidden + block,
        ExecutorKind::Recompute => 0.0,
    };
    (element * (kept + WORKING_HIDDEN * hidden)) as u64
}

/// What a step moves and computes, per rank.
pub fn step(specs: &[TensorSpec], trains: impl Fn(&TensorSpec) -> bool, setup: &Setup) -> Step {
    let blocks = frozen_bytes(specs, &trains, setup).blocks;
    let counted = parameters(specs, &trains);
    let full = setup.precision.full().elt_size_in_bytes() as u64;
    let reduced = |scalars: u64| match setup.ranks {
        1 => 0,
        _ => full * (scalars + setup.tail as u64),
    };
    let n_layers = setup.shape.n_layers;
    let from_others = setup.shared_by.map_or(0.0, |ranks| {
        (ranks - 1) as f64 / ranks as f64 * blocks as f64 / n_layers as f64
    });
    let forward = forward_flops(setup, n_layers) + embedding_flops(setup);
    let backward = forward_flops(setup, n_layers - setup.first_backward);
    let passes = setup.passes as f64;
    Step {
        all_reduce_bytes: reduced(counted.trainable()),
        full_all_reduce_bytes: reduced(counted.all() - counted.adapters),
        gathered_bytes: (passes * gathers(n_layers, setup.first_backward) as f64 * from_others)
            as u64,
        forward_flops: passes * forward,
        backward_flops: passes * backward,
        recompute_flops: match setup.executor {
            ExecutorKind::Plain => 0.0,
            ExecutorKind::Recompute => passes * backward,
        },
    }
}

/// Gathers of blocks in a training pass: all forward; backward all that take part but the last,
/// which stays. When the backward pass ends with block 0, the next pass finds that one.
pub fn gathers(n_layers: usize, first_backward: usize) -> usize {
    if first_backward >= n_layers {
        return n_layers;
    }
    n_layers + (n_layers - 1 - first_backward) - usize::from(first_backward == 0)
}

/// Two operations per multiply-add: matrices and attention of `blocks` blocks.
fn forward_flops(setup: &Setup, blocks: usize) -> f64 {
    let (d, f) = (setup.shape.d_model as f64, setup.shape.d_hid as f64);
    let tokens = setup.tokens as f64;
    let per_token = match setup.random_features {
        None => 2.0 * (4.0 * d * d + 2.0 * d * f) + 4.0 * tokens * d,
        // Projections, features of queries and keys, their sums with values, feed-forward.
        Some(features) => {
            let (e, m) = (features.d_attention as f64, features.per_token as f64);
            let d_head = e / setup.shape.n_heads as f64;
            2.0 * (4.0 * d * e + 2.0 * d * f) + 8.0 * m * d_head
        }
    };
    blocks as f64 * setup.cells as f64 * tokens * per_token
}

/// The value encoder.
fn embedding_flops(setup: &Setup) -> f64 {
    let d = setup.shape.d_model as f64;
    (setup.cells * setup.tokens) as f64 * 2.0 * (d + d * d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_model::Init;

    const FULL: Shape = Shape {
        vocab: 60_697,
        d_model: 512,
        n_heads: 8,
        d_hid: 512,
        n_layers: 12,
        pad_id: 0,
    };

    fn setup() -> Setup {
        Setup {
            shape: FULL,
            first_backward: 0,
            random_features: None,
            precision: Precision::F32,
            executor: ExecutorKind::Plain,
            shared_by: None,
            storage: Storage::Full,
            cells: 8,
            tokens: 512,
            passes: 1,
            tail: 4,
            averaged: false,
            keeps_probabilities: false,
            loader_cells: (0, 0),
            ranks: 1,
            mapped: false,
        }
    }

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[i64], role| {
            TensorSpec::new(name.into(), shape, Init::Zeros, role)
        };
        vec![
            spec("embedding", &[60_697, 512], Role::Backbone),
            spec("matrices", &[12, 1_575_936], Role::Backbone).in_block(0),
            spec("adapters", &[790_272], Role::Adapter),
            spec("head", &[536_594], Role::Head),
        ]
    }

    fn trains(spec: &TensorSpec) -> bool {
        spec.role != Role::Backbone
    }

    /// The measured peaks in MiB of `benches/reports/scgpt-step_2-core-epyc_2026-11-21.md`.
    #[test]
    fn estimates_are_within_ten_percent_of_measured_peaks() {
        use ExecutorKind::{Plain, Recompute};
        for (precision, tokens, executor, dropout, peak) in [
            (Precision::F32, 512, Plain, false, 2135.0),
            (Precision::Bf16, 512, Plain, false, 1101.0),
            (Precision::F32, 1200, Plain, false, 4335.0),
            (Precision::Bf16, 1200, Plain, false, 2179.0),
            (Precision::F32, 1200, Recompute, false, 1712.0),
            (Precision::Bf16, 1200, Recompute, false, 995.0),
            (Precision::F32, 512, Plain, true, 4640.0),
        ] {
            let setup = Setup {
                precision,
                tokens,
                executor,
                keeps_probabilities: dropout,
                ..setup()
            };
            let planned = memory(&specs(), trains, &setup).total() as f64 / f64::from(1 << 20);
            let off = planned / peak - 1.0;
            assert!(
                off.abs() < 0.1,
                "{setup:?}: {planned} MiB planned, off by {off}"
            );
        }
    }

    #[test]
    fn sharing_divides_the_blocks_and_leaves_the_rest() {
        let setup = Setup {
            shared_by: Some(4),
            ranks: 4,
            executor: ExecutorKind::Recompute,
            first_backward: 6,
            ..setup()
        };
        let found = memory(&specs(), trains, &setup);
        let blocks = 12 * 1_575_936 * 4;
        assert_eq!(found.frozen_blocks, blocks / 4);
        assert_eq!(found.frozen_rest, 60_697 * 512 * 4);
        let moved = step(&specs(), trains, &setup);
        assert_eq!(moved.all_reduce_bytes, 4 * (790_272 + 536_594 + 4));
        // Forward 12, backward 10 to 6: of each, three quarters come from others.
        assert_eq!(moved.gathered_bytes, 17 * (blocks / 12) * 3 / 4);
        assert!((moved.forward_flops / moved.backward_flops - 2.0).abs() < 0.05);
        assert_eq!(
            [gathers(12, 0), gathers(12, 12), gathers(1, 0)],
            [22, 12, 0]
        );
    }

    /// A quarter of the bytes and the scales stay; while it is used a block is there in f32 as well.
    #[test]
    fn eight_bits_quarter_what_stays_and_what_is_moved() {
        let specs: Vec<TensorSpec> = (0..12)
            .map(|layer| {
                let shape = [3078, 512];
                TensorSpec::new("matrices".into(), &shape, Init::Zeros, Role::Backbone)
                    .in_block(layer)
            })
            .collect();
        let stored = 3078 * 512 + 3078 * 4;
        let packed = Setup {
            storage: Storage::Int8,
            mapped: true,
            executor: ExecutorKind::Recompute,
            ..setup()
        };
        let found = memory(&specs, trains, &packed);
        assert_eq!(found.frozen_blocks, 12 * stored);
        assert_eq!(found.gathered, 3078 * 512 * 4);
        assert_eq!(found.in_common, 0, "packed blocks are copies");
        let shared = Setup {
            shared_by: Some(2),
            ranks: 2,
            ..packed
        };
        let found = memory(&specs, trains, &shared);
        assert_eq!(found.frozen_blocks, 6 * stored);
        assert_eq!(found.gathered, 2 * stored + 3078 * 512 * 4);
        let moved = step(&specs, trains, &shared).gathered_bytes;
        assert_eq!(moved, 22 * stored / 2);
    }

    #[test]
    fn a_moving_average_is_one_more_copy_of_what_trains() {
        let averaged = Setup {
            averaged: true,
            ..setup()
        };
        let more = memory(&specs(), trains, &averaged).total();
        let than = memory(&specs(), trains, &setup()).total();
        assert_eq!(more - than, 4 * (790_272 + 536_594));
    }

    #[test]
    fn a_mapped_file_is_one_copy_for_all_ranks_of_a_machine() {
        let mapped = Setup {
            mapped: true,
            ..setup()
        };
        let (own, shared) = (
            memory(&specs(), trains, &setup()),
            memory(&specs(), trains, &mapped),
        );
        assert_eq!(own.total(), shared.total());
        let frozen = (60_697 * 512 + 12 * 1_575_936) * 4;
        assert_eq!(own.of_machine(3) - shared.of_machine(3), 2 * frozen);
    }

    /// The published whole-human model with the published LoRA and a head of 18 types.
    #[test]
    fn lora_on_scgpt_sends_at_least_seventy_times_less_than_full_fine_tuning() {
        use scpeft_model::adapter::{AdapterOptions, LayerSelection, LoraOptions, Projection};
        use scpeft_model::backbone::Architecture;
        use scpeft_model::backbone::scgpt::{Blueprint, Classifier, Heads, InputOptions, Purpose};
        let lora = AdapterOptions::Lora(LoraOptions {
            layers: LayerSelection::FirstHalf,
            r: 8,
            lora_alpha: 1.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        });
        let blueprint = Blueprint {
            shape: FULL,
            inputs: InputOptions::default(),
            heads: Heads {
                classifier: Some(Classifier {
                    classes: 18,
                    layers: 3,
                }),
                ..Heads::default()
            },
            adapters: vec![lora],
        };
        let specs = blueprint.specs().unwrap();
        let unfrozen = blueprint.unfreezes().unwrap();
        let trains = |spec: &TensorSpec| {
            spec.role != Role::Buffer && blueprint.adapts(Purpose::Identification, spec, &unfrozen)
        };
        let setup = Setup {
            ranks: 8,
            tail: 5,
            ..setup()
        };
        let moved = step(&specs, trains, &setup);
        assert_eq!(moved.all_reduce_bytes, 4 * (644_114 + 5));
        assert_eq!(moved.full_all_reduce_bytes, 4 * (51_340_819 + 5));
        assert!(moved.saving() >= 70.0, "{}", moved.saving());
    }
}
