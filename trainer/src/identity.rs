//! What makes a run this run: the settings, data and weights that a resumption may not change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use scpeft_config::Config;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::assembly::Assembly;
use crate::failure::{Failure, Result};

/// What must not change when a run is resumed: the stream of cells, the function that is trained
/// and the meaning of the parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    corpus: String,
    backbone: String,
    /// `args.json` of the backbone: bins, pad and mask values, dimensions.
    #[serde(default)]
    args: BTreeMap<String, Value>,
    classes: Vec<String>,
    layout: Vec<(String, Vec<i64>)>,
    settings: BTreeMap<String, Value>,
}

/// Sections and keys that may change: where things lie (fingerprints say whether they are the same
/// things), how fast they are read, how often the run looks up, and when it stops.
const MAY_CHANGE: [&str; 17] = [
    "run.dir",
    "run.name",
    "run.device",
    "run.threads",
    "run.recompute",
    "data.corpus",
    "data.test",
    "data.loader_threads",
    "data.prefetch_steps",
    "backbone.path",
    "backbone.shard",
    "train.early_stop_patience",
    "train.non_finite_limit",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "log.every_steps",
    "metrics.",
];

impl Identity {
    pub(crate) fn of(config: &Config, assembly: &Assembly) -> Self {
        let mut settings = BTreeMap::new();
        flatten("", &json!(config), &mut settings);
        settings.retain(|key, _| {
            !MAY_CHANGE
                .iter()
                .any(|free| key == free || (free.ends_with('.') && key.starts_with(free)))
        });
        let mut args = BTreeMap::new();
        flatten("args.json", &assembly.backbone.args(), &mut args);
        Self {
            corpus: assembly.feed.corpus.fingerprint().to_owned(),
            backbone: assembly.backbone.fingerprint.clone(),
            args,
            classes: assembly.task.classes().to_vec(),
            layout: assembly
                .params
                .slots()
                .iter()
                .map(|s| (s.name.clone(), s.shape.clone()))
                .collect(),
            settings,
        }
    }

    /// Refuses to go on under another identity, naming what differs.
    pub(crate) fn require_same(&self, now: &Self, path: &Path) -> Result<()> {
        let flat = |identity: &Self| {
            let mut values = identity.settings.clone();
            values.extend(identity.args.clone());
            values.insert("corpus fingerprint".into(), json!(identity.corpus));
            values.insert("backbone fingerprint".into(), json!(identity.backbone));
            values.insert("classes".into(), json!(identity.classes));
            values.insert("trainable tensors".into(), json!(identity.layout));
            values
        };
        let (then, now) = (flat(self), flat(now));
        let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        let said = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), short);
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| then.get(*key) != now.get(*key))
            .map(|key| {
                format!(
                    "  {key}: {} in the checkpoint, {} now",
                    said(then.get(key)),
                    said(now.get(key))
                )
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Failure::config(format!(
            "the run cannot continue from `{}`, because it would become another run:\n{}\n\
             help: undo these changes, or start anew in another `run.dir`",
            path.display(),
            differences.join("\n")
        )))
    }
}

/// The leaves of a JSON value under dotted keys; nulls are unset keys.
fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&key, value, into);
            }
        }
        Value::Null => {}
        leaf => {
            into.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        text
    } else {
        text.chars().take(57).chain("...".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(settings: &Value) -> Identity {
        let mut flat = BTreeMap::new();
        flatten("", settings, &mut flat);
        Identity {
            corpus: "c".into(),
            backbone: "b".into(),
            args: BTreeMap::new(),
            classes: vec!["B".into(), "T".into()],
            layout: vec![("w".into(), vec![2])],
            settings: flat,
        }
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let then = identity(&json!({"train": {"lr": 0.1, "max_steps": null}, "adapter": {"r": 8}}));
        let path = Path::new("step-1");
        then.require_same(&then.clone(), path).unwrap();
        let mut now = identity(&json!({"train": {"lr": 0.2, "max_steps": 5}, "adapter": {"r": 8}}));
        now.corpus = "d".into();
        let message = then.require_same(&now, path).unwrap_err().message;
        for line in [
            "  corpus fingerprint: \"c\" in the checkpoint, \"d\" now",
            "  train.lr: 0.1 in the checkpoint, 0.2 now",
            "  train.max_steps: unset in the checkpoint, 5 now",
        ] {
            assert!(
                message.lines().any(|l| l == line),
                "`{line}` is not in\n{message}"
            );
        }
        assert!(!message.contains("adapter.r"), "{message}");
    }
}
