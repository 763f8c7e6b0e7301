//! Cells of a corpus as log-normalised values, one after the other.

use scpeft_data::{Corpus, Selection, ValueKind, preprocess};
use scpeft_protocol::exit;

use crate::failure::{Failure, Result};

/// What counts are scaled to before the logarithm.
const TARGET: f32 = 1e4;

/// What is done with a cell: its index, genes and log-normalised values.
pub(crate) type Visit<'a> = dyn FnMut(u64, &[u32], &[f32]) + 'a;

/// Calls `each` with the cells of a selection, in the order of the corpus.
///
/// # Errors
/// When a cell cannot be read.
pub(crate) fn visit(corpus: &Corpus, selection: &Selection, each: &mut Visit<'_>) -> Result<()> {
    let mut cells = selection.cell_indices();
    for group in selection.groups() {
        let block = corpus.read_block(group.row_group, group.chosen.as_deref())?;
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            let mut values = values.to_vec();
            if corpus.value_kind() == ValueKind::Counts {
                preprocess::normalize_total(&mut values, TARGET);
                preprocess::log1p(&mut values);
            }
            let cell = cells.next().ok_or_else(|| {
                Failure::new(
                    exit::INTERNAL,
                    "a selection has fewer cells than its groups; please report it",
                )
            })?;
            each(cell, genes, &values);
        }
    }
    Ok(())
}
