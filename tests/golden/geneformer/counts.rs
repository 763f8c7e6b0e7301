//! Numbers of parameters at full size, from descriptions alone: nothing is allocated.

use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, LayerSelection, LoraOptions, MlpOptions, Placement,
    PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::geneformer::{
    Activation, Blueprint, CellEmbedding, CellStyle, FreezeRule, Head,
};
use scpeft_model::backbone::{Architecture, Purpose, Shape};
use scpeft_model::{Role, TensorSpec};

/// Layers, width, heads, feed-forward width, positions, vocabulary; parameters of the masked-token
/// model.
const MODELS: [([i64; 6], usize); 4] = [
    ([6, 256, 4, 512, 2048, 25_426], 10_288_722),
    ([12, 512, 8, 1024, 2048, 25_426], 39_591_250),
    ([12, 768, 12, 3072, 4096, 20_275], 104_386_867),
    ([18, 1152, 18, 4608, 4096, 20_275], 316_354_867),
];

fn blueprint(
    [layers, d_model, n_heads, d_hid, positions, vocab]: [i64; 6],
    head: Head,
    freeze: FreezeRule,
    adapters: Vec<AdapterOptions>,
) -> Blueprint {
    Blueprint {
        shape: Shape {
            vocab,
            d_model,
            n_heads,
            d_hid,
            n_layers: layers as usize,
            pad_id: 0,
        },
        positions,
        token_types: 2,
        activation: Activation::Relu,
        norm_eps: 1e-12,
        special: Vec::new(),
        cell: CellEmbedding {
            style: CellStyle::Mean,
            second_to_last: true,
        },
        head,
        freeze,
        adapters,
    }
}

fn count(blueprint: &Blueprint, trains: impl Fn(&TensorSpec) -> bool) -> usize {
    let specs = blueprint.specs().unwrap();
    specs
        .iter()
        .filter(|s| trains(s))
        .map(TensorSpec::numel)
        .sum()
}

/// All parameters, and those that train under a rule, of a classifier of 18 types.
fn counts(model: [i64; 6], adapters: &[AdapterOptions]) -> [usize; 3] {
    let head = Head::Sequence { classes: 18 };
    let trained = |freeze| {
        let blueprint = blueprint(model, head, freeze, adapters.to_vec());
        let unfrozen = blueprint.unfreezes().unwrap();
        count(&blueprint, |s| {
            if adapters.is_empty() {
                return s.role == Role::Head
                    && blueprint.trains_beside(Purpose::Identification, &s.name);
            }
            blueprint.adapts(Purpose::Identification, s, &unfrozen)
        })
    };
    let whole = blueprint(model, head, FreezeRule::Tutorial, adapters.to_vec());
    [
        count(&whole, |_| true),
        trained(FreezeRule::Tutorial),
        trained(FreezeRule::Scripts),
    ]
}

fn adapters(kind: &str) -> Vec<AdapterOptions> {
    let layers = LayerSelection::All;
    let encoder = AdapterOptions::Encoder(EncoderOptions {
        layers: layers.clone(),
        mlp_ratio: 0.25,
        skip_connect: true,
        placement: Placement::AfterNorm,
        zero_init: false,
    });
    let prefix = |layers| {
        AdapterOptions::Prefix(PrefixOptions {
            layers,
            token_nums: 64,
        })
    };
    match kind {
        "head" => Vec::new(),
        "encoder" => vec![encoder],
        "encoder and mlp" => vec![
            encoder,
            AdapterOptions::Mlp(MlpOptions {
                layers,
                mlp_ratio: 0.25,
                scale: 0.5,
                zero_init: false,
            }),
        ],
        "token" => vec![AdapterOptions::Token(TokenOptions {
            mlp_ratio: 0.25,
            zero_init: false,
        })],
        "deep prefix" => vec![prefix(layers)],
        "shallow prefix" => vec![prefix(LayerSelection::Listed(vec![0]))],
        "lora" => vec![AdapterOptions::Lora(LoraOptions {
            layers,
            r: 8,
            lora_alpha: 1.0,
            targets: vec![Projection::Query, Projection::Value],
            train_qkv_bias: true,
        })],
        other => unreachable!("{other}"),
    }
}

/// The table of the specification, model by model: all; tutorial's rule; scripts' rule.
#[test]
fn counts_at_full_size_are_those_of_the_specification() {
    let table: [(&str, [[usize; 3]; 4]); 7] = [
        (
            "head",
            [
                [10_267_410, 70_418, 4_626],
                [39_574_034, 271_890, 9_234],
                [104_378_898, 604_434, 13_842],
                [316_353_042, 1_349_010, 20_754],
            ],
        ),
        (
            "encoder",
            [
                [10_465_938, 268_946, 203_154],
                [41_154_578, 1_852_434, 1_589_778],
                [107_929_362, 4_154_898, 3_564_306],
                [328_322_898, 13_318_866, 11_990_610],
            ],
        ),
        (
            "encoder and mlp",
            [
                [10_664_466, 467_474, 401_682],
                [42_735_122, 3_432_978, 3_170_322],
                [111_479_826, 7_705_362, 7_114_770],
                [340_292_754, 25_288_722, 23_960_466],
            ],
        ),
        (
            "token",
            [
                [10_300_498, 103_506, 37_714],
                [39_705_746, 403_602, 140_946],
                [104_674_770, 900_306, 309_714],
                [317_018_034, 2_014_002, 685_746],
            ],
        ),
        (
            "deep prefix",
            [
                [10_365_714, 168_722, 102_930],
                [39_967_250, 665_106, 402_450],
                [104_968_722, 1_194_258, 603_666],
                [317_680_146, 2_676_114, 1_347_858],
            ],
        ),
        (
            "shallow prefix",
            [
                [10_283_794, 86_802, 21_010],
                [39_606_802, 304_658, 42_002],
                [104_428_050, 653_586, 62_994],
                [316_426_770, 1_422_738, 94_482],
            ],
        ),
        (
            "lora",
            [
                [10_316_562, 124_178, 56_850],
                [39_770_642, 486_930, 218_130],
                [104_673_810, 926_994, 327_186],
                [317_016_594, 2_074_770, 725_778],
            ],
        ),
    ];
    for (kind, rows) in table {
        for ((model, _), expected) in MODELS.into_iter().zip(rows) {
            assert_eq!(
                counts(model, &adapters(kind)),
                expected,
                "{kind}, {model:?}"
            );
        }
    }
    for (model, expected) in MODELS {
        let masked = blueprint(model, Head::MaskedTokens, FreezeRule::Tutorial, Vec::new());
        assert_eq!(count(&masked, |_| true), expected, "{model:?}");
    }
}
