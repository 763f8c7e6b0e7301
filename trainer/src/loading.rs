//! What the loaders are doing: their metrics, and the list of cells that they left out.

use std::path::Path;

use scpeft_checkpoint::fsx;
use scpeft_data::storage::TrafficSnapshot;
use scpeft_data::{Corpus, Loader};
use scpeft_protocol::metrics;
use serde_json::json;

use crate::exporter::Exporter;
use crate::failure::Result;
use crate::report::Reporter;

/// Name of the list of left out cells in a run directory: one JSON object a line.
const SKIPPED_CELLS: &str = "skipped-cells.jsonl";

/// Follows the loaders of a run.
#[derive(Debug, Default)]
pub(crate) struct LoaderWatch {
    reported: TrafficSnapshot,
    listed: usize,
}

impl LoaderWatch {
    /// Exports what was read since the last time, and how many micro-batches are `ready`.
    pub(crate) fn record(&mut self, exporter: &Exporter, loader: &Loader, ready: usize) {
        let now = loader.traffic();
        let before = std::mem::replace(&mut self.reported, now);
        for (metric, now, before) in [
            (&metrics::LOADER_READ_BYTES, now.bytes, before.bytes),
            (&metrics::LOADER_REQUESTS, now.requests, before.requests),
            (&metrics::LOADER_RETRIES, now.retries, before.retries),
        ] {
            exporter.add(metric, &[], now.saturating_sub(before) as f64);
        }
        exporter.set(&metrics::LOADER_READY, &[], ready as f64);
        exporter.set(
            &metrics::LOADER_SKIPPED_CELLS,
            &[],
            loader.skipped_cells() as f64,
        );
    }

    /// Writes the list of the damaged cells that were left out so far and says so, when there are new
    /// ones.
    ///
    /// # Errors
    /// When the disk refuses, or the ids of the cells cannot be read.
    pub(crate) fn list_skipped(
        &mut self,
        run: &Path,
        corpus: &Corpus,
        loaders: &[&Loader],
        reporter: &Reporter,
    ) -> Result<()> {
        let mut skipped: Vec<_> = loaders.iter().flat_map(|loader| loader.skipped()).collect();
        skipped.sort_by_key(|entry| entry.cell);
        if skipped.len() == self.listed {
            return Ok(());
        }
        let mut text = String::new();
        for entry in &skipped {
            let line = json!({
                "cell": entry.cell,
                "place": corpus.place_of(entry.cell),
                "problem": entry.problem,
            });
            text.push_str(&line.to_string());
            text.push('\n');
        }
        let path = run.join(SKIPPED_CELLS);
        fsx::write_atomic(&path, text.as_bytes())?;
        self.listed = skipped.len();
        reporter.warn(&format!(
            "{} damaged cells were left out, see `{}`",
            self.listed,
            path.display()
        ));
        Ok(())
    }
}
