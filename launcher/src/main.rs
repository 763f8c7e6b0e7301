//! `scpeft-launch`: starts the ranks of a run, watches over them and relays their exit code.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use scpeft_launcher::command::{CommandError, CommandLine, Guard, Request, Surroundings, Via};
use scpeft_launcher::guard;
use scpeft_launcher::hosts::{self, Host, HostsError};
use scpeft_launcher::page;
use scpeft_launcher::render::{self, RenderError};
use scpeft_launcher::server::Reach;
use scpeft_launcher::session::Session;
use scpeft_launcher::training::{Training, with_program};
use scpeft_launcher::view;
use scpeft_protocol::exit;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Restarts of a training run without progress, unless told otherwise.
const MAX_RESTARTS: u32 = 3;

/// Start the ranks of a run, watch over them and relay their exit code
///
/// Several ranks are started through mpirun (srun inside a Slurm allocation), unbound, so that each
/// may use its loader threads; one rank is started directly. The program is looked for in PATH, then
/// beside scpeft-launch; it is scpeft-train when COMMAND begins with an option or with one of
/// scpeft-train's commands.
///
/// A training run has its ranks' output in RUN/logs and rank 0 on the terminal, and is started again
/// after a hang, a preemption or a crash, from its newest good checkpoint. What happened is in
/// RUN/events.jsonl.
///
/// SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 ask the ranks to save and leave: they receive
/// SIGUSR1. A second SIGTERM, SIGINT or SIGHUP a second or more later, or the end of the grace period,
/// stops them at once.
#[derive(Debug, Parser)]
#[command(name = "scpeft-launch", version, after_long_help = after_help(), after_help = exit::HELP,
          args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,
    #[command(flatten)]
    start: StartArguments,
}

/// What to do besides starting a run.
#[derive(Debug, Subcommand)]
enum Mode {
    /// Stand around one rank: keep its log, tell the launcher how it ends. Started by the launcher
    #[command(hide = true)]
    Rank {
        /// Folder of the log files; without one everything goes to the terminal
        #[arg(long, value_name = "DIR")]
        logs: Option<PathBuf>,
        /// The program of the rank, with its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Write an sbatch script that runs, saves before the time limit, and queues itself again
    Slurm(Box<render::slurm::Slurm>),
    /// Write Kubernetes manifests: an MPIJob or an Indexed Job, and what Prometheus scrapes
    Kubernetes(Box<render::kubernetes::Kubernetes>),
    /// Serve the page of a run from its directory, also after the run has ended
    View {
        /// The run directory
        #[arg(value_name = "RUN")]
        run: PathBuf,
        /// Where to serve it; a port that is taken is replaced by a free one
        #[arg(long, value_name = "HOST:PORT", default_value = page::LISTEN)]
        listen: String,
    },
}

#[derive(Debug, Args)]
struct StartArguments {
    /// Number of ranks [default: what the hosts take, or the tasks of the Slurm allocation]
    #[arg(short = 'n', long = "ranks", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,

    /// Hosts and how many ranks each takes: `h1:8,h2:8`
    #[arg(long, value_name = "HOSTS", conflicts_with = "hostfile")]
    hosts: Option<String>,

    /// A file with a `host slots=8` on each line
    #[arg(long, value_name = "FILE")]
    hostfile: Option<PathBuf>,

    /// What starts the ranks [default: srun inside a Slurm allocation, else mpirun]
    #[arg(long, value_enum, value_name = "STARTER")]
    via: Option<Via>,

    /// The mpirun to use instead of the one in PATH
    #[arg(long, value_name = "PATH")]
    mpirun: Option<PathBuf>,

    /// Name or address at which ranks on other hosts reach this launcher [default: its host name]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,

    /// Seconds after which a host of which nothing is heard counts as cut off
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(15..=86_400))]
    host_timeout_secs: u64,

    /// Go on without hosts that were cut off, where the ranks that are left can share out the batch
    #[arg(long)]
    allow_shrink: bool,

    /// Seconds that the ranks have to save after a stop request
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    grace_secs: u64,

    /// How often in a row a run is started again without coming any further [default: 3 for
    /// training, 0 for everything else]
    #[arg(long, value_name = "N")]
    max_restarts: Option<u32>,

    /// Where to serve the page of a training run, or `none`; a port that is taken is replaced by a
    /// free one
    #[arg(long, value_name = "HOST:PORT", default_value = page::LISTEN)]
    listen: String,

    /// Print the command line that would be run, and stop
    #[arg(long)]
    dry_run: bool,

    /// What every rank runs: a program with its arguments, or arguments of scpeft-train
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn after_help() -> String {
    format!(
        "Examples:\n  scpeft-launch -n 2 -- --config run.toml\n  \
         scpeft-launch --hosts h1:8,h2:8 -- --config run.toml\n  \
         scpeft-launch -n 2 --dry-run -- scpeft-train predict --run RUN --output DIR\n  \
         scpeft-launch slurm --render -n 8 --gpus 1 -- --config run.toml >job.sbatch\n  \
         scpeft-launch kubernetes --render --image IMAGE --config run.toml >job.yaml\n\n{}\n  \
         128+S a rank was killed by signal S (137: SIGKILL)\n\n\
         The code is that of the first rank that failed.",
        exit::HELP
    )
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli {
            mode: Some(Mode::Rank { logs, command }),
            ..
        } => guard::run(logs.as_deref(), &command).context("cannot run this rank"),
        Cli {
            mode: Some(Mode::Slurm(slurm)),
            ..
        } => print(render::slurm::render(&slurm)),
        Cli {
            mode: Some(Mode::Kubernetes(asked)),
            ..
        } => print(render::kubernetes::with_config(&asked)),
        Cli {
            mode: Some(Mode::View { run, listen }),
            ..
        } => view::run(&run, &listen, say),
        Cli { start, .. } => launch(start),
    };
    let code = result.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        let of_the_user = error.is::<CommandError>()
            || error.is::<HostsError>()
            || error.is::<NoCount>()
            || error.is::<NoHosts>()
            || error.is::<RenderError>()
            || error.is::<page::PageError>()
            || error.is::<view::NoRun>();
        if of_the_user {
            exit::CONFIG
        } else {
            exit::INTERNAL
        }
    });
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Writes what was rendered to standard output.
fn print(rendered: Result<String, RenderError>) -> anyhow::Result<i32> {
    write!(std::io::stdout(), "{}", rendered?).context("cannot write to stdout")?;
    Ok(exit::OK)
}

/// Nothing says how many ranks to start.
#[derive(Debug, thiserror::Error)]
#[error(
    "how many ranks?\nhelp: `--ranks <N>`, `--hosts h1:8,h2:8`, or start inside a Slurm allocation"
)]
struct NoCount;

/// Nothing to leave out.
#[derive(Debug, thiserror::Error)]
#[error("`--allow-shrink` needs `--hosts` or `--hostfile`: only named hosts can be left out")]
struct NoHosts;

fn launch(arguments: StartArguments) -> anyhow::Result<i32> {
    let hosts = match (&arguments.hosts, &arguments.hostfile) {
        (Some(list), _) => hosts::parse_list(list)?,
        (None, Some(file)) => hosts::read_file(file)?,
        (None, None) => Vec::new(),
    };
    if arguments.allow_shrink && hosts.is_empty() {
        return Err(NoHosts.into());
    }
    let slurm = Slurm::of_this_process();
    let ranks = ranks(&arguments, &hosts, slurm).ok_or(NoCount)?;
    let via = arguments.via.unwrap_or(match slurm {
        Some(_) if hosts.is_empty() => Via::Srun,
        _ => Via::Mpirun,
    });
    let command = with_program(arguments.command);
    let training = Training::of(&command);
    let launcher = std::env::current_exe().context("cannot find our own executable")?;
    let logs = training
        .as_ref()
        .map(|training| training.run_dir.join("logs"));
    let reach = if hosts.is_empty() && slurm.is_none_or(|slurm| slurm.nodes == 1) {
        Reach::Machine
    } else {
        Reach::Network
    };
    let default_restarts = if training.is_some() { MAX_RESTARTS } else { 0 };
    let session = Session {
        request: Request {
            ranks,
            hosts,
            via,
            guard: Some(Guard { launcher, logs }),
            mpirun: arguments.mpirun,
            command,
        },
        around: Surroundings::of_this_process(),
        training,
        max_restarts: arguments.max_restarts.unwrap_or(default_restarts),
        grace: Duration::from_secs(arguments.grace_secs),
        reach,
        advertise: arguments.advertise,
        host_timeout: Duration::from_secs(arguments.host_timeout_secs),
        allow_shrink: arguments.allow_shrink,
        scheduled: slurm.is_some(),
        listen: match arguments.listen.as_str() {
            "none" => None,
            listen => Some(page::resolve(listen)?),
        },
    };
    let line = CommandLine::new(&session.request, &session.around)?;
    if arguments.dry_run {
        writeln!(std::io::stdout(), "{}", line.shell()).context("cannot write to stdout")?;
        return Ok(exit::OK);
    }
    // One thread: the kernel's "parent of the child" is then the launcher as a whole.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot prepare to supervise a process")?
        .block_on(session.run(say))
}

/// A Slurm allocation that we are in.
#[derive(Debug, Clone, Copy)]
struct Slurm {
    tasks: u32,
    nodes: u32,
}

impl Slurm {
    fn of_this_process() -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        std::env::var_os("SLURM_JOB_ID")?;
        Some(Self {
            tasks: number("SLURM_NTASKS")?,
            nodes: number("SLURM_NNODES").unwrap_or(1),
        })
    }
}

fn ranks(arguments: &StartArguments, hosts: &[Host], slurm: Option<Slurm>) -> Option<u32> {
    let slots = hosts
        .iter()
        .fold(0_u32, |sum, host| sum.saturating_add(host.slots));
    let counted = (slots > 0).then_some(slots);
    arguments
        .ranks
        .or(counted)
        .or(slurm.map(|slurm| slurm.tasks))
}

/// One line on stderr. A closed stderr must not bring a run down.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "scpeft-launch: {text}");
}
