//! What the tests of this crate share.

// Each test is a program of its own and uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod model;
pub(crate) mod torch_save;

use std::path::Path;
use std::process::{Command, Output};

/// Runs `scpeft-checkpoint`.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scpeft-checkpoint"))
        .args(arguments)
        .output()
        .unwrap()
}

/// What it prints when it succeeds.
pub(crate) fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts its exit code and a part of its message; returns the message.
pub(crate) fn fail(arguments: &[&str], code: i32, expected: &str) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(
        error.contains(expected),
        "expected `{expected}`, got `{error}`"
    );
    error
}

pub(crate) fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}
