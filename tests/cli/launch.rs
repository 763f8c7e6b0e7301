//! `scpeft-launch` with the real `mpirun` and small shell programs as ranks: what it starts, which
//! exit code it relays, and what its signals do to the ranks.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also in its helpers, a panic is the report"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// A rank that leaves `ready.RANK` in the folder `$0`, and on SIGUSR1 takes longer to save than
/// `mpirun`'s own patience, leaves `saved.RANK`, waits until all have and exits with the code for
/// "preempted".
const SAVES_ON_REQUEST: &str = r#"
    rank=${OMPI_COMM_WORLD_RANK:-0}
    last=$((${OMPI_COMM_WORLD_SIZE:-1} - 1))
    save() {
        sleep 2; touch "$0/saved.$rank"
        until [ -e "$0/saved.0" ] && [ -e "$0/saved.$last" ]; do sleep 0.05; done
        exit 85
    }
    trap save USR1
    echo $$ > "$0/ready.$rank.part"; mv "$0/ready.$rank.part" "$0/ready.$rank"
    while :; do sleep 0.05; done"#;

/// A rank that will not be asked.
const IGNORES_REQUESTS: &str = r#"
    rank=${OMPI_COMM_WORLD_RANK:-0}
    trap '' USR1
    echo $$ > "$0/ready.$rank.part"; mv "$0/ready.$rank.part" "$0/ready.$rank"
    while :; do sleep 0.05; done"#;

fn launcher() -> Command {
    let mut command = Command::new(scpeft_tests::binary("scpeft-launch"));
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    launcher().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A launcher at work with ranks that have all reported themselves ready.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
    pids: Vec<u32>,
}

impl Running {
    fn start(ranks: u32, options: &[&str], script: &str) -> Self {
        use std::os::unix::process::CommandExt as _;
        let folder = tempfile::tempdir().unwrap();
        let stderr = std::fs::File::create(folder.path().join("stderr")).unwrap();
        let child = launcher()
            .args(["-n", &ranks.to_string()])
            .args(options)
            .args(["--", "bash", "-c", script])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .unwrap();
        let ready = |rank| folder.path().join(format!("ready.{rank}"));
        wait_until("every rank is ready", || {
            (0..ranks).all(|rank| ready(rank).exists())
        });
        let pid = |rank| {
            std::fs::read_to_string(ready(rank))
                .unwrap()
                .trim()
                .parse()
                .unwrap()
        };
        let pids = (0..ranks).map(pid).collect();
        Self {
            child,
            folder,
            pids,
        }
    }

    fn signal(&self, signal: &str) {
        kill(signal, &self.child.id().to_string());
    }

    /// Waits for the end; gives the exit code, if any, and what was said on stderr.
    fn end(mut self) -> (Option<i32>, String, PathBuf, tempfile::TempDir) {
        let mut code = None;
        wait_until("the launcher has ended", || {
            self.child
                .try_wait()
                .unwrap()
                .inspect(|status| code = status.code())
                .is_some()
        });
        wait_until("no rank is left", || {
            self.pids.iter().all(|pid| !alive(*pid))
        });
        let path = self.folder.path().to_path_buf();
        (
            code,
            std::fs::read_to_string(path.join("stderr")).unwrap(),
            path,
            self.folder,
        )
    }
}

fn kill(signal: &str, target: &str) {
    let status = Command::new("kill")
        .args([signal, "--", target])
        .status()
        .unwrap();
    assert!(status.success(), "kill {signal} {target}");
}

/// Whether a process exists and is not merely waiting to be reaped.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.starts_with(" Z"))
    })
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < PATIENCE,
            "still not so after {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_exit_code_of_the_only_rank_is_relayed() {
    for code in [0, 2, 3, 75, 85] {
        let output = run(&["-n", "1", "--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn the_exit_code_of_the_one_rank_that_fails_is_relayed_and_explained() {
    for (code, word) in [
        (2, "configuration"),
        (75, "retry"),
        (85, "--resume"),
        (86, "non-finite"),
    ] {
        let script = format!("test $OMPI_COMM_WORLD_RANK = 0 || exit {code}");
        let output = run(&["-n", "2", "--", "sh", "-c", &script]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let line = stderr
            .lines()
            .find(|line| line.starts_with("scpeft-launch: "))
            .unwrap();
        assert!(
            line.contains(word) && line.ends_with(&format!("(exit code {code})")),
            "{line}"
        );
    }
}

#[test]
fn ranks_that_succeed_leave_only_their_own_output() {
    let output = run(&[
        "-n",
        "2",
        "--",
        "sh",
        "-c",
        "echo rank $OMPI_COMM_WORLD_RANK",
    ]);
    let mut lines: Vec<String> = text(&output.stdout).lines().map(String::from).collect();
    lines.sort();
    assert_eq!(lines, ["rank 0", "rank 1"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn more_ranks_than_cores_start() {
    let ranks = std::thread::available_parallelism().unwrap().get() + 2;
    let output = run(&["-n", &ranks.to_string(), "--", "echo", "here"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "here\n".repeat(ranks));
}

#[test]
fn a_killed_rank_ends_the_run_with_137_and_takes_the_others_along() {
    let running = Running::start(2, &[], IGNORES_REQUESTS);
    kill("-KILL", &running.pids[1].to_string());
    let (code, stderr, ..) = running.end();
    assert_eq!(code, Some(137), "{stderr}");
    assert!(
        stderr.contains("scpeft-launch: a rank was killed by signal 9 (SIGKILL)"),
        "{stderr}"
    );
}

#[test]
fn each_stop_signal_lets_every_rank_save() {
    for (signal, ranks) in [("-TERM", 2), ("-USR1", 2), ("-INT", 2), ("-TERM", 1)] {
        let running = Running::start(ranks, &[], SAVES_ON_REQUEST);
        running.signal(signal);
        let (code, stderr, path, _folder) = running.end();
        assert_eq!(code, Some(85), "{signal}: {stderr}");
        for rank in 0..ranks {
            assert!(
                path.join(format!("saved.{rank}")).exists(),
                "{signal}, rank {rank}: {stderr}"
            );
        }
        assert!(
            stderr.contains("scpeft-launch: stop requested"),
            "{signal}: {stderr}"
        );
        assert!(
            stderr.contains("run the same command with `--resume`"),
            "{signal}: {stderr}"
        );
    }
}

#[test]
fn ctrl_c_in_a_terminal_lets_every_rank_save() {
    // A terminal sends SIGINT to the whole foreground process group, not to the launcher alone.
    let running = Running::start(2, &[], SAVES_ON_REQUEST);
    kill("-INT", &format!("-{}", running.child.id()));
    let (code, stderr, path, _folder) = running.end();
    assert_eq!(code, Some(85), "{stderr}");
    assert!(
        path.join("saved.0").exists() && path.join("saved.1").exists(),
        "{stderr}"
    );
}

#[test]
fn a_second_request_and_the_end_of_the_grace_period_stop_at_once() {
    for ranks in [1, 2] {
        let running = Running::start(ranks, &[], IGNORES_REQUESTS);
        running.signal("-TERM");
        // The two must not merge into one pending signal.
        let stderr = running.folder.path().join("stderr");
        wait_until("the first request is announced", || {
            std::fs::read_to_string(&stderr)
                .unwrap()
                .contains("stop requested")
        });
        // Sooner it would be the echo of the first.
        std::thread::sleep(Duration::from_millis(1100));
        running.signal("-TERM");
        let (code, stderr, ..) = running.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}: {stderr}");
        assert!(
            stderr.contains("without waiting for them to save"),
            "{stderr}"
        );

        let running = Running::start(ranks, &["--grace-secs", "1"], IGNORES_REQUESTS);
        running.signal("-TERM");
        let (code, stderr, ..) = running.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}: {stderr}");
        assert!(
            stderr.contains("without waiting for them to save"),
            "{stderr}"
        );
    }
}

#[test]
fn ranks_do_not_outlive_a_killed_launcher() {
    for ranks in [1, 2] {
        let running = Running::start(ranks, &[], IGNORES_REQUESTS);
        running.signal("-KILL");
        let (code, ..) = running.end();
        assert_eq!(code, None);
    }
}

#[test]
fn mistakes_are_named_with_the_configuration_code() {
    let cases: [(&[&str], &str); 8] = [
        (
            &["-n", "2", "--", "no-such-program"],
            "no program `no-such-program`",
        ),
        (
            &["-n", "1", "--", "./no-such-program"],
            "no program `./no-such-program`",
        ),
        (
            &["-n", "2", "--mpirun", "/nonexistent", "--", "true"],
            "apt-get install openmpi-bin",
        ),
        (&["-n", "0", "--", "true"], "0 is not in 1.."),
        (
            &["-n", "100000", "--", "true"],
            "cannot start `100000` ranks",
        ),
        (&["-n", "two", "--", "true"], "invalid value 'two'"),
        (&["-n", "2"], "<COMMAND>"),
        (&["--", "true"], "--ranks <N>"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn one_rank_needs_no_mpirun() {
    let output = run(&["-n", "1", "--mpirun", "/nonexistent", "--", "echo", "alone"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "alone\n");
}

#[test]
fn a_dry_run_prints_the_line_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let witness = witness.to_str().unwrap();
    let output = run(&["-n", "2", "--dry-run", "--", "touch", witness, "a b"]);
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        line.contains("/mpirun -n 2 --bind-to none ") && line.lines().count() == 1,
        "{line}"
    );
    assert!(
        line.ends_with(&format!("/touch {witness} 'a b'\n")),
        "{line}"
    );
    assert!(!Path::new(witness).exists());
}

#[test]
fn scpeft_programs_beside_the_launcher_are_found() {
    let output = run(&["-n", "1", "--dry-run", "--", "scpeft-launch", "--version"]);
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(line.ends_with("/scpeft-launch --version\n"), "{line}");
}

#[test]
fn help_lists_options_and_exit_codes() {
    let output = run(&["--help"]);
    let help = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for expected in [
        "--ranks",
        "--mpirun",
        "--grace-secs",
        "--dry-run",
        "Exit codes:",
        "preempted",
    ] {
        assert!(help.contains(expected), "no `{expected}` in:\n{help}");
    }
}
