//! The command line of `scpeft-train`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::report::ProgressMode;

/// Fine-tunes single-cell foundation models with adapters, on one process or under mpirun.
#[derive(Debug, Parser)]
#[command(name = "scpeft-train", version, after_help = scpeft_protocol::exit::HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; training when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of training.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The commands besides training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train (the default command).
    Run(RunArgs),
    /// Predict the type of every cell with a trained run: writes predictions.parquet, and with
    /// labels metrics.json and confusion_matrix.svg.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Predict(PredictArgs),
    /// Print every tensor of a run's model with its shape, its number of parameters and whether it
    /// trains, without training.
    Parameters(ParametersArgs),
    /// Print what a run will need: parameters, memory and communication of a rank, operations of a
    /// step. Starts no ranks and reads no weights; exits with 2 when the run cannot fit.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Plan(PlanArgs),
    /// Print every configuration key with its default and meaning.
    Keys,
}

/// Arguments of training.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration, for example `--set train.lr=3e-4`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Continue from the newest good checkpoint of the run directory; start anew if it has none.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Delete what the run directory holds of an earlier run.
    #[arg(long)]
    pub overwrite: bool,
    /// On resumption, accept a change of `corpus`, `backbone`, `schedule` or a key of the
    /// configuration, which would otherwise be refused; may be repeated, and is recorded in
    /// run.json.
    #[arg(long, value_name = "WHAT", requires = "resume")]
    pub allow_change: Vec<String>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t, env = "SCPEFT_PROGRESS")]
    pub progress: ProgressMode,
}

/// Arguments of the table of parameters.
#[derive(Debug, Args)]
pub struct ParametersArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Arguments of planning.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Ranks of the run.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub world: usize,
    /// Ranks of a machine; all of them when absent.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub ranks_per_node: Option<usize>,
    /// Run one step of one rank of a world of this many ranks, of which the others do not exist, and
    /// simulate from it how the run would scale to 1,024 GPUs. Needs what training needs.
    #[arg(long, value_name = "N", value_parser = at_least_two, conflicts_with = "world")]
    pub fake_world: Option<usize>,
    /// Seconds of a step, in place of those measured by `--fake-world`.
    #[arg(long, value_name = "SECONDS", requires = "fake_world", value_parser = positive)]
    pub step_seconds: Option<f64>,
    /// GPUs of a node in the simulation.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least_one)]
    pub gpus_per_node: usize,
    /// GB/s of a GPU to the others of its node in the simulation.
    #[arg(long, default_value_t = 200.0, value_name = "GB/S", value_parser = positive)]
    pub node_gbs: f64,
    /// GB/s of a node to the others in the simulation.
    #[arg(long, default_value_t = 25.0, value_name = "GB/S", value_parser = positive)]
    pub network_gbs: f64,
    /// Microseconds of a hop within a node in the simulation.
    #[arg(long, default_value_t = 5.0, value_name = "US", value_parser = positive)]
    pub node_latency_us: f64,
    /// Microseconds of a hop between nodes in the simulation.
    #[arg(long, default_value_t = 15.0, value_name = "US", value_parser = positive)]
    pub network_latency_us: f64,
    /// Memory of a machine in GiB; that of this one when absent.
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<f64>,
    /// Print JSON, sizes in bytes.
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        Ok(_) => Err("must be a number above 0".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        1 => Err("must be at least 2: a world of one rank needs no simulation".to_owned()),
        n => Ok(n),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

/// Arguments of prediction.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Directory of a finished or interrupted run.
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Which checkpoint: `best`, `latest`, or a step number.
    #[arg(long, default_value = "best", value_name = "WHICH")]
    pub checkpoint: String,
    /// Corpus to predict; that of the run when absent.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Cells to predict: a value of the split column, or `all`; the run's test split when absent.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Leave the labels of the corpus alone: predict only.
    #[arg(long)]
    pub no_labels: bool,
    /// Output directory.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing output directory.
    #[arg(long)]
    pub overwrite: bool,
    /// Override a key of the run's configuration, for example `--set train.batch_cells=64`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}
