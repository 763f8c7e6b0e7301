//! What the samplers need.

use super::Check;
use crate::schema::{Config, Sampler};

/// What a sampler needs, and what has no effect without it.
pub(super) fn check(config: &Config, per_domain: bool, check: &mut Check<'_>) {
    let data = &config.data;
    let draws = matches!(data.sampler, Sampler::ClassBalanced | Sampler::Weighted);
    if draws && per_domain {
        check.conflict(
            "data.sampler",
            format!(
                "`{}` draws a different number of cells of each batch in every epoch, which \
                 `backbone.norm = \"domain\"` cannot cut into micro-batches of one batch",
                data.sampler
            ),
            "set `data.sampler = \"uniform\"`",
        );
    } else if data.sampler == Sampler::ClassBalanced && data.label.is_none() {
        check.require(
            "data.label",
            "`data.sampler = \"class-balanced\"` draws the values of an obs column equally often",
            "add `label = \"COLUMN\"` under `[data]`, or set `data.sampler = \"uniform\"`",
        );
    }
    let columns = [
        (
            Sampler::Stratified,
            "data.stratify_by",
            &data.stratify_by,
            "a column whose proportions each batch keeps",
        ),
        (
            Sampler::Weighted,
            "data.weight_by",
            &data.weight_by,
            "a column of weights",
        ),
    ];
    for (needs, key, column, what) in columns {
        let name = key.trim_start_matches("data.");
        if data.sampler == needs {
            check.require(
                key,
                &format!("`data.sampler = \"{needs}\"` needs {what}"),
                &format!("add `{name} = \"COLUMN\"` under `[data]`"),
            );
        } else if column.is_some() && !check.refused(key) {
            check.conflict(
                key,
                format!("`{key}` has no effect without `data.sampler = \"{needs}\"`"),
                "set the sampler, or remove it",
            );
        }
    }
}
