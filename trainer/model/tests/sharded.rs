//! Sharded blocks change no bit: ranks are threads here, with a gather between them. Every rank
//! computes the same micro-batch, so that each can be compared with the model that is whole.

#![allow(clippy::unwrap_used)]

#[path = "sharded/int8.rs"]
mod int8;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, HraOptions, LayerSelection, LoraOptions, MlpOptions,
    OftOptions, Placement, PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{
    Blueprint, Classifier, Heads, InputOptions, Inputs, Purpose, Scgpt, Shape,
};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::shard::{Gather, Gathering, Usage};
use scpeft_model::{Error, Layout, Params, Precision, Result, TensorSpec, loss};
use tch::{Device, Kind, Tensor};

const SHAPE: Shape = Shape {
    vocab: 50,
    d_model: 12,
    n_heads: 2,
    d_hid: 20,
    n_layers: 4,
    pad_id: 49,
};

/// Parts that ranks have posted, by number of the gather and rank.
#[derive(Debug, Default)]
struct Board {
    posted: Mutex<HashMap<(usize, usize), Vec<u8>>>,
    changed: Condvar,
}

/// Gathers between threads. Numbers gathers as MPI does: the n-th of one rank meets the n-th of the
/// others, so that ranks in another order get wrong bytes, and ranks that gather less end in an
/// error.
#[derive(Debug)]
struct Threads {
    board: Arc<Board>,
    rank: usize,
    ranks: usize,
    next: std::cell::Cell<usize>,
}

#[derive(Debug)]
struct Posted {
    board: Arc<Board>,
    number: usize,
    ranks: usize,
    whole: Tensor,
}

impl Gather for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn start(&self, part: &Tensor, whole: &Tensor) -> Result<Box<dyn Gathering>> {
        let number = self.next.replace(self.next.get() + 1);
        let bytes = Vec::<u8>::try_from(part)?;
        let mut posted = self.board.posted.lock().unwrap();
        posted.insert((number, self.rank), bytes);
        self.board.changed.notify_all();
        Ok(Box::new(Posted {
            board: Arc::clone(&self.board),
            number,
            ranks: self.ranks,
            whole: whole.shallow_clone(),
        }))
    }
}

impl Gathering for Posted {
    fn wait(self: Box<Self>) -> Result<()> {
        let missing = |posted: &mut HashMap<(usize, usize), Vec<u8>>| {
            (0..self.ranks).any(|rank| !posted.contains_key(&(self.number, rank)))
        };
        let posted = self.board.posted.lock().unwrap();
        let patience = Duration::from_secs(20);
        let waited = self
            .board
            .changed
            .wait_timeout_while(posted, patience, missing);
        let (posted, late) = waited.unwrap();
        if late.timed_out() {
            return Err(Error::Gather("a rank does not come".into()));
        }
        let all: Vec<u8> = (0..self.ranks)
            .flat_map(|rank| posted[&(self.number, rank)].clone())
            .collect();
        self.whole
            .shallow_clone()
            .f_copy_(&Tensor::f_from_slice(&all)?)?;
        Ok(())
    }
}

fn adapters() -> Vec<(&'static str, Vec<AdapterOptions>)> {
    let listed = |layers: &[usize]| LayerSelection::Listed(layers.to_vec());
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: listed(&[1, 3]),
        mlp_ratio: 0.25,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init: false,
    });
    let mlp = AdapterOptions::Mlp(MlpOptions {
        layers: listed(&[0, 2]),
        mlp_ratio: 0.25,
        scale: 0.5,
        zero_init: false,
    });
    let token = AdapterOptions::Token(TokenOptions {
        mlp_ratio: 0.5,
        zero_init: false,
    });
    let prefix = AdapterOptions::Prefix(PrefixOptions {
        layers: listed(&[1, 3]),
        token_nums: 3,
    });
    let lora = AdapterOptions::Lora(LoraOptions {
        layers: listed(&[2]),
        r: 2,
        lora_alpha: 4.0,
        targets: vec![Projection::Query, Projection::Value],
        train_qkv_bias: true,
    });
    let hra = AdapterOptions::Hra(HraOptions {
        layers: listed(&[2]),
        r: 4,
    });
    let oft = AdapterOptions::Oft(OftOptions {
        layers: listed(&[1]),
    });
    let mixed = vec![
        encoder.clone(),
        token.clone(),
        prefix.clone(),
        lora.clone(),
        mlp.clone(),
        hra.clone(),
        oft.clone(),
    ];
    vec![
        ("encoder", vec![encoder]),
        ("mlp", vec![mlp]),
        ("token", vec![token]),
        ("prefix", vec![prefix]),
        ("lora", vec![lora]),
        ("hra", vec![hra]),
        ("oft", vec![oft]),
        ("mixed", mixed),
        ("head", vec![]),
    ]
}

fn blueprint(adapters: &[AdapterOptions]) -> Blueprint {
    Blueprint {
        shape: SHAPE,
        inputs: InputOptions::default(),
        heads: Heads {
            classifier: Some(Classifier {
                classes: 3,
                layers: 2,
            }),
            ..Heads::default()
        },
        adapters: adapters.to_vec(),
    }
}

struct Built {
    params: Params,
    model: Scgpt,
}

fn build(
    blueprint: &Blueprint,
    precision: Precision,
    executor: ExecutorKind,
    gather: Option<Rc<dyn Gather>>,
) -> Built {
    let layout = Layout {
        precision,
        ..Layout::cpu(11)
    };
    let specs = blueprint.specs().unwrap();
    let unfrozen = blueprint.unfreezes().unwrap();
    let trains = |spec: &TensorSpec| blueprint.adapts(Purpose::Identification, spec, &unfrozen);
    let params = Params::build_sharded(&specs, |_| Ok(None), trains, layout, gather).unwrap();
    let model = Scgpt::bind(blueprint, &params, executor).unwrap();
    // Adapters that start at zero would hide mistakes. libtorch's generator is shared by threads.
    let n = params.trainable_count();
    let noise: Vec<f64> = (0..n).map(|i| 0.05 * (i as f64).sin()).collect();
    let noise = Tensor::from_slice(&noise).to_kind(params.flat().kind());
    let mut flat = params.flat().shallow_clone();
    tch::no_grad(|| flat += noise);
    model.constrain().unwrap();
    Built { params, model }
}

/// 3 cells of 7 tokens, the last two of one cell padding.
fn inputs() -> Inputs {
    let genes: Vec<i64> = (0..21).map(|i| 1 + i * 5 % 48).collect();
    let genes = Tensor::from_slice(&genes).view([3, 7]);
    let _ = genes.get(1).narrow(0, 5, 2).fill_(SHAPE.pad_id);
    let values: Vec<f32> = (0..21).map(|i| (i * 3 % 11) as f32).collect();
    let values = Tensor::from_slice(&values).view([3, 7]);
    let padding = genes.eq(SHAPE.pad_id);
    Inputs::new(genes, values, Some(padding))
}

/// Loss and flat gradient of two passes, as bit patterns. Residual dropout is drawn from counters.
fn gradients(built: &mut Built) -> Vec<u64> {
    built.params.zero_grad().unwrap();
    let batch = inputs();
    let mut bits = Vec::new();
    for seed in [99, 100] {
        let dropout = Dropout {
            residual: 0.2,
            attention: 0.0,
        };
        let pass = Pass::training(dropout, seed);
        let encoded = built.model.encode(&batch, pass).unwrap();
        let logits = built.model.heads.classify(&encoded).unwrap();
        let labels = Tensor::from_slice(&[0i64, 2, 1]);
        let loss = loss::cross_entropy_sum(&logits, &labels, None).unwrap();
        loss.backward();
        if let Some(tape) = encoded.tape {
            tape.backward().unwrap();
        }
        bits.push(loss.double_value(&[]).to_bits());
    }
    let gradient = built.params.grad().to_kind(Kind::Double);
    let gradient = Vec::<f64>::try_from(gradient).unwrap();
    assert!(gradient.iter().all(|x| x.is_finite()));
    bits.extend(gradient.iter().map(|x| x.to_bits()));
    bits
}

/// Runs `work` on every rank of a world of threads; results in rank order.
fn on_ranks<T: Send>(ranks: usize, work: impl Fn(Rc<dyn Gather>) -> T + Sync) -> Vec<T> {
    let board = Arc::new(Board::default());
    std::thread::scope(|scope| {
        let start = |rank| {
            let (board, work) = (Arc::clone(&board), &work);
            scope.spawn(move || {
                work(Rc::new(Threads {
                    board,
                    rank,
                    ranks,
                    next: std::cell::Cell::new(0),
                }))
            })
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn gradients_of_sharded_blocks_are_those_of_whole_ones_bit_by_bit() {
    tch::set_num_threads(1);
    for precision in [Precision::F64, Precision::F32, Precision::Bf16] {
        for (name, adapters) in adapters() {
            let blueprint = blueprint(&adapters);
            let plain = &mut build(&blueprint, precision, ExecutorKind::Plain, None);
            let plain = gradients(plain);
            let moved = plain.iter().filter(|&&bits| f64::from_bits(bits) != 0.0);
            assert!(moved.count() > 20, "{name} has no gradients");
            for ranks in [1, 2, 3] {
                let all = on_ranks(ranks, |gather| {
                    let recompute = ExecutorKind::Recompute;
                    gradients(&mut build(&blueprint, precision, recompute, Some(gather)))
                });
                for (rank, found) in all.iter().enumerate() {
                    assert!(
                        *found == plain,
                        "{name} in {precision:?}, rank {rank} of {ranks}: other gradients"
                    );
                }
            }
        }
    }
}

/// Counts one training pass: what is held, what is gathered, and how often.
#[test]
fn a_rank_holds_its_share_and_at_most_two_blocks_and_gathers_no_block_needlessly() {
    // Block 2 carries the adapter: blocks 0 and 1 are gathered forward only, block 3 stays.
    let hra = adapters().swap_remove(5).1;
    let blueprint = blueprint(&hra);
    let usages: Vec<Usage> = on_ranks(2, |gather| {
        let mut built = build(
            &blueprint,
            Precision::F64,
            ExecutorKind::Recompute,
            Some(gather),
        );
        gradients(&mut built);
        built.params.store().unwrap().usage()
    });
    for usage in usages {
        // Forward 0 1 2 3, backward (3) 2; twice.
        assert_eq!(usage.gathers, 2 * 5);
        assert_eq!(usage.peak_gathered_bytes, 2 * usage.block_bytes);
        assert_eq!(
            usage.gathered_bytes, usage.block_bytes,
            "only block 2 is left"
        );
        assert_eq!(usage.resident_bytes * 2, 4 * usage.block_bytes);
        assert_eq!(usage.received_bytes, 10 * usage.block_bytes as u64 / 2);
        let d = (SHAPE.d_model, SHAPE.d_hid);
        let matrices = (4 * d.0 * d.0 + 2 * d.0 * d.1) as usize * 8;
        let vectors = (9 * d.0 + d.1) as usize * 8;
        let block = matrices + vectors;
        assert!(usage.total_bytes >= 4 * block);
        assert!(usage.total_bytes <= 4 * (block + 12 * 64));
    }
}

/// A rank without a micro-batch of its own joins the gathers of the others, forward and backward,
/// whether or not the embedding trains.
#[test]
fn idle_ranks_join_every_gather() {
    for (name, adapters) in adapters() {
        let blueprint = blueprint(&adapters);
        let gathers = on_ranks(2, |gather| {
            let idle = gather.rank() == 1;
            let mut built = build(
                &blueprint,
                Precision::F32,
                ExecutorKind::Recompute,
                Some(gather),
            );
            if idle {
                for _ in 0..2 {
                    built.model.join_forward().unwrap();
                    built.model.join_backward().unwrap();
                }
            } else {
                gradients(&mut built);
            }
            built.params.store().unwrap().usage().gathers
        });
        assert_eq!(gathers[0], gathers[1], "{name}");
        // What a plan takes for granted: two passes, the second of which may find block 0 there.
        let unfrozen = blueprint.unfreezes().unwrap();
        let trains = |spec: &TensorSpec| blueprint.adapts(Purpose::Identification, spec, &unfrozen);
        let first = blueprint.first_in_backward(trains).unwrap() as u64;
        let expected = match first {
            0 => 7 + 6,
            4 => 4 + 4,
            _ => 2 * (4 + 3 - first),
        };
        assert_eq!(gathers[0], expected, "{name} from block {first}");
    }
}

#[test]
fn a_backward_pass_that_no_gradient_reaches_gathers_all_the_same() {
    let blueprint = blueprint(&adapters().swap_remove(0).1);
    let gathers = on_ranks(2, |gather| {
        let loses = gather.rank() == 1;
        let built = build(
            &blueprint,
            Precision::F32,
            ExecutorKind::Recompute,
            Some(gather),
        );
        let pass = Pass::training(Dropout::OFF, 1);
        let encoded = built.model.encode(&inputs(), pass).unwrap();
        let sum = encoded.cell.square().sum(Kind::Float);
        if !loses {
            sum.backward();
        }
        encoded.tape.unwrap().backward().unwrap();
        built.params.store().unwrap().usage().gathers
    });
    assert_eq!(gathers[0], gathers[1]);
}

#[test]
fn evaluation_needs_no_graph_and_other_executors_are_refused() {
    let blueprint = blueprint(&adapters().swap_remove(3).1);
    let plain = build(&blueprint, Precision::F64, ExecutorKind::Plain, None);
    let expected = plain
        .model
        .encode(&inputs(), Pass::EVALUATION)
        .unwrap()
        .cell;
    let expected = Vec::<Vec<f64>>::try_from(expected).unwrap();
    let ranks = plain.model.raw_scores(&inputs(), 2).unwrap();
    let ranks = Vec::<f64>::try_from(ranks.reshape([-1])).unwrap();
    let all = on_ranks(3, |gather| {
        let built = build(
            &blueprint,
            Precision::F64,
            ExecutorKind::Recompute,
            Some(gather),
        );
        // Outside of no_grad: a graph over gathered memory would outlive it.
        let cell = built
            .model
            .encode(&inputs(), Pass::EVALUATION)
            .unwrap()
            .cell;
        assert!(!cell.requires_grad());
        let raw = built.model.raw_scores(&inputs(), 2).unwrap();
        assert!(Scgpt::bind(&blueprint, &built.params, ExecutorKind::Plain).is_err());
        (
            Vec::<Vec<f64>>::try_from(cell).unwrap(),
            Vec::<f64>::try_from(raw.reshape([-1])).unwrap(),
        )
    });
    for (cell, raw) in all {
        assert_eq!(cell, expected);
        assert_eq!(raw, ranks);
    }
}

/// Whoever uses a block that was not asked for gets no plausible numbers.
#[test]
fn tensors_of_absent_blocks_are_nan_in_their_shape() {
    on_ranks(1, |gather| {
        let blueprint = blueprint(&adapters().swap_remove(0).1);
        let built = build(
            &blueprint,
            Precision::F32,
            ExecutorKind::Recompute,
            Some(gather),
        );
        let name = "transformer_encoder.layers.0.linear1.weight";
        let weight = built.params.get(name).unwrap();
        assert_eq!(weight.size(), [SHAPE.d_hid, SHAPE.d_model]);
        assert!(bool::try_from(weight.isnan().all()).unwrap());
        assert_eq!(weight.device(), Device::Cpu);
        built.model.join_forward().unwrap();
        assert!(bool::try_from(weight.isnan().all()).unwrap());
        let last = "transformer_encoder.layers.3.linear1.weight";
        let last = built.params.get(last).unwrap();
        assert!(!bool::try_from(last.isnan().any()).unwrap());
    });
}
