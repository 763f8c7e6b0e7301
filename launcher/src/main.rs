//! `scpeft-launch`: starts the ranks of a run on this machine and relays their exit code.

use anyhow::Context as _;
use clap::Parser;
use scpeft_launcher::command::{CommandError, CommandLine, RANKS_MAX, Request, Surroundings};
use scpeft_launcher::relay::Outcome;
use scpeft_launcher::supervise;
use scpeft_protocol::exit;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Start the ranks of a run on this machine and relay their exit code
///
/// Several ranks are started through mpirun, unbound, so that each may use its loader threads; one
/// rank is started directly. The program is looked for in PATH, then beside scpeft-launch.
///
/// SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 ask the ranks to save and leave: they receive
/// SIGUSR1. A second SIGTERM, SIGINT or SIGHUP, or the end of the grace period, stops them at once.
#[derive(Debug, Parser)]
#[command(name = "scpeft-launch", version, after_long_help = after_help(), after_help = exit::HELP)]
struct Arguments {
    /// Number of ranks to start on this machine
    #[arg(short = 'n', long = "ranks", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RANKS_MAX)))]
    ranks: u32,

    /// The mpirun to use instead of the one in PATH
    #[arg(long, value_name = "PATH")]
    mpirun: Option<PathBuf>,

    /// Seconds that the ranks have to save after a stop request
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    grace_secs: u64,

    /// Print the command line that would be run, and stop
    #[arg(long)]
    dry_run: bool,

    /// The program that every rank runs, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn after_help() -> String {
    format!(
        "Examples:\n  scpeft-launch -n 2 -- scpeft-train --config run.toml\n  \
         scpeft-launch -n 2 --dry-run -- scpeft-train --config run.toml\n\n{}\n  \
         128+S a rank was killed by signal S (137: SIGKILL)\n\n\
         The code is that of the first rank that failed.",
        exit::HELP
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match launch(arguments) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            say(&format!("error: {error:#}"));
            let code = if error.is::<CommandError>() {
                exit::CONFIG
            } else {
                exit::INTERNAL
            };
            ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
        }
    }
}

fn launch(arguments: Arguments) -> anyhow::Result<i32> {
    let grace = Duration::from_secs(arguments.grace_secs);
    let request = Request {
        ranks: arguments.ranks,
        mpirun: arguments.mpirun,
        command: arguments.command,
    };
    let line = CommandLine::new(&request, &Surroundings::of_this_process())?;
    if arguments.dry_run {
        writeln!(std::io::stdout(), "{}", line.shell()).context("cannot write to stdout")?;
        return Ok(exit::OK);
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot prepare to supervise a process")?;
    let status = runtime
        .block_on(supervise::run(&line, grace, say))
        .with_context(|| format!("cannot run `{}`", line.program.display()))?;
    let outcome = Outcome::of(status);
    if let Some(message) = &outcome.message {
        say(message);
    }
    Ok(outcome.code)
}

/// One line on stderr. A closed stderr must not bring a run down.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "scpeft-launch: {text}");
}
