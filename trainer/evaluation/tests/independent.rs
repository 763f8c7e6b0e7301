//! Metrics against scipy and scikit-learn, run on the spot on counts: genes full of zeros and ties.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use support::{Golden, check_metrics};

#[test]
fn metrics_of_independent_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(
        python.exists(),
        "no `{}`: run `make setup-test` first",
        python.display()
    );
    for seed in ["1", "2"] {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(&python)
            .arg(root.join("trainer/evaluation/tests/independent.py"))
            .arg(dir.path())
            .arg(seed)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        check_metrics(Golden::read(&dir.path().join("metrics")));
    }
}
