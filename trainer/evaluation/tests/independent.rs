//! Metrics against scipy, scikit-learn and scanpy, run on the spot: on counts, whose genes are full
//! of zeros and ties, and on the real cells that come with scanpy.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::clustering::calinski_harabasz;
use scpeft_evaluation::embedding::Labelled;
use scpeft_evaluation::embedding::graph::Graph;
use scpeft_evaluation::markers::one_against_rest;
use support::{Golden, check_metrics};

/// Runs a script of this folder with the Python of `make setup-test`; it writes to `arguments[0]`.
fn run(script: &str, arguments: &[&OsStr]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(
        python.exists(),
        "no `{}`: run `make setup-test` first",
        python.display()
    );
    let output = Command::new(&python)
        .arg(root.join("trainer/evaluation/tests").join(script))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn metrics_of_independent_programs() {
    for seed in ["1", "2"] {
        let dir = tempfile::tempdir().unwrap();
        run("independent.py", &[dir.path().as_ref(), seed.as_ref()]);
        check_metrics(Golden::read(&dir.path().join("metrics")));
    }
}

#[test]
fn an_embedding_of_real_cells_as_scikit_learn_and_scanpy_see_it() {
    let dir = tempfile::tempdir().unwrap();
    run("embedding.py", &[dir.path().as_ref()]);
    let mut golden = Golden::read(dir.path());
    let codes = |name: &str| -> Vec<usize> {
        golden
            .inputs
            .get(name)
            .iter()
            .map(|&x| x as usize)
            .collect()
    };
    let (labels, batches) = (codes("labels"), codes("batches"));
    let values = golden.inputs.f32("embedding");
    let cells = Cells::new("cells", &values, golden.inputs.shape("embedding")[1]).unwrap();
    let pairs = Labelled::new(cells, &labels, &batches).unwrap().pairs(14);
    let graph = Graph::of_neighbors(&pairs.neighbors.unwrap());
    let degree = |cell: usize| graph.of(cell).map(|(_, w)| f64::from(w)).sum::<f64>();
    let degrees: Vec<f64> = (0..graph.len()).map(degree).collect();
    let silhouettes = pairs.silhouettes;
    golden.close("silhouette", &[silhouettes.mean().unwrap()], 1e-6);
    golden.close("asw_batch", &[silhouettes.asw_batch().unwrap()], 1e-6);
    let dispersion = calinski_harabasz(cells, &labels).unwrap();
    golden.close("calinski_harabasz", &[dispersion], 1e-6);
    // scanpy bisects in single precision.
    golden.close("degrees", &degrees, 1e-4);
    let expression = golden.inputs.f32("expression");
    let genes = golden.inputs.shape("expression")[1];
    let expression = Cells::new("expression", &expression, genes).unwrap();
    let groups: Vec<Option<usize>> = labels.iter().copied().map(Some).collect();
    let tables = one_against_rest(expression, &groups).unwrap();
    let table = tables[2].as_ref().unwrap();
    golden.close("score", &table.score, 1e-5);
    golden.close("p_value", &table.p_value, 1e-6);
    golden.all_compared();
}
