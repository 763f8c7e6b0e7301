//! Two hosts, in network namespaces of this machine, joined through `mpirun`: they train as one host
//! does, and when one is cut off, the launcher names it and goes on with the other.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scpeft_tests::binary;
use scpeft_tests::corpus::Plan;
use scpeft_tests::hosts::Hosts;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_same_curve, events, logged_lines, loss_curve, rank_pids, wait,
    wait_until,
};

/// The shortest time after which a host counts as cut off, in seconds.
const HOST_TIMEOUT: u64 = 15;

struct Stage {
    hosts: Hosts,
    lab: Lab,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::new(&Plan::default());
        Self {
            hosts: Hosts::up(2, lab.dir.path()),
            lab,
        }
    }

    /// A launcher of one rank on each host, its run directory, and where it tells what happens.
    fn launch(&self, name: &str, options: &[&str], more: &[&str]) -> (Child, PathBuf, PathBuf) {
        let (run, told) = (self.lab.path(name), self.lab.path(&format!("{name}.err")));
        let hosts = [0, 1].map(|host| self.hosts.address(host)).join(",");
        let mut command = Command::new(binary("scpeft-launch"));
        command
            .args(["--hosts", &hosts, "--advertise", &self.hosts.gateway()])
            .args(options)
            .args(["--", "--config"])
            .arg(&self.lab.config)
            .args(["--set", &format!("run.dir={}", run.display())])
            .args(more)
            .env_remove("SLURM_JOB_ID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&told).unwrap());
        self.hosts.join(&mut command);
        (command.spawn().unwrap(), run, told)
    }
}

#[test]
fn two_hosts_train_as_one_does() {
    let stage = Stage::new();
    let whole = stage.lab.train(2, "whole", &[]);
    let (mut launcher, run, told) = stage.launch("run", &[], &[]);
    let code = wait(&mut launcher).code();
    assert_eq!(code, Some(0), "{}", std::fs::read_to_string(told).unwrap());
    assert_eq!(loss_curve(&run), loss_curve(&whole));
    assert!(adapter_bytes(&run) == adapter_bytes(&whole));
    let record = std::fs::read(run.join("run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let start = &record["starts"][0];
    assert_eq!(
        (&start["world_size"], &start["host"]),
        (&2.into(), &stage.hosts.name(0).into())
    );
}

#[test]
fn a_host_that_is_cut_off_is_named_and_left_out() {
    let stage = Stage::new();
    let many = [
        "--set",
        "train.epochs=2000",
        "--set",
        "checkpoint.every_steps=20",
    ];
    let options = ["--host-timeout-secs", "15", "--allow-shrink"];
    let (mut launcher, run, told) = stage.launch("cut", &options, &many);
    wait_until("the run is under way", || logged_lines(&run) >= 60);
    assert_eq!(rank_pids(&run).len(), 2);
    stage.hosts.cut_off(1);
    let cut = Instant::now();
    wait_until("the host is named", || {
        events(&run).contains(&"cut-off".to_owned())
    });
    let named = cut.elapsed();
    assert!(
        named >= Duration::from_secs(HOST_TIMEOUT - 2)
            && named <= Duration::from_secs(HOST_TIMEOUT + 8),
        "{named:?}"
    );
    // Nothing is left on the host that nobody can reach.
    assert_eq!(stage.hosts.programs(1), [""; 0]);
    let before = loss_curve(&run).len();
    wait_until("the other host goes on", || {
        loss_curve_len(&run) >= before + 20
    });
    // Nothing of the first start was left when the second began.
    assert_eq!(rank_pids(&run).len(), 1);
    scpeft_tests::train::signal(launcher.id(), "TERM");
    let code = wait(&mut launcher).code();
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(code, Some(85), "{told}");
    let address = stage.hosts.address(1);
    let line = format!("host {address} is cut off: nothing heard of its ranks (1) for ");
    assert!(told.contains(&line), "{told}");
    assert!(
        told.contains(&format!("going on without {address}, with 1 of 2 ranks")),
        "{told}"
    );
    assert_eq!(
        events(&run),
        ["start", "cut-off", "shrink", "restart", "start", "stop"]
    );
    // On one rank the same batches follow, up to rounding.
    let whole = stage.lab.train(
        1,
        "whole",
        &["--set", "train.epochs=2000", "--set", "train.max_steps=60"],
    );
    assert_same_curve(&loss_curve(&run)[..60], &loss_curve(&whole), 2e-4);
}

fn loss_curve_len(run: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"train\"")).count()
}
