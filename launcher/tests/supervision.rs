//! `scpeft-launch` around a small stand-in for `scpeft-train`: real processes under the real
//! `mpirun`, restarted, killed and left behind. The stand-in is a shell script of that name which
//! runs the file `behave` with its rank and the number of the attempt.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also in its helpers, a panic is the report"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const STAND_IN: &str = r#"#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-0}
last=$((${OMPI_COMM_WORLD_SIZE:-1} - 1))
here=$(dirname "$0")
attempt=$(( $(cat "$here/attempt.$rank" 2>/dev/null || echo 0) + 1 ))
echo $attempt > "$here/attempt.$rank"
echo "$@" > "$here/arguments.$attempt.$rank"
# Files appear whole, so that whoever waits for one can read it.
leave() { echo "$2" > "$here/$1.$rank.part"; mv "$here/$1.$rank.part" "$here/$1.$rank"; }
checkpoint() {
    mkdir -p "$here/run/checkpoints/$1"; echo abc > "$here/run/checkpoints/$1/a"
    echo '{"files":{"a":{"bytes":4}}}' > "$here/run/checkpoints/$1/manifest.json"
}
forever() { leave ready $$; while :; do sleep 0.05; done; }
. "$here/behave"
"#;

struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    /// A stand-in that behaves as the shell lines say.
    fn new(behave: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("behave", behave);
        write("scpeft-train", STAND_IN);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path().join("scpeft-train"), mode).unwrap();
        let config = format!(
            "[run]\ndir = \"{}\"\n[data]\ncorpus = \"c\"\nlabel = \"l\"\n\
             [backbone]\npath = \"b\"\n[adapter]\nkind = \"lora\"\n",
            folder.path().join("run").display()
        );
        write("f.toml", &config);
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn number(&self, name: &str) -> u32 {
        self.read(name).trim().parse().unwrap()
    }

    /// Starts `ranks` stand-ins.
    fn start(&self, ranks: u32, options: &[&str]) -> Running<'_> {
        let output = |name| std::fs::File::create(self.path(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_scpeft-launch"))
            .args(["-n", &ranks.to_string(), "--listen", "none"])
            .args(options)
            .arg("--")
            .arg(self.path("scpeft-train"))
            .arg("--config")
            .arg(self.path("f.toml"))
            .arg("--overwrite")
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        Running { stage: self, child }
    }

    fn run(&self, ranks: u32, options: &[&str]) -> i32 {
        self.start(ranks, options).end().unwrap()
    }

    /// Kinds of the events of the run, in order.
    fn events(&self) -> Vec<String> {
        self.read("run/events.jsonl")
            .lines()
            .map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                event["kind"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}

struct Running<'a> {
    stage: &'a Stage,
    child: Child,
}

impl Running<'_> {
    /// Process ids of the ranks, once all of them are ready.
    fn pids(&self, ranks: u32) -> Vec<u32> {
        let name = |rank| format!("ready.{rank}");
        wait_until("every rank is ready", || {
            (0..ranks).all(|rank| self.stage.path(&name(rank)).exists())
        });
        (0..ranks)
            .map(|rank| self.stage.number(&name(rank)))
            .collect()
    }

    fn signal(&self, signal: &str) {
        kill(signal, self.child.id());
    }

    fn end(mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the launcher has ended", || {
            let status = self.child.try_wait().unwrap();
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.starts_with(" Z"))
    })
}

fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_at_most(PATIENCE, what, done);
}

fn wait_at_most(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < patience,
            "still not so after {patience:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_rank_has_its_log_and_only_rank_0_the_terminal() {
    let stage = Stage::new("echo out of $rank; echo err of $rank >&2");
    assert_eq!(stage.run(2, &[]), 0, "{}", stage.read("stderr"));
    assert_eq!(stage.read("stdout"), "out of 0\n");
    assert_eq!(stage.read("stderr"), "err of 0\n");
    for rank in 0..2 {
        let log = stage.read(&format!("run/logs/rank-{rank:05}.log"));
        assert!(log.contains(&format!("out of {rank}\n")), "{log}");
        assert!(log.contains(&format!("err of {rank}\n")), "{log}");
    }
    assert_eq!(stage.events(), ["start", "done"]);
}

#[test]
fn the_first_rank_that_fails_is_named_with_its_last_lines() {
    // Rank 0 fails as well, because of it, and with another code.
    let stage = Stage::new(
        "trap 'exit 7' TERM
         [ $rank = 0 ] && forever
         seq 1 50 >&2; echo 'error: no such corpus' >&2; exit 3",
    );
    assert_eq!(stage.run(2, &[]), 3);
    let stderr = stage.read("stderr");
    assert!(
        stderr.contains("failed first; likely cause: the corpus or an input file"),
        "{stderr}"
    );
    assert!(stderr.contains("scpeft-launch: rank 1 on "), "{stderr}");
    assert!(stderr.contains("  | error: no such corpus\n"), "{stderr}");
    assert!(
        stderr.contains("  | 22\n") && !stderr.contains("  | 20\n"),
        "{stderr}"
    );
    assert_eq!(stage.events(), ["start", "failure"]);
}

#[test]
fn codes_that_no_retry_can_mend_are_final() {
    for code in [2, 3, 4, 86] {
        let stage = Stage::new(&format!("exit {code}"));
        assert_eq!(stage.run(1, &[]), code);
        assert_eq!(stage.number("attempt.0"), 1);
    }
}

#[test]
fn hangs_preemptions_and_crashes_are_resumed() {
    for end in ["exit 75", "exit 85", "kill -SEGV $$"] {
        let stage = Stage::new(&format!("[ $attempt = 2 ] && exit 0; {end}"));
        assert_eq!(stage.run(2, &[]), 0, "{end}: {}", stage.read("stderr"));
        assert_eq!(
            stage.events(),
            ["start", "failure", "restart", "start", "done"]
        );
        let first = stage.read("arguments.1.0");
        assert!(first.trim().ends_with("--overwrite"), "{first}");
        let second = stage.read("arguments.2.0");
        assert!(
            second.trim().ends_with("--resume") && !second.contains("--overwrite"),
            "{second}"
        );
    }
}

#[test]
fn a_killed_rank_is_told_and_the_run_resumed() {
    for victim in 0..2 {
        let stage = Stage::new("[ $attempt = 2 ] && exit 0; forever");
        let running = stage.start(2, &[]);
        kill("-KILL", running.pids(2)[victim]);
        assert_eq!(running.end(), Some(0), "{}", stage.read("stderr"));
        let stderr = stage.read("stderr");
        assert!(stderr.contains("signal 9 (SIGKILL)"), "{stderr}");
        assert!(stderr.contains(&format!("rank {victim} on ")), "{stderr}");
        assert_eq!(
            stage.events(),
            ["start", "failure", "restart", "start", "done"]
        );
    }
}

#[test]
fn a_crash_loop_ends_and_progress_lets_it_go_on() {
    let stage = Stage::new("exit 75");
    assert_eq!(stage.run(1, &["--max-restarts", "1"]), 75);
    assert_eq!(stage.number("attempt.0"), 2);
    assert!(
        stage.read("stderr").contains("given up"),
        "{}",
        stage.read("stderr")
    );
    let stage = Stage::new("checkpoint step-0000000$attempt; [ $attempt = 3 ] && exit 0; exit 75");
    assert_eq!(
        stage.run(1, &["--max-restarts", "1"]),
        0,
        "{}",
        stage.read("stderr")
    );
    assert_eq!(stage.number("attempt.0"), 3);
}

#[test]
fn a_run_that_was_asked_to_stop_saves_and_stays_stopped() {
    let stage = Stage::new(
        "trap 'leave saved; until [ -e $here/saved.0 -a -e $here/saved.$last ]; do sleep 0.02; done; exit 85' USR1
         forever",
    );
    let running = stage.start(2, &[]);
    running.pids(2);
    running.signal("-USR1");
    assert_eq!(running.end(), Some(85), "{}", stage.read("stderr"));
    assert!(stage.path("saved.0").exists() && stage.path("saved.1").exists());
    assert_eq!(stage.number("attempt.0"), 1);
    assert_eq!(stage.events(), ["start", "stop"]);
}

/// `timeout` signals the group and its leader: the launcher hears one request twice.
#[test]
fn a_request_that_comes_twice_at_once_is_one() {
    let stage = Stage::new(
        "trap 'sleep 0.3; leave saved; until [ -e $here/saved.0 -a -e $here/saved.$last ]; do sleep 0.02; done; exit 85' USR1
         forever",
    );
    let running = stage.start(2, &[]);
    running.pids(2);
    for signal in ["-INT", "-INT", "-TERM"] {
        running.signal(signal);
    }
    assert_eq!(running.end(), Some(85), "{}", stage.read("stderr"));
    let stderr = stage.read("stderr");
    assert!(!stderr.contains("without waiting"), "{stderr}");
    assert!(stage.path("saved.0").exists() && stage.path("saved.1").exists());
}

#[test]
fn a_stop_request_ends_the_pause_before_a_restart() {
    let stage = Stage::new("exit 75");
    let running = stage.start(1, &["--max-restarts", "9"]);
    wait_until("it backs off", || {
        std::fs::read_to_string(stage.path("stderr"))
            .unwrap()
            .contains("again in 4 s")
    });
    running.signal("-TERM");
    let begun = Instant::now();
    assert_eq!(running.end(), Some(75));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(stage.events().last().unwrap(), "stop");
}

#[test]
fn nothing_outlives_a_killed_launcher_by_five_seconds() {
    for ranks in [1, 2] {
        let stage = Stage::new("trap '' TERM INT HUP USR1; forever");
        let running = stage.start(ranks, &[]);
        let pids = running.pids(ranks);
        running.signal("-KILL");
        wait_at_most(Duration::from_secs(5), "no rank is left", || {
            pids.iter().all(|pid| !alive(*pid))
        });
    }
}

#[test]
fn a_rank_does_not_outlive_its_guard() {
    let stage = Stage::new("trap '' TERM INT HUP USR1; forever");
    let running = stage.start(1, &["--max-restarts", "0"]);
    let pids = running.pids(1);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pids[0])).unwrap();
    let guard = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kill("-KILL", guard);
    assert_eq!(running.end(), Some(137));
    wait_at_most(Duration::from_secs(5), "the rank is gone", || {
        !alive(pids[0])
    });
}

#[test]
fn the_token_is_in_no_command_line_and_the_socket_goes_with_the_run() {
    let stage =
        Stage::new("echo $SCPEFT_HEARTBEAT $SCPEFT_HEARTBEAT_TOKEN > $here/secret; forever");
    let running = stage.start(2, &["--grace-secs", "1"]);
    let pids = running.pids(2);
    let secret = stage.read("secret");
    let (address, token) = secret.trim().split_once(' ').unwrap();
    assert_eq!(token.len(), 32);
    let socket = address.strip_prefix("unix:").unwrap();
    assert!(Path::new(socket).exists());
    for entry in std::fs::read_dir("/proc").unwrap() {
        let words = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&words).contains(token));
    }
    running.signal("-TERM");
    assert!(running.end().is_some_and(|code| code != 0));
    assert!(!Path::new(socket).exists());
    assert!(pids.iter().all(|pid| !alive(*pid)));
}

#[test]
fn a_dry_run_and_refusals_start_nothing() {
    let stage = Stage::new("exit 0");
    let launch = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_scpeft-launch"))
            .args(arguments)
            .env_remove("SLURM_JOB_ID")
            .arg("--")
            .arg(stage.path("scpeft-train"))
            .arg("--config")
            .arg(stage.path("f.toml"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, stdout, stderr) = launch(&["--hosts", "n1:2,n2", "--dry-run"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("/mpirun -n 3 --bind-to none --host n1:2,n2:1 --map-by slot "),
        "{stdout}"
    );
    assert!(stdout.contains("/scpeft-launch rank --logs "), "{stdout}");
    for (arguments, expected) in [
        (
            &["--hosts", "n1:2", "-n", "3"][..],
            "`3` ranks on hosts that take `2`",
        ),
        (&["--hosts", "n1:0"], "`n1:0` names no host"),
        (
            &["--hostfile", "/nonexistent"],
            "cannot read the hosts in `/nonexistent`",
        ),
        (
            &["--via", "srun", "--hosts", "n1:2"],
            "hosts cannot be named with `srun`",
        ),
        (&["--allow-shrink", "-n", "2"], "needs `--hosts`"),
        (&["--host-timeout-secs", "14"], "14 is not in 15.."),
        (&[], "--ranks <N>"),
    ] {
        let (code, stdout, stderr) = launch(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains(expected) && stdout.is_empty(),
            "{arguments:?}: {stderr}"
        );
    }
    assert!(!stage.path("attempt.0").exists());
}
