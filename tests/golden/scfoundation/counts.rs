//! Numbers of parameters at full size, from descriptions alone: nothing is allocated.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, Placement, PrefixOptions,
    Projection, TokenOptions,
};
use scpeft_model::backbone::scfoundation::{Blueprint, Head, Pool, PoolStyle, Values};
use scpeft_model::backbone::{Architecture, Purpose, Shape};
use scpeft_model::{Role, TensorSpec};

const GENES: i64 = 19_264;

pub(crate) fn published(
    adapters: Vec<AdapterOptions>,
    style: PoolStyle,
    classes: i64,
) -> Blueprint {
    Blueprint {
        shape: Shape {
            vocab: GENES + 3,
            d_model: 768,
            n_heads: 12,
            d_hid: 3072,
            n_layers: 12,
            pad_id: GENES + 2,
        },
        values: Values {
            bins: 100,
            bin_alpha: 1.0,
            pad_value: 103.0,
            mask_value: 102.0,
        },
        pool: Pool {
            style,
            padded: false,
        },
        pad_position: GENES + 2,
        head: Some(Head {
            classes,
            dropout: 0.5,
        }),
        decoder: None,
        adapters,
    }
}

fn count(blueprint: &Blueprint, chosen: impl Fn(&TensorSpec) -> bool) -> usize {
    let specs = blueprint.specs().unwrap();
    let chosen = specs.iter().filter(|s| chosen(s));
    chosen.map(TensorSpec::numel).sum()
}

/// Every adapter of the specification on these layers.
fn kinds(layers: &LayerSelection) -> [AdapterOptions; 4] {
    let layers = || layers.clone();
    [
        AdapterOptions::Encoder(EncoderOptions {
            layers: layers(),
            mlp_ratio: 0.25,
            skip_connect: true,
            placement: Placement::AttentionOutput,
            zero_init: false,
        }),
        AdapterOptions::Token(TokenOptions {
            mlp_ratio: 0.25,
            zero_init: false,
        }),
        AdapterOptions::Prefix(PrefixOptions {
            layers: layers(),
            token_nums: 64,
        }),
        AdapterOptions::Lora(LoraOptions {
            layers: layers(),
            r: 8,
            lora_alpha: 1.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: false,
        }),
    ]
}

#[test]
fn counts_at_full_size_are_those_of_the_specification() {
    let all = LayerSelection::All;
    let upper = LayerSelection::Listed((6..12).collect());
    let table = [
        (all, [3_550_464, 295_872, 589_824, 294_912]),
        (upper, [1_775_232, 295_872, 294_912, 147_456]),
    ];
    for (layers, expected) in table {
        for (adapter, expected) in kinds(&layers).into_iter().zip(expected) {
            let blueprint = published(vec![adapter.clone()], PoolStyle::Max, 18);
            let unfrozen = blueprint.unfreezes().unwrap();
            let trains = |s: &TensorSpec| blueprint.adapts(Purpose::Identification, s, &unfrozen);
            let adapters = count(&blueprint, |s| s.role == Role::Adapter);
            assert_eq!(adapters, expected, "{adapter:?}");
            let head = count(&blueprint, |s| s.role == Role::Head);
            assert_eq!(count(&blueprint, trains), adapters + head, "{adapter:?}");
        }
    }
}

#[test]
fn parts_at_full_size_are_those_of_the_specification() {
    let blueprint = published(Vec::new(), PoolStyle::Max, 18);
    let of = |prefix: &str| count(&blueprint, |s| s.name.starts_with(prefix));
    assert_eq!(of("token_emb."), 88_636);
    assert_eq!(of("pos_emb."), 14_797_056);
    assert_eq!(of("encoder."), 85_056_000);
    for classes in [2, 18, 100] {
        let deep = published(Vec::new(), PoolStyle::Max, classes);
        let head = count(&deep, |s| s.role == Role::Head);
        assert_eq!(head as i64, 1_184_256 + 768 * classes + classes);
        let shallow = published(Vec::new(), PoolStyle::All, classes);
        let head = count(&shallow, |s| s.role == Role::Head);
        assert_eq!(head as i64, 3072 * 256 + 256 + 256 * classes + classes);
    }
}
