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
    /// Of a deterministic run: what its bits depend on besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
}

/// Where a run was computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Place {
    ranks: usize,
    threads: usize,
    device: String,
}

/// Sections and keys that may change: where things lie (fingerprints say whether they are the same
/// things), how fast they are read, how often the run looks up, and when it stops.
const MAY_CHANGE: &[&str] = &[
    "run.dir",
    "run.name",
    "run.device",
    "run.transport",
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
    "checkpoint.",
    "log.",
    "metrics.",
    "watchdog.",
];

/// Keys that `--allow-change schedule` stands for.
const SCHEDULE: &[&str] = &[
    "train.epochs",
    "train.max_steps",
    "train.lr",
    "train.schedule",
    "train.step_gamma",
    "train.warmup_steps",
    "train.decay_steps",
    "train.min_lr_ratio",
];
const CORPUS: &str = "corpus fingerprint";
const BACKBONE: &str = "backbone fingerprint";
/// The ranks of a deterministic run.
const RANKS: &str = "ranks";
/// What a checkpoint could not be loaded without.
const FIXED: [&str; 2] = ["classes", "trainable tensors"];

/// What the user said may change on resumption: `--allow-change`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed(BTreeSet<String>);

impl Allowed {
    /// Understands `corpus`, `backbone`, `schedule`, `ranks` and keys of the configuration.
    ///
    /// # Errors
    /// Any other name.
    pub(crate) fn new(names: &[String]) -> Result<Self> {
        let mut known = BTreeSet::new();
        keys("", &json!(Config::default()), &mut known);
        for name in names {
            let group = ["corpus", "backbone", "schedule", RANKS].contains(&name.as_str());
            if !group && !known.contains(name) {
                return Err(Failure::config(format!(
                    "`--allow-change {name}`: expected `corpus`, `backbone`, `schedule`, `ranks` or a key of the configuration\n\
                     help: `scpeft-train keys` lists them"
                )));
            }
        }
        Ok(Self(names.iter().cloned().collect()))
    }

    fn permits(&self, key: &str) -> bool {
        let named = |name: &str| self.0.contains(name);
        named(key)
            || (named("corpus") && key == CORPUS)
            || (named("backbone") && (key == BACKBONE || key.starts_with("args.json.")))
            || (named("schedule") && SCHEDULE.contains(&key))
    }
}

/// The dotted keys of a JSON object, unset ones too.
fn keys(prefix: &str, value: &Value, into: &mut BTreeSet<String>) {
    if let Value::Object(map) = value {
        for (key, value) in map {
            let key = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            keys(&key, value, into);
            into.insert(key);
        }
    }
}

/// How a user permits a difference, if it can be permitted.
fn permission(key: &str) -> Option<&str> {
    match key {
        CORPUS => Some("corpus"),
        BACKBONE => Some("backbone"),
        key if key.starts_with("args.json.") => Some("backbone"),
        key if SCHEDULE.contains(&key) => Some("schedule"),
        key if FIXED.contains(&key) => None,
        key => Some(key),
    }
}

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
            place: config.run.deterministic.then(|| Place {
                ranks: assembly.ranks,
                threads: assembly.threads,
                device: if assembly.staging.device.is_cuda() {
                    "cuda".to_owned()
                } else {
                    "cpu".to_owned()
                },
            }),
        }
    }

    /// Refuses to go on under another identity, naming what differs; returns the differences that
    /// `allowed` permits. A key that the checkpoint does not know, because the program that wrote
    /// it did not have it, counts as its default.
    pub(crate) fn require_same(
        &self,
        now: &Self,
        path: &Path,
        allowed: &Allowed,
    ) -> Result<Vec<String>> {
        let mut defaults = BTreeMap::new();
        flatten("", &json!(Config::default()), &mut defaults);
        // A run that was not deterministic before, or is not now, is not held to a place.
        let places = self.place.is_some() && now.place.is_some();
        let flat = |identity: &Self| {
            let mut values = identity.settings.clone();
            values.extend(identity.args.clone());
            values.insert(CORPUS.into(), json!(identity.corpus));
            values.insert(BACKBONE.into(), json!(identity.backbone));
            values.insert(FIXED[0].into(), json!(identity.classes));
            values.insert(FIXED[1].into(), json!(identity.layout));
            if let Some(place) = places.then_some(identity.place.as_ref()).flatten() {
                values.insert(RANKS.into(), json!(place.ranks));
                values.insert("run.threads".into(), json!(place.threads));
                values.insert("run.device".into(), json!(place.device));
            }
            values
        };
        let (then, now) = (flat(self), flat(now));
        let known = |key: &str| then.get(key).or_else(|| defaults.get(key));
        let differing: Vec<&String> = then
            .keys()
            .chain(now.keys())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|key| known(key) != now.get(*key))
            .collect();
        let said = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), short);
        let describe = |key: &&String| {
            format!(
                "{key}: {} in the checkpoint, {} now",
                said(known(key)),
                said(now.get(*key))
            )
        };
        let (changed, refused): (Vec<&String>, Vec<&String>) =
            differing.into_iter().partition(|key| allowed.permits(key));
        if refused.is_empty() {
            return Ok(changed.iter().map(describe).collect());
        }
        let lines: Vec<String> = refused.iter().map(describe).collect();
        let permissions: BTreeSet<&str> = refused.iter().filter_map(|k| permission(k)).collect();
        let permit = if refused.iter().all(|key| permission(key).is_some()) {
            let options = permissions
                .iter()
                .map(|name| format!("--allow-change {name}"));
            format!(
                "; to go on all the same, `{}`",
                options.collect::<Vec<_>>().join(" ")
            )
        } else {
            String::new()
        };
        Err(Failure::config(format!(
            "the run cannot continue from `{}`, because it would become another run:\n  {}\n\
             help: undo these changes, or start anew in another `run.dir`{permit}",
            path.display(),
            lines.join("\n  ")
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
            place: None,
        }
    }

    #[test]
    fn a_deterministic_run_stays_on_as_many_ranks_and_threads_and_its_device() {
        let on = |ranks, threads, device: &str| Identity {
            place: Some(Place {
                ranks,
                threads,
                device: device.into(),
            }),
            ..identity(&json!({"run": {"deterministic": true}}))
        };
        let (path, none) = (Path::new("step-1"), Allowed::default());
        let then = on(2, 1, "cpu");
        assert!(then.require_same(&on(2, 1, "cpu"), path, &none).is_ok());
        let refused = then.require_same(&on(3, 4, "cuda"), path, &none);
        let message = refused.unwrap_err().message;
        for line in [
            "  ranks: 2 in the checkpoint, 3 now",
            "  run.threads: 1 in the checkpoint, 4 now",
            "  run.device: \"cpu\" in the checkpoint, \"cuda\" now",
        ] {
            assert!(message.lines().any(|l| l == line), "{message}");
        }
        assert!(message.contains("`--allow-change ranks"), "{message}");
        let names = ["ranks", "run.threads", "run.device"].map(str::to_owned);
        let allowed = Allowed::new(&names).unwrap();
        let changed = then.require_same(&on(3, 4, "cuda"), path, &allowed);
        assert_eq!(changed.unwrap().len(), 3);
        // Elsewhere a run goes on wherever it likes.
        let free = identity(&json!({}));
        assert!(free.require_same(&free.clone(), path, &none).is_ok());
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let then = identity(&json!({"train": {"lr": 0.1, "max_steps": null}, "adapter": {"r": 8}}));
        let path = Path::new("step-1");
        let none = Allowed::default();
        then.require_same(&then.clone(), path, &none).unwrap();
        let mut now = identity(&json!({"train": {"lr": 0.2, "max_steps": 5}, "adapter": {"r": 8}}));
        now.corpus = "d".into();
        let message = then.require_same(&now, path, &none).unwrap_err().message;
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

    #[test]
    fn what_is_named_may_change_and_is_listed() {
        let then = identity(&json!({"train": {"lr": 0.1}, "adapter": {"r": 8}}));
        let mut now = identity(&json!({"train": {"lr": 0.2}, "adapter": {"r": 8}}));
        now.corpus = "d".into();
        let path = Path::new("step-1");
        let allow = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            Allowed::new(&names).unwrap()
        };
        let message = then
            .require_same(&now, path, &allow(&["schedule"]))
            .unwrap_err()
            .message;
        assert!(message.contains("`--allow-change corpus`"), "{message}");
        assert!(!message.contains("train.lr"), "{message}");
        let both = ["schedule", "corpus"];
        let expected = [
            "corpus fingerprint: \"c\" in the checkpoint, \"d\" now",
            "train.lr: 0.1 in the checkpoint, 0.2 now",
        ];
        assert_eq!(
            then.require_same(&now, path, &allow(&both)).unwrap(),
            expected
        );
        // A tensor of another shape could not be loaded, whoever allows it.
        now.layout[0].1 = vec![3];
        let message = then
            .require_same(&now, path, &allow(&both))
            .unwrap_err()
            .message;
        assert!(message.contains("trainable tensors"), "{message}");
        assert!(!message.contains("--allow-change"), "{message}");
        let unknown = Allowed::new(&["lr".to_owned()]).unwrap_err().message;
        assert!(
            unknown.contains("`--allow-change lr`: expected"),
            "{unknown}"
        );
    }

    #[test]
    fn a_key_that_is_newer_than_the_checkpoint_counts_as_its_default() {
        let then = identity(&json!({"train": {"lr": 0.1}}));
        let path = Path::new("step-1");
        let none = Allowed::default();
        let same = identity(&json!({"train": {"lr": 0.1, "decay_steps": 0}}));
        assert!(then.require_same(&same, path, &none).unwrap().is_empty());
        let other = identity(&json!({"train": {"lr": 0.1, "decay_steps": 7}}));
        let message = then.require_same(&other, path, &none).unwrap_err().message;
        assert!(
            message.contains("train.decay_steps: 0 in the checkpoint, 7 now"),
            "{message}"
        );
    }
}
