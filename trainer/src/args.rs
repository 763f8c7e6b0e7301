//! The command line of `scpeft-train`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Embed every cell with a trained run of any task, or with a backbone as it is: writes
    /// embeddings.parquet and embedding.json.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Embed(EmbedArgs),
    /// Find marker genes of groups of cells by what `<cls>` attends to, beside a Wilcoxon test: writes
    /// markers.parquet, markers.csv, markers.json and pictures.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Markers(MarkersArgs),
    /// Write one page about one or several runs: curves, scores, confusion, cells, cost, settings.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Report(ReportArgs),
    /// Score predicted responses to perturbations beside simple baselines and the noise of the cells:
    /// writes report.json, report.html, split.json and predictions.parquet. Without `--predictions`
    /// the baselines alone.
    #[command(after_help = scpeft_protocol::exit::HELP)]
    Evaluate(EvaluateArgs),
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

/// What encodes cells, and which.
#[derive(Debug, Clone, Args)]
pub struct EncoderArgs {
    /// Directory of a finished or interrupted run, of any task.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["config", "overrides"], conflicts_with = "config")]
    pub run: Option<PathBuf>,
    /// Without `--run`: a configuration (TOML) whose backbone encodes the cells as it is, without
    /// adapters, heads and statistics of batches. With `--set` alone no file is needed:
    /// `--set backbone.path=DIR --corpus DIR`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which checkpoint of the run: `best`, `latest`, or a step number.
    #[arg(long, default_value = "best", value_name = "WHICH")]
    pub checkpoint: String,
    /// Corpus of the cells; that of the run or of the configuration when absent.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Which cells: a value of the split column, or `all`.
    #[arg(long, default_value = "all", value_name = "NAME")]
    pub split: String,
    /// Override a key of the configuration, for example `--set train.batch_cells=64`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Arguments of embedding.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// What encodes the cells.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// Scale every vector to length 1, as scGPT's published batch correction does.
    #[arg(long)]
    pub unit_length: bool,
    /// Output directory.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing output directory.
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of marker genes.
#[derive(Debug, Args)]
pub struct MarkersArgs {
    /// What encodes the cells: a classifier that was trained on them, as published.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// Categorical obs column of the groups whose markers are looked for.
    #[arg(long, value_name = "COLUMN")]
    pub groups: String,
    /// A group to look for markers of; all when absent. May be repeated.
    #[arg(long, value_name = "GROUP")]
    pub target: Vec<String>,
    /// The group that it is compared with; all other cells when absent.
    #[arg(long, value_name = "GROUP")]
    pub background: Option<String>,
    /// Layer whose attention is ranked, from 0; the last one when absent.
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
    /// Genes of a group's top table.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one)]
    pub top: usize,
    /// Known markers, one gene a line: how many of them are among the top genes.
    #[arg(long, value_name = "FILE")]
    pub gene_list: Option<PathBuf>,
    /// Output directory.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing output directory.
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of the report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Directories of runs.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Output of `predict` of a run: the first belongs to the first run, and so on.
    #[arg(long, value_name = "DIR")]
    pub predictions: Vec<PathBuf>,
    /// Parquet files of cells, or folders of such: where one has a column `umap` the cells are drawn,
    /// once for each column of labels. May be repeated.
    #[arg(long, value_name = "PATH")]
    pub cells: Vec<PathBuf>,
    /// Corpus of these cells; that of the first run when absent.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Categorical obs column that colours the cells; label and batch of the first run when absent. May
    /// be repeated.
    #[arg(long, value_name = "COLUMN")]
    pub color_by: Vec<String>,
    /// Output directory: report.html, figures as SVG and PNG, tables as CSV and Parquet.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing output directory.
    #[arg(long)]
    pub overwrite: bool,
}

/// What an evaluation of responses holds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HoldOut {
    /// A share of the perturbations, at random.
    Drugs,
    /// A share of the perturbations, in whole groups (`--groups`), for instance scaffolds.
    Groups,
    /// The perturbations named by `--name`.
    Listed,
    /// The nine drugs that chemCPA holds out of sciplex3.
    Chemcpa,
    /// A share of the pairs of perturbation and context.
    Pairs,
    /// The context named by `--name`, but for `--shots` of its perturbations.
    Context,
    /// Genes and combinations of genes, as GEARS simulates unseen ones.
    Simulation,
}

/// Arguments of the evaluation of responses.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Corpus of control and treated cells.
    #[arg(long, value_name = "DIR")]
    pub corpus: PathBuf,
    /// Categorical obs column that says what was done to a cell; genes of a combination are joined
    /// by `+`.
    #[arg(long, value_name = "COLUMN")]
    pub perturbation: String,
    /// Its value for control cells.
    #[arg(long, value_name = "VALUE")]
    pub control: String,
    /// Categorical obs column of contexts, for instance cell lines; one context when absent.
    #[arg(long, value_name = "COLUMN")]
    pub context: Option<String>,
    /// Categorical obs column of doses, with their unit; doses are scored apart.
    #[arg(long, value_name = "COLUMN")]
    pub dose: Option<String>,
    /// Table of molecules' embeddings (Parquet or safetensors) that baselines may look at.
    #[arg(long, value_name = "FILE")]
    pub molecules: Option<PathBuf>,
    /// The embeddings are fingerprints: neighbours are found by Tanimoto similarity.
    #[arg(long, requires = "molecules")]
    pub fingerprints: bool,
    /// Predicted mean profiles: a Parquet file with columns `perturbation`, `context` and `dose` where
    /// there are such, and one of numbers for each gene; the model is named like the file. May be
    /// repeated.
    #[arg(long, value_name = "FILE")]
    pub predictions: Vec<PathBuf>,
    /// What is held out.
    #[arg(long, value_enum, default_value_t = HoldOut::Drugs)]
    pub hold_out: HoldOut,
    /// Share that is held out at random.
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    pub share: f64,
    /// Categorical obs column with the group of each perturbation, for `--hold-out groups`.
    #[arg(long, value_name = "COLUMN")]
    pub groups: Option<String>,
    /// A perturbation or context to hold out; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// Perturbations of the held-out context that train; 0 is zero-shot.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shots: usize,
    /// Seed of the split and of the choice of cells.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Genes that are scored: the most variable ones among control cells, or all when there are fewer.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = at_least_one)]
    pub genes: usize,
    /// Cells of a condition or of a context's control that are used, drawn at random.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = at_least_one)]
    pub max_cells: usize,
    /// Output directory.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing output directory.
    #[arg(long)]
    pub overwrite: bool,
}
