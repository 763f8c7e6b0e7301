//! Numbers of parameters at full size, from descriptions alone: nothing is allocated.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, MlpOptions, Placement,
    PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::performer::{KeyMax, PerformerShape};
use scpeft_model::backbone::scbert::{Blueprint, FreezeRule, Head};
use scpeft_model::backbone::{Architecture, Purpose, Shape};
use scpeft_model::{Role, TensorSpec};

fn blueprint(freeze: FreezeRule, adapters: Vec<AdapterOptions>) -> Blueprint {
    let lora = |o: &AdapterOptions| matches!(o, AdapterOptions::Lora(_));
    Blueprint {
        shape: Shape {
            vocab: 7,
            d_model: 200,
            n_heads: 10,
            d_hid: 800,
            n_layers: 6,
            pad_id: 6,
        },
        d_head: 64,
        features: PerformerShape::default_features(64),
        positions: 16_907,
        key_max: KeyMax::Cell,
        redrawn: false,
        qkv_bias: adapters.iter().any(lora),
        head: Head::Cell {
            classes: 16,
            hidden: [512, 128],
        },
        freeze,
        adapters,
    }
}

/// All parameters, those that train, and of these those outside the head.
fn counts(blueprint: &Blueprint) -> [usize; 3] {
    let specs = blueprint.specs().unwrap();
    let unfrozen = blueprint.unfreezes().unwrap();
    let count = |wanted: &dyn Fn(&TensorSpec) -> bool| {
        let counted = specs.iter().filter(|s| s.role.is_parameter() && wanted(s));
        counted.map(TensorSpec::numel).sum()
    };
    let purpose = Purpose::Identification;
    let trains = |s: &TensorSpec| s.may_train() && blueprint.adapts(purpose, s, &unfrozen);
    [
        count(&|_| true),
        count(&trains),
        count(&|s| trains(s) && s.role != Role::Head),
    ]
}

#[test]
fn counts_at_full_size_are_those_of_the_specification() {
    let layers = LayerSelection::All;
    let token = AdapterOptions::Token(TokenOptions {
        mlp_ratio: 0.25,
        zero_init: false,
    });
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: layers.clone(),
        mlp_ratio: 0.5,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init: false,
    });
    let mlp = AdapterOptions::Mlp(MlpOptions {
        layers: layers.clone(),
        mlp_ratio: 0.5,
        scale: 1.0,
        zero_init: false,
    });
    let prefix = AdapterOptions::Prefix(PrefixOptions {
        layers: layers.clone(),
        token_nums: 64,
    });
    let lora = AdapterOptions::Lora(LoraOptions {
        layers,
        r: 8,
        lora_alpha: 1.0,
        targets: vec![Projection::Query, Projection::Value],
        train_qkv_bias: true,
    });
    let published = FreezeRule::Published;
    let ours = FreezeRule::Adapters;
    let rows = [
        (published, vec![token], [17_132_275, 8_745_075, 20_250]),
        (
            published,
            vec![encoder.clone()],
            [17_356_225, 8_969_025, 244_200],
        ),
        (
            published,
            vec![encoder, mlp],
            [17_600_425, 9_213_225, 488_400],
        ),
        (published, vec![prefix], [17_157_593, 8_770_393, 12_800]),
        (
            published,
            vec![lora.clone()],
            [17_204_185, 10_349_145, 1_624_320],
        ),
        // The factors, and the biases of query and value.
        (
            ours,
            vec![lora],
            [17_204_185, 8_724_825 + 80_640 + 7_680, 80_640 + 7_680],
        ),
        (published, Vec::new(), [17_112_025, 8_724_825, 0]),
    ];
    for (freeze, adapters, expected) in rows {
        assert_eq!(
            counts(&blueprint(freeze, adapters.clone())),
            expected,
            "{adapters:?}"
        );
    }
    // All but the vectors of genes, and what the authors' fine-tuning trains.
    let whole = blueprint(published, Vec::new());
    let specs = whole.specs().unwrap();
    let count = |wanted: &dyn Fn(&TensorSpec) -> bool| -> usize {
        let counted = specs.iter().filter(|s| s.may_train() && wanted(s));
        counted.map(TensorSpec::numel).sum()
    };
    assert_eq!(count(&|_| true), 13_730_625);
    let official =
        |s: &TensorSpec| s.block == Some(4) || s.name.starts_with("norm.") || s.role == Role::Head;
    assert_eq!(count(&official), 9_559_225);
}
