//! Progress on a terminal, with the time that is left; nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that says what is being done, and counts units.
pub(crate) fn bar(what: &str, unit: Unit) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let counts = match unit {
        Unit::Cells => "{pos}/{len} cells, {per_sec}",
        Unit::Bytes => "{bytes}/{total_bytes}, {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(&format!("{what} {{bar:40}} {counts}, {{eta}} left"));
    ProgressBar::no_length().with_style(style.expect("the template is well formed"))
}

/// What a bar counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Cells,
    Bytes,
}

/// A function that moves the bar: to how many of how many.
pub(crate) fn moves(bar: &ProgressBar) -> impl Fn(u64, u64) + Sync + '_ {
    |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}
