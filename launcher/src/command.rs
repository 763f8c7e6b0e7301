//! From what was asked for to the command line that starts it. Pure: the file system is looked at
//! through [`Surroundings`] only, which tests fill in by hand.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// More ranks than this on one machine is taken for a slip of the hand.
pub const RANKS_MAX: u32 = 512;

/// What the user asked to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number of ranks, from 1 to [`RANKS_MAX`].
    pub ranks: u32,
    /// The `mpirun` to use instead of the one in `PATH`.
    pub mpirun: Option<PathBuf>,
    /// The program that every rank runs, with its arguments; not empty.
    pub command: Vec<OsString>,
}

/// What the command line depends on besides the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Ranks that `mpirun` accepts here without `--oversubscribe`.
    pub cores: usize,
    /// Whether we run as root, which `mpirun` refuses unless told otherwise.
    pub root: bool,
    /// The folders of `PATH`, in order.
    pub path: Vec<PathBuf>,
    /// The folder of the launcher's own executable.
    pub own_folder: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self {
            cores: crate::cores::usable(),
            // SAFETY: geteuid takes no arguments, touches no memory and cannot fail.
            root: unsafe { libc::geteuid() } == 0,
            path: std::env::var_os("PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
            own_folder: std::env::current_exe()
                .ok()
                .and_then(|exe| exe.parent().map(Path::to_path_buf)),
        }
    }
}

/// Why a request cannot be turned into a command line. Each is for the user to mend.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// The rank count makes no sense on one machine.
    #[error("cannot start `{ranks}` ranks, expected 1 to {RANKS_MAX}")]
    Ranks {
        /// What was asked for.
        ranks: u32,
    },
    /// Nothing to start.
    #[error(
        "no program to start\n\
         help: put it after `--`, as in `scpeft-launch -n 2 -- scpeft-train --config run.toml`"
    )]
    Empty,
    /// `mpirun` is neither in `PATH` nor where `--mpirun` says.
    #[error(
        "`{}` is not there or not executable, and `{ranks}` ranks need it\n\
         help: install Open MPI (Debian: `apt-get install openmpi-bin`) or name one with \
         `--mpirun PATH`",
        mpirun.display()
    )]
    NoMpirun {
        /// The name or path that was looked for.
        mpirun: PathBuf,
        /// What was asked for.
        ranks: u32,
    },
    /// The program is neither a path, nor in `PATH`, nor beside the launcher.
    #[error(
        "no program `{}` {}\nhelp: give its path, or run `make build` if it is one of scpeft's own",
        program.display(),
        looked_in(program)
    )]
    NoProgram {
        /// As the user wrote it.
        program: PathBuf,
    },
}

fn looked_in(program: &Path) -> &'static str {
    if is_path(program.as_os_str()) {
        "that can be executed"
    } else {
        "in `PATH` or beside scpeft-launch"
    }
}

/// A program and its arguments, ready to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Path of the executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl CommandLine {
    /// Builds the command line of a request: the program itself for one rank, `mpirun` for more.
    ///
    /// # Errors
    /// When the rank count makes no sense, or `mpirun` or the program is missing.
    pub fn new(request: &Request, around: &Surroundings) -> Result<Self, CommandError> {
        let ranks = request.ranks;
        if !(1..=RANKS_MAX).contains(&ranks) {
            return Err(CommandError::Ranks { ranks });
        }
        let (program, own_arguments) = request.command.split_first().ok_or(CommandError::Empty)?;
        let program = find_program(program, around)?;
        if ranks == 1 {
            return Ok(Self {
                program,
                arguments: own_arguments.to_vec(),
            });
        }

        let wanted = request.mpirun.as_deref().unwrap_or(Path::new("mpirun"));
        let mpirun =
            find(wanted.as_os_str(), &around.path).ok_or_else(|| CommandError::NoMpirun {
                mpirun: wanted.to_path_buf(),
                ranks,
            })?;
        let mut arguments: Vec<OsString> = vec!["-n".into(), ranks.to_string().into()];
        // The default binds two or fewer ranks to one core each, which starves their loader threads.
        arguments.extend(["--bind-to".into(), "none".into()]);
        if ranks as usize > around.cores {
            arguments.push("--oversubscribe".into());
        }
        if around.root {
            arguments.push("--allow-run-as-root".into());
        }
        arguments.push(program.into_os_string());
        arguments.extend_from_slice(own_arguments);
        Ok(Self {
            program: mpirun,
            arguments,
        })
    }

    /// The line as one would type it in a POSIX shell.
    pub fn shell(&self) -> String {
        std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str))
            .map(quote)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn find_program(program: &OsStr, around: &Surroundings) -> Result<PathBuf, CommandError> {
    find(program, &around.path)
        .or_else(|| {
            let beside = around.own_folder.as_ref()?.join(program);
            (!is_path(program) && is_executable(&beside)).then_some(beside)
        })
        .ok_or_else(|| CommandError::NoProgram {
            program: program.into(),
        })
}

/// Looks a program up as `execvp` does: as a path when it has a slash, else in `PATH`.
fn find(program: &OsStr, path: &[PathBuf]) -> Option<PathBuf> {
    if is_path(program) {
        let program = PathBuf::from(program);
        return is_executable(&program).then_some(program);
    }
    path.iter()
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_path(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with executables of these names, and surroundings that see only it.
    fn machine(programs: &[&str]) -> (tempfile::TempDir, Surroundings) {
        let folder = tempfile::tempdir().unwrap();
        for name in programs {
            executable(&folder.path().join(name));
        }
        let path = vec![PathBuf::from("/nonexistent"), folder.path().to_path_buf()];
        (
            folder,
            Surroundings {
                cores: 4,
                root: false,
                path,
                own_folder: None,
            },
        )
    }

    fn executable(file: &Path) {
        std::fs::write(file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn request(ranks: u32, command: &[&str]) -> Request {
        Request {
            ranks,
            mpirun: None,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    fn words(line: &CommandLine, folder: &Path) -> Vec<String> {
        let folder = format!("{}/", folder.display());
        std::iter::once(line.program.as_os_str())
            .chain(line.arguments.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy().replace(&folder, "@"))
            .collect()
    }

    #[test]
    fn several_ranks_go_through_mpirun_unbound() {
        let (folder, around) = machine(&["mpirun", "scpeft-train"]);
        let line = CommandLine::new(
            &request(4, &["scpeft-train", "--config", "a.toml"]),
            &around,
        )
        .unwrap();
        assert_eq!(
            words(&line, folder.path()),
            [
                "@mpirun",
                "-n",
                "4",
                "--bind-to",
                "none",
                "@scpeft-train",
                "--config",
                "a.toml"
            ]
        );
    }

    #[test]
    fn more_ranks_than_cores_oversubscribe_and_root_is_allowed() {
        let (folder, mut around) = machine(&["mpirun", "x"]);
        around.root = true;
        let line = CommandLine::new(&request(5, &["x"]), &around).unwrap();
        let expected = "@mpirun -n 5 --bind-to none --oversubscribe --allow-run-as-root @x";
        assert_eq!(words(&line, folder.path()).join(" "), expected);
    }

    #[test]
    fn one_rank_runs_the_program_itself_and_needs_no_mpirun() {
        let (folder, around) = machine(&["x"]);
        let line = CommandLine::new(&request(1, &["x", "-n", "7"]), &around).unwrap();
        assert_eq!(words(&line, folder.path()), ["@x", "-n", "7"]);
    }

    #[test]
    fn a_program_in_path_wins_over_one_beside_the_launcher() {
        let (folder, mut around) = machine(&["x"]);
        let (own, _) = machine(&["x", "only-here"]);
        around.own_folder = Some(own.path().to_path_buf());
        let found = |name: &str| {
            CommandLine::new(&request(1, &[name]), &around)
                .unwrap()
                .program
        };
        assert_eq!(found("x"), folder.path().join("x"));
        assert_eq!(found("only-here"), own.path().join("only-here"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let (folder, mut around) = machine(&["x"]);
        around.own_folder = Some(folder.path().to_path_buf());
        std::fs::write(folder.path().join("text"), "not a program").unwrap();
        let error = |ranks, command: &[&str]| {
            CommandLine::new(&request(ranks, command), &around)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(0, &["x"]),
            "cannot start `0` ranks, expected 1 to 512"
        );
        assert_eq!(
            error(513, &["x"]),
            "cannot start `513` ranks, expected 1 to 512"
        );
        assert!(error(1, &[]).starts_with("no program to start\nhelp: "));
        assert!(error(2, &["x"]).contains("apt-get install openmpi-bin"));
        assert!(
            error(1, &["text"]).starts_with("no program `text` in `PATH` or beside scpeft-launch")
        );
        assert!(error(1, &["./gone"]).starts_with("no program `./gone` that can be executed"));
    }

    #[test]
    fn a_given_mpirun_is_used_or_named_in_the_error() {
        let (folder, around) = machine(&["x", "my-mpirun"]);
        let mut asked = request(2, &["x"]);
        asked.mpirun = Some(folder.path().join("my-mpirun"));
        assert_eq!(
            CommandLine::new(&asked, &around).unwrap().program,
            asked.mpirun.clone().unwrap()
        );
        asked.mpirun = Some("/nonexistent/mpirun".into());
        let error = CommandLine::new(&asked, &around).unwrap_err().to_string();
        assert!(
            error.starts_with("`/nonexistent/mpirun` is not there"),
            "{error}"
        );
    }

    #[test]
    fn the_printed_line_survives_a_shell() {
        let line = CommandLine {
            program: "/bin/echo".into(),
            arguments: ["a b", "it's", "", "--set", "x=1", "$HOME"]
                .map(OsString::from)
                .to_vec(),
        };
        assert_eq!(
            line.shell(),
            r"/bin/echo 'a b' 'it'\''s' '' --set x=1 '$HOME'"
        );
        let out = std::process::Command::new("sh")
            .args(["-c", &line.shell()])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "a b it's  --set x=1 $HOME\n"
        );
    }
}
