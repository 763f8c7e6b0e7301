//! The page of `scpeft-launch` over a real run on two ranks: what it says of the run, where the
//! metrics of the ranks are, and what a save and a stop asked for on it do.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use scpeft_tests::binary;
use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, wait, wait_until};
use serde_json::Value;

/// Ended with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a request and returns the status and the body.
fn send(address: &str, request: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head =
        format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

fn get(address: &str, path: &str) -> Value {
    let (status, body) = send(address, &format!("GET {path}"), "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn latest(run: &Path) -> Option<u64> {
    let name = std::fs::read_to_string(run.join("LATEST")).ok()?;
    name.trim().strip_prefix("step-")?.parse().ok()
}

#[test]
fn a_real_run_is_seen_saved_and_stopped_through_its_page() {
    // One epoch is longer than the test: the run saves only when it is asked to.
    let lab = Lab::new(&Plan {
        cells: 20_000,
        row_group_cells: 1024,
        ..Plan::default()
    });
    let run = lab.path("run");
    // The port of rank 0 is taken, so that it has to say where its metrics are.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut launcher = Running(
        Command::new(binary("scpeft-launch"))
            .args(["-n", "2", "--listen", "127.0.0.1:0", "--"])
            .arg(binary("scpeft-train"))
            .arg("--config")
            .arg(&lab.config)
            .args(["--set", &format!("metrics.port={port}")])
            .args([
                "--set",
                "train.batch_cells=2",
                "--set",
                "train.micro_batch_cells=1",
            ])
            .args(["--set", "train.epochs=3", "--progress", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_until("the page is published", || {
        run.join("launcher.json").exists()
    });
    let page: Value =
        serde_json::from_slice(&std::fs::read(run.join("launcher.json")).unwrap()).unwrap();
    let url = page["page"].as_str().unwrap();
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let token = std::fs::read_to_string(run.join("page-token")).unwrap();
    let bearer = format!(
        "Authorization: Bearer {}\r\nContent-Length: 0\r\n",
        token.trim()
    );
    let ask = |what: &str| send(&address, &format!("POST /api/{what}"), &bearer).0;

    let mut state = Value::Null;
    wait_until("it trains and is planned", || {
        state = get(&address, "/api/state");
        let steps = |rank: &Value| rank["step"].as_u64().unwrap() > 3;
        state["phase"] == "training"
            && state["ranks"].as_array().unwrap().iter().all(steps)
            && state["plan"]["ranks"] == 2
    });
    assert_eq!(state["summary"]["task"], "identification");
    let planned = 3 * state["plan"]["steps_per_epoch"].as_u64().unwrap();
    assert_eq!(state["progress"]["planned_steps"], planned);
    for rank in state["ranks"].as_array().unwrap() {
        assert_eq!(
            (&rank["health"], &rank["device"]),
            (&"ok".into(), &"cpu".into()),
            "{rank}"
        );
        assert!(rank["memory_bytes"].as_u64().unwrap() > 10 << 20, "{rank}");
    }
    let targets = get(&address, "/sd");
    let targets = targets.as_array().unwrap();
    assert_eq!(targets.len(), 2, "{targets:?}");
    for (rank, target) in targets.iter().enumerate() {
        assert_eq!(target["labels"]["rank"], rank.to_string());
        let at = target["targets"][0].as_str().unwrap();
        assert_ne!(at, format!("127.0.0.1:{port}"), "that is not ours");
        let (status, body) = send(at, "GET /metrics", "");
        assert!(
            status == 200 && body.contains("scpeft_step "),
            "{at}: {body}"
        );
    }

    assert_eq!(latest(&run), None);
    assert_eq!(ask("save"), 202);
    wait_until("there is a checkpoint", || latest(&run).is_some());
    let saved = latest(&run).unwrap();
    wait_until("the run has gone on", || {
        state = get(&address, "/api/state");
        state["progress"]["step"].as_u64().unwrap() > saved + 3
    });
    assert_eq!(latest(&run), Some(saved), "one request is one checkpoint");
    assert_eq!(state["checkpoints"][0]["step"], saved);
    assert_eq!(ask("drain"), 202);
    assert_eq!(wait(&mut launcher.0).code(), Some(85));
    assert!(latest(&run).unwrap() > saved);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    let kinds: Vec<String> = events
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(kinds, ["start", "ask", "ask", "stop"]);
    assert_eq!(
        std::fs::read_to_string(run.join("targets.json")).unwrap(),
        "[]"
    );
}
