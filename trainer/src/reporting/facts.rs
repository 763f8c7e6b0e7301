//! What a run directory and its predictions say.

use std::collections::BTreeMap;
use std::path::Path;

use scpeft_checkpoint::fsx;
use scpeft_evaluation::identification::Confusion;
use serde_json::Value;

use super::Part;
use crate::failure::{Failure, Result};
use crate::picture::Picture;
use crate::picture::charts::{Curve, curves};
use crate::plot::confusion_picture;
use crate::sheet::Sheet;

/// Logged numbers that are no measure of learning.
const NO_CURVE: [&str; 3] = ["step", "epoch", "lr"];
/// Scores of predicted types, with what they are called.
const SCORES: [(&str, &str); 5] = [
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_precision", "macro precision"),
    ("macro_recall", "macro recall"),
    ("macro_f1", "macro F1"),
];

/// A run.
pub(super) struct Facts {
    pub(super) name: String,
    /// `config.toml`, as it was resolved.
    pub(super) config: String,
    /// The same, parsed.
    pub(super) settings: scpeft_config::Config,
    record: Value,
    log: Vec<Value>,
    /// `metrics.json` of its predictions.
    predicted: Option<Value>,
}

fn json(path: &Path) -> Result<Value> {
    let text = fsx::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|e| {
        Failure::data(format!(
            "`{}`: {e}\nhelp: the file is damaged",
            path.display()
        ))
    })
}

/// A number of a record as text, with its unit.
fn cost(value: &Value, factor: f64, unit: &str) -> Option<String> {
    value.as_f64().map(|v| format!("{:.1} {unit}", v * factor))
}

/// A value of a record as a reader wants it; lists as their parts.
fn words(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let parts: Vec<String> = parts.iter().filter_map(words).collect();
            Some(parts.join(", "))
        }
        other => Some(other.to_string()),
    }
}

impl Facts {
    /// Reads a run directory, and the predictions that were made with it.
    ///
    /// # Errors
    /// When it is no run directory, or a file is damaged.
    pub(super) fn read(run: &Path, predictions: Option<&Path>) -> Result<Self> {
        let config = run.join("config.toml");
        if !config.is_file() {
            return Err(Failure::config(format!(
                "`{}` is no run directory: it has no config.toml\nhelp: name the `run.dir` of a training run",
                run.display()
            )));
        }
        let settings = scpeft_config::load(&config, &[])?.config;
        let log = fsx::read_to_string(&run.join("metrics.jsonl")).unwrap_or_default();
        let predicted = match predictions {
            None => None,
            // Predictions without labels have no scores.
            Some(dir)
                if !dir.join("metrics.json").is_file()
                    && dir.join("predictions.parquet").is_file() =>
            {
                None
            }
            Some(dir) => Some(json(&dir.join("metrics.json"))?),
        };
        Ok(Self {
            name: settings.run.name.clone(),
            config: fsx::read_to_string(&config)?,
            settings,
            record: json(&run.join("run.json"))?,
            // A line that was cut off by a kill is none.
            log: log
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
            predicted,
        })
    }

    /// A score of its predictions.
    pub(super) fn score(&self, name: &str) -> Option<f64> {
        self.predicted.as_ref()?[name].as_f64()
    }

    fn rank_memory(&self) -> Option<f64> {
        let ranks = self.record["peak_rss_bytes_per_rank"].as_array()?;
        ranks.iter().filter_map(Value::as_f64).reduce(f64::max)
    }

    /// Names and values in the order in which a reader asks.
    fn listed(&self) -> Vec<(&'static str, Option<String>)> {
        let count = |key: &str| self.record[key].as_u64().map(crate::assembly::grouped);
        let model = &self.record["model"];
        let [trainable, total] =
            ["trainable_parameters", "total_parameters"].map(|k| self.record[k].as_f64());
        let share = trainable
            .zip(total)
            .map(|(a, b)| format!("{:.2} %", 100.0 * a / b));
        vec![
            ("task", words(&model["task"])),
            ("architecture", words(&model["architecture"])),
            ("backbone", words(&model["backbone"])),
            ("adapter", words(&model["adapter"])),
            ("trainable parameters", count("trainable_parameters")),
            ("all parameters", count("total_parameters")),
            ("share that trains", share),
            (
                "size of a checkpoint's adapter",
                cost(&self.record["adapter_bytes"], 1e-3, "kB"),
            ),
            ("status", words(&self.record["status"])),
            ("steps", count("steps")),
            ("time", cost(&self.record["seconds"], 1.0, "s")),
            (
                "largest memory of a rank",
                self.rank_memory().map(|b| format!("{:.0} MB", b / 1e6)),
            ),
            ("seed", count("seed")),
            ("scpeft", words(&self.record["scpeft_version"])),
        ]
    }

    /// What it is and what it cost.
    pub(super) fn sheet(&self) -> Sheet {
        let known: Vec<(&str, String)> = self
            .listed()
            .into_iter()
            .filter_map(|(name, v)| Some((name, v?)))
            .collect();
        let mut sheet = Sheet::default();
        sheet.texts(
            "what",
            known.iter().map(|(name, _)| (*name).to_owned()).collect(),
        );
        sheet.texts("value", known.into_iter().map(|(_, value)| value).collect());
        sheet
    }

    /// Curves of the losses, and of each score of the evaluations.
    pub(super) fn curves(&self) -> Vec<(String, Picture)> {
        let mut series: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
        for record in &self.log {
            let (Some(fields), Some(step)) = (record.as_object(), record["step"].as_f64()) else {
                continue;
            };
            let split = record["split"].as_str().unwrap_or("training").to_owned();
            for (name, value) in fields
                .iter()
                .filter(|(n, _)| !NO_CURVE.contains(&n.as_str()))
            {
                if let Some(value) = value.as_f64() {
                    series
                        .entry((name.clone(), split.clone()))
                        .or_default()
                        .push((step, value));
                }
            }
        }
        let mut names: Vec<&String> = series.keys().map(|(name, _)| name).collect();
        names.dedup();
        let evaluated = |name: &String| {
            series
                .keys()
                .any(|(n, split)| n == name && split != "training")
        };
        let losses = |name: &&String| evaluated(name);
        let drawn: Vec<&String> = names.into_iter().filter(losses).collect();
        drawn
            .into_iter()
            .map(|name| {
                let own: Vec<Curve> = series
                    .iter()
                    .filter(|((n, _), _)| n == name)
                    .map(|((_, split), points)| Curve {
                        name: split.clone(),
                        points: points.clone(),
                        sparse: split != "training",
                    })
                    .collect();
                let title = name.replace('_', " ");
                (format!("curve-{name}"), curves(&title, "step", &own))
            })
            .collect()
    }

    /// Scores beside what always naming the most frequent type reaches, each type, and who is taken
    /// for whom.
    pub(super) fn scores(&self, prefix: &str, parts: &mut Vec<Part>) -> Result<()> {
        let Some(predicted) = &self.predicted else {
            return Ok(());
        };
        let broken =
            || Failure::data("metrics.json lacks classes or their confusion\nhelp: predict again");
        let classes: Vec<String> =
            serde_json::from_value(predicted["classes"].clone()).map_err(|_| broken())?;
        let rows: Vec<Vec<f64>> =
            serde_json::from_value(predicted["confusion"].clone()).map_err(|_| broken())?;
        let counts: Vec<f64> = rows.into_iter().flatten().collect();
        if counts.len() != classes.len() * classes.len() || classes.is_empty() {
            return Err(broken());
        }
        let confusion = Confusion::from_counts(classes.len(), &counts);
        let floor = floor(&confusion).scores(&classes);
        let floor = serde_json::to_value(&floor).unwrap_or_default();
        let mut sheet = Sheet::default();
        sheet.texts(
            "score",
            SCORES.iter().map(|(_, name)| (*name).to_owned()).collect(),
        );
        let of = |value: &Value| SCORES.iter().map(|(key, _)| value[*key].as_f64()).collect();
        sheet.numbers("model", of(predicted));
        sheet.numbers("most frequent type", of(&floor));
        parts.push(Part::Text(format!(
            "{} labelled cells were predicted.",
            predicted["cells"]
        )));
        parts.push(Part::Table(format!("{prefix}scores"), sheet, usize::MAX));
        let per_type = predicted["per_type"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut each = Sheet::default();
        let column = |key: &str| per_type.iter().map(|t| t[key].as_f64()).collect::<Vec<_>>();
        each.texts("type", classes.clone());
        for key in ["precision", "recall", "f1"] {
            let values = column(key);
            if values.iter().any(Option::is_some) {
                each.numbers(key, values);
            }
        }
        let cells = (0..classes.len()).map(|i| {
            (0..classes.len())
                .map(|j| confusion.count(i, j))
                .sum::<f64>() as u64
        });
        each.counts("cells", cells.collect());
        parts.push(Part::Table(format!("{prefix}types"), each, usize::MAX));
        let picture = Box::new(confusion_picture(&confusion, &classes));
        parts.push(Part::Picture(format!("{prefix}confusion"), picture));
        Ok(())
    }
}

/// What always naming the most frequent type would have been confused with.
fn floor(confusion: &Confusion) -> Confusion {
    let n = confusion.classes();
    let truth: Vec<f64> = (0..n)
        .map(|i| (0..n).map(|j| confusion.count(i, j)).sum())
        .collect();
    let most = (0..n)
        .rev()
        .max_by(|&a, &b| truth[a].total_cmp(&truth[b]))
        .unwrap_or(0);
    let mut counts = vec![0.0; n * n];
    for (i, cells) in truth.iter().enumerate() {
        counts[i * n + most] = *cells;
    }
    Confusion::from_counts(n, &counts)
}

/// All runs in one table.
pub(super) fn side_by_side(runs: &[Facts]) -> Sheet {
    let mut sheet = Sheet::default();
    sheet.texts("run", runs.iter().map(|r| r.name.clone()).collect());
    for key in ["task", "adapter"] {
        let of = |run: &Facts| words(&run.record["model"][key]).unwrap_or_default();
        sheet.texts(key, runs.iter().map(of).collect());
    }
    for (name, key) in [
        ("trainable", "trainable_parameters"),
        ("parameters", "total_parameters"),
        ("adapter_bytes", "adapter_bytes"),
        ("steps", "steps"),
    ] {
        sheet.counts(
            name,
            runs.iter()
                .map(|r| r.record[key].as_u64().unwrap_or(0))
                .collect(),
        );
    }
    sheet.numbers(
        "seconds",
        runs.iter().map(|r| r.record["seconds"].as_f64()).collect(),
    );
    sheet.numbers(
        "memory_MB",
        runs.iter()
            .map(|r| r.rank_memory().map(|b| b / 1e6))
            .collect(),
    );
    for (key, _) in SCORES {
        let values: Vec<Option<f64>> = runs.iter().map(|r| r.score(key)).collect();
        if values.iter().any(Option::is_some) {
            sheet.numbers(key, values);
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_names_the_most_frequent_type() {
        let confusion = Confusion::from_counts(2, &[3.0, 1.0, 1.0, 1.0]);
        let floor = floor(&confusion);
        assert_eq!(floor.counts(), [4.0, 0.0, 2.0, 0.0]);
    }
}
