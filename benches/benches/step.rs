//! The update of the flat buffer, and forward and backward of the demo's backbone with LoRA, on
//! one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scpeft_bench::stepping::ADAM;
use scpeft_model::adapter::{AdapterOptions, LayerSelection, LoraOptions, Projection};
use scpeft_model::backbone::scgpt::{
    Blueprint, Classifier, Heads, InputOptions, Inputs, Scgpt, Shape,
};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Params, Role, device, loss};
use scpeft_trainer::optim::Adam;
use tch::{Device, Kind, Tensor};

/// Trainable parameters of ENCODER with a head of 18 types on the published whole-human model.
const TRAINABLE: i64 = 1_326_866;

fn adam(criterion: &mut Criterion) {
    device::set_threads(1);
    let grad = Tensor::randn([TRAINABLE], (Kind::Float, Device::Cpu));
    let mut flat = Tensor::zeros([TRAINABLE], (Kind::Float, Device::Cpu));
    let mut adam = Adam::new(ADAM, &flat).expect("memory");
    let mut group = criterion.benchmark_group("optimizer");
    group.throughput(Throughput::Elements(TRAINABLE as u64));
    group.bench_function("adam, 1.33 M parameters", |bencher| {
        bencher.iter(|| adam.step(&mut flat, &grad, 1e-4).expect("an update"));
    });
    group.finish();
}

fn forward_backward(criterion: &mut Criterion) {
    const CELLS: i64 = 8;
    const TOKENS: i64 = 256;
    device::set_threads(1);
    let lora = AdapterOptions::Lora(LoraOptions {
        layers: LayerSelection::All,
        r: 8,
        lora_alpha: 16.0,
        targets: vec![Projection::Query, Projection::Value],
        train_qkv_bias: true,
    });
    let blueprint = Blueprint {
        shape: Shape {
            vocab: 768,
            d_model: 64,
            n_heads: 4,
            d_hid: 128,
            n_layers: 2,
            pad_id: 0,
        },
        inputs: InputOptions::default(),
        heads: Heads {
            classifier: Some(Classifier {
                classes: 10,
                layers: 3,
            }),
            ..Heads::default()
        },
        adapters: vec![lora],
    };
    let specs = blueprint.specs().expect("a valid blueprint");
    let trains = |role: Role, name: &str| role == Role::Adapter || name.starts_with("cls_decoder");
    let mut params = Params::build(
        &specs,
        |_| Ok(None),
        |s| trains(s.role, &s.name),
        Layout::cpu(0),
    )
    .expect("a model");
    let model = Scgpt::bind(&blueprint, &params, ExecutorKind::Plain).expect("a bound model");
    let inputs = Inputs::new(
        Tensor::randint_low(3, 768, [CELLS, TOKENS], (Kind::Int, Device::Cpu)),
        Tensor::randint_low(1, 51, [CELLS, TOKENS], (Kind::Float, Device::Cpu)),
        None,
    );
    let labels = Tensor::randint(10, [CELLS], (Kind::Int64, Device::Cpu));
    let mut group = criterion.benchmark_group("step");
    group.throughput(Throughput::Elements(CELLS as u64));
    group.bench_function(
        "LoRA forward + backward, 2 x 64, 8 cells x 256 tokens",
        |bencher| {
            bencher.iter(|| {
                params.zero_grad().expect("zeros");
                let encoded = model
                    .encode(&inputs, Pass::training(Dropout::OFF, 0))
                    .expect("a forward pass");
                let logits = model.heads.classify(&encoded).expect("logits");
                loss::cross_entropy_sum(&logits, &labels, None)
                    .expect("a loss")
                    .backward();
            });
        },
    );
    group.finish();
}

criterion_group!(benches, adam, forward_backward);
criterion_main!(benches);
