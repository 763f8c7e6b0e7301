//! What `run.deterministic` asks of libtorch and of the environment.

use scpeft_model::determinism;
use tch::Device;

use crate::failure::{Failure, Result};

/// Where cuBLAS is told how its workspaces are laid out; it reads this once, when CUDA starts.
const CUBLAS: &str = "CUBLAS_WORKSPACE_CONFIG";
/// The layouts with which cuBLAS promises the same bits each time (cuBLAS manual, "Results
/// reproducibility").
const LAYOUTS: [&str; 2] = [":4096:8", ":16:8"];

/// Makes libtorch use deterministic algorithms alone. Must run before the first operation.
///
/// # Errors
/// When this libtorch cannot be told so, or cuBLAS was not.
pub(crate) fn require(device: Device) -> Result<()> {
    if device.is_cuda() {
        check_cublas(std::env::var(CUBLAS).ok().as_deref())?;
    }
    Ok(determinism::require()?)
}

fn check_cublas(layout: Option<&str>) -> Result<()> {
    if layout.is_some_and(|layout| LAYOUTS.contains(&layout)) {
        return Ok(());
    }
    let found = layout.map_or("is not set".to_owned(), |layout| format!("is `{layout}`"));
    Err(Failure::config(format!(
        "`run.deterministic` on a GPU: the environment variable {CUBLAS} {found}, expected `{}` or `{}`\n\
         help: start the ranks with `{CUBLAS}={}`; without it cuBLAS promises no order of additions",
        LAYOUTS[0], LAYOUTS[1], LAYOUTS[0]
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_must_have_been_told_its_workspaces() {
        for layout in LAYOUTS {
            check_cublas(Some(layout)).unwrap();
        }
        for (layout, found) in [(None, "is not set"), (Some(":0:0"), "is `:0:0`")] {
            let failure = check_cublas(layout).unwrap_err();
            assert_eq!(failure.code, scpeft_protocol::exit::CONFIG);
            assert!(failure.message.contains(found), "{}", failure.message);
            assert!(failure.message.contains("help: "), "{}", failure.message);
        }
    }
}
