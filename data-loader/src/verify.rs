//! Checking that a corpus is what its manifest says.

use crate::corpus::{Corpus, ObsKind};
use crate::{Error, Result};

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyReport {
    /// Cells whose genes and values were checked.
    pub cells: u64,
    /// Values in them.
    pub nonzeros: u64,
    /// Files whose hash was checked.
    pub files: usize,
}

/// Checks every hash, and every cell: genes strictly ascending and in range, values finite and
/// positive, categories known.
///
/// # Errors
/// At the first fault, with the shard, the row group and the cell.
pub fn verify(corpus: &Corpus) -> Result<VerifyReport> {
    let manifest = corpus.manifest();
    let shards = manifest.shards.iter();
    let files: Vec<_> = shards
        .filter_map(|s| s.blake3.as_ref().map(|hash| (&s.path, hash)))
        .chain([(&manifest.genes.path, &manifest.genes.blake3)])
        .collect();
    for (path, expected) in &files {
        let found = corpus.hash(path)?;
        if found != **expected {
            let problem = format!(
                "blake3 is {found}, the manifest says {expected}\nhelp: the file was changed or damaged: copy it again, or import the source again"
            );
            return Err(Error::corpus(&corpus.file(path), "whole file", problem));
        }
    }
    let mut nonzeros = 0;
    for (number, group) in corpus.row_groups().iter().enumerate() {
        let block = corpus.read_block(number, None)?;
        nonzeros += block.nonzeros() as u64;
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            if let Some(problem) = fault(genes, values) {
                let cell = group.first_cell + row as u64;
                let id = corpus.cell_ids(&[cell])?.pop().unwrap_or_default();
                return Err(
                    corpus.shard_error(number, format!("row {row} (cell `{id}`): {problem}"))
                );
            }
        }
    }
    for column in manifest.obs.iter().filter(|c| c.kind == ObsKind::Category) {
        corpus.obs_codes(&column.name)?;
    }
    Ok(VerifyReport {
        cells: corpus.n_cells(),
        nonzeros,
        files: files.len(),
    })
}

fn fault(genes: &[u32], values: &[f32]) -> Option<String> {
    if let Some(&[first, second]) = genes.windows(2).find(|w| w[0] >= w[1]) {
        return Some(format!(
            "gene index {second} follows {first}, expected strictly ascending"
        ));
    }
    let bad = values
        .iter()
        .zip(genes)
        .find(|(v, _)| !v.is_finite() || **v <= 0.0);
    bad.map(|(value, gene)| {
        format!("gene index {gene} has value `{value}`, expected finite and positive")
    })
}
