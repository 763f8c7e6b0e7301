//! `scpeft-launch rank -- PROGRAM`: the process between whatever starts the ranks and a rank.
//!
//! It writes what the rank says to a file of its own, lets only rank 0 through to the terminal,
//! keeps the last lines, and tells the launcher how the rank ended before anything else learns of
//! it: so the first rank that fails is known for certain. It dies with its parent and takes the rank
//! along, and it ends the rank when the launcher is gone.

use scpeft_protocol::exit;
use scpeft_protocol::heartbeat::{Beater, Bye, Hello, Role};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines kept for the report of a failure.
const LAST_LINES: usize = 30;
/// Bytes kept of each: together they must fit a heartbeat line, escapes included.
const LINE_BYTES: usize = 200;
/// How long the launcher may be gone before the rank is ended.
const ABANDONED: Duration = Duration::from_secs(3);
/// How long output of a rank that has ended may still come in.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the rank and the launcher are looked at.
const TICK: Duration = Duration::from_millis(20);

/// Signals that the whole group receives and that are for the rank alone.
const FOR_THE_RANK: [i32; 5] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Place of a rank in its run, from the environment of Open MPI, PMIx or Slurm; alone otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    rank: u32,
    world_size: u32,
    local_rank: u32,
}

impl Place {
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| variable(name)?.parse::<u32>().ok())
        };
        Self {
            rank: number(&["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"]).unwrap_or(0),
            world_size: number(&["OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"]).unwrap_or(1),
            local_rank: number(&["OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"]).unwrap_or(0),
        }
    }
}

/// Name of a rank's log file.
pub fn log_name(rank: u32) -> String {
    format!("rank-{rank:05}.log")
}

/// Runs the program to its end and returns the exit code to leave with: its own, or 128 + signal.
///
/// # Errors
/// When the log cannot be written or the program not be started.
pub fn run(logs: Option<&Path>, command: &[OsString]) -> io::Result<i32> {
    let parent = die_with_parent()?;
    let place = Place::from_environment(|name| std::env::var(name).ok());
    for signal in FOR_THE_RANK {
        // SAFETY: SIG_IGN is a valid disposition and no handler of ours is replaced.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let log = logs.map(|logs| open_log(logs, place.rank)).transpose()?;
    let killed_before = kernel_kills();
    let mut child = start(command)?;
    let beater = introduce(place, child.id());
    let output = Output {
        shows: log.is_none() || place.rank == 0,
        log: log.map(Arc::new),
        last: Arc::default(),
    };
    let ends = output.follow(&mut child)?;
    let status = wait(&mut child, &beater, parent)?;
    let deadline = Instant::now() + DRAIN;
    while ends.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        != Err(RecvTimeoutError::Disconnected)
        && Instant::now() < deadline
    {}
    let bye = Bye {
        code: code_of(status),
        signal: status.signal(),
        out_of_memory: status.signal() == Some(libc::SIGKILL) && kernel_kills() > killed_before,
        last_lines: output.last_lines(),
    };
    let code = bye.code;
    beater.finish(bye);
    Ok(code)
}

fn code_of(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => exit::INTERNAL,
    }
}

/// Asks the kernel to kill us when our parent dies, and returns the parent.
fn die_with_parent() -> io::Result<u32> {
    let parent = std::os::unix::process::parent_id();
    // SAFETY: PR_SET_PDEATHSIG only takes a number.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(parent)
}

fn open_log(logs: &Path, rank: u32) -> io::Result<File> {
    std::fs::create_dir_all(logs)?;
    let path = logs.join(log_name(rank));
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display())))
}

fn start(command: &[OsString]) -> io::Result<Child> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program to start"))?;
    let guard = std::process::id();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: signal, prctl and getppid are plain system calls, safe between fork and exec. The
    // thread that spawns is the main one, which lives as long as the guard.
    unsafe {
        command.pre_exec(move || {
            for signal in FOR_THE_RANK {
                libc::signal(signal, libc::SIG_DFL);
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            match u32::try_from(libc::getppid()) {
                Ok(parent) if parent == guard => Ok(()),
                _ => Err(io::Error::other("the guard of this rank has died")),
            }
        });
    }
    command.spawn().map_err(|error| {
        let program = PathBuf::from(program);
        io::Error::new(error.kind(), format!("`{}`: {error}", program.display()))
    })
}

fn introduce(place: Place, pid: u32) -> Beater {
    let hello = Hello {
        role: Role::Guard,
        rank: place.rank,
        world_size: place.world_size,
        local_rank: place.local_rank,
        host: hostname(),
        pid,
        ..Hello::default()
    };
    Beater::from_environment(hello).unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "scpeft-launch: {error}");
        Beater::disabled()
    })
}

/// Waits for the rank; ends it when there is nobody left who would want it.
fn wait(child: &mut Child, beater: &Beater, parent: u32) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let abandoned = beater.lost_for().is_some_and(|lost| lost > ABANDONED);
        // A parent that died before we asked the kernel to watch it left us to another one.
        if abandoned || std::os::unix::process::parent_id() != parent {
            child.kill()?;
            return child.wait();
        }
        std::thread::sleep(TICK);
    }
}

/// Where the output of a rank goes.
#[derive(Clone)]
struct Output {
    log: Option<Arc<File>>,
    shows: bool,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Output {
    /// Follows both streams, each on a thread; the channel closes when both have ended.
    fn follow(&self, child: &mut Child) -> io::Result<Receiver<()>> {
        let (done, ends) = channel();
        if let Some(stdout) = child.stdout.take() {
            self.spawn("out", stdout, io::stdout(), done.clone())?;
        }
        if let Some(stderr) = child.stderr.take() {
            self.spawn("err", stderr, io::stderr(), done)?;
        }
        Ok(ends)
    }

    fn spawn(
        &self,
        name: &str,
        from: impl Read + Send + 'static,
        to: impl Write + Send + 'static,
        done: Sender<()>,
    ) -> io::Result<()> {
        let output = self.clone();
        std::thread::Builder::new()
            .name(format!("scpeft-{name}"))
            .spawn(move || {
                output.copy(from, to);
                drop(done);
            })?;
        Ok(())
    }

    fn copy(&self, mut from: impl Read, mut to: impl Write) {
        let mut buffer = [0; 8192];
        let mut line = Vec::new();
        while let Ok(got) = from.read(&mut buffer) {
            let bytes = &buffer[..got];
            if got == 0 {
                break;
            }
            if let Some(log) = &self.log {
                // A full disk must not stop the rank; its own writes will tell.
                let _ = (&**log).write_all(bytes);
            }
            if self.shows {
                let _ = to.write_all(bytes).and_then(|()| to.flush());
            }
            self.remember(&mut line, bytes);
        }
        if !line.is_empty() {
            self.remember(&mut line, b"\n");
        }
    }

    fn remember(&self, line: &mut Vec<u8>, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                if line.len() < LINE_BYTES {
                    line.push(*byte);
                }
                continue;
            }
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(readable(line));
            line.clear();
        }
    }

    fn last_lines(&self) -> Vec<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().cloned().collect()
    }
}

/// A line without what would move a terminal's cursor; one that was overwritten, as it was last.
fn readable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    let shown = text.rsplit('\r').next().unwrap_or_default();
    shown
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// How many processes of our control group, and those that it is inside of, the kernel has killed
/// for want of memory; 0 where it does not tell.
fn kernel_kills() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let root = Path::new("/sys/fs/cgroup");
            let path = path.trim_start_matches('/');
            let file = match controllers {
                "" => root.join(path).join("memory.events"),
                "memory" => root.join("memory").join(path).join("memory.oom_control"),
                _ => return None,
            };
            let text = std::fs::read_to_string(file).ok()?;
            let count = text
                .lines()
                .find_map(|line| line.strip_prefix("oom_kill "))?;
            count.trim().parse::<u64>().ok()
        })
        .sum()
}

/// This host's name, as the kernel has it.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_rank_comes_from_whoever_started_it() {
        let place = |set: &[(&str, &str)]| {
            let found = |name: &str| {
                let value = set.iter().find(|(n, _)| *n == name)?.1;
                Some(value.to_owned())
            };
            let Place {
                rank,
                world_size,
                local_rank,
            } = Place::from_environment(found);
            (rank, world_size, local_rank)
        };
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(place(&mpi), (3, 4, 1));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "2"),
        ];
        assert_eq!(place(&slurm), (5, 8, 2));
        assert_eq!(place(&[]), (0, 1, 0));
    }

    #[test]
    fn the_last_lines_are_kept_short_and_fit_a_message() {
        let output = Output {
            log: None,
            shows: false,
            last: Arc::default(),
        };
        let wide = "\u{1}\"".repeat(300);
        let mut lines: Vec<String> = (0..100).map(|n| format!("10%\r{n} {wide}")).collect();
        lines.push("the end".into());
        let text = lines.join("\n");
        output.copy(text.as_bytes(), io::sink());
        let lines = output.last_lines();
        assert_eq!(lines.len(), LAST_LINES);
        assert!(lines[0].starts_with("71 "), "{}", lines[0]);
        assert_eq!(lines[LAST_LINES - 1], "the end");
        let message = scpeft_protocol::heartbeat::encode(&lines);
        assert!(message.len() < scpeft_protocol::heartbeat::LINE_BYTES_MAX - 500);
    }

    #[test]
    fn both_streams_reach_the_log_and_only_rank_0_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let log = open_log(&folder.path().join("logs"), 12).unwrap();
        let output = Output {
            log: Some(Arc::new(log)),
            shows: false,
            last: Arc::default(),
        };
        let mut shown = Vec::new();
        output.copy("one\ntwo".as_bytes(), &mut shown);
        assert!(shown.is_empty());
        let text = std::fs::read_to_string(folder.path().join("logs/rank-00012.log")).unwrap();
        assert_eq!(text, "one\ntwo");
        assert_eq!(output.last_lines(), ["one", "two"]);
    }
}
