//! What must hold for any weights: the executors agree, padding changes nothing, adapters that
//! start at zero start at the frozen backbone, merging LoRA changes nothing.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, HraOptions, LayerSelection, LoraOptions, MlpOptions,
    OftOptions, Placement, PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::Architecture;
use scpeft_model::backbone::scgpt::{
    Blueprint, CellStyle, Classifier, Heads, InputOptions, Inputs, Mvc, Pooled, Purpose, Scgpt,
    Shape,
};
use scpeft_model::exec::{Dropout, ExecutorKind, Pass};
use scpeft_model::{Layout, Params, Precision, Role, TensorSpec, loss};
use tch::{Device, Kind, Tensor};

const SHAPE: Shape = Shape {
    vocab: 50,
    d_model: 16,
    n_heads: 2,
    d_hid: 24,
    n_layers: 4,
    pad_id: 49,
};

fn blueprint(adapters: Vec<AdapterOptions>) -> Blueprint {
    Blueprint {
        shape: SHAPE,
        inputs: InputOptions::default(),
        heads: Heads {
            classifier: Some(Classifier {
                classes: 3,
                layers: 3,
            }),
            mvc: Some(Mvc::default()),
            ..Heads::default()
        },
        adapters,
    }
}

fn encoder(zero_init: bool) -> AdapterOptions {
    AdapterOptions::Encoder(EncoderOptions {
        layers: LayerSelection::Listed(vec![1, 2]),
        mlp_ratio: 0.25,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init,
    })
}

fn lora() -> AdapterOptions {
    AdapterOptions::Lora(LoraOptions {
        layers: LayerSelection::Listed(vec![0, 3]),
        r: 2,
        lora_alpha: 3.0,
        targets: vec![Projection::Query, Projection::Value],
        train_qkv_bias: true,
    })
}

fn token(zero_init: bool) -> AdapterOptions {
    AdapterOptions::Token(TokenOptions {
        mlp_ratio: 0.5,
        zero_init,
    })
}

fn prefix() -> AdapterOptions {
    AdapterOptions::Prefix(PrefixOptions {
        layers: LayerSelection::Listed(vec![1, 3]),
        token_nums: 3,
    })
}

fn reflections() -> AdapterOptions {
    AdapterOptions::Hra(HraOptions {
        layers: LayerSelection::Listed(vec![2]),
        r: 4,
    })
}

fn rotations() -> AdapterOptions {
    AdapterOptions::Oft(OftOptions {
        layers: LayerSelection::Listed(vec![1]),
    })
}

fn mlp(zero_init: bool) -> AdapterOptions {
    AdapterOptions::Mlp(MlpOptions {
        layers: LayerSelection::Listed(vec![0, 2]),
        mlp_ratio: 0.25,
        scale: 0.5,
        zero_init,
    })
}

struct Built {
    params: Params,
    model: Scgpt,
}

fn build(
    blueprint: &Blueprint,
    trains: impl Fn(&TensorSpec) -> bool,
    precision: Precision,
    executor: ExecutorKind,
) -> Built {
    let layout = Layout {
        precision,
        ..Layout::cpu(11)
    };
    let specs = blueprint.specs().unwrap();
    let params = Params::build(&specs, |_| Ok(None), trains, layout).unwrap();
    let model = Scgpt::bind(blueprint, &params, executor).unwrap();
    Built { params, model }
}

/// Adds noise to every trainable tensor: adapters that start at zero would hide mistakes.
fn shake(built: &Built) {
    tch::manual_seed(5);
    let noise = built.params.flat().randn_like() * 0.05;
    let mut flat = built.params.flat().shallow_clone();
    tch::no_grad(|| flat += noise);
    built.model.constrain().unwrap();
}

fn inputs(padding: i64) -> Inputs {
    tch::manual_seed(7);
    let genes = Tensor::randint_low(3, 48, [4, 10], (Kind::Int64, Device::Cpu));
    let values = Tensor::randint_low(0, 51, [4, 10], (Kind::Float, Device::Cpu));
    let pad = |x: &Tensor, value: f64| {
        x.constant_pad_nd([0, padding]).shallow_clone() + {
            let extra = Tensor::zeros([4, 10 + padding], (x.kind(), Device::Cpu));
            let _ = extra.narrow(1, 10, padding).fill_(value);
            let _ = extra.set_requires_grad(false);
            extra
        }
    };
    let genes = pad(&genes, SHAPE.pad_id as f64);
    let values = pad(&values, -2.0);
    let mask = genes.eq(SHAPE.pad_id);
    Inputs::new(genes, values, (padding > 0).then_some(mask))
}

fn train_all(_: &TensorSpec) -> bool {
    true
}

/// Values of two runs of `encode` over 4 cells with 10 tokens and over the same with padding.
fn padded(built: &Built) -> [(Tensor, Tensor); 2] {
    [0, 6].map(|padding| {
        let batch = inputs(padding);
        let encoded = tch::no_grad(|| built.model.encode(&batch, Pass::EVALUATION).unwrap());
        (encoded.hidden.narrow(1, 0, 10), encoded.cell)
    })
}

fn adapts(blueprint: &Blueprint) -> impl Fn(&TensorSpec) -> bool + use<> {
    let unfrozen = blueprint.unfreezes().unwrap();
    let blueprint = blueprint.clone();
    move |spec| blueprint.adapts(Purpose::Identification, spec, &unfrozen)
}

/// Loss and gradients of one training pass with dropout.
fn gradients(built: &mut Built, dropout: Dropout) -> (Tensor, Tensor) {
    built.params.zero_grad().unwrap();
    let batch = inputs(2);
    let pass = Pass::training(dropout, 99);
    let encoded = built.model.encode(&batch, pass).unwrap();
    let kind = built.params.precision().full();
    let labels = Tensor::from_slice(&[0i64, 2, 1, 2]);
    let logits = built.model.heads.classify(&encoded).unwrap();
    let states = built.model.heads.expression(&encoded, &batch).unwrap();
    let cells = built.model.heads.mvc(&encoded, &batch).unwrap();
    let loss = loss::cross_entropy_sum(&logits, &labels, None).unwrap()
        + states.prediction.square().mean(kind)
        + cells.prediction.square().mean(kind);
    loss.backward();
    if let Some(tape) = encoded.tape {
        tape.backward().unwrap();
    }
    (loss.detach(), built.params.grad().copy())
}

const DROPOUT: Dropout = Dropout {
    residual: 0.2,
    attention: 0.1,
};

#[test]
fn recompute_gives_the_gradients_of_plain_autograd_bit_by_bit() {
    let sets = [
        vec![encoder(false)],
        vec![lora()],
        vec![prefix()],
        vec![token(false), prefix(), lora(), encoder(false), mlp(false)],
        vec![reflections(), rotations()],
    ];
    for adapters in sets {
        let blueprint = blueprint(adapters);
        for precision in [Precision::F64, Precision::F32, Precision::Bf16] {
            for all in [false, true] {
                let adapts = adapts(&blueprint);
                let rule = |s: &TensorSpec| all && train_all(s) || adapts(s);
                let [plain, recomputed] = [ExecutorKind::Plain, ExecutorKind::Recompute].map(|e| {
                    let mut built = build(&blueprint, rule, precision, e);
                    shake(&built);
                    gradients(&mut built, DROPOUT)
                });
                let norm = plain.1.norm().double_value(&[]);
                assert!(norm.is_finite() && norm > 1e-3, "{norm}");
                assert!(plain.0.equal(&recomputed.0), "loss, {precision:?}");
                assert!(
                    plain.1.equal(&recomputed.1),
                    "{:?}, {precision:?}, all: {all}",
                    blueprint.adapters
                );
            }
        }
    }
}

#[test]
fn dropout_depends_on_the_seed_of_the_pass_alone() {
    let blueprint = blueprint(vec![encoder(false)]);
    let rule = adapts(&blueprint);
    let mut built = build(&blueprint, rule, Precision::F32, ExecutorKind::Plain);
    let first = gradients(&mut built, DROPOUT);
    tch::manual_seed(12345);
    let second = gradients(&mut built, DROPOUT);
    assert!(first.0.equal(&second.0) && first.1.equal(&second.1));
    let batch = inputs(0);
    let cell = |seed| {
        let pass = Pass::training(DROPOUT, seed);
        built.model.encode(&batch, pass).unwrap().cell.detach()
    };
    assert!(!cell(1).equal(&cell(2)));
}

#[test]
fn more_padding_changes_no_valid_output() {
    for adapters in [
        vec![encoder(false), token(false)],
        vec![lora()],
        vec![prefix()],
    ] {
        let blueprint = blueprint(adapters);
        let built = build(&blueprint, train_all, Precision::F64, ExecutorKind::Plain);
        shake(&built);
        let [short, long] = padded(&built);
        let worst = (&short.0 - long.0).abs().max().double_value(&[]);
        assert!(worst < 1e-12, "hidden states move by {worst:e}");
        assert!(short.0.abs().max().double_value(&[]) > 0.1);
    }
}

/// A cell embedding does not depend on the longest cell beside it, unless it was asked to count
/// padding as the reference does.
#[test]
fn pooled_embeddings_leave_padding_out() {
    for (style, independent) in [
        (CellStyle::Cls, true),
        (CellStyle::AveragePool(Pooled::Tokens), true),
        (CellStyle::WeightedPool(Pooled::Tokens), true),
        (CellStyle::AveragePool(Pooled::Everything), false),
        (CellStyle::WeightedPool(Pooled::Everything), false),
    ] {
        let mut blueprint = blueprint(vec![encoder(false)]);
        blueprint.inputs.cell = style;
        let built = build(&blueprint, train_all, Precision::F64, ExecutorKind::Plain);
        let [short, long] = padded(&built);
        let moved = (short.1 - long.1).abs().max().double_value(&[]);
        assert_eq!(moved < 1e-12, independent, "{style:?}: {moved:e}");
    }
}

#[test]
fn bf16_computes_in_bf16_whatever_trains() {
    for all in [false, true] {
        let blueprint = blueprint(vec![encoder(false)]);
        let adapts = adapts(&blueprint);
        let rule = |s: &TensorSpec| all || adapts(s);
        let built = build(&blueprint, rule, Precision::Bf16, ExecutorKind::Plain);
        let encoded = built.model.encode(&inputs(2), Pass::EVALUATION).unwrap();
        assert_eq!(encoded.hidden.kind(), Kind::BFloat16, "all: {all}");
        assert_eq!(encoded.genes.kind(), Kind::BFloat16, "all: {all}");
        assert_eq!(encoded.cell.kind(), Kind::Float, "all: {all}");
    }
}

/// A single token has no variance: it must not turn running statistics into NaN.
#[test]
fn one_token_alone_leaves_the_running_statistics_alone() {
    let mut blueprint = blueprint(vec![encoder(false)]);
    blueprint.inputs.norm = scpeft_model::norm::NormStyle::Batch;
    let built = build(&blueprint, train_all, Precision::F32, ExecutorKind::Plain);
    let one = Inputs::new(
        Tensor::from_slice(&[4i64]).view([1, 1]),
        Tensor::from_slice(&[1.0f32]).view([1, 1]),
        None,
    );
    let pass = Pass::training(Dropout::OFF, 0);
    assert!(built.model.encode(&one, pass).unwrap().observed.is_none());
    assert!(
        built
            .model
            .encode(&inputs(0), pass)
            .unwrap()
            .observed
            .is_some()
    );
}

#[test]
fn adapters_that_start_at_zero_start_at_the_frozen_backbone() {
    let encode = |adapters| {
        let blueprint = blueprint(adapters);
        let built = build(&blueprint, train_all, Precision::F64, ExecutorKind::Plain);
        tch::no_grad(|| {
            let encoded = built.model.encode(&inputs(2), Pass::EVALUATION);
            encoded.unwrap().hidden
        })
    };
    let frozen = encode(Vec::new());
    for adapters in [
        vec![encoder(true), token(true), mlp(true)],
        vec![lora()],
        vec![reflections()],
        vec![rotations()],
    ] {
        let name = format!("{adapters:?}");
        let worst = (encode(adapters) - &frozen).abs().max().double_value(&[]);
        assert!(worst < 1e-12, "{name}: {worst:e}");
    }
    for adapters in [vec![encoder(false)], vec![token(false)], vec![mlp(false)]] {
        let name = format!("{adapters:?}");
        let moved = (encode(adapters) - &frozen).abs().max().double_value(&[]);
        assert!(
            moved > 1e-3,
            "{name} starts at the backbone without being asked to"
        );
    }
}

/// `W + alpha/r * dW` in place of W, without the adapter, gives the same function.
#[test]
fn merged_lora_equals_unmerged() {
    let with = blueprint(vec![lora()]);
    let adapted = build(&with, adapts(&with), Precision::F64, ExecutorKind::Plain);
    shake(&adapted);
    let get = |name: &str| adapted.params.get(name).unwrap().detach();
    let without = blueprint(Vec::new());
    let d = SHAPE.d_model;
    let merged = Params::build(
        &without.specs().unwrap(),
        |spec| {
            let mut tensor = get(&spec.name).copy();
            let layer = spec.name.strip_suffix("in_proj_weight");
            let adapted = |p: &&str| p.contains("layers.0.") || p.contains("layers.3.");
            if let Some(prefix) = layer.filter(adapted) {
                let (a, b) = (
                    get(&format!("{prefix}Wqkv.lora_A")),
                    get(&format!("{prefix}Wqkv.lora_B")),
                );
                for (j, rows) in [(0, 0), (1, 2 * d)] {
                    let delta = b.narrow(0, j * d, d).matmul(&a.narrow(0, j * 2, 2)) * 1.5;
                    let mut part = tensor.narrow(0, rows, d);
                    part += delta;
                }
            }
            tensor = tensor.contiguous();
            Ok(Some(tensor))
        },
        |_| false,
        Layout {
            precision: Precision::F64,
            ..Layout::cpu(0)
        },
    )
    .unwrap();
    let merged = Scgpt::bind(&without, &merged, ExecutorKind::Plain).unwrap();
    let encode =
        |model: &Scgpt| tch::no_grad(|| model.encode(&inputs(2), Pass::EVALUATION).unwrap().hidden);
    let (one, other) = (encode(&adapted.model), encode(&merged));
    let worst = (one - other).abs().max().double_value(&[]);
    assert!(worst < 1e-12, "{worst:e}");
}

#[test]
fn bf16_stays_near_f32_and_keeps_what_trains_in_f32() {
    let blueprint = blueprint(vec![encoder(false), lora()]);
    let [full, mixed] = [Precision::F32, Precision::Bf16].map(|precision| {
        let rule = adapts(&blueprint);
        let mut built = build(&blueprint, rule, precision, ExecutorKind::Plain);
        assert_eq!(built.params.flat().kind(), Kind::Float);
        let (loss, grad) = gradients(&mut built, Dropout::OFF);
        for (name, tensor, role, trains) in built.params.iter() {
            let matrix = role == Role::Backbone && !trains && tensor.dim() == 2;
            let rounded =
                precision == Precision::Bf16 && matrix && name != "value_encoder.linear1.weight";
            if rounded {
                assert_eq!(tensor.kind(), Kind::BFloat16, "{name}");
            }
            if trains || name.contains("norm") {
                assert_eq!(tensor.kind(), Kind::Float, "{name}");
            }
        }
        (loss.double_value(&[]), grad)
    });
    assert!(
        (full.0 - mixed.0).abs() < 0.02 * full.0,
        "{full:?} {mixed:?}"
    );
    let dot = (&full.1 * &mixed.1).sum(Kind::Double).double_value(&[]);
    let cosine = dot / (full.1.norm() * mixed.1.norm()).double_value(&[]);
    assert!(cosine > 0.995, "{cosine}");
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let refuse = |blueprint: &Blueprint| blueprint.specs().unwrap_err().to_string();
    let mut other = blueprint(vec![token(false)]);
    other.inputs.values = scpeft_model::backbone::scgpt::ValueStyle::Scaling;
    assert!(refuse(&other).starts_with("adapter.kind: `token`"));
    let twice = blueprint(vec![token(false), token(true)]);
    assert!(refuse(&twice).contains("twice"));
    let mut empty = blueprint(vec![lora()]);
    empty.shape.n_layers = 3;
    assert!(refuse(&empty).contains("block 3 is selected"));
    let odd = blueprint(vec![AdapterOptions::Hra(HraOptions {
        layers: LayerSelection::All,
        r: 3,
    })]);
    assert!(refuse(&odd).contains("even number"));
}
