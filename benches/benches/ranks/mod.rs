//! Benches of several ranks start themselves again under mpirun.

use std::process::Command;

/// The value after an option.
pub(crate) fn value<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1).map(String::as_str)
}

/// Runs this program on `ranks` ranks of this machine; what rank 0 wrote.
///
/// # Panics
/// When a rank fails.
pub(crate) fn start(ranks: usize, args: &[&str]) -> String {
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
