//! Three ranks under `mpirun`, each with a loader of its own over the store: every cell comes once.

use std::process::Command;
use std::sync::Arc;

use scpeft_data::{Corpus, LoaderOptions};

use crate::common;
use crate::proxy::{Faults, Proxy};
use crate::s3::{loader_options, url};
use crate::server::{Server, settings};

/// Set for the processes that are ranks.
const RANK_OF: &str = "SCPEFT_TEST_STORE_RANK_OF";
const RANKS: usize = 3;
const LINE: &str = "cells:";

/// What one rank does: it prints the ids of the cells that its loader hands out.
fn rank() {
    let number = |name: &str| std::env::var(name).unwrap().parse().unwrap();
    let corpus = Arc::new(Corpus::open(&url("corpus")).unwrap());
    let options = LoaderOptions {
        rank: number("OMPI_COMM_WORLD_RANK"),
        world_size: number("OMPI_COMM_WORLD_SIZE"),
        ..loader_options()
    };
    let loader = common::loader(&corpus, options);
    let mut cells = Vec::new();
    for step in loader.epoch(0, 0) {
        for micro in step.unwrap().micro {
            cells.extend(micro.cells.iter().map(|&cell| cell.to_string()));
        }
    }
    assert!(!cells.is_empty());
    println!("\n{LINE}{}", cells.join(","));
}

#[test]
fn three_ranks_share_every_cell_through_faults() {
    if std::env::var_os(RANK_OF).is_some() {
        return rank();
    }
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let faults = Faults {
        slow_down: 0.1,
        cut: 0.1,
        slow: 0.2,
        stall: 0.0,
    };
    let proxy = Proxy::start(&server.address, faults);
    let mut command = Command::new("mpirun");
    command
        .args(["--oversubscribe", "-n", &RANKS.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("ranks::three_ranks_share_every_cell_through_faults")
        .env(RANK_OF, "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    for (name, value) in settings(&proxy.address) {
        command.env(name.to_uppercase(), value);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix(LINE)).collect();
    assert_eq!(lines.len(), RANKS, "{said}");
    let cells = lines.iter().flat_map(|line| line.split(','));
    let mut cells: Vec<u64> = cells.map(|cell| cell.parse().unwrap()).collect();
    cells.sort_unstable();
    let mut with_values = Vec::new();
    for group in 0..local.row_groups().len() {
        let block = local.read_block(group, None).unwrap();
        let rows = (0..block.rows()).filter(|&row| !block.cell(row).0.is_empty());
        with_values.extend(rows.map(|row| local.row_groups()[group].first_cell + row as u64));
    }
    assert!(with_values.len() >= common::CELLS - 1);
    assert_eq!(cells, with_values);
    assert!(proxy.spoiled() > 0);
}
