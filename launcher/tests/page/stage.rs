//! A run to look at: `scpeft-launch` around a shell script that stands in for `scpeft-train`, with
//! heartbeats of its ranks sent from here.

use scpeft_protocol::heartbeat::{Beater, Hello, Section};
use serde_json::Value;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const STAND_IN: &str = r#"#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-0}
here=$(dirname "$0")
[ "$1" = plan ] && { cat "$here/plan"; exit 0; }
leave() { echo "$2" > "$here/$1.$rank.part"; mv "$here/$1.$rank.part" "$here/$1.$rank"; }
trap 'exit 85' USR1
echo "hello from rank $rank, <img src=x onerror='window.injected=1'> https://user:swordfish@store/cells"
leave secret "$SCPEFT_HEARTBEAT $SCPEFT_HEARTBEAT_TOKEN"
leave pid $$
while :; do sleep 0.05; done
"#;

pub(crate) struct Stage {
    pub(crate) folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("scpeft-train", STAND_IN);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path().join("scpeft-train"), mode).unwrap();
        let dir = folder.path().join("run").display().to_string();
        let config = format!(
            "[run]\ndir = \"{dir}\"\n[data]\ncorpus = \"c\"\nlabel = \"l\"\n\
             [backbone]\npath = \"b\"\n[adapter]\nkind = \"lora\"\n"
        );
        write("f.toml", &config);
        std::fs::create_dir(folder.path().join("run")).unwrap();
        write("run/config.toml", &resolved(&dir));
        write("run/run.json", RECORD);
        write("plan", PLAN);
        write("run/metrics.jsonl", &metrics());
        for step in [40, 80] {
            let checkpoint = format!("run/checkpoints/step-{step:08}");
            std::fs::create_dir_all(folder.path().join(&checkpoint)).unwrap();
            write(&format!("{checkpoint}/a"), "abc");
            write(
                &format!("{checkpoint}/manifest.json"),
                "{\"files\":{\"a\":{\"bytes\":3}},\"score\":{\"metric\":\"macro_f1\",\"value\":0.5}}",
            );
        }
        write("run/LATEST", "step-00000080\n");
        write("run/BEST", "step-00000040\n");
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Starts the launcher around two ranks.
    pub(crate) fn start(&self) -> Running {
        let output = |name| std::fs::File::create(self.path(name)).unwrap();
        let child = launcher()
            .args([
                "-n",
                "2",
                "--max-restarts",
                "0",
                "--listen",
                "127.0.0.1:0",
                "--",
            ])
            .arg(self.path("scpeft-train"))
            .arg("--config")
            .arg(self.path("f.toml"))
            .env("SOME_SECRET", "swordfish")
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        let running = Running { child };
        wait_until("the ranks are there", || {
            (0..2).all(|rank| self.path(&format!("pid.{rank}")).exists())
        });
        running
    }

    /// Serves the run directory after the end.
    pub(crate) fn view(&self) -> (Running, String) {
        let child = launcher()
            .arg("view")
            .arg(self.run_dir())
            .args(["--listen", "127.0.0.1:0"])
            .stderr(std::fs::File::create(self.path("view")).unwrap())
            .spawn()
            .unwrap();
        let running = Running { child };
        let mut url = None;
        wait_until("the page is served", || {
            let said = std::fs::read_to_string(self.path("view")).unwrap();
            let rest = said.split_once("page: ").map(|(_, rest)| rest.to_owned());
            url = rest.and_then(|rest| rest.split_once(' ').map(|(url, _)| url.to_owned()));
            url.is_some()
        });
        (running, url.unwrap())
    }

    /// Address of the page, and the token.
    pub(crate) fn page(&self) -> (String, String) {
        let page = std::fs::read(self.path("run/launcher.json")).unwrap();
        let page: Value = serde_json::from_slice(&page).unwrap();
        let token = std::fs::read_to_string(self.path("run/page-token")).unwrap();
        (
            page["page"].as_str().unwrap().to_owned(),
            token.trim().to_owned(),
        )
    }

    /// Heartbeats of a rank, as the trainer would send them.
    pub(crate) fn beater(&self, rank: u32, metrics_port: Option<u16>) -> Beater {
        let secret = std::fs::read_to_string(self.path("secret.0")).unwrap();
        let (address, token) = secret.trim().split_once(' ').unwrap();
        let hello = Hello {
            rank,
            world_size: 2,
            local_rank: rank,
            host: "node1".into(),
            pid: 1,
            device: format!("cuda:{rank}"),
            metrics_port,
            ..Hello::default()
        };
        let beater = Beater::start(address.parse().unwrap(), token.into(), hello).unwrap();
        beater.section(Section::Forward);
        beater.update(|beat| {
            beat.step = 80;
            beat.planned_steps = 200;
            beat.memory_bytes = 3 << 30;
            beat.cells_per_second = Some(1234.0);
        });
        beater
    }

    pub(crate) fn pid(&self, rank: u32) -> u32 {
        let pid = std::fs::read_to_string(self.path(&format!("pid.{rank}"))).unwrap();
        pid.trim().parse().unwrap()
    }
}

fn launcher() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scpeft-launch"));
    command.stdin(Stdio::null());
    command
}

/// A process that ends with the test.
pub(crate) struct Running {
    pub(crate) child: Child,
}

impl Running {
    pub(crate) fn end(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("it has ended", || {
            let status = self.child.try_wait().unwrap();
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Whether a path of the run directory is for its owner alone.
pub(crate) fn is_private(path: &Path) -> bool {
    path.metadata()
        .unwrap()
        .permissions()
        .mode()
        .trailing_zeros()
        >= 6
}

fn resolved(dir: &str) -> String {
    format!(
        "[run]\ndir = \"{dir}\" # f.toml:2\nname = \"<b>lung</b>\" # f.toml:3\nseed = 0 # default\n\n\
         [data]\ncorpus = \"https://user:swordfish@store/cells\" # --set\n\n[metrics]\nbind = \"127.0.0.1\" # default\n"
    )
}

const RECORD: &str = r#"{"status":"running","scpeft_version":"0.1.0","seed":0,
"model":{"architecture":"scgpt","adapter":["lora"],"task":"identification","classes":["a","b"]},
"data":{"corpus":"https://user:swordfish@store/cells","train_cells":48210,"valid_cells":5350},
"trainable_parameters":1326866,"total_parameters":52677685,
"starts":[{"argv":["scpeft-train","--set","data.corpus=https://user:swordfish@store/cells"],"world_size":2,"device":"cuda:0"}]}"#;

const PLAN: &str = r#"{"ranks":2,"memory_bytes":3650722201,"planned_steps":200,
"parameters":{"adapters":790272,"heads":536594,"backbone":0},
"memory":{"activations":1073741824,"trainable":22020096,"loader":125829120},
"step":{"all_reduce_bytes":5307464,"gathered_bytes":0}}"#;

/// Eighty steps with an evaluation every ten.
fn metrics() -> String {
    let mut text = String::new();
    for step in 1..=80_u32 {
        let loss = 2.0 / f64::from(step).sqrt() + 0.05 * f64::from(step % 3);
        let _ = writeln!(
            text,
            "{{\"kind\":\"train\",\"step\":{step},\"epoch\":{},\"loss\":{loss},\"lr\":0.001,\
             \"grad_norm\":1.5,\"cells_per_second\":1200,\"step_seconds\":0.1,\"data_seconds\":0.01,\
             \"collective_seconds\":0.02}}",
            step / 10
        );
        if step % 10 == 0 {
            let score = 1.0 - 1.0 / f64::from(step).sqrt();
            let _ = writeln!(
                text,
                "{{\"kind\":\"eval\",\"step\":{step},\"epoch\":{},\"loss\":{},\"accuracy\":{score},\
                 \"macro_f1\":{},\"split\":\"valid\"}}",
                step / 10,
                loss + 0.1,
                score - 0.1
            );
        }
    }
    text
}
