//! The `[perturbation]` section, and what goes together with it.

use super::Check;
use crate::schema::{
    AdapterKind, ClassWeights, Config, DrugReading, MvcStyle, Pairing, PerturbationSection,
    ResponseLoss, ResponseOutput, Select, Shard, TaskKind, Trainable, Unit,
};

/// Units of doses.
const UNITS: [&str; 5] = ["pM", "nM", "uM", "mM", "M"];

/// Whether the molecule is added to the input of a model that trains as a whole.
pub(super) fn adds_to_input(config: &Config) -> bool {
    config.adapter.kind.has(AdapterKind::Drug)
        && config.adapter.drug.reading == DrugReading::InputAdd
}

/// Keys that responses cannot do without.
pub(super) fn required(check: &mut Check<'_>) {
    check.require(
        "perturbation.column",
        "responses need to know what was done to each cell",
        "add `column = \"COLUMN\"` under `[perturbation]`",
    );
    check.require(
        "perturbation.control",
        "responses are changes against control cells",
        "add `control = \"VALUE\"` under `[perturbation]`, the value of its column for them",
    );
}

/// Ranges, whatever the task, and keys of this section on other tasks.
pub(super) fn perturbation(config: &Config, check: &mut Check<'_>) {
    let own = &config.perturbation;
    check.at_least("perturbation.min_cells", own.min_cells as u64, 1);
    check.at_least("perturbation.pool_cells", own.pool_cells as u64, 1);
    if let Some(unit) = &own.dose_unit {
        let known = UNITS.contains(&unit.as_str());
        check.range("perturbation.dose_unit", unit, known, &UNITS.join(", "));
    }
    if check.refused("task.kind") || config.task.kind == TaskKind::Perturbation {
        return;
    }
    if config.train.select == Select::PearsonDelta {
        check.conflict(
            "train.select",
            "`train.select` is `pearson_delta`, which needs responses to perturbations",
            "set `train.select = \"auto\"`",
        );
    }
    if *own != PerturbationSection::default() {
        check.conflict(
            "perturbation.column",
            format!(
                "the section `[perturbation]` has no effect on `{}`",
                config.task.kind
            ),
            "remove it, or set `task.kind = \"perturbation\"`",
        );
    }
    if config.adapter.kind.has(AdapterKind::Drug) {
        check.conflict(
            "adapter.kind",
            format!(
                "the `drug` adapter is told of molecules, which `{}` knows nothing of",
                config.task.kind
            ),
            "set `task.kind = \"perturbation\"`, or choose another adapter",
        );
    }
}

/// The task itself.
pub(super) fn task(config: &Config, check: &mut Check<'_>) {
    no_effect(config, check);
    treatment(config, check);
    rows(config, check);
    let own = &config.perturbation;
    if own.output == ResponseOutput::Change && config.task.trainable == Trainable::All {
        check.conflict(
            "perturbation.output",
            "`change` compares the adapted with the frozen backbone, and `task.trainable = \"all\"` leaves none frozen",
            "set `perturbation.output = \"residual\"`",
        );
    }
    if own.output == ResponseOutput::Change && config.backbone.dropout > 0.0 {
        check.conflict(
            "backbone.dropout",
            "`perturbation.output = \"change\"` counts what differs from the frozen backbone, and dropout would count too",
            "set `backbone.dropout = 0.0` (its default is 0.2)",
        );
    }
    if own.output == ResponseOutput::Change && own.train_head {
        check.conflict(
            "perturbation.train_head",
            "`perturbation.output = \"change\"` compares two outputs of one frozen decoder",
            "set `perturbation.output = \"residual\"`, or remove it",
        );
    }
    if own.output == ResponseOutput::Change && config.backbone.shard != Shard::None {
        check.conflict(
            "backbone.shard",
            "`perturbation.output = \"change\"` runs the frozen backbone a second time, which shared layers are not gathered for",
            "set `backbone.shard = \"none\"`",
        );
    }
}

/// Keys of other tasks.
fn no_effect(config: &Config, check: &mut Check<'_>) {
    let (task, data) = (&config.task, &config.data);
    for (key, given) in [
        ("task.mvc", task.mvc),
        ("task.explicit_zero", task.explicit_zero),
        ("task.ecs_weight", task.ecs_weight > 0.0),
        ("task.cce_weight", task.cce_weight > 0.0),
        ("task.mvc_style", task.mvc_style != MvcStyle::InnerProduct),
        (
            "task.class_weights",
            task.class_weights != ClassWeights::None,
        ),
        ("data.mask_ratio", data.mask_ratio > 0.0),
        ("data.label", data.label.is_some()),
        ("data.include_zero_genes", data.include_zero_genes),
        ("data.length_buckets", data.length_buckets),
        (
            "train.micro_batch_tokens",
            config.train.micro_batch_tokens.is_some(),
        ),
    ] {
        if given {
            check.conflict(
                key,
                format!("`{key}` has no effect on responses, which take every modelled gene"),
                "remove it",
            );
        }
    }
    let select = config.train.select;
    if matches!(select, Select::MacroF1 | Select::BalancedAccuracy) {
        check.conflict(
            "train.select",
            format!("`train.select` is `{select}`, which needs classes"),
            "set `train.select = \"pearson_delta\"` or `\"loss\"`",
        );
    }
}

/// What the model is told of the treatment.
fn treatment(config: &Config, check: &mut Check<'_>) {
    let (own, trainable) = (&config.perturbation, config.task.trainable);
    let told = config.adapter.kind.has(AdapterKind::Drug);
    if told && !check.refused("perturbation.molecules") {
        check.require(
            "perturbation.molecules",
            "the `drug` adapter needs an embedding of each molecule",
            "add `molecules = \"TABLE.parquet\"` under `[perturbation]`",
        );
    }
    if adds_to_input(config) && trainable != Trainable::All && !check.refused("task.trainable") {
        check.conflict(
            "adapter.drug.reading",
            "`input-add` is the comparison with full fine-tuning, and `task.trainable` is not `all`",
            "set `task.trainable = \"all\"`, or another reading",
        );
    }
    for (key, given) in [
        ("perturbation.molecules", own.molecules.is_some()),
        ("perturbation.molecule_key", own.molecule_key.is_some()),
        ("perturbation.dose_input", own.dose_input),
    ] {
        if given && !told && !check.refused("adapter.kind") {
            check.conflict(
                key,
                format!("`{key}` has no effect without the `drug` adapter"),
                "remove it, or set `adapter.kind = \"drug\"`",
            );
        }
    }
    for (key, given) in [
        ("perturbation.dose_unit", own.dose_unit.is_some()),
        ("perturbation.dose_input", own.dose_input),
    ] {
        if given && own.dose.is_none() {
            check.conflict(
                key,
                format!("`{key}` has no effect without `perturbation.dose`"),
                "add `dose = \"COLUMN\"` under `[perturbation]`, or remove it",
            );
        }
    }
}

/// What a training row is.
fn rows(config: &Config, check: &mut Check<'_>) {
    let own = &config.perturbation;
    let cells = own.unit == Unit::Cells;
    let random = cells && own.pairing == Pairing::Random;
    for (key, set, works, needs) in [
        (
            "perturbation.pairing",
            own.pairing != Pairing::Random,
            cells,
            "unit = \"cells\"",
        ),
        (
            "perturbation.match_by",
            !own.match_by.is_empty(),
            random,
            "unit = \"cells\"` and `pairing = \"random\"",
        ),
    ] {
        if set && !works {
            check.conflict(
                key,
                format!("`{key}` has no effect without `{needs}`"),
                "remove it",
            );
        }
    }
    let sets = matches!(own.loss, ResponseLoss::Mmd | ResponseLoss::Energy);
    if sets && !cells {
        check.conflict(
            "perturbation.loss",
            format!(
                "`{}` compares sets of cells, and `perturbation.unit` is `pseudobulk`",
                own.loss
            ),
            "set `perturbation.unit = \"cells\"`, or another loss",
        );
    }
    if sets && cells && config.train.micro_batch_cells.is_none_or(|n| n < 2) {
        check.conflict(
            "perturbation.loss",
            format!(
                "`{}` compares the cells of a micro-batch, whose number must not depend on the ranks",
                own.loss
            ),
            "add `micro_batch_cells = 16` under `[train]`",
        );
    }
    if sets && own.pairing == Pairing::Mean {
        check.conflict(
            "perturbation.pairing",
            format!(
                "`{}` compares sets of cells, and one mean control profile is no set",
                own.loss
            ),
            "set `perturbation.pairing = \"random\"`",
        );
    }
}
