//! Real programs whose file operations go wrong: `tests/faults/interpose.c`, preloaded. The tests of
//! `checkpoints/` include this file: they must not wait for what this crate links.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("../faults/interpose.c");

/// Compiles the library into a folder.
///
/// # Panics
/// When the C compiler fails.
pub fn interposer(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("interpose.c"), dir.join("interpose.so"));
    std::fs::write(&source, SOURCE).expect("the source of the library");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .status()
        .expect("cc");
    assert!(status.success(), "cc");
    library
}

/// Makes the system's clock jump by `seconds` ahead and back.
pub fn jump_clock(command: &mut Command, library: &Path, seconds: i64) {
    command
        .env("LD_PRELOAD", library)
        .env("SCPEFT_TEST_CLOCK", seconds.to_string());
}

/// Makes `fault`, in the words of `interpose.c`, happen to paths that begin with `prefix`.
pub fn spoil(command: &mut Command, library: &Path, prefix: &Path, fault: &str) {
    command
        .env("LD_PRELOAD", library)
        .env("SCPEFT_TEST_FAULT_DIR", prefix)
        .env("SCPEFT_TEST_FAULT", fault);
}
