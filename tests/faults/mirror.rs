//! A run whose checkpoints are mirrored into a store that goes away for a while, and a machine that
//! does not come back. The store is a server that speaks S3, behind a relay that can be cut.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, assert_refused, latest_step, loss_curve, text, wait_until,
};

use crate::server::{BUCKET, Server, settings};

const STEPS: u64 = 4200;
const ARGUMENTS: [&str; 8] = [
    "--set",
    "train.epochs=700",
    "--set",
    "checkpoint.every_steps=40",
    "--set",
    "train.schedule=cosine",
    "--set",
    "checkpoint.mirror=s3://cells/runs/one",
];

/// Hands connections on to the server, or drops them.
struct Relay {
    address: String,
    down: Arc<AtomicBool>,
}

impl Relay {
    fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let down = Arc::new(AtomicBool::new(false));
        let (upstream, cut) = (upstream.to_owned(), down.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if !cut.load(SeqCst) {
                    relay(&client, &TcpStream::connect(&upstream).unwrap(), &cut);
                }
            }
        });
        Self { address, down }
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, SeqCst);
    }
}

/// Copies both ways on threads of their own until one side ends or the relay is cut.
fn relay(client: &TcpStream, server: &TcpStream, cut: &Arc<AtomicBool>) {
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let cut = cut.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 1 << 12];
            while let Ok(n) = from.read(&mut bytes) {
                if n == 0 || cut.load(SeqCst) || to.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        });
    }
}

/// The text of an object of the bucket; empty when there is none.
fn object(server: &Server, key: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!(
        "GET /{BUCKET}/{key} HTTP/1.1\r\nHost: {}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nConnection: close\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if head.starts_with("HTTP/1.1 200") {
        body.to_owned()
    } else {
        String::new()
    }
}

fn step_of(pointer: &str) -> u64 {
    let name = pointer.trim().strip_prefix("step-").unwrap_or("0");
    name[..name.len().min(8)].parse().unwrap()
}

/// The value of a counter at a run's metrics endpoint; 0 before it answers.
fn scraped(port: u16, metric: &str) -> f64 {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return 0.0;
    };
    let mut answer = String::new();
    let sent = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
    if sent.is_err() || stream.read_to_string(&mut answer).is_err() {
        return 0.0;
    }
    let value = answer
        .lines()
        .find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The store goes away in mid-run and comes back: training goes on, failures are counted, and the
/// mirror catches up. Then the machine is lost: the run goes on elsewhere from the mirror, to the same
/// bits. Without the store a run neither starts blindly nor ends as if all were well.
#[test]
fn a_run_outlives_an_outage_of_its_store_and_the_loss_of_its_machine() {
    let lab = Lab::new(&Plan::default());
    let whole = lab.train(1, "whole", &ARGUMENTS[..6]);
    let server = Server::start();
    let relay = Relay::start(&server.address);
    let port = free_port();
    let metrics = format!("metrics.port={port}");
    let run = lab.path("run");
    let environment = settings(&relay.address);
    let start = |more: &[&str]| {
        let mut command = lab.command(1, &[&ARGUMENTS[..], more].concat());
        for (key, value) in &environment {
            command.env(key.to_uppercase(), value);
        }
        command.env("SCPEFT_STORE_TIMEOUT", "1");
        command
    };
    let pointer = || step_of(&object(&server, "runs/one/LATEST"));

    let mut child = start(&["--set", &metrics]);
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the mirror has a checkpoint", || pointer() > 0);
    relay.set_down(true);
    let failures = "scpeft_checkpoint_failures_total";
    wait_until("a failure is counted", || scraped(port, failures) >= 1.0);
    let before = latest_step(&run);
    wait_until("the run saves on", || latest_step(&run) >= before + 48);
    // What had reached the server when it was cut off is done by now.
    let mirrored = pointer();
    wait_until("the run saves on", || latest_step(&run) >= before + 120);
    assert_eq!(pointer(), mirrored, "the store is down");
    relay.set_down(false);
    wait_until("the mirror catches up", || pointer() > mirrored);
    child.kill().unwrap();
    let stopped_at = latest_step(&run);
    let said = text(&child.wait_with_output().unwrap().stderr);
    for words in [
        "the mirror was not brought up to date",
        "the run goes on, next try in 1 s",
    ] {
        assert!(said.contains(words), "`{words}` is not in\n{said}");
    }
    assert!(stopped_at < STEPS, "the run ended before it was killed");
    assert!(
        stopped_at - pointer() <= 80,
        "{} of {stopped_at}",
        pointer()
    );

    // Another machine: an empty run directory. It is not mistaken for a new run.
    std::fs::remove_dir_all(&run).unwrap();
    let blind = start(&[]).output().unwrap();
    assert_refused(&blind, 2, &["the mirror of", "earlier run", "--resume"]);
    relay.set_down(true);
    let cut_off = start(&["--resume"]).output().unwrap();
    assert_refused(&cut_off, 75, &["s3://cells/runs/one/checkpoints", "tried"]);
    assert!(!run.join("checkpoints").exists(), "nothing was begun");
    relay.set_down(false);

    // The kill may have come between a whole checkpoint and its pointer: it is found all the same.
    let pointed = pointer();
    let child = start(&["--resume"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the run is under way", || {
        latest_step(&run) > stopped_at + 80
    });
    relay.set_down(true);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(75));
    let said = text(&ended.stderr);
    let from = said.split("fetched the checkpoint of step ").nth(1);
    let from = from.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let from = from.expect("a checkpoint was fetched");
    assert!((pointed..=stopped_at).contains(&from), "{pointed}, {from}");
    for words in [
        format!("fetched the checkpoint of step {from} from the mirror"),
        format!("resumed at step {from}"),
        "is in `run.dir`, but not in the mirror".to_owned(),
        "help:".to_owned(),
    ] {
        assert!(said.contains(&words), "`{words}` is not in\n{said}");
    }
    relay.set_down(false);
    let done = start(&["--resume"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(pointer(), STEPS);
    let (found, expected) = (loss_curve(&run), loss_curve(&whole));
    assert_eq!(found, expected[from as usize..], "losses, to the last bit");
    assert_eq!(adapter_bytes(&run), adapter_bytes(&whole), "adapter bytes");
    assert_eq!(
        step_of(&object(&server, "runs/one/BEST")),
        step_of(&std::fs::read_to_string(whole.join("BEST")).unwrap())
    );

    // Overwriting deletes the mirrored run as well.
    let mut anew = start(&["--overwrite", "--set", "train.max_steps=5"]);
    let anew = anew.output().unwrap();
    assert!(anew.status.success(), "{}", text(&anew.stderr));
    assert_eq!(pointer(), 5);
}
