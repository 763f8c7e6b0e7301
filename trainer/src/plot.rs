//! Pictures of results.

use std::path::Path;

use scpeft_evaluation::identification::Confusion;

use crate::failure::Result;
use crate::picture::Picture;
use crate::picture::charts::{Matrix, matrix};

/// Size of a field of a confusion matrix.
const FIELD: f32 = 46.0;

/// The row-normalised confusion matrix: rows are true types, columns predicted types, both in class
/// order; each field shows the share of its row, and its count below.
pub(crate) fn confusion_picture(confusion: &Confusion, names: &[String]) -> Picture {
    let n = confusion.classes();
    let mut shares = Vec::with_capacity(n * n);
    let mut texts = Vec::with_capacity(n * n);
    for i in 0..n {
        let total: f64 = (0..n).map(|j| confusion.count(i, j)).sum();
        for j in 0..n {
            let count = confusion.count(i, j);
            let share = if total > 0.0 { count / total } else { 0.0 };
            shares.push(share);
            texts.push(if count > 0.0 {
                vec![format!("{share:.2}"), format!("{count:.0}")]
            } else {
                Vec::new()
            });
        }
    }
    matrix(&Matrix {
        title: "Share of each true type by predicted type",
        rows: names,
        columns: names,
        row_name: "true type",
        column_name: "predicted type",
        shares: &shares,
        texts: &texts,
        field: [FIELD, FIELD],
    })
}

/// Writes the confusion matrix as SVG and PNG.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn confusion_matrix(dir: &Path, confusion: &Confusion, names: &[String]) -> Result<()> {
    confusion_picture(confusion, names).write(dir, "confusion_matrix")
}
