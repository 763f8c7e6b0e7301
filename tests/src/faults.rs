//! Real programs whose file operations go wrong: `tests/faults/interpose.c`, preloaded.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the library into a folder.
///
/// # Panics
/// When the C compiler fails.
pub fn interposer(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/interpose.c");
    let library = dir.join("interpose.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .status()
        .expect("cc");
    assert!(status.success(), "cc");
    library
}

/// Makes `fault`, in the words of `interpose.c`, happen to paths that begin with `prefix`.
pub fn spoil(command: &mut Command, library: &Path, prefix: &Path, fault: &str) {
    command
        .env("LD_PRELOAD", library)
        .env("SCPEFT_TEST_FAULT_DIR", prefix)
        .env("SCPEFT_TEST_FAULT", fault);
}
