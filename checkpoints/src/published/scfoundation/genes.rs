//! The list of genes whose order is that of the embeddings.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fsx;

/// Names of the two columns.
const HEADER: &str = "gene_name\tindex";
const HELP: &str = "the list is published with the weights as `OS_scRNA_gene_index.19264.tsv`: a line \
                    `gene_name<TAB>index`, then a gene a line, indices counted from 0";
/// Genes of the published models, and the BLAKE3 of their names, each with a line end.
const PUBLISHED: (usize, &str) = (
    19_264,
    "400e0fb9f0fc92e25a8e439a91c602635132c6a3d519493d35014525c614512a",
);

/// Genes in the order of the embeddings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneList(Vec<String>);

impl GeneList {
    /// A list of names.
    ///
    /// # Errors
    /// When one appears twice; `path` is named in the message.
    pub fn new(names: Vec<String>, path: &Path) -> Result<Self> {
        let mut seen = HashMap::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            if let Some(first) = seen.insert(name, index) {
                return Err(refuse(
                    path,
                    format!("`{name}` has the indices {first} and {index}"),
                ));
            }
        }
        Ok(Self(names))
    }

    /// Reads `gene_name<TAB>index` lines.
    ///
    /// # Errors
    /// Naming the line that is malformed or out of order; a list of as many genes as the published one
    /// has that is not the published one.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fsx::read(path)?;
        let text =
            String::from_utf8(bytes).map_err(|_| refuse(path, "is not UTF-8 text".to_owned()))?;
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default().trim_end();
        if header != HEADER {
            let header: String = header.chars().take(60).collect();
            return Err(refuse(
                path,
                format!("line 1: expected `gene_name<TAB>index`, found `{header}`"),
            ));
        }
        let mut names = Vec::new();
        for line in lines {
            let number = names.len() + 2;
            let row = line.trim_end().split_once('\t');
            let row = row.and_then(|(name, index)| Some((name, index.parse::<usize>().ok()?)));
            match row {
                Some((name, index)) if index == names.len() && !name.is_empty() => {
                    names.push(name.to_owned());
                }
                Some((name, index)) => {
                    return Err(refuse(
                        path,
                        format!(
                            "line {number}: `{name}` has index {index}, expected {}: the list is not \
                             in the order of the embeddings",
                            names.len()
                        ),
                    ));
                }
                None => {
                    return Err(refuse(
                        path,
                        format!("line {number}: expected a name, a tab and an index"),
                    ));
                }
            }
        }
        let list = Self::new(names, path)?;
        if list.len() == PUBLISHED.0 && list.fingerprint() != PUBLISHED.1 {
            return Err(refuse(
                path,
                format!(
                    "has {} genes as the published list, but other ones, or in another order: each \
                     would get the embedding of another gene",
                    list.len()
                ),
            ));
        }
        Ok(list)
    }

    /// Number of genes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no gene.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names, in order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The list in the published form.
    pub fn to_tsv(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for (index, name) in self.0.iter().enumerate() {
            let _ = writeln!(text, "{name}\t{index}");
        }
        text
    }

    fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for name in &self.0 {
            hasher.update(name.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::Content {
        path: path.to_owned(),
        reason,
        help: Some(HELP),
    }
}
