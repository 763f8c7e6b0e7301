//! Which genes of a file go into a corpus, known before any cell is read: those of a vocabulary, or
//! those of another corpus.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::ImportOptions;
use crate::corpus::Corpus;
use crate::error::listed;
use crate::genes::GeneTable;
use crate::vocab::{GeneKey, Vocab};
use crate::{Error, Result};

/// Missing genes that an error names.
const NAMED: usize = 10;

/// The genes of the corpus to be, and where each gene of the file goes.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) genes: GeneTable,
    /// The corpus gene of each gene of the file, when it is not simply the same.
    pub(super) places: Option<Vec<Option<u32>>>,
    /// What the manifest says about the choice.
    pub(super) provenance: IndexMap<String, Value>,
}

impl Panel {
    /// The genes of `table` that the options choose.
    pub(super) fn choose(table: GeneTable, options: &ImportOptions) -> Result<Self> {
        let filter = &options.filter;
        if let Some(path) = &filter.genes_like {
            return Self::like(
                &table,
                path,
                filter.allow_missing_genes,
                options.first_input(),
            );
        }
        if let Some(path) = &filter.vocab {
            return Self::in_vocab(&table, path, options.first_input());
        }
        Ok(Self {
            genes: table,
            places: None,
            provenance: IndexMap::new(),
        })
    }

    fn in_vocab(table: &GeneTable, path: &Path, input: &Path) -> Result<Self> {
        let vocab = Vocab::read_json(path)?;
        let map = vocab
            .match_genes(table, GeneKey::Auto)
            .map_err(|_| Error::Import {
                path: input.to_owned(),
                place: String::new(),
                problem: format!(
                    "none of its {} genes is among the {} tokens of `{}`; its genes: {}",
                    table.len(),
                    vocab.len(),
                    path.display(),
                    listed(&table.symbols[..table.len().min(4)])
                ),
                help: "choose the vocab.json of the same species and kind of gene names".to_owned(),
            })?;
        let mut next = 0;
        let places: Vec<Option<u32>> = (0..table.len() as u32)
            .map(|gene| {
                map.token(gene).map(|_| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let kept = |gene: &usize| places[*gene].is_some();
        let genes = table.subset((0..table.len()).filter(kept));
        let overlap = map.overlap();
        if overlap.duplicates > 0 {
            tracing::warn!(
                genes = overlap.duplicates,
                "left out: an earlier gene has the same name"
            );
        }
        let counts = json!({ "source": table.len(), "in_vocab": genes.len() });
        Ok(Self {
            genes,
            places: Some(places),
            provenance: [("genes".to_owned(), counts)].into_iter().collect(),
        })
    }

    fn like(table: &GeneTable, path: &Path, allow_missing: bool, input: &Path) -> Result<Self> {
        let corpus = Corpus::open(path)?;
        let target = corpus.genes();
        let by_id = pair(ensembl(table), ensembl(target));
        let by_symbol = pair(symbols(table), symbols(target));
        let found = |places: &[Option<u32>]| places.iter().flatten().count();
        // Ids are less ambiguous than symbols: they win a draw.
        let places = if found(&by_id) >= found(&by_symbol) {
            by_id
        } else {
            by_symbol
        };
        let mut present = vec![false; target.len()];
        for &place in places.iter().flatten() {
            present[place as usize] = true;
        }
        let missing: Vec<&str> = (0..target.len())
            .filter(|&gene| !present[gene])
            .map(|gene| target.symbols[gene].as_str())
            .collect();
        if missing.len() == target.len() || (!missing.is_empty() && !allow_missing) {
            return Err(missing_genes(&missing, target.len(), path, input));
        }
        if !missing.is_empty() {
            tracing::warn!(
                genes = missing.len(),
                of = target.len(),
                "missing in the file: they count as not expressed"
            );
        }
        let like = json!({
            "corpus": path.file_name().unwrap_or_default().to_string_lossy(),
            "fingerprint": corpus.fingerprint(),
            "missing": missing.len(),
        });
        let counts = json!({ "source": table.len() });
        Ok(Self {
            genes: target.clone(),
            places: Some(places),
            provenance: [("genes_like", like), ("genes", counts)]
                .map(|(key, value)| (key.to_owned(), value))
                .into_iter()
                .collect(),
        })
    }
}

fn symbols(table: &GeneTable) -> impl Iterator<Item = Option<&str>> {
    table.symbols.iter().map(|s| Some(s.as_str()))
}

fn ensembl(table: &GeneTable) -> impl Iterator<Item = Option<&str>> {
    table.ensembl.iter().map(Option::as_deref)
}

/// The place in `to` of each name in `from`: the first of a name goes to the first, the second to the
/// second.
fn pair<'a>(
    from: impl Iterator<Item = Option<&'a str>>,
    to: impl Iterator<Item = Option<&'a str>>,
) -> Vec<Option<u32>> {
    let mut places: HashMap<&str, VecDeque<u32>> = HashMap::new();
    for (name, place) in to.zip(0..) {
        if let Some(name) = name {
            places.entry(name).or_default().push_back(place);
        }
    }
    from.map(|name| places.get_mut(name?)?.pop_front())
        .collect()
}

fn missing_genes(missing: &[&str], of: usize, like: &Path, input: &Path) -> Error {
    let mut named: Vec<String> = missing
        .iter()
        .take(NAMED)
        .map(|g| format!("`{g}`"))
        .collect();
    if missing.len() > NAMED {
        named.push(format!("and {} more", missing.len() - NAMED));
    }
    Error::Import {
        path: input.to_owned(),
        place: String::new(),
        problem: format!(
            "has no gene of these names, {} of the {of} genes of corpus `{}`: {}",
            missing.len(),
            like.display(),
            named.join(", ")
        ),
        help: if missing.len() == of {
            "take a file of the same species and kind of gene names".to_owned()
        } else {
            "pass --allow-missing-genes to count them as not expressed, or --raw when the file holds them there".to_owned()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_are_paired_in_order() {
        let names = |list: &'static [&'static str]| list.iter().map(|n| Some(*n));
        let places = pair(
            names(&["b", "x", "a", "b", "b"]),
            names(&["a", "b", "c", "b"]),
        );
        assert_eq!(places, [Some(1), None, Some(0), Some(3), None]);
        let unnamed = pair([None, Some("a")].into_iter(), [None, Some("a")].into_iter());
        assert_eq!(unnamed, [None, Some(1)]);
    }
}
