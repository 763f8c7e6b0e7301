//! `scpeft-launch` around the real trainer on two ranks: whoever is killed or asked to stop, the run
//! ends in the bytes of one that nobody disturbed, and nobody is left behind.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scpeft_tests::binary;
use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, events, logged_lines, loss_curve, rank_pids, signal, wait, wait_until,
};

/// What ranks may take to follow their launcher or each other.
const GONE: Duration = Duration::from_secs(5);
const STEPS: usize = 40 * 6;
const ARGUMENTS: [&str; 4] = [
    "--set",
    "train.epochs=40",
    "--set",
    "checkpoint.every_steps=7",
];

/// A folder with a corpus, and what an undisturbed run makes of it.
struct Stage {
    lab: Lab,
    losses: Vec<(u64, f64)>,
    adapter: Vec<u8>,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::new(&Plan::default());
        let whole = lab.train(2, "whole", &ARGUMENTS);
        let losses = loss_curve(&whole);
        assert_eq!(losses.len(), STEPS);
        Self {
            losses,
            adapter: adapter_bytes(&whole),
            lab,
        }
    }

    /// A launcher that has just been started, and the run directory.
    fn launch(&self, name: &str, more: &[&str]) -> (Child, PathBuf) {
        let run = self.lab.path(name);
        let child = Command::new(binary("scpeft-launch"))
            .args(["-n", "2", "--", "--config"])
            .arg(&self.lab.config)
            .args(["--set", &format!("run.dir={}", run.display())])
            .args(ARGUMENTS)
            .args(more)
            .env_remove("SLURM_JOB_ID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        (child, run)
    }

    /// One whose run has logged forty steps and evaluations.
    fn under_way(&self, name: &str) -> (Child, PathBuf, Vec<u32>) {
        let (child, run) = self.launch(name, &[]);
        wait_until("the run is under way", || logged_lines(&run) >= 40);
        let pids = rank_pids(&run);
        assert_eq!(pids.len(), 2, "{name}: both ranks are alive");
        (child, run, pids)
    }

    fn assert_same(&self, run: &Path) {
        let name = run.display();
        assert_eq!(loss_curve(run), self.losses, "{name}: losses, bit by bit");
        assert!(adapter_bytes(run) == self.adapter, "{name}: adapter bytes");
    }
}

fn assert_gone(run: &Path, since: Instant) {
    wait_until("no rank is left", || rank_pids(run).is_empty());
    assert!(since.elapsed() <= GONE, "{:?}", since.elapsed());
}

#[test]
fn whoever_is_killed_the_run_ends_as_an_undisturbed_one() {
    let stage = Stage::new();
    for victim in 0..2 {
        let (mut launcher, run, pids) = stage.under_way(&format!("rank-{victim}"));
        let killed = Instant::now();
        signal(pids[victim], "KILL");
        wait_until("the other rank is gone", || !alive(pids[1 - victim]));
        assert!(killed.elapsed() <= GONE, "{:?}", killed.elapsed());
        assert_eq!(wait(&mut launcher).code(), Some(0));
        let told = ["start", "failure", "restart", "start", "done"];
        assert_eq!(events(&run), told);
        stage.assert_same(&run);
    }

    let (mut launcher, run, _) = stage.under_way("launcher");
    signal(launcher.id(), "KILL");
    let killed = Instant::now();
    assert_eq!(wait(&mut launcher).code(), None);
    assert_gone(&run, killed);
    assert!(loss_curve_so_far(&run) < STEPS, "it was killed on the way");
    let (mut launcher, run) = stage.launch("launcher", &["--resume"]);
    assert_eq!(wait(&mut launcher).code(), Some(0));
    stage.assert_same(&run);
}

#[test]
fn a_stopped_run_is_saved_and_goes_on_from_what_verifies() {
    let stage = Stage::new();
    for name in ["TERM", "USR1"] {
        let (mut launcher, run, _) = stage.under_way(name);
        signal(launcher.id(), name);
        let asked = Instant::now();
        assert_eq!(wait(&mut launcher).code(), Some(85), "{name}");
        assert_gone(&run, asked);
        assert_eq!(events(&run), ["start", "stop"], "{name}");
        let stopped_at = loss_curve(&run).len();
        assert!((30..STEPS).contains(&stopped_at), "{name}: {stopped_at}");
        let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
        assert_eq!(latest.trim(), format!("step-{stopped_at:08}"), "{name}");
        let mut expected = stopped_at;
        if name == "USR1" {
            expected = saved(&run)
                .into_iter()
                .rfind(|step| *step < stopped_at)
                .unwrap();
            // The newest one is damaged: the one before it has to do.
            let file = run
                .join("checkpoints")
                .join(latest.trim())
                .join("trainer.safetensors");
            let mut bytes = std::fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
        let (mut launcher, run) = stage.launch(name, &["--resume"]);
        assert_eq!(wait(&mut launcher).code(), Some(0), "{name}");
        stage.assert_same(&run);
        let record = std::fs::read(run.join("run.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let from = record["starts"][1]["from_step"].as_u64().unwrap() as usize;
        assert_eq!(from, expected, "{name}");
    }
}

/// Steps of the checkpoints of a run, in order.
fn saved(run: &Path) -> Vec<usize> {
    let names = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut steps: Vec<usize> = names
        .filter_map(|entry| {
            let name = entry.unwrap().file_name();
            name.to_str()?.strip_prefix("step-")?.parse().ok()
        })
        .collect();
    steps.sort_unstable();
    steps
}

/// Whether a process runs and is not merely waiting to be reaped.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

/// Steps in the log of a killed run, whose last line may be cut off.
fn loss_curve_so_far(run: &Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().filter(|l| l.contains("\"train\"")).count()
}
