//! A rank that stops is named by the others, within its deadline, and costs nothing but time.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{
    Lab, adapter_bytes, logged_lines, loss_curve, rank_pids, signal, wait_until,
};
use serde_json::Value;

/// Seconds that every section after set-up may go without progress.
const DEADLINE: u64 = 2;
/// What the report may take beyond the deadline.
const REPORT: Duration = Duration::from_secs(5);

fn arguments() -> Vec<String> {
    let mut settings = vec![
        "train.epochs=30".to_owned(),
        "checkpoint.every_steps=7".to_owned(),
    ];
    for section in [
        "data",
        "forward",
        "collective",
        "optimizer",
        "eval",
        "checkpoint",
    ] {
        settings.push(format!("watchdog.{section}={DEADLINE}"));
    }
    settings
        .into_iter()
        .flat_map(|setting| ["--set".to_owned(), setting])
        .collect()
}

fn flight(run: &Path, rank: usize) -> Value {
    let path = run.join(format!("flight-rank-{rank}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Either rank may stop: the other one must find out by itself which it was.
#[test]
fn a_stopped_rank_is_named_and_the_job_ends() {
    let lab = Lab::new(&Plan::default());
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let whole = lab.train(2, "whole", &arguments);
    for (stopped, witness) in [(1, 0), (0, 1)] {
        let name = format!("stopped-{stopped}");
        let run = lab.path(&name);
        let set = format!("run.dir={}", run.display());
        let child = lab
            .command(2, &[&["--set", &set], &arguments[..]].concat())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the run is under way", || logged_lines(&run) > 20);
        let pids = rank_pids(&run);
        assert_eq!(pids.len(), 2, "both ranks are alive");
        signal(pids[stopped], "STOP");
        let begun = Instant::now();
        let output = child.wait_with_output().unwrap();
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);

        assert_eq!(output.status.code(), Some(75), "{said}");
        assert!(took >= Duration::from_secs(DEADLINE), "{took:?}\n{said}");
        assert!(
            took <= Duration::from_secs(DEADLINE) + REPORT,
            "{took:?}\n{said}"
        );
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        let blamed = format!(
            "rank {stopped} is behind (process {}, stopped by a signal",
            pids[stopped]
        );
        for words in [
            &format!("rank {witness}: no progress in section `collective`"),
            &blamed,
            "help:",
        ] {
            assert!(said.contains(words), "`{words}` is not in\n{said}");
        }
        wait_until("no rank is left", || rank_pids(&run).is_empty());

        let record = flight(&run, witness);
        assert_eq!(record["ranks_behind"], serde_json::json!([stopped]));
        assert_eq!(record["expired"]["section"], "collective");
        assert_eq!(record["expired"]["deadline_seconds"], DEADLINE);
        assert_eq!(record["own"]["section"], "collective");
        assert_eq!(record["others_on_this_host"][0]["rank"], stopped);
        let collectives = record["collectives"].as_array().unwrap();
        let (last, done) = collectives.split_last().unwrap();
        assert!(last["ended"].is_null() && last["bytes"].as_u64() > Some(0));
        assert!(
            done.len() > 20
                && done
                    .iter()
                    .all(|c| c["ended"].as_f64() >= c["begun"].as_f64())
        );
        assert_eq!(last["number"], record["own"]["collectives"]);

        lab.train(2, &name, &[&["--resume"], &arguments[..]].concat());
        assert_eq!(loss_curve(&run), loss_curve(&whole), "losses, bit by bit");
        assert_eq!(adapter_bytes(&run), adapter_bytes(&whole), "adapter bytes");
    }
}
