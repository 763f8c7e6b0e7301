//! The tokens a backbone knows, and how the genes of a corpus map to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::genes::GeneTable;
use crate::{Error, Result};

/// The padding token.
pub const PAD: &str = "<pad>";
/// The class token.
pub const CLS: &str = "<cls>";
/// The end-of-cell token: unused by fine-tuning, but a row of the published embedding tables.
pub const EOC: &str = "<eoc>";

/// Which names of the corpus' genes are looked up in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GeneKey {
    /// Whichever finds more genes.
    #[default]
    Auto,
    /// Symbols.
    Symbol,
    /// Ensembl ids without version.
    Ensembl,
}

impl GeneKey {
    /// The name in configurations and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Symbol => "symbol",
            Self::Ensembl => "ensembl",
        }
    }
}

/// The tokens a backbone knows: ids are dense from 0, `<pad>` and `<cls>` among them. Which file
/// they come from is the business of the backbone's reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocab {
    tokens: Vec<String>,
    ids: HashMap<String, i32>,
}

impl Vocab {
    /// A vocabulary of the special tokens and all genes of a table, each once.
    pub fn from_genes(genes: &GeneTable, key: GeneKey) -> Self {
        let mut tokens: Vec<String> = [PAD, CLS, EOC].map(String::from).to_vec();
        let mut seen: HashSet<&str> = HashSet::new();
        for (symbol, ensembl) in genes.symbols.iter().zip(&genes.ensembl) {
            let name = match key {
                GeneKey::Ensembl => ensembl.as_deref(),
                GeneKey::Auto | GeneKey::Symbol => Some(symbol.as_str()),
            };
            tokens.extend(name.filter(|n| seen.insert(n)).map(String::from));
        }
        Self::from_tokens(tokens)
    }

    /// A vocabulary of `tokens`, whose ids are their positions; `<pad>` and `<cls>` must be among
    /// them.
    pub fn from_tokens(tokens: Vec<String>) -> Self {
        let ids = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ids }
    }

    /// The tokens of a `vocab.json`, an object from token to id, to choose genes by: special tokens may
    /// be missing and ids may have gaps, so that ids of the result mean nothing.
    pub(crate) fn read_json(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let fail = |problem: String| Error::Import {
            path: path.to_owned(),
            place: String::new(),
            problem,
            help: "a vocab.json is one JSON object from token to id".to_owned(),
        };
        let ids: HashMap<String, u64> = serde_json::from_slice(&bytes)
            .map_err(|e| fail(format!("line {}: must map tokens to ids: {e}", e.line())))?;
        let mut by_id = BTreeMap::new();
        for (token, id) in ids {
            if let Some(other) = by_id.insert(id, token.clone()) {
                return Err(fail(format!("`{other}` and `{token}` both have id {id}")));
            }
        }
        Ok(Self::from_tokens(by_id.into_values().collect()))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<i32> {
        self.ids.get(token).copied()
    }

    /// All tokens, in the order of their ids.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The id of `<pad>`.
    pub fn pad_id(&self) -> i32 {
        self.ids[PAD]
    }

    /// The id of `<cls>`.
    pub fn cls_id(&self) -> i32 {
        self.ids[CLS]
    }

    /// Looks the genes of a corpus up.
    ///
    /// # Errors
    /// When not one gene is found.
    pub fn match_genes(&self, genes: &GeneTable, key: GeneKey) -> Result<GeneMap> {
        let map = match key {
            GeneKey::Auto => {
                let symbol = GeneMap::look_up(self, genes, GeneKey::Symbol);
                let ensembl = GeneMap::look_up(self, genes, GeneKey::Ensembl);
                if ensembl.overlap.matched > symbol.overlap.matched {
                    ensembl
                } else {
                    symbol
                }
            }
            key => GeneMap::look_up(self, genes, key),
        };
        if map.overlap.matched > 0 {
            return Ok(map);
        }
        let names = genes.symbols.iter().zip(&genes.ensembl).take(4);
        Err(Error::NoOverlap {
            corpus_genes: genes.len(),
            vocab_tokens: self.len(),
            key: key.name(),
            corpus_names: names
                .flat_map(|(s, e)| [Some(s.clone()), e.clone()])
                .flatten()
                .collect(),
            vocab_names: self
                .tokens
                .iter()
                .filter(|t| !t.starts_with('<'))
                .take(6)
                .cloned()
                .collect(),
        })
    }
}

/// How well a corpus and a vocabulary fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Corpus genes that have a token.
    pub matched: usize,
    /// Corpus genes in all.
    pub corpus_genes: usize,
    /// Corpus genes left out because an earlier gene has the same name.
    pub duplicates: usize,
    /// Some corpus genes without a token.
    pub misses: Vec<String>,
    /// The key in force, never [`GeneKey::Auto`].
    pub key: GeneKey,
}

/// The token of each corpus gene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneMap {
    tokens: Vec<i32>,
    overlap: Overlap,
}

const NO_TOKEN: i32 = -1;

impl GeneMap {
    fn look_up(vocab: &Vocab, genes: &GeneTable, key: GeneKey) -> Self {
        let mut taken = HashSet::new();
        let mut overlap = Overlap {
            matched: 0,
            corpus_genes: genes.len(),
            duplicates: 0,
            misses: Vec::new(),
            key,
        };
        let mut tokens = Vec::with_capacity(genes.len());
        for (symbol, ensembl) in genes.symbols.iter().zip(&genes.ensembl) {
            let name = if key == GeneKey::Ensembl {
                ensembl.as_ref()
            } else {
                Some(symbol)
            };
            let id = name.and_then(|n| vocab.id(n));
            match id {
                Some(id) if taken.insert(id) => {
                    tokens.push(id);
                    overlap.matched += 1;
                    continue;
                }
                Some(_) => overlap.duplicates += 1,
                None if overlap.misses.len() < 8 => {
                    overlap.misses.push(name.unwrap_or(symbol).clone());
                }
                None => {}
            }
            tokens.push(NO_TOKEN);
        }
        Self { tokens, overlap }
    }

    /// How well the corpus fits.
    pub fn overlap(&self) -> &Overlap {
        &self.overlap
    }

    /// Number of corpus genes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the corpus has no genes.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The token of a corpus gene.
    #[inline]
    pub fn token(&self, gene: u32) -> Option<i32> {
        let id = self.tokens[gene as usize];
        (id != NO_TOKEN).then_some(id)
    }

    /// The tokens of all corpus genes, negative where a gene has none.
    pub(crate) fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Keeps only these corpus genes (ascending): the others count as unknown.
    pub fn retain(&mut self, genes: &[u32]) {
        for gene in 0..self.tokens.len() {
            if genes.binary_search(&(gene as u32)).is_err() {
                self.tokens[gene] = NO_TOKEN;
            }
        }
        self.overlap.matched = self.tokens.iter().filter(|&&id| id != NO_TOKEN).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> GeneTable {
        GeneTable {
            symbols: ["CD3E", "MS4A1", "CD3E", "XIST"].map(String::from).to_vec(),
            ensembl: vec![
                Some("ENSG00000198851".into()),
                None,
                None,
                Some("ENSG00000229807".into()),
            ],
        }
    }

    #[test]
    fn auto_takes_the_better_key_and_the_first_of_duplicates() {
        let symbols = Vocab::from_genes(&table(), GeneKey::Symbol);
        assert_eq!(symbols.tokens(), [PAD, CLS, EOC, "CD3E", "MS4A1", "XIST"]);
        let map = symbols.match_genes(&table(), GeneKey::Auto).unwrap();
        assert_eq!(
            (0..4).map(|g| map.token(g)).collect::<Vec<_>>(),
            [Some(3), Some(4), None, Some(5)]
        );
        assert_eq!(
            (map.overlap().key, map.overlap().duplicates),
            (GeneKey::Symbol, 1)
        );
        let ensembl = Vocab::from_genes(&table(), GeneKey::Ensembl);
        let map = ensembl.match_genes(&table(), GeneKey::Auto).unwrap();
        assert_eq!(
            (map.overlap().key, map.overlap().matched),
            (GeneKey::Ensembl, 2)
        );
    }

    #[test]
    fn no_overlap_shows_both_sides() {
        let genes = GeneTable {
            symbols: vec!["mt-Co1".into()],
            ensembl: vec![None],
        };
        let text = Vocab::from_genes(&table(), GeneKey::Symbol)
            .match_genes(&genes, GeneKey::Auto)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("`mt-Co1`") && text.contains("`CD3E`") && text.contains("help:"),
            "{text}"
        );
    }
}
