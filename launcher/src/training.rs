//! What a command of `scpeft-train` says about its run: where it lives, and how to resume it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The program that is started when the command names none.
pub const PROGRAM: &str = "scpeft-train";

/// Its commands, as its command line has them.
const COMMANDS: [&str; 4] = ["run", "predict", "parameters", "keys"];

/// A training run that `scpeft-train` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Training {
    /// The run directory.
    pub run_dir: PathBuf,
    /// How its global batch is shared out.
    pub batch: Batch,
}

/// The global batch of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Cells.
    pub cells: usize,
    /// Whether each rank takes an equal share, so that the ranks must divide it.
    pub divided_by_ranks: bool,
}

/// Puts [`PROGRAM`] in front of a command that begins with an option or one of its commands.
pub fn with_program(mut command: Vec<OsString>) -> Vec<OsString> {
    let names_none = command.first().is_some_and(|first| {
        first.as_encoded_bytes().starts_with(b"-") || is_command(first, &COMMANDS)
    });
    if names_none {
        command.insert(0, PROGRAM.into());
    }
    command
}

fn is_command(word: &OsStr, commands: &[&str]) -> bool {
    commands.iter().any(|command| word == *command)
}

/// Whether a command is `scpeft-train` that trains, as its words tell.
pub fn trains(command: &[OsString]) -> bool {
    let Some((program, arguments)) = command.split_first() else {
        return false;
    };
    let ours = Path::new(program)
        .file_name()
        .is_some_and(|name| name == PROGRAM);
    ours && arguments.first().is_some_and(|first| {
        is_command(first, &["run"]) || first.as_encoded_bytes().starts_with(b"-")
    })
}

impl Training {
    /// Reads a command; `None` when it trains nothing or its configuration is wrong: then the
    /// program itself will say so.
    pub fn of(command: &[OsString]) -> Option<Self> {
        let (_, arguments) = command.split_first()?;
        if !trains(command) {
            return None;
        }
        let config = values(arguments, "--config").pop();
        let overrides = values(arguments, "--set");
        let resolved = match config {
            Some(file) => scpeft_config::load(Path::new(&file), &overrides),
            None => scpeft_config::resolve(None, &overrides),
        };
        let config = resolved.ok()?.config;
        Some(Self {
            run_dir: std::path::absolute(&config.run.dir).ok()?,
            batch: Batch {
                cells: config.train.batch_cells,
                divided_by_ranks: config.train.micro_batch_cells.is_none()
                    && config.train.micro_batch_tokens.is_none(),
            },
        })
    }
}

/// The values of an option in both of its forms, `--name value` and `--name=value`.
pub(crate) fn values(arguments: &[OsString], name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == name {
            found.extend(words.next().map(std::borrow::Cow::into_owned));
        } else if let Some(value) = word
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
        {
            found.push(value.to_owned());
        }
    }
    found
}

/// The command that continues what `command` began: `--resume` instead of `--overwrite`.
pub fn resumed(command: &[OsString]) -> Vec<OsString> {
    let mut resumed: Vec<OsString> = command
        .iter()
        .filter(|word| *word != "--overwrite" && *word != "--resume")
        .cloned()
        .collect();
    resumed.push("--resume".into());
    resumed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_program_may_be_left_out() {
        for (given, expected) in [
            ("--config f.toml", "scpeft-train --config f.toml"),
            ("predict --run r", "scpeft-train predict --run r"),
            ("sh -c x", "sh -c x"),
            ("scpeft-train run", "scpeft-train run"),
        ] {
            assert_eq!(with_program(words(given)), words(expected));
        }
    }

    #[test]
    fn a_resumed_command_never_deletes_what_was_done() {
        for given in [
            "t --overwrite --set a=1",
            "t --set a=1",
            "t --resume --set a=1",
        ] {
            assert_eq!(resumed(&words(given)), words("t --set a=1 --resume"));
        }
    }

    #[test]
    fn the_run_directory_comes_from_the_configuration_as_it_resolves() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.toml");
        let text = "[run]\ndir = \"/runs/a\"\n[data]\ncorpus = \"c\"\nlabel = \"l\"\n\
                    [backbone]\npath = \"b\"\n[adapter]\nkind = \"lora\"\n";
        std::fs::write(&file, text).unwrap();
        let of = |rest: &str| {
            let command = format!(
                "bin/scpeft-train {}",
                rest.replace('@', file.to_str().unwrap())
            );
            Training::of(&words(&command)).map(|t| t.run_dir)
        };
        let at = |dir: &str| of(&format!("--config @ --set {dir}")).unwrap();
        assert_eq!(of("--config=@").unwrap(), Path::new("/runs/a"));
        assert_eq!(of("run --config @ --resume").unwrap(), Path::new("/runs/a"));
        assert_eq!(at("run.dir=/b"), Path::new("/b"));
        assert_eq!(at("run.dir=/b --set=train.batch_cells=48"), Path::new("/b"));
        let batch = |rest: &str| {
            let words = words(&format!("scpeft-train --config {} {rest}", file.display()));
            Training::of(&words).unwrap().batch
        };
        let expected = |cells, divided_by_ranks| Batch {
            cells,
            divided_by_ranks,
        };
        assert_eq!(batch("--set train.batch_cells=48"), expected(48, true));
        let set = "--set train.batch_cells=48 --set train.micro_batch_cells=6";
        assert_eq!(batch(set), expected(48, false));
        for none in [
            "--config /nonexistent",
            "predict --run r",
            "",
            "--config @ --set no.key=1",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
