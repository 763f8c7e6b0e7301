//! The files under `deploy/prometheus` and `deploy/grafana`, as the tests look at them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use scpeft_protocol::metrics::{CATALOGUE, Kind, PROCESS};
use serde_json::Value;

/// A file or folder of `deploy/`.
///
/// # Panics
/// When it is not there.
pub fn deploy(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    path.canonicalize()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands after `key` (such as `- alert: `) on the lines of a rule file.
pub fn values_of(text: &str, key: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(key))
        .map(|value| value.trim_matches('"').to_owned())
        .collect()
}

/// The queries of the panels of a dashboard, and of its annotations.
#[derive(Debug)]
pub struct Queries {
    /// Title of a panel and one of its queries.
    pub panels: Vec<(String, String)>,
    /// Queries of annotations, which may have nothing to show.
    pub annotations: Vec<String>,
    /// Queries behind variables.
    pub variables: Vec<String>,
}

/// Takes the queries out of a dashboard.
///
/// # Panics
/// When the file is no dashboard, or a panel has no query.
pub fn queries(dashboard: &Path) -> Queries {
    let text = std::fs::read(dashboard).expect("a dashboard");
    let json: Value = serde_json::from_slice(&text).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let mut panels = Vec::new();
    for panel in list(&json["panels"]) {
        let title = word(&panel["title"]);
        if panel["type"] == "row" {
            continue;
        }
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "`{title}` has no query");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            panels.push((title.clone(), word(&target["expr"])));
        }
    }
    let expressions = |from: &Value, key: &str| -> Vec<String> {
        list(from)
            .iter()
            .map(|entry| word(&entry[key]))
            .filter(|query| !query.is_empty())
            .collect()
    };
    Queries {
        panels,
        annotations: expressions(&json["annotations"]["list"], "expr"),
        variables: expressions(&json["templating"]["list"], "definition"),
    }
}

/// Names in a text of rules or queries that look like our metrics or recording rules.
pub fn names_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| {
            ["scpeft_", "process_", "run:", "rank:"]
                .iter()
                .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
        })
        .map(str::to_owned)
        .collect()
}

/// Every name that a rank exports: those of the catalogue, with the three series of a histogram, and
/// those of the process.
pub fn exported_names() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = PROCESS.iter().map(|name| (*name).to_owned()).collect();
    for metric in CATALOGUE {
        if metric.kind == Kind::Histogram {
            names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{}{end}", metric.name)));
        } else {
            names.insert(metric.name.to_owned());
        }
    }
    names
}
