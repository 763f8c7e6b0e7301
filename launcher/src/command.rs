//! From what was asked for to the command line that starts it. Pure: the file system is looked at
//! through [`Surroundings`] only, which tests fill in by hand.

use crate::hosts::Host;
use scpeft_protocol::heartbeat::{ADDRESS_VARIABLE, TOKEN_VARIABLE};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// More ranks than this on one machine is taken for a slip of the hand.
pub const RANKS_MAX: u32 = 512;

/// What starts several ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Open MPI's `mpirun`.
    Mpirun,
    /// Slurm's `srun`, inside an allocation.
    Srun,
}

/// The process that stands between whatever starts the ranks and each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The launcher's own executable.
    pub launcher: PathBuf,
    /// Folder of the ranks' log files; without one every rank writes to the terminal.
    pub logs: Option<PathBuf>,
}

/// What the user asked to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number of ranks, from 1 to [`RANKS_MAX`] on this machine, or to what the hosts take.
    pub ranks: u32,
    /// The hosts to start them on; this machine, or those of the allocation, when there are none.
    pub hosts: Vec<Host>,
    /// What starts them.
    pub via: Via,
    /// What watches them, if anything does.
    pub guard: Option<Guard>,
    /// The `mpirun` to use instead of the one in `PATH`.
    pub mpirun: Option<PathBuf>,
    /// The program that every rank runs, with its arguments; not empty.
    pub command: Vec<OsString>,
}

impl Request {
    /// The host that a rank is on: they are filled in order. `None` where none is named.
    pub fn host_of(&self, rank: u32) -> Option<&Host> {
        let mut first = 0_u32;
        self.hosts.iter().find(|host| {
            first = first.saturating_add(host.slots);
            rank < first
        })
    }
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
    /// More ranks than the hosts take.
    #[error(
        "cannot start `{ranks}` ranks on hosts that take `{slots}`\n\
         help: give the hosts more slots (`--hosts h1:8,h2:8`) or ask for fewer ranks"
    )]
    Slots {
        /// What was asked for.
        ranks: u32,
        /// What the hosts take together.
        slots: u32,
    },
    /// Hosts are named, but Slurm has chosen them already.
    #[error(
        "hosts cannot be named with `srun`\nhelp: use `--via mpirun`, or leave the hosts to Slurm"
    )]
    HostsOfSlurm,
    /// `srun` is not there.
    #[error("no `srun` in `PATH`\nhelp: use `--via mpirun`, or start inside a Slurm allocation")]
    NoSrun,
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
    /// Builds the command line of a request: the program itself for one rank of this machine,
    /// `mpirun` or `srun` for more; with a guard, `scpeft-launch rank` around the program.
    ///
    /// # Errors
    /// When the rank count makes no sense, or the program or what starts it is missing.
    pub fn new(request: &Request, around: &Surroundings) -> Result<Self, CommandError> {
        check_ranks(request)?;
        let (program, own_arguments) = request.command.split_first().ok_or(CommandError::Empty)?;
        let program = find_program(program, around)?;
        let mut rank: Vec<OsString> = Vec::new();
        if let Some(guard) = &request.guard {
            rank.extend([guard.launcher.clone().into_os_string(), "rank".into()]);
            if let Some(logs) = &guard.logs {
                rank.extend(["--logs".into(), logs.clone().into_os_string()]);
            }
            rank.push("--".into());
        }
        rank.push(program.into_os_string());
        rank.extend_from_slice(own_arguments);
        let starter = match request.via {
            _ if request.ranks == 1 && request.hosts.is_empty() => None,
            Via::Mpirun => Some(mpirun(request, around)?),
            Via::Srun => Some(srun(request, around)?),
        };
        let mut words = starter.unwrap_or_default();
        words.append(&mut rank);
        let program = words.remove(0).into();
        Ok(Self {
            program,
            arguments: words,
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

fn check_ranks(request: &Request) -> Result<(), CommandError> {
    let ranks = request.ranks;
    if !request.hosts.is_empty() {
        let slots = request
            .hosts
            .iter()
            .fold(0_u32, |sum, host| sum.saturating_add(host.slots));
        return match ranks {
            0 => Err(CommandError::Ranks { ranks }),
            ranks if ranks > slots => Err(CommandError::Slots { ranks, slots }),
            _ => Ok(()),
        };
    }
    if ranks == 0 || (request.via == Via::Mpirun && ranks > RANKS_MAX) {
        return Err(CommandError::Ranks { ranks });
    }
    Ok(())
}

/// The words that start a program on all ranks through `mpirun`.
fn mpirun(request: &Request, around: &Surroundings) -> Result<Vec<OsString>, CommandError> {
    let ranks = request.ranks;
    let wanted = request.mpirun.as_deref().unwrap_or(Path::new("mpirun"));
    let mpirun = find(wanted.as_os_str(), &around.path).ok_or_else(|| CommandError::NoMpirun {
        mpirun: wanted.to_path_buf(),
        ranks,
    })?;
    let mut words: Vec<OsString> = vec![
        mpirun.into_os_string(),
        "-n".into(),
        ranks.to_string().into(),
    ];
    // The default binds two or fewer ranks to one core each, which starves their loader threads.
    words.extend(["--bind-to".into(), "none".into()]);
    if request.hosts.is_empty() {
        if ranks as usize > around.cores {
            words.push("--oversubscribe".into());
        }
    } else {
        let hosts: Vec<String> = request
            .hosts
            .iter()
            .map(|host| format!("{}:{}", host.name, host.slots))
            .collect();
        words.extend(["--host".into(), hosts.join(",").into()]);
        // Fills the hosts in order, so that a rank tells its host.
        words.extend(["--map-by".into(), "slot".into()]);
        if request.guard.is_some() {
            // By name: the values stay out of the command line, which every user can read.
            for name in [ADDRESS_VARIABLE, TOKEN_VARIABLE] {
                words.extend(["-x".into(), name.into()]);
            }
        }
    }
    if around.root {
        words.push("--allow-run-as-root".into());
    }
    Ok(words)
}

/// The words that start a program on all ranks through `srun`, which passes the environment on.
fn srun(request: &Request, around: &Surroundings) -> Result<Vec<OsString>, CommandError> {
    if !request.hosts.is_empty() {
        return Err(CommandError::HostsOfSlurm);
    }
    let srun = find(OsStr::new("srun"), &around.path).ok_or(CommandError::NoSrun)?;
    let mut words = vec![srun.into_os_string(), "--mpi=pmix".into(), "-n".into()];
    words.push(request.ranks.to_string().into());
    words.extend(["--cpu-bind=none".into(), "--kill-on-bad-exit=1".into()]);
    Ok(words)
}

/// A word as one types it in a POSIX shell.
pub(crate) fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub(crate) fn find_program(
    program: &OsStr,
    around: &Surroundings,
) -> Result<PathBuf, CommandError> {
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
            hosts: Vec::new(),
            via: Via::Mpirun,
            guard: None,
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
    fn hosts_get_their_slots_and_what_the_guards_need_to_know() {
        let (folder, mut around) = machine(&["mpirun", "x"]);
        around.cores = 1;
        let mut asked = request(3, &["x", "y"]);
        asked.hosts = crate::hosts::parse_list("a:2,b").unwrap();
        asked.guard = Some(Guard {
            launcher: "/opt/scpeft-launch".into(),
            logs: Some("/run/logs".into()),
        });
        let line = CommandLine::new(&asked, &around).unwrap();
        let expected = "@mpirun -n 3 --bind-to none --host a:2,b:1 --map-by slot -x SCPEFT_HEARTBEAT \
                        -x SCPEFT_HEARTBEAT_TOKEN /opt/scpeft-launch rank --logs /run/logs -- @x y";
        assert_eq!(words(&line, folder.path()).join(" "), expected);
        let hosts = [0, 1, 2, 3].map(|rank| asked.host_of(rank).map(|host| host.name.as_str()));
        assert_eq!(hosts, [Some("a"), Some("a"), Some("b"), None]);
        asked.ranks = 4;
        let error = CommandLine::new(&asked, &around).unwrap_err().to_string();
        assert!(
            error.contains("`4` ranks on hosts that take `3`"),
            "{error}"
        );
        asked.ranks = 1;
        let line = CommandLine::new(&asked, &around).unwrap();
        assert_eq!(words(&line, folder.path())[..3], ["@mpirun", "-n", "1"]);
    }

    #[test]
    fn slurm_starts_its_own_ranks_and_chooses_its_hosts() {
        let (folder, mut around) = machine(&["srun", "x"]);
        let mut asked = request(600, &["x"]);
        asked.via = Via::Srun;
        let line = CommandLine::new(&asked, &around).unwrap();
        let expected = "@srun --mpi=pmix -n 600 --cpu-bind=none --kill-on-bad-exit=1 @x";
        assert_eq!(words(&line, folder.path()).join(" "), expected);
        asked.hosts = crate::hosts::parse_list("a:600").unwrap();
        assert_eq!(
            CommandLine::new(&asked, &around),
            Err(CommandError::HostsOfSlurm)
        );
        asked.hosts.clear();
        around.path.clear();
        around.own_folder = Some(folder.path().to_path_buf());
        assert_eq!(CommandLine::new(&asked, &around), Err(CommandError::NoSrun));
    }

    #[test]
    fn a_guard_stands_around_a_single_rank_too() {
        let (folder, around) = machine(&["x"]);
        let mut asked = request(1, &["x", "y"]);
        asked.guard = Some(Guard {
            launcher: "/l".into(),
            logs: None,
        });
        let line = CommandLine::new(&asked, &around).unwrap();
        assert_eq!(words(&line, folder.path()), ["/l", "rank", "--", "@x", "y"]);
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
