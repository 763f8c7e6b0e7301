//! What runs: the facts of `run.json` and of the settings that the head of the page names.

use super::folder::Folder;
use serde::Serialize;
use serde_json::Value;

/// Facts of a run; what is not known yet is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the run.
    pub name: String,
    /// Its directory.
    pub run_dir: String,
    /// Task, as the configuration names it.
    pub task: Option<String>,
    /// Adapters, as the configuration names them.
    pub adapters: Vec<String>,
    /// Architecture of the backbone.
    pub architecture: Option<String>,
    /// Where the backbone lies.
    pub backbone: Option<String>,
    /// Where the corpus lies.
    pub corpus: Option<String>,
    /// Cells to train on.
    pub train_cells: Option<u64>,
    /// Cells to evaluate on.
    pub valid_cells: Option<u64>,
    /// Classes of the task.
    pub classes: Option<usize>,
    /// Parameters that train.
    pub trainable_parameters: Option<u64>,
    /// All parameters.
    pub total_parameters: Option<u64>,
    /// Name of the metric that selects the model.
    pub selecting_metric: Option<String>,
    /// Its best value.
    pub best_value: Option<f64>,
    /// The step of that.
    pub best_step: Option<u64>,
    /// Ranks of the last start.
    pub world_size: Option<u64>,
    /// Device of rank 0.
    pub device: Option<String>,
    /// Seed.
    pub seed: Option<u64>,
    /// Version of scpeft.
    pub version: Option<String>,
    /// Command line of the last start.
    pub command: Option<String>,
    /// Largest memory of each rank in bytes, once the run has ended.
    pub peak_memory_bytes: Vec<u64>,
}

impl Summary {
    /// Takes the facts out of a run directory.
    pub fn of(folder: &Folder) -> Self {
        let record = &folder.record;
        let (model, data) = (&record["model"], &record["data"]);
        let start = record["starts"].as_array().and_then(|starts| starts.last());
        let start = start.unwrap_or(&Value::Null);
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let words = |value: &Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.filter_map(word).collect()
        };
        let (best_metric, best_value, best_step) = best(folder);
        Self {
            name: name(folder),
            run_dir: folder.path.display().to_string(),
            task: word(&model["task"]),
            adapters: words(&model["adapter"]),
            architecture: word(&model["architecture"]),
            backbone: word(&model["backbone"]),
            corpus: word(&data["corpus"]),
            train_cells: data["train_cells"].as_u64(),
            valid_cells: data["valid_cells"].as_u64(),
            classes: model["classes"].as_array().map(Vec::len),
            trainable_parameters: record["trainable_parameters"].as_u64(),
            total_parameters: record["total_parameters"].as_u64(),
            selecting_metric: best_metric,
            best_value,
            best_step,
            world_size: start["world_size"].as_u64(),
            device: word(&start["device"]),
            seed: record["seed"].as_u64(),
            version: word(&record["scpeft_version"]),
            command: start["argv"]
                .as_array()
                .map(|_| words(&start["argv"]).join(" ")),
            peak_memory_bytes: record["peak_rss_bytes_per_rank"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .collect(),
        }
    }
}

/// The name that the configuration gives, or that of the directory.
fn name(folder: &Folder) -> String {
    let setting = folder
        .settings
        .iter()
        .find(|setting| setting.section == "run" && setting.key == "name");
    let named = setting.and_then(|setting| setting.value.as_ref());
    let of_folder = || {
        folder
            .path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
    };
    named
        .map(|name| name.trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .or_else(of_folder)
        .unwrap_or_else(|| "run".to_owned())
}

/// From the record of an ended run, or from the checkpoint that `BEST` names.
fn best(folder: &Folder) -> (Option<String>, Option<f64>, Option<u64>) {
    let best = &folder.record["best"];
    if let (Some(metric), Some(value)) = (best["metric"].as_str(), best["value"].as_f64()) {
        return (Some(metric.to_owned()), Some(value), best["step"].as_u64());
    }
    let named = folder
        .checkpoints
        .iter()
        .find(|checkpoint| folder.best.as_ref() == Some(&checkpoint.name));
    match named.and_then(|checkpoint| Some((checkpoint.score.clone()?, checkpoint.step))) {
        Some(((metric, value), step)) => (Some(metric), Some(value), Some(step)),
        None => (None, None, None),
    }
}
