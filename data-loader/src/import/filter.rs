//! Which genes and cells of a file are kept, as options; and how the choice is recorded.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::hvg::Flavor;
use crate::storage::hash_file;
use crate::{Error, Result};

/// The most variable genes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HvgOptions {
    /// How many.
    pub n_top: usize,
    /// How they are found.
    pub flavor: Flavor,
    /// The obs column of batches in which genes are ranked separately.
    pub batch: Option<String>,
}

/// Which genes and cells are kept. The steps follow each other in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Keep the genes of this `vocab.json` alone: an object from token to id.
    pub vocab: Option<PathBuf>,
    /// Take exactly the genes of this corpus, in its order. Excludes every other choice of genes.
    pub genes_like: Option<PathBuf>,
    /// Whether genes of that corpus may be missing in the file: they count as not expressed.
    pub allow_missing_genes: bool,
    /// Keep genes with at least this sum of values over all cells.
    pub min_counts: Option<u64>,
    /// Keep cells that express at least so many of the genes left.
    pub min_genes: Option<u32>,
    /// Keep the most variable genes.
    pub hvg: Option<HvgOptions>,
    /// Besides those, keep the genes that this file names, one per line.
    pub keep_genes: Option<PathBuf>,
}

impl FilterOptions {
    /// Refuses combinations that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        let others = self.vocab.is_some() || self.min_counts.is_some() || self.hvg.is_some();
        if self.genes_like.is_some() && others {
            return Err(Error::options(
                "--genes-like takes exactly the genes of another corpus: --vocab, --min-counts and --hvg cannot choose among them",
                "leave one or the other out",
            ));
        }
        if self.keep_genes.is_some() && self.hvg.is_none() {
            return Err(Error::options(
                "--keep-genes names genes to keep besides the variable ones, but --hvg is not given",
                "pass --hvg too",
            ));
        }
        if self.allow_missing_genes && self.genes_like.is_none() {
            return Err(Error::options(
                "--allow-missing-genes is about the genes of --genes-like, which is not given",
                "pass --genes-like too",
            ));
        }
        Ok(())
    }

    /// Whether all cells must be seen before it is known what is kept.
    pub(super) fn needs_all_cells(&self) -> bool {
        self.min_counts.is_some() || self.min_genes.is_some() || self.hvg.is_some()
    }

    /// The entries of the manifest; none for what was not asked for.
    pub(super) fn provenance(&self) -> Result<IndexMap<String, Value>> {
        let mut entries = IndexMap::new();
        let mut add = |key: &str, value: Value| entries.insert(key.to_owned(), value);
        if let Some(path) = &self.vocab {
            add("vocab", source(path)?);
        }
        if let Some(n) = self.min_counts {
            add("min_counts", json!(n));
        }
        if let Some(n) = self.min_genes {
            add("min_genes", json!(n));
        }
        if let Some(hvg) = &self.hvg {
            let (flavor, batch) = (hvg.flavor.name(), &hvg.batch);
            add(
                "hvg",
                json!({ "n": hvg.n_top, "flavor": flavor, "batch": batch }),
            );
        }
        if let Some(path) = &self.keep_genes {
            add("keep_genes", source(path)?);
        }
        Ok(entries)
    }
}

fn source(path: &Path) -> Result<Value> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(json!({ "file": name, "blake3": hash_file(path)? }))
}
