//! Support for the integration tests: where fixtures and binaries lie, small corpora, training runs,
//! the files of `deploy`.

pub mod corpus;
pub mod faults;
pub mod hosts;
pub mod monitoring;
pub mod responses;
pub mod train;

use std::path::{Path, PathBuf};

/// One of our programs, next to the folder of the test binaries.
///
/// # Panics
/// When it has not been built: cargo builds only the programs of the package under test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let release = test
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in target/release/deps");
    let path = release.join(name);
    assert!(
        path.is_file(),
        "no `{}`: run `make build` first",
        path.display()
    );
    path
}

/// The folder `<fixtures>/<backbone>/<case>`, where `<fixtures>` is `SCPEFT_FIXTURES` when set and
/// `tests/fixtures` otherwise.
///
/// # Panics
/// When the folder does not exist: a golden test without its numbers must fail, not pass.
pub fn fixture(backbone: &str, case: &str) -> PathBuf {
    let root = std::env::var_os("SCPEFT_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"),
        PathBuf::from,
    );
    let dir = root.join(backbone).join(case);
    assert!(dir.is_dir(), "no fixture folder `{}`", dir.display());
    dir
}

/// Parses `case.json` of a fixture folder.
///
/// # Panics
/// When the file is missing or is not JSON.
pub fn case(dir: &Path) -> serde_json::Value {
    let path = dir.join("case.json");
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
