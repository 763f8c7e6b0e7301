//! Training runs of real `scpeft-train` processes on the small corpus.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary;
use crate::corpus::{self, Plan};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// A folder with a corpus and a configuration.
#[derive(Debug)]
pub struct Lab {
    /// Holds everything; removed at the end of the test.
    pub dir: tempfile::TempDir,
    /// The corpus.
    pub corpus: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
}

impl Lab {
    /// A tiny backbone with random weights, LoRA, identification; `run.dir` is `run`.
    ///
    /// # Panics
    /// When files cannot be written.
    pub fn new(plan: &Plan) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let corpus = corpus::write(dir.path(), plan);
        let config = dir.path().join("config.toml");
        let text = format!(
            r#"
[run]
dir = "{run}"
seed = 3
threads = 1
[data]
corpus = "{corpus}"
label = "cell_type"
shuffle_window = 3
[backbone]
init = "random"
dropout = 0.1
[backbone.shape]
d_model = 16
n_heads = 2
d_hid = 32
n_layers = 2
[adapter]
kind = "lora"
layers = "all"
r = 4
lora_alpha = 8.0
[task]
kind = "identification"
[train]
epochs = 10
batch_cells = 12
micro_batch_cells = 3
lr = 5e-3
[log]
every_steps = 1
[metrics]
port = 0
"#,
            run = dir.path().join("run").display(),
            corpus = corpus.display(),
        );
        std::fs::write(&config, text).expect("the configuration file");
        Self {
            dir,
            corpus,
            config,
        }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the configuration name the directory of a backbone instead of random weights.
    ///
    /// # Panics
    /// When the file cannot be rewritten.
    pub fn use_backbone(&self, directory: &Path) {
        let text = std::fs::read_to_string(&self.config).expect("the configuration file");
        let (before, after) = text.split_once("[backbone]").expect("a backbone section");
        let after = &after[after.find("[adapter]").expect("an adapter section")..];
        let text = format!(
            "{before}[backbone]\npath = \"{}\"\n{after}",
            directory.display()
        );
        std::fs::write(&self.config, text).expect("the configuration file");
    }

    /// A backbone directory of the same shape, pretrained for an epoch on the cells of the corpus.
    ///
    /// # Panics
    /// When training or the export fails.
    pub fn pretrained_backbone(&self) -> PathBuf {
        let pretraining = [
            "task.kind=masked-expression",
            "task.trainable=all",
            "adapter.kind=none",
            "data.mask_ratio=0.4",
            "train.epochs=1",
        ];
        let run = self.train(1, "pretrained", &set(&pretraining));
        let backbone = self.path("backbone");
        let export = Command::new(binary("scpeft-checkpoint"))
            .args(["export", "--run"])
            .arg(&run)
            .arg("--output")
            .arg(&backbone)
            .output()
            .expect("a process");
        assert!(export.status.success(), "{}", text(&export.stderr));
        backbone
    }

    /// `scpeft-train --config …` with more arguments, on `ranks` ranks (1: without mpirun).
    pub fn command(&self, ranks: usize, arguments: &[&str]) -> Command {
        let mut command = on_ranks(ranks);
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// Trains into `dir`, and asserts success.
    ///
    /// # Panics
    /// When training fails.
    pub fn train(&self, ranks: usize, dir: &str, arguments: &[&str]) -> PathBuf {
        let run = self.path(dir);
        let set = format!("run.dir={}", run.display());
        let output = self
            .command(ranks, &[&["--set", &set], arguments].concat())
            .output()
            .expect("a process");
        assert!(output.status.success(), "{}", text(&output.stderr));
        run
    }
}

/// `--set` before every one of `settings`.
pub fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|&s| ["--set", s]).collect()
}

/// `scpeft-train` under mpirun, or alone for one rank.
pub fn on_ranks(ranks: usize) -> Command {
    let program = binary("scpeft-train");
    let mut command = if ranks == 1 {
        Command::new(program)
    } else {
        let mut command = Command::new("mpirun");
        command
            .args([
                "--oversubscribe",
                "--bind-to",
                "none",
                "-n",
                &ranks.to_string(),
            ])
            .arg(program);
        command
    };
    // mpirun refuses root without these, and heeds them only together.
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.stdin(Stdio::null());
    command
}

/// The lines of a run's `metrics.jsonl`.
///
/// # Panics
/// When the file is missing or malformed.
pub fn metrics(run: &Path) -> Vec<Value> {
    json_lines(&run.join("metrics.jsonl"))
}

/// The lines of a file of JSON objects.
///
/// # Panics
/// When the file is missing or malformed.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect()
}

/// Kinds of the launcher's events of a run, in order; none before it has begun.
///
/// # Panics
/// When the file is malformed.
pub fn events(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"))
        .map(|event| event["kind"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Step and loss of every logged training step.
///
/// # Panics
/// When the file is missing or malformed.
pub fn loss_curve(run: &Path) -> Vec<(u64, f64)> {
    metrics(run)
        .iter()
        .filter(|record| record["kind"] == "train")
        .map(|record| {
            (
                record["step"].as_u64().expect("a step"),
                record["loss"].as_f64().expect("a loss"),
            )
        })
        .collect()
}

/// Asserts that two curves have the same steps and losses within `tolerance`, relative.
///
/// # Panics
/// When they do not.
pub fn assert_same_curve(found: &[(u64, f64)], expected: &[(u64, f64)], tolerance: f64) {
    let steps = |curve: &[(u64, f64)]| curve.iter().map(|(step, _)| *step).collect::<Vec<_>>();
    assert_eq!(steps(found), steps(expected));
    for ((step, found), (_, expected)) in found.iter().zip(expected) {
        let off = (found - expected).abs() / expected.abs();
        assert!(
            off <= tolerance,
            "step {step}: loss {found} instead of {expected}, off by {off:e}"
        );
    }
}

/// The bytes of the adapter in a run's newest checkpoint.
///
/// # Panics
/// When there is none.
pub fn adapter_bytes(run: &Path) -> Vec<u8> {
    let latest = std::fs::read_to_string(run.join("LATEST")).expect("LATEST");
    let path = run
        .join("checkpoints")
        .join(latest.trim())
        .join("adapter/adapter_model.safetensors");
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Waits until `done`, at most two minutes.
///
/// # Panics
/// When it takes longer.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The exit status of a child that has at most two minutes left.
///
/// # Panics
/// When it takes longer.
pub fn wait(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_until("the process ends", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("just seen")
}

/// Lines in a run's `metrics.jsonl` so far, complete or not.
pub fn logged_lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// The step that a run's `LATEST` names; 0 when there is none.
pub fn latest_step(run: &Path) -> u64 {
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap_or_default();
    let step = latest.trim().strip_prefix("step-").unwrap_or("0");
    step.parse().unwrap_or(0)
}

/// Process ids of the ranks of the run that writes into `run`, in rank order.
pub fn rank_pids(run: &Path) -> Vec<u32> {
    let wanted = run.to_string_lossy().into_owned();
    let mut found: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let read = |name: &str| std::fs::read(entry.path().join(name)).ok();
            let command = String::from_utf8_lossy(&read("cmdline")?).into_owned();
            let program = command.split('\0').next()?.to_owned();
            if !program.ends_with("scpeft-train") || !command.contains(&wanted) {
                return None;
            }
            let environment = String::from_utf8_lossy(&read("environ")?).into_owned();
            let rank = environment
                .split('\0')
                .find_map(|e| e.strip_prefix("OMPI_COMM_WORLD_RANK="))?;
            Some((rank.parse().ok()?, pid))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

/// Sends a signal by name.
///
/// # Panics
/// When `kill` fails.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status()
        .expect("kill");
    assert!(status.success(), "kill -s {name} {pid}");
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts an exit code and words of the message.
///
/// # Panics
/// When they differ.
pub fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in\n{message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}
