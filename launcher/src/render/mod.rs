//! Writes what a scheduler needs to start a run: an sbatch script, or Kubernetes manifests.
//!
//! Pure: a [`Job`] comes in, a text goes out. Names are restricted to what every reader of the text
//! takes for a name; all else is quoted for the one that reads it.

pub mod kubernetes;
pub mod slurm;
mod yaml;

use crate::command::quote;
use crate::training;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// Ranks of one job: more is taken for a slip of the hand.
const RANKS_MAX: u32 = 65_536;
/// How often a scheduler starts a job again that lost its communication or its machine.
const RESTARTS: u32 = 5;

/// What a job is, whichever scheduler it is for.
#[derive(Debug, Clone, Args)]
pub struct Job {
    /// Write the files to standard output instead of starting anything
    #[arg(long, required = true)]
    render: bool,

    /// Name of the job: small letters, digits and dashes
    #[arg(long, value_name = "NAME", default_value = "scpeft")]
    pub name: String,

    /// Number of ranks
    #[arg(short = 'n', long = "ranks", value_name = "N", default_value_t = 2)]
    pub ranks: u32,

    /// Machines that the ranks are spread over, in equal parts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub nodes: u32,

    /// Cores of each rank
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub cpus: u32,

    /// GPUs of each rank
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpus: u32,

    /// Memory of each rank in GiB [default: 8 on Kubernetes, the partition's on Slurm]
    #[arg(long, value_name = "GIB")]
    pub memory_gib: Option<u32>,

    /// Longest time of a job, `HH:MM:SS` or `D-HH:MM:SS` [default: 04:00:00 on Slurm, none on
    /// Kubernetes]
    #[arg(long, value_name = "TIME")]
    pub walltime: Option<String>,

    /// Seconds that the ranks have to save after a stop request
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub grace_secs: u64,

    /// Do not start the job again after it was preempted or lost its communication
    #[arg(long)]
    pub no_requeue: bool,

    /// How often in a row the launcher starts a run again without coming any further [default: 3]
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,

    /// What every rank runs: a program with its arguments, or arguments of scpeft-train
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Why a job is not rendered. Each is for the user to mend.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RenderError {
    /// A value that an option does not take.
    #[error("`{option}`: found `{found}`, expected {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// As it was given.
        found: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Ranks that cannot be spread over the machines.
    #[error(
        "cannot spread `{ranks}` ranks over `{nodes}` machines in equal parts\n\
         help: make `--ranks` a multiple of `--nodes`"
    )]
    Uneven {
        /// Ranks.
        ranks: u32,
        /// Machines.
        nodes: u32,
    },
    /// A word that no text can hold.
    #[error("`{}` is not UTF-8 and cannot stand in a script", word.to_string_lossy())]
    NotText {
        /// The word.
        word: OsString,
    },
    /// Nothing to run.
    #[error("no program to start\nhelp: put it after `--`, as in `-- --config /data/run.toml`")]
    NoCommand,
    /// The configuration is not one.
    #[error("cannot use the configuration `{}`: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Job {
    /// Ranks of each machine.
    fn ranks_per_node(&self) -> u32 {
        self.ranks / self.nodes
    }

    fn check(&self) -> Result<(), RenderError> {
        let count = |option, value: u32, least: u32| {
            if (least..=RANKS_MAX).contains(&value) {
                return Ok(());
            }
            Err(RenderError::Value {
                option,
                found: value.to_string(),
                expected: "a whole number from 1 (GPUs: 0) to 65536",
            })
        };
        check_name("--name", &self.name)?;
        count("--ranks", self.ranks, 1)?;
        count("--nodes", self.nodes, 1)?;
        count("--cpus", self.cpus, 1)?;
        count("--gpus", self.gpus, 0)?;
        count("--memory-gib", self.memory_gib.unwrap_or(1), 1)?;
        if !self.ranks.is_multiple_of(self.nodes) {
            return Err(RenderError::Uneven {
                ranks: self.ranks,
                nodes: self.nodes,
            });
        }
        if let Some(word) = self.command.iter().find(|word| word.to_str().is_none()) {
            return Err(RenderError::NotText { word: word.clone() });
        }
        Ok(())
    }

    /// The longest time in seconds.
    fn walltime_secs(&self) -> Result<Option<u64>, RenderError> {
        let Some(text) = &self.walltime else {
            return Ok(None);
        };
        let seconds = || {
            let (days, time) = match text.split_once('-') {
                Some((days, time)) => (number(days)?, time),
                None => (0, text.as_str()),
            };
            let parts: Vec<&str> = time.split(':').collect();
            let [hours, minutes, seconds] = parts[..] else {
                return None;
            };
            let (minutes, seconds) = (number(minutes)?, number(seconds)?);
            let whole = (days * 24 + number(hours)?) * 3600 + minutes * 60 + seconds;
            (whole > 0 && minutes < 60 && seconds < 60).then_some(whole)
        };
        seconds().map(Some).ok_or_else(|| RenderError::Value {
            option: "--walltime",
            found: text.clone(),
            expected: "a time such as `04:00:00` or `2-12:00:00`",
        })
    }

    /// The options of `scpeft-launch` that both schedulers pass on.
    fn launch_options(&self) -> Vec<String> {
        let mut options = vec!["--grace-secs".to_owned(), self.grace_secs.to_string()];
        if let Some(restarts) = self.max_restarts {
            options.extend(["--max-restarts".to_owned(), restarts.to_string()]);
        }
        options
    }

    /// The program with its arguments, and whether it trains: then it may be resumed.
    fn program(&self) -> (Vec<String>, bool) {
        let command = training::with_program(self.command.clone());
        let trains = training::trains(&command);
        let command = if trains {
            // Added by whoever renders, once.
            let given = command.into_iter();
            given.filter(|word| word != "--resume").collect()
        } else {
            command
        };
        let words = command.iter().map(|word| word.to_string_lossy().into());
        (words.collect(), trains)
    }
}

/// At most five digits, so that no sum runs over.
fn number(digits: &str) -> Option<u64> {
    let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// What both schedulers, host names and labels take for a name. Pods add up to 20 characters to it.
fn check_name(option: &'static str, name: &str) -> Result<(), RenderError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && name.len() <= 40 && name.chars().all(plain) && !name.ends_with('-') {
        return Ok(());
    }
    Err(RenderError::Value {
        option,
        found: name.to_owned(),
        expected: "at most 40 small letters, digits and inner dashes, a letter first",
    })
}

/// The words as one types them in a POSIX shell.
fn shell(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word.as_ref())).collect();
    quoted.join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A job with the defaults of the command line.
    pub(crate) fn job(command: &[&str]) -> Job {
        Job {
            render: true,
            name: "scpeft".into(),
            ranks: 2,
            nodes: 1,
            cpus: 4,
            gpus: 0,
            memory_gib: None,
            walltime: None,
            grace_secs: 120,
            no_requeue: false,
            max_restarts: None,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    #[test]
    fn a_time_is_read_in_seconds_or_refused() {
        let seconds = |text: &str| {
            let mut job = job(&[]);
            job.walltime = Some(text.to_owned());
            job.walltime_secs()
        };
        assert_eq!(seconds("00:00:01"), Ok(Some(1)));
        assert_eq!(seconds("04:30:05"), Ok(Some(16_205)));
        assert_eq!(seconds("2-12:00:00"), Ok(Some(216_000)));
        assert_eq!(job(&[]).walltime_secs(), Ok(None));
        for wrong in [
            "", "4h", "4:00", "00:60:00", "0:00:00", "-1:00:00", "1:2:3\n", "+1:00:00",
        ] {
            let error = seconds(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("`--walltime`: found `"),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn names_and_counts_that_no_scheduler_takes_are_refused() {
        for name in [
            "",
            "A",
            "1a",
            "a_b",
            "a-",
            "a b",
            "a\n#SBATCH",
            &"a".repeat(41),
        ] {
            let mut job = job(&[]);
            job.name = name.into();
            assert!(
                matches!(
                    job.check(),
                    Err(RenderError::Value {
                        option: "--name",
                        ..
                    })
                ),
                "{name}"
            );
        }
        let mut uneven = job(&[]);
        (uneven.ranks, uneven.nodes) = (5, 2);
        assert_eq!(
            uneven.check(),
            Err(RenderError::Uneven { ranks: 5, nodes: 2 })
        );
        let mut none = job(&[]);
        none.ranks = 0;
        let error = none.check().unwrap_err().to_string();
        assert!(
            error.starts_with("`--ranks`: found `0`, expected a whole number"),
            "{error}"
        );
        assert_eq!(job(&[]).check(), Ok(()));
    }
}
