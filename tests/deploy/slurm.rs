//! A cluster of Slurm on this machine runs the sbatch script that we ship, whose launcher starts the
//! ranks through srun: the run is told to stop,
//! queued again, resumes, and ends in the same adapter as one that nobody disturbed.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scpeft_tests::corpus::Plan;
use scpeft_tests::monitoring::deploy;
use scpeft_tests::train::{Lab, adapter_bytes, events, logged_lines, loss_curve, text, wait_until};

/// Three daemons with a configuration, ports and state of their own. Ended with the test.
struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let cluster = Self {
            folder: folder.to_path_buf(),
        };
        for name in ["state", "spool"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let at = |name: &str| folder.join(name).display().to_string();
        let key = std::iter::repeat_with(|| uuid_like().into_bytes())
            .take(4)
            .flatten()
            .collect::<Vec<u8>>();
        std::fs::write(at("key"), key).unwrap();
        run("chmod", &["600", &at("key")]);
        run(
            "munged",
            &[
                "--force",
                &format!("--key-file={}", at("key")),
                &format!("--socket={}", at("munge.socket")),
                &format!("--pid-file={}", at("munged.pid")),
                &format!("--log-file={}", at("munged.log")),
                &format!("--seed-file={}", at("munged.seed")),
            ],
        );
        std::fs::write(at("slurm.conf"), configuration(folder)).unwrap();
        for daemon in ["slurmctld", "slurmd"] {
            run(daemon, &["-f", &at("slurm.conf")]);
        }
        wait_until("the node is idle", || {
            cluster.ask("sinfo", &["-h", "-o", "%T"]).trim() == "idle"
        });
        cluster
    }

    /// A client's answer, empty when it fails.
    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("SLURM_CONF", self.folder.join("slurm.conf"))
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}; `make setup-test` installs it"));
        text(&output.stdout)
    }

    /// What the daemons say.
    fn logs(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        ["slurmctld.log", "slurmd.log"].map(read).concat()
    }

    /// The value of a field of a job, such as `JobState`.
    fn field(&self, job: &str, name: &str) -> String {
        let shown = self.ask("scontrol", &["show", "job", job]);
        shown
            .split_whitespace()
            .find_map(|word| word.strip_prefix(&format!("{name}=")))
            .unwrap_or_default()
            .to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in ["slurmctld", "slurmd", "munged"] {
            let pid = std::fs::read_to_string(self.folder.join(format!("{daemon}.pid")));
            let Ok(pid) = pid else { continue };
            let _ = Command::new("kill").arg(pid.trim()).status();
            for _ in 0..100 {
                if !Path::new("/proc").join(pid.trim()).exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}

/// 36 random characters of the kernel.
fn uuid_like() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap_or_else(|e| panic!("{program}: {e}; `make setup-test` installs it"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn configuration(folder: &Path) -> String {
    // Held together, so that they differ.
    let held = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [control, node] = held.map(|listener| listener.local_addr().unwrap().port());
    let said = |program: &str, argument: &str| {
        text(&Command::new(program).arg(argument).output().unwrap().stdout)
            .trim()
            .to_owned()
    };
    let (host, user) = (said("hostname", "-s"), said("id", "-un"));
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "ClusterName=scpeft\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser={user}\nSlurmdUser={user}\n\
         AuthType=auth/munge\nAuthInfo=socket={}\nCredType=cred/munge\n\
         SlurmctldPort={control}\nSlurmdPort={node}\nStateSaveLocation={}\nSlurmdSpoolDir={}\n\
         SlurmctldPidFile={}\nSlurmdPidFile={}\nSlurmctldLogFile={}\nSlurmdLogFile={}\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
         MpiDefault=pmix\nKillWait=1\nReturnToService=2\nSlurmdParameters=config_overrides\n\
         NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n\
         PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4\n",
        at("munge.socket"),
        at("state"),
        at("spool"),
        at("slurmctld.pid"),
        at("slurmd.pid"),
        at("slurmctld.log"),
        at("slurmd.log"),
    )
}

#[test]
fn a_preempted_job_is_queued_again_and_ends_as_an_undisturbed_run() {
    let lab = Lab::new(&Plan::default());
    let epochs = ["--set", "train.epochs=60"];
    let undisturbed = lab.train(2, "undisturbed", &epochs);

    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let script = deploy("slurm/train.sbatch").display().to_string();
    let log = folder.path().join("job.out");
    let preempted = lab.path("preempted");
    let submitted = cluster.ask(
        "sbatch",
        &[
            "--parsable",
            "--cpus-per-task=1",
            &format!("--chdir={}", folder.path().display()),
            &format!("--output={}", log.display()),
            &format!(
                "--export=ALL,SCPEFT_LAUNCH={}",
                scpeft_tests::binary("scpeft-launch").display()
            ),
            &script,
            "--config",
            &lab.config.display().to_string(),
            "--set",
            &format!("run.dir={}", preempted.display()),
            epochs[0],
            epochs[1],
        ],
    );
    let job = submitted.trim();
    assert!(job.parse::<u32>().is_ok(), "sbatch said `{submitted}`");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();

    wait_until("the job has taken twenty steps", || {
        logged_lines(&preempted) >= 20
    });
    // What `#SBATCH --signal=B:USR1@180` sends three minutes before the end: to the script alone.
    cluster.ask("scancel", &["--batch", "--signal=USR1", job]);
    wait_until("the job is queued again", || {
        cluster.field(job, "Restarts") == "1"
    });
    let steps_before = loss_curve(&preempted).len();
    assert!(
        steps_before < 360,
        "it was stopped on the way: {steps_before}"
    );
    assert!(
        said().contains("exit code 85, queued again (start 2)"),
        "{}",
        said()
    );

    // Slurm lets a job wait for two minutes after that; an operator need not. But slurmd refuses a start
    // in the very second in which the one before was ended.
    std::thread::sleep(std::time::Duration::from_secs(2));
    wait_until("the job ends", || {
        let state = cluster.field(job, "JobState");
        if state == "PENDING" {
            let this = format!("JobId={job}");
            cluster.ask("scontrol", &["update", &this, "StartTime=now"]);
        }
        !matches!(
            state.as_str(),
            "PENDING" | "RUNNING" | "COMPLETING" | "CONFIGURING"
        )
    });
    assert_eq!(
        cluster.field(job, "JobState"),
        "COMPLETED",
        "{}\n{}\n{}",
        said(),
        cluster.ask("scontrol", &["show", "job", job]),
        cluster.logs()
    );
    // One file holds the output of both starts.
    assert!(said().contains("resumed at step"), "{}", said());
    // The launcher started both ranks through srun, each with a log of its own; rank 1 has little to say.
    let log = |rank| std::fs::read_to_string(preempted.join(format!("logs/rank-0000{rank}.log")));
    assert!(log(0).unwrap().contains("resumed at step"));
    assert!(!log(1).unwrap().contains("resumed at step"));
    assert_eq!(events(&preempted), ["start", "stop", "start", "done"]);
    assert_eq!(loss_curve(&preempted), loss_curve(&undisturbed));
    assert!(adapter_bytes(&preempted) == adapter_bytes(&undisturbed));
}
