//! Which settings go together with which architecture.

use super::Check;
use crate::schema::{
    Architecture, BinScale, CellLayer, CellStyle, Config, EmbeddingNorm, FreezeRule, KeyMax,
    Placement, Shape, TaskKind,
};

pub(super) fn architecture(config: &Config, check: &mut Check<'_>) {
    if check.refused("backbone.architecture") {
        return;
    }
    if config.backbone.architecture != Architecture::Scfoundation {
        without_depths(config, check);
    }
    match config.backbone.architecture {
        Architecture::Scgpt => scgpt(config, check),
        Architecture::Geneformer => geneformer(config, check),
        Architecture::Scfoundation => scfoundation(config, check),
        Architecture::Scbert => return scbert(config, check),
    }
    let (backbone, usual) = (&config.backbone, Shape::default());
    for (key, given) in [
        ("data.bin_scale", config.data.bin_scale != BinScale::Log2),
        ("backbone.key_max", backbone.key_max != KeyMax::Cell),
        ("backbone.redraw_steps", backbone.redraw_steps != 0),
        (
            "backbone.shape.d_head",
            backbone.shape.d_head != usual.d_head,
        ),
        (
            "backbone.shape.n_features",
            backbone.shape.n_features.is_some(),
        ),
    ] {
        if given {
            check.conflict(
                key,
                format!("`{key}` has an effect on scBERT alone"),
                "remove it, or set `backbone.architecture = \"scbert\"`",
            );
        }
    }
}

fn scbert(config: &Config, check: &mut Check<'_>) {
    let (backbone, kind) = (&config.backbone, config.task.kind);
    if kind != TaskKind::Identification && !check.refused("task.kind") {
        check.conflict(
            "task.kind",
            format!(
                "`task.kind` is `{kind}`, which predicts expression values, and an scBERT has bins"
            ),
            "set `task.kind = \"identification\"`, or `backbone.architecture = \"scgpt\"`",
        );
    }
    let (data, shape, usual) = (&config.data, &backbone.shape, Shape::default());
    check.at_least("backbone.shape.d_head", shape.d_head as u64, 2);
    if let Some(features) = shape.n_features {
        check.at_least("backbone.shape.n_features", features as u64, 1);
    }
    for (key, set) in [
        ("data.include_zero_genes", data.include_zero_genes),
        ("data.normalize_total", data.normalize_total.is_some()),
        ("data.log1p", data.log1p.is_some()),
        ("data.length_buckets", data.length_buckets),
        ("backbone.cell_style", backbone.cell_style != CellStyle::Cls),
        (
            "backbone.cell_layer",
            backbone.cell_layer != CellLayer::Last,
        ),
        ("backbone.norm", backbone.norm != EmbeddingNorm::None),
        (
            "adapter.placement",
            config.adapter.placement != Placement::AfterNorm,
        ),
        (
            "backbone.shape.n_layers_cls",
            shape.n_layers_cls != usual.n_layers_cls,
        ),
        ("backbone.shape.n_bins", shape.n_bins != usual.n_bins),
        (
            "backbone.shape.value_style",
            shape.value_style != usual.value_style,
        ),
    ] {
        if set {
            check.conflict(
                key,
                format!("`{key}` has no effect on scBERT, which reads the bin of every gene of its panel"),
                "remove it",
            );
        }
    }
}

fn scgpt(config: &Config, check: &mut Check<'_>) {
    let backbone = &config.backbone;
    for (key, given) in [
        (
            "backbone.cell_layer",
            backbone.cell_layer != CellLayer::Last,
        ),
        (
            "backbone.freeze_rule",
            backbone.freeze_rule != FreezeRule::Tutorial,
        ),
    ] {
        if given {
            check.conflict(
                key,
                format!("`{key}` has no effect on scGPT"),
                "remove it, or set `backbone.architecture = \"geneformer\"`",
            );
        }
    }
}

/// What only scFoundation has.
fn without_depths(config: &Config, check: &mut Check<'_>) {
    let (backbone, name) = (&config.backbone, config.backbone.architecture);
    // The others say themselves what may stand for a cell.
    let pools = name == Architecture::Scgpt && pools_features(backbone.cell_style);
    for (key, given) in [
        ("data.target_depth", config.data.target_depth.is_some()),
        ("backbone.head_dropout", backbone.head_dropout.is_some()),
        ("backbone.cell_style", pools),
    ] {
        if given && !check.refused(key) {
            check.conflict(
                key,
                format!(
                    "`{key}` is a setting of scFoundation, and `backbone.architecture` is `{name}`"
                ),
                "remove it, or set `backbone.architecture = \"scfoundation\"`",
            );
        }
    }
}

fn pools_features(style: CellStyle) -> bool {
    matches!(
        style,
        CellStyle::MaxPool
            | CellStyle::MaxPoolPadded
            | CellStyle::AllPool
            | CellStyle::AllPoolPadded
    )
}

fn scfoundation(config: &Config, check: &mut Check<'_>) {
    let (backbone, data, kind) = (&config.backbone, &config.data, config.task.kind);
    if kind != TaskKind::Identification && !check.refused("task.kind") {
        check.conflict(
            "task.kind",
            format!("`task.kind` is `{kind}`, for which scFoundation is not trained here"),
            "set `task.kind = \"identification\"`, or `backbone.architecture = \"scgpt\"`",
        );
    }
    let style = backbone.cell_style;
    if !pools_features(style) {
        check.conflict(
            "backbone.cell_style",
            format!("`backbone.cell_style` is `{style}`, which scFoundation has not"),
            "use `max-pool`, or `all-pool`",
        );
    }
    if data.log1p == Some(false) {
        check.conflict(
            "data.log1p",
            "`data.log1p` is false, and scFoundation reads ln(1 + x) of scaled counts",
            "remove it",
        );
    }
    if let Some(rate) = backbone.head_dropout {
        check.range(
            "backbone.head_dropout",
            rate,
            (0.0..1.0).contains(&rate),
            ">= 0 and < 1",
        );
    }
    let (shape, usual) = (&backbone.shape, Shape::default());
    for (key, set) in [
        ("data.include_zero_genes", data.include_zero_genes),
        (
            "backbone.cell_layer",
            backbone.cell_layer != CellLayer::Last,
        ),
        (
            "backbone.freeze_rule",
            backbone.freeze_rule != FreezeRule::Tutorial,
        ),
        ("backbone.norm", backbone.norm != EmbeddingNorm::None),
        (
            "backbone.shape.n_layers_cls",
            shape.n_layers_cls != usual.n_layers_cls,
        ),
        (
            "backbone.shape.value_style",
            shape.value_style != usual.value_style,
        ),
    ] {
        if set {
            check.conflict(
                key,
                format!("`{key}` has no effect on scFoundation"),
                "remove it",
            );
        }
    }
}

fn geneformer(config: &Config, check: &mut Check<'_>) {
    let (backbone, kind) = (&config.backbone, config.task.kind);
    if kind != TaskKind::Identification && !check.refused("task.kind") {
        check.conflict(
            "task.kind",
            format!(
                "`task.kind` is `{kind}`, which predicts expression values, and a Geneformer has none"
            ),
            "set `task.kind = \"identification\"`, or `backbone.architecture = \"scgpt\"`",
        );
    }
    let style = backbone.cell_style;
    if !matches!(style, CellStyle::Cls | CellStyle::AveragePool) {
        check.conflict(
            "backbone.cell_style",
            format!("`backbone.cell_style` is `{style}`, which a Geneformer has not"),
            "use `average-pool`, or `cls` with a model of the second generation",
        );
    }
    if backbone.norm != EmbeddingNorm::None {
        check.conflict(
            "backbone.norm",
            format!(
                "`backbone.norm` is `{}`, which a Geneformer has not",
                backbone.norm
            ),
            "remove it",
        );
    }
    // Ranks leave nothing to set. A run's own configuration names every key: values decide.
    let (data, shape, usual) = (&config.data, &backbone.shape, Shape::default());
    for (key, set) in [
        ("data.include_zero_genes", data.include_zero_genes),
        ("data.normalize_total", data.normalize_total.is_some()),
        ("data.log1p", data.log1p.is_some()),
        (
            "backbone.shape.n_layers_cls",
            shape.n_layers_cls != usual.n_layers_cls,
        ),
        ("backbone.shape.n_bins", shape.n_bins != usual.n_bins),
        (
            "backbone.shape.value_style",
            shape.value_style != usual.value_style,
        ),
    ] {
        if set {
            check.conflict(
                key,
                format!("`{key}` has no effect on a Geneformer, which reads ranks of genes"),
                "remove it",
            );
        }
    }
}
