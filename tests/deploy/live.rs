//! A real Prometheus scrapes a real run on two ranks: every rule evaluates, and every query of the
//! dashboards has something to show.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use scpeft_tests::corpus::Plan;
use scpeft_tests::monitoring::{deploy, queries};
use scpeft_tests::train::{Lab, signal, wait, wait_until};
use serde_json::Value;

/// Ended with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free, and the next one too.
fn two_free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

/// The configuration that we ship, with the ports of this test and faster clocks.
fn prometheus(folder: &Path, ranks_port: u16, port: u16) -> Running {
    for (file, fast) in [
        ("prometheus.yml", ("_interval: 5s", "_interval: 1s")),
        ("recording.yml", ("interval: 15s", "interval: 1s")),
        (
            "alerts.yml",
            (
                "- name: scpeft-alerts",
                "- name: scpeft-alerts\n    interval: 1s",
            ),
        ),
    ] {
        let text = std::fs::read_to_string(deploy(&format!("prometheus/{file}"))).unwrap();
        assert!(text.contains(fast.0), "{file}");
        let text = text
            .replace(fast.0, fast.1)
            .replace(":9464", &format!(":{ranks_port}"))
            .replace(":9465", &format!(":{}", ranks_port + 1));
        std::fs::write(folder.join(file), text).unwrap();
    }
    let child = Command::new("prometheus")
        .arg(format!(
            "--config.file={}",
            folder.join("prometheus.yml").display()
        ))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .spawn()
        .expect("prometheus; `make setup-test` installs it");
    Running(child)
}

fn get(port: u16, path: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The samples that a query returns now.
fn ask(port: u16, query: &str) -> Vec<Value> {
    let encoded: String = query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    let answer = get(port, &format!("/api/v1/query?query={encoded}")).expect("an answer");
    assert_eq!(answer["status"], "success", "`{query}`: {answer}");
    answer["data"]["result"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

/// What Grafana sends after the variables are filled in.
fn filled_in(query: &str) -> String {
    let query = query.replace("$run", "local").replace("$rank", "0|1");
    assert!(!query.contains('$'), "an unknown variable in `{query}`");
    query
}

#[test]
fn every_rule_evaluates_and_every_dashboard_query_returns_data() {
    let lab = Lab::new(&Plan::default());
    let ranks_port = two_free_ports();
    let set = format!("metrics.port={ranks_port}");
    let mut run = Running(
        lab.command(2, &["--set", &set, "--set", "train.epochs=100000"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let port = two_free_ports();
    let _server = prometheus(lab.dir.path(), ranks_port, port);
    wait_until("Prometheus answers", || {
        get(port, "/api/v1/rules").is_some()
    });

    let mut waiting = Vec::new();
    for file in ["run.json", "fleet.json"] {
        let found = queries(&deploy(&format!("grafana/dashboards/{file}")));
        for (title, query) in found.panels {
            waiting.push((file, title, filled_in(&query)));
        }
        for query in found.annotations {
            ask(port, &filled_in(&query));
        }
    }
    assert!(waiting.len() > 50, "{} queries", waiting.len());
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !waiting.is_empty() {
        waiting.retain(|(_, _, query)| ask(port, query).is_empty());
        assert!(
            std::time::Instant::now() < deadline,
            "these queries return nothing: {waiting:#?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }

    check_rules(port);
    assert_eq!(ask(port, "run:ranks_up:count{run=\"local\"} == 2").len(), 1);
    let rate = ask(port, "run:cells:rate1m{run=\"local\"} > 1");
    assert_eq!(rate.len(), 1, "cells per second");
    let share = ask(port, "abs(sum(run:section:fraction) - 1) < 0.001");
    assert_eq!(share.len(), 1, "the sections of the loop add up");
    let firing = ask(port, "ALERTS{alertstate=\"firing\"}");
    assert!(firing.is_empty(), "{firing:?}");

    signal(run.0.id(), "USR1");
    assert_eq!(wait(&mut run.0).code(), Some(85));
}

fn check_rules(port: u16) {
    let rules = get(port, "/api/v1/rules").unwrap();
    let mut evaluated = 0;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
            evaluated += 1;
        }
    }
    let expected: usize = [("recording.yml", "- record: "), ("alerts.yml", "- alert: ")]
        .map(|(file, key)| {
            let text = std::fs::read_to_string(deploy(&format!("prometheus/{file}"))).unwrap();
            text.matches(key).count()
        })
        .iter()
        .sum();
    assert_eq!(evaluated, expected);
}
