//! The `scpeft-train` program: parse, join the world, do, exit with the documented code.

use std::io::{IsTerminal, Write};

use clap::Parser;
use scpeft_protocol::exit;
use scpeft_trainer::args::{Cli, Command};
use scpeft_trainer::{
    Failure, Outcome, StopFlag, embed, exit_code, markers, plan, predict, reporting, responses, run,
};

fn main() {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SCPEFT_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .init();
    if let Some(Command::Keys) = &cli.command {
        let written = std::io::stdout().write_all(scpeft_config::manual().as_bytes());
        std::process::exit(if written.is_ok() {
            exit::OK
        } else {
            exit::INTERNAL
        });
    }
    if let Some(Command::Parameters(args)) = &cli.command {
        std::process::exit(match run::parameters(args) {
            Ok(table) if writeln!(std::io::stdout(), "{table}").is_ok() => exit::OK,
            Ok(_) => exit::INTERNAL,
            Err(failure) => report(&failure),
        });
    }
    if let Some(Command::Plan(args)) = &cli.command {
        std::process::exit(match plan::plan(args) {
            Ok(table) if writeln!(std::io::stdout(), "{table}").is_ok() => exit::OK,
            Ok(_) => exit::INTERNAL,
            Err(failure) => report(&failure),
        });
    }
    if let Some(Command::Report(args)) = &cli.command {
        std::process::exit(match reporting::report(args) {
            Ok(summary) if writeln!(std::io::stdout(), "{summary}").is_ok() => exit::OK,
            Ok(_) => exit::INTERNAL,
            Err(failure) => report(&failure),
        });
    }
    if let Some(Command::Evaluate(args)) = &cli.command {
        std::process::exit(match responses::evaluate(args) {
            Ok(summary) if writeln!(std::io::stdout(), "{summary}").is_ok() => exit::OK,
            Ok(_) => exit::INTERNAL,
            Err(failure) => report(&failure),
        });
    }
    let stop = match install_stop(&cli) {
        Ok(stop) => stop,
        Err(failure) => std::process::exit(report(&failure)),
    };
    std::process::exit(supervise(&cli, &stop));
}

/// Training answers stop requests by saving; the handlers come before MPI, whose start takes long
/// enough for a request to fall into. Prediction has nothing to save and keeps the defaults.
fn install_stop(cli: &Cli) -> Result<StopFlag, Failure> {
    match cli.command {
        None | Some(Command::Run(_)) => StopFlag::install(),
        Some(_) => Ok(StopFlag::default()),
    }
}

/// Runs the command in the world that this process belongs to; returns the exit code.
fn supervise(cli: &Cli, stop: &StopFlag) -> i32 {
    let world = match scpeft_collective::discover() {
        Ok(world) => world,
        Err(error) => return report(&error.into()),
    };
    // A panic on one rank would leave the others waiting in a collective: end the job instead.
    let rank = world.topology().rank;
    let is_alone = world.topology().world_size == 1;
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        eprintln!("error: rank {rank} panicked; this is a defect of scpeft, please report it");
        if !is_alone {
            // Without running destructors: MPI's would wait for the other ranks.
            // SAFETY: _exit is async-signal-safe and takes no pointers.
            unsafe { libc::_exit(exit::PANIC) };
        }
    }));
    let result = match &cli.command {
        None => run::run(world.as_ref(), &cli.run, stop),
        Some(Command::Run(args)) => run::run(world.as_ref(), args, stop),
        Some(Command::Predict(args)) => predict::predict(world.as_ref(), args),
        Some(Command::Embed(args)) => embed::embed(world.as_ref(), args),
        Some(Command::Markers(args)) => markers::markers(world.as_ref(), args),
        Some(
            Command::Keys
            | Command::Parameters(_)
            | Command::Plan(_)
            | Command::Report(_)
            | Command::Evaluate(_),
        ) => Ok(Outcome::Done),
    };
    if let Err(failure) = &result {
        report(failure);
    }
    exit_code(&result)
}

fn report(failure: &Failure) -> i32 {
    // Ranks that only share another rank's failure have nothing to say.
    if !failure.message.is_empty() {
        eprintln!("error: {}", failure.message);
    }
    failure.code
}
