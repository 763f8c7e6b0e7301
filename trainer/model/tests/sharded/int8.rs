//! Frozen matrices in 8 bits: a model with them is, bit by bit, the model whose weights have the values
//! that 8 bits can tell, and not far from the one with its own weights.

use std::rc::Rc;

use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{Blueprint, Purpose, Scgpt};
use scpeft_model::exec::{ExecutorKind, Pass};
use scpeft_model::shard::{Gather, Usage};
use scpeft_model::{Layout, Params, Precision, Role, Storage, TensorSpec};
use tch::{Kind, Tensor};

use super::{Built, SHAPE, adapters, blueprint, gradients, inputs, on_ranks};

/// The value of a tensor; matrices begin with a row of zeros.
fn value(spec: &TensorSpec) -> Tensor {
    let seed = spec
        .name
        .bytes()
        .fold(0, |sum, b| sum * 31 % 9973 + u32::from(b));
    let middle = if spec.shape.len() == 1 && spec.name.ends_with("weight") {
        1.0
    } else {
        0.0
    };
    let values: Vec<f32> = (0..spec.numel() as u32)
        .map(|i| middle + 0.3 * ((i * 7 + seed) as f32).sin())
        .collect();
    let value = Tensor::from_slice(&values).view(spec.shape.as_slice());
    if spec.shape.len() == 2 {
        let _ = value.get(0).fill_(0.0);
    }
    value
}

fn is_packed(spec: &TensorSpec) -> bool {
    let backbone = spec.role == Role::Backbone && spec.block.is_some();
    backbone && spec.shape.len() == 2
}

/// The nearest values that 8 bits and a scale for each row, both of an f32 matrix, can tell.
fn rounded(value: &Tensor, full: Kind) -> Tensor {
    let scale = value.abs().amax([1], true) / 127.0;
    let divisor = scale.where_self(&scale.gt(0.0), &scale.ones_like());
    (value / divisor).round().to_kind(full) * scale.to_kind(full)
}

fn build(
    blueprint: &Blueprint,
    precision: Precision,
    storage: Storage,
    weights: impl Fn(&TensorSpec) -> Tensor,
    gather: Option<Rc<dyn Gather>>,
) -> Built {
    let layout = Layout {
        precision,
        storage,
        ..Layout::cpu(11)
    };
    let specs = blueprint.specs().unwrap();
    let unfrozen = blueprint.unfreezes().unwrap();
    let trains = |spec: &TensorSpec| blueprint.adapts(Purpose::Identification, spec, &unfrozen);
    let weights = |spec: &TensorSpec| Ok(Some(weights(spec)));
    let params = Params::build_sharded(&specs, weights, trains, layout, gather).unwrap();
    let model = Scgpt::bind(blueprint, &params, ExecutorKind::Recompute).unwrap();
    Built { params, model }
}

#[test]
fn blocks_in_8_bits_compute_what_their_values_compute_bit_by_bit() {
    tch::set_num_threads(1);
    for precision in [Precision::F32, Precision::Bf16, Precision::F64] {
        let of_rounded = |spec: &TensorSpec| {
            let value = value(spec);
            if is_packed(spec) {
                rounded(&value, precision.full())
            } else {
                value
            }
        };
        for (name, adapters) in adapters() {
            let blueprint = blueprint(&adapters);
            let full = |weights: &dyn Fn(&TensorSpec) -> Tensor| {
                gradients(&mut build(
                    &blueprint,
                    precision,
                    Storage::Full,
                    weights,
                    None,
                ))
            };
            let expected = full(&of_rounded);
            assert!(expected != full(&value), "{name}: rounding changes nothing");
            let packed = |gather| {
                gradients(&mut build(
                    &blueprint,
                    precision,
                    Storage::Int8,
                    value,
                    gather,
                ))
            };
            assert!(packed(None) == expected, "{name} in {precision:?}, alone");
            for ranks in [2, 3] {
                for (rank, found) in on_ranks(ranks, |g| packed(Some(g))).iter().enumerate() {
                    assert!(
                        *found == expected,
                        "{name} in {precision:?}, rank {rank} of {ranks}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_8_bits_cost_stays_below_two_percent_of_an_embedding() {
    let blueprint = blueprint(&adapters().swap_remove(0).1);
    let cell = |storage| {
        let built = build(&blueprint, Precision::F32, storage, value, None);
        let encoded = built.model.encode(&inputs(), Pass::EVALUATION).unwrap();
        encoded.cell.to_kind(Kind::Double)
    };
    let (full, packed) = (cell(Storage::Full), cell(Storage::Int8));
    let off = (&packed - &full).norm().double_value(&[]) / full.norm().double_value(&[]);
    assert!((1e-6..0.02).contains(&off), "{off}");
}

/// What stays is a share of a quarter of the bytes; while a block is used it is there in full.
#[test]
fn a_rank_holds_its_share_of_8_bits_and_one_block_in_full() {
    let blueprint = blueprint(&adapters().swap_remove(5).1);
    let after = |gather| -> Usage {
        let mut built = build(&blueprint, Precision::F32, Storage::Int8, value, gather);
        gradients(&mut built);
        built.params.store().unwrap().usage()
    };
    let (d, inner) = (SHAPE.d_model as usize, SHAPE.d_hid as usize);
    let weights = 4 * d * d + 2 * d * inner;
    let rows = 4 * d + inner + d;
    let vectors = 9 * d + inner;
    // Each of the 4 matrices and 8 vectors begins at a multiple of 64 bytes, scales too.
    let least = weights + 4 * rows + 4 * vectors;
    let most = least + 16 * 64;
    let alone = after(None);
    let blocks = 4;
    assert!(
        (blocks * least..=blocks * most).contains(&alone.total_bytes),
        "{alone:?}"
    );
    assert_eq!(alone.resident_bytes, alone.total_bytes);
    assert_eq!(alone.unpacked_bytes, 4 * weights);
    assert_eq!(alone.peak_gathered_bytes, 4 * weights, "one block in full");
    assert_eq!((alone.gathers, alone.received_bytes), (0, 0));
    for usage in on_ranks(2, |gather| after(Some(gather))) {
        assert_eq!(usage.resident_bytes * 2, blocks * usage.block_bytes);
        assert_eq!(
            usage.peak_gathered_bytes,
            2 * usage.block_bytes + 4 * weights
        );
        assert_eq!(usage.received_bytes, 10 * usage.block_bytes as u64 / 2);
    }
}
