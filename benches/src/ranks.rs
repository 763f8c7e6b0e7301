//! Benches of several ranks start themselves again under mpirun.

use std::process::Command;

/// Runs this program on `ranks` ranks of this machine; what rank 0 wrote.
///
/// # Panics
/// When a rank fails.
pub fn start(ranks: usize, args: &[&str]) -> String {
    let output = Command::new("mpirun")
        .args(["--oversubscribe", "--bind-to", "none", "-n"])
        .arg(ranks.to_string())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .arg(std::env::current_exe().expect("the path of this program"))
        .args(args)
        .output()
        .expect("mpirun");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
