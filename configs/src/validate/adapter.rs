//! The `[adapter]` section: which adapters, where, and whether they fit the backbone.

use std::collections::HashSet;

use super::Check;
use crate::schema::{AdapterKind, Config, DrugBias, DrugReading, DrugSection, Layers, ValueStyle};

pub(super) fn adapter(config: &Config, check: &mut Check<'_>) {
    let adapter = &config.adapter;
    check.at_least("adapter.r", adapter.r as u64, 1);
    check.positive("adapter.lora_alpha", adapter.lora_alpha);
    let ratio = adapter.mlp_ratio;
    check.range(
        "adapter.mlp_ratio",
        ratio,
        ratio > 0.0 && ratio <= 8.0,
        "> 0 and <= 8",
    );
    let distinct = adapter.targets.iter().collect::<HashSet<_>>().len();
    let targets: Vec<_> = adapter
        .targets
        .iter()
        .map(|target| target.as_str())
        .collect();
    let fine = distinct > 0 && distinct == targets.len();
    check.range(
        "adapter.targets",
        targets.join(", "),
        fine,
        "a list of different targets",
    );
    check.at_least("adapter.token_nums", adapter.token_nums as u64, 1);
    check.positive("adapter.mlp_scale", adapter.mlp_scale);
    listed_layers("adapter.layers", &adapter.layers, check);
    if let Some(layers) = &adapter.mlp_layers {
        listed_layers("adapter.mlp_layers", layers, check);
    }
    if let Some(percent) = adapter.budget_percent {
        check.positive("adapter.budget_percent", percent);
    }
    drug(config, check);
    kinds(config, check);
    if config.backbone.init.is_some() {
        fits_backbone(config, check);
    }
}

/// The drug adapter: ranges, and keys that have no effect on a reading.
fn drug(config: &Config, check: &mut Check<'_>) {
    let (drug, usual) = (&config.adapter.drug, DrugSection::default());
    listed_layers("adapter.drug.layers", &drug.layers, check);
    for (key, value) in [
        ("adapter.drug.bottleneck", Some(drug.bottleneck)),
        ("adapter.drug.generator_hidden", drug.generator_hidden),
        ("adapter.drug.tokens", Some(drug.tokens)),
        ("adapter.drug.width", drug.width),
    ] {
        if let Some(value) = value {
            check.at_least(key, value as u64, 1);
        }
    }
    let used = config.adapter.kind.has(AdapterKind::Drug);
    let squeezes = used && drug.reading == DrugReading::Bottleneck;
    let generates = squeezes && drug.bias != DrugBias::Static;
    for (key, set, works) in [
        ("adapter.drug.reading", drug.reading != usual.reading, used),
        (
            "adapter.drug.layers",
            drug.layers != usual.layers,
            used && drug.reading != DrugReading::InputAdd,
        ),
        ("adapter.drug.site", drug.site != usual.site, squeezes),
        (
            "adapter.drug.bottleneck",
            drug.bottleneck != usual.bottleneck,
            squeezes,
        ),
        ("adapter.drug.bias", drug.bias != usual.bias, squeezes),
        (
            "adapter.drug.generator_hidden",
            drug.generator_hidden.is_some(),
            generates,
        ),
        (
            "adapter.drug.activation",
            drug.activation != usual.activation,
            squeezes,
        ),
        (
            "adapter.drug.tokens",
            drug.tokens != usual.tokens,
            used && drug.reading == DrugReading::Prefix,
        ),
    ] {
        if set && !works {
            let problem = if used {
                format!(
                    "`{key}` has no effect with `adapter.drug.reading = \"{}\"` and `bias = \"{}\"`",
                    drug.reading, drug.bias
                )
            } else {
                format!("`{key}` has no effect without the `drug` adapter")
            };
            check.conflict(key, problem, "remove it");
        }
    }
}

fn listed_layers(key: &str, layers: &Layers, check: &mut Check<'_>) {
    if let Layers::List(list) = layers {
        let distinct = list.iter().collect::<HashSet<_>>().len();
        let fine = distinct > 0 && distinct == list.len();
        let expected = "a list of different layers";
        check.range(key, format!("{list:?}"), fine, expected);
    }
}

fn kinds(config: &Config, check: &mut Check<'_>) {
    let adapter = &config.adapter;
    let listed = adapter.kind.listed();
    let attached = adapter.kind.attached();
    let distinct = attached.iter().collect::<HashSet<_>>().len();
    let alone = listed.len() == 1 || !listed.contains(&AdapterKind::None);
    check.range(
        "adapter.kind",
        format!("[{}]", adapter.kind),
        !listed.is_empty() && alone && distinct == attached.len(),
        "one adapter, or a list of different ones",
    );
    if adapter.kind.has(AdapterKind::Hra) {
        check.range(
            "adapter.r",
            adapter.r,
            adapter.r.is_multiple_of(2) && adapter.r > 0,
            "an even number for `adapter.kind = \"hra\"`: reflections start in equal pairs",
        );
    }
}

/// What depends on the sizes of a backbone that starts random.
fn fits_backbone(config: &Config, check: &mut Check<'_>) {
    let (adapter, shape) = (&config.adapter, &config.backbone.shape);
    let attached = adapter.kind.attached();
    // TOKEN alone sits before the layers.
    let own_layers = |kind: &AdapterKind| {
        *kind == AdapterKind::Drug || (*kind == AdapterKind::Mlp && adapter.mlp_layers.is_some())
    };
    if adapter.kind.has(AdapterKind::Drug) && adapter.drug.reading != DrugReading::InputAdd {
        let layers = &adapter.drug.layers;
        chosen_layers("adapter.drug.layers", layers, shape.n_layers, check);
    }
    if attached
        .iter()
        .any(|kind| *kind != AdapterKind::Token && !own_layers(kind))
    {
        chosen_layers("adapter.layers", &adapter.layers, shape.n_layers, check);
    }
    if let Some(layers) = adapter
        .mlp_layers
        .as_ref()
        .filter(|_| adapter.kind.has(AdapterKind::Mlp))
    {
        chosen_layers("adapter.mlp_layers", layers, shape.n_layers, check);
    }
    let bottlenecks = [AdapterKind::Encoder, AdapterKind::Token, AdapterKind::Mlp];
    let ratio = adapter.mlp_ratio;
    let width = (shape.d_model as f64 * ratio) as usize;
    if attached.iter().any(|kind| bottlenecks.contains(kind)) && width == 0 && ratio > 0.0 {
        check.conflict(
            "adapter.mlp_ratio",
            format!(
                "`adapter.mlp_ratio` ({ratio}) of `d_model` ({}) leaves no width",
                shape.d_model
            ),
            "use a larger ratio",
        );
    }
    if adapter.kind.has(AdapterKind::Token) && shape.value_style != ValueStyle::Continuous {
        check.conflict(
            "adapter.kind",
            format!(
                "`token` sits inside the continuous value encoder, but `backbone.shape.value_style` is `{}`",
                shape.value_style
            ),
            "use another adapter, or `value_style = \"continuous\"`",
        );
    }
}

fn chosen_layers(key: &str, layers: &Layers, n_layers: usize, check: &mut Check<'_>) {
    match layers.indices(n_layers) {
        Err(beyond) => check.conflict(
            key,
            format!(
                "`{key}` names layer {}, but the backbone has {n_layers} layers (counted from 0)",
                beyond[0]
            ),
            format!("the last layer is {}", n_layers.saturating_sub(1)),
        ),
        Ok(layers) if layers.is_empty() && n_layers > 0 => check.conflict(
            key,
            format!("`{key}` chooses no layer: the first half of a single layer is empty"),
            format!("set `{key} = \"all\"`"),
        ),
        Ok(_) => {}
    }
}
