//! The tokens of Geneformer: the genes of a cell in order of their expression, each relative to its
//! median over the cells that the model was pretrained on. There are no values.

use std::collections::HashMap;

use super::{Cell, CellKey, CellTokenizer, Tokenizer, Tokens};
use crate::corpus::ValueKind;
use crate::genes::GeneTable;
use crate::vocab::{CLS, GeneKey, Overlap, PAD};
use crate::{Error, Result};

pub use super::medians::gene_medians;

/// The token of a gene that is hidden.
pub const MASK: &str = "<mask>";
/// The token that ends a cell.
pub const EOS: &str = "<eos>";
/// What the counts of a cell are scaled to.
const TARGET_SUM: f32 = 10_000.0;
const NO_TOKEN: i32 = -1;
/// Corpus genes without a token that are named.
const MISSES: usize = 8;

/// Genes that the model knows, with token and median, and other names that lead to them.
#[derive(Debug, Clone, PartialEq)]
pub struct RankDictionary {
    tokens: HashMap<String, i32>,
    medians: HashMap<String, f64>,
    other_names: HashMap<String, String>,
    pad_id: i32,
    mask_id: i32,
    special: Option<(i32, i32)>,
}

impl RankDictionary {
    /// A dictionary of `tokens` with `medians`, in which `other_names` (old identifiers, symbols)
    /// lead to a name in `tokens`. Special tokens are found by name.
    ///
    /// # Errors
    /// When there is no `<pad>` or `<mask>`, or a median is not a number above 0.
    pub fn new(
        tokens: HashMap<String, i32>,
        medians: HashMap<String, f64>,
        other_names: HashMap<String, String>,
    ) -> Result<Self> {
        let needed = |name: &str| match tokens.get(name) {
            Some(&id) => Ok(id),
            None => Err(Error::options(
                format!("the token dictionary has no `{name}`"),
                "",
            )),
        };
        let (pad_id, mask_id) = (needed(PAD)?, needed(MASK)?);
        let wrong = medians.iter().find(|(_, m)| !(m.is_finite() && **m > 0.0));
        if let Some((gene, median)) = wrong {
            return Err(Error::options(
                format!("the median of `{gene}` is {median}, expected a number above 0"),
                "",
            ));
        }
        let special = tokens.get(CLS).zip(tokens.get(EOS));
        Ok(Self {
            pad_id,
            mask_id,
            special: special.map(|(&cls, &eos)| (cls, eos)),
            tokens,
            medians,
            other_names,
        })
    }

    /// Ids of `<cls>` and `<eos>`, which enclose a cell where both exist.
    pub fn special(&self) -> Option<(i32, i32)> {
        self.special
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token; never, for there is one of padding.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Token and median of a gene called `name`.
    fn gene(&self, name: &str) -> Option<(i32, f64)> {
        let find = |name: &str| Some((*self.tokens.get(name)?, *self.medians.get(name)?));
        find(name).or_else(|| find(self.other_names.get(name)?))
    }

    /// Token and median of each gene of a corpus, looked up by one kind of name.
    fn look_up(&self, genes: &GeneTable, key: GeneKey) -> RankGenes {
        let mut found = RankGenes {
            tokens: Vec::with_capacity(genes.len()),
            inverse_medians: Vec::with_capacity(genes.len()),
            overlap: Overlap {
                matched: 0,
                corpus_genes: genes.len(),
                duplicates: 0,
                misses: Vec::new(),
                key,
            },
        };
        let mut seen = std::collections::HashSet::new();
        for (symbol, ensembl) in genes.symbols.iter().zip(&genes.ensembl) {
            let name = match key {
                GeneKey::Ensembl => ensembl.as_deref(),
                GeneKey::Auto | GeneKey::Symbol => Some(symbol.as_str()),
            };
            let gene = name.and_then(|name| self.gene(name));
            let overlap = &mut found.overlap;
            match gene {
                Some((token, _)) => {
                    overlap.matched += 1;
                    overlap.duplicates += usize::from(!seen.insert(token));
                }
                None if overlap.misses.len() < MISSES => {
                    overlap.misses.push(name.unwrap_or(symbol).to_owned());
                }
                None => {}
            }
            let (token, median) = gene.unwrap_or((NO_TOKEN, 1.0));
            found.tokens.push(token);
            // The reference multiplies by the reciprocal; a quotient could break a tie otherwise.
            found.inverse_medians.push(1.0 / median);
        }
        found
    }

    fn match_genes(&self, genes: &GeneTable, key: GeneKey) -> Result<RankGenes> {
        let found = match key {
            GeneKey::Auto => {
                let ensembl = self.look_up(genes, GeneKey::Ensembl);
                let symbol = self.look_up(genes, GeneKey::Symbol);
                if symbol.overlap.matched > ensembl.overlap.matched {
                    symbol
                } else {
                    ensembl
                }
            }
            key => self.look_up(genes, key),
        };
        if found.overlap.matched > 0 {
            return Ok(found);
        }
        let names = genes.symbols.iter().zip(&genes.ensembl).take(4);
        let mut own: Vec<&String> = self.medians.keys().collect();
        own.sort_unstable();
        Err(Error::NoOverlap {
            corpus_genes: genes.len(),
            vocab_tokens: self.len(),
            key: key.name(),
            corpus_names: names
                .flat_map(|(s, e)| [Some(s.clone()), e.clone()])
                .flatten()
                .collect(),
            vocab_names: own.into_iter().take(6).cloned().collect(),
        })
    }
}

/// Token and median of each corpus gene.
#[derive(Debug, Clone)]
struct RankGenes {
    tokens: Vec<i32>,
    inverse_medians: Vec<f64>,
    overlap: Overlap,
}

/// How the values of a corpus become expression that genes of a cell are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Counts, as a share of all counts of the cell.
    Counts,
    /// ln(1 + x) of expression that is scaled already.
    Logged,
}

impl Scale {
    pub(super) fn of(kind: ValueKind) -> Self {
        match kind {
            ValueKind::Counts => Self::Counts,
            ValueKind::Lognorm => Self::Logged,
        }
    }

    /// The expression of each value of a cell. All its genes count, known or not.
    pub(super) fn of_cell(self, values: &[f32]) -> impl Fn(f32) -> f32 + use<> {
        let total: f64 = values.iter().map(|&v| f64::from(v)).sum();
        // In the reference's steps, so that equal values are equal here.
        let inverse_total = 1.0 / total as f32;
        move |value| match self {
            Self::Counts => value * inverse_total * TARGET_SUM,
            Self::Logged => value.exp_m1(),
        }
    }
}

/// Tokenises cells the way Geneformer was trained.
#[derive(Debug)]
pub struct RankTokenizer {
    genes: RankGenes,
    pad_id: i32,
    /// Stands for a cell without any known gene.
    mask_id: i32,
    special: Option<(i32, i32)>,
    /// Counts of corpus genes with one token are added up; else the token is repeated.
    collapse: bool,
    scale: Scale,
    max_len: usize,
}

impl RankTokenizer {
    /// A tokeniser for the genes of a corpus. With `<cls>` and `<eos>`, counts of genes that share a
    /// token are added up, as the second generation does; without, the token is repeated.
    ///
    /// # Errors
    /// When no gene is found, or `max_len` leaves no room for a gene.
    pub fn new(
        dictionary: &RankDictionary,
        genes: &GeneTable,
        key: GeneKey,
        kind: ValueKind,
        max_len: usize,
    ) -> Result<Self> {
        let special = dictionary.special;
        let least = if special.is_some() { 3 } else { 1 };
        if max_len < least {
            return Err(Error::options(
                format!("max_len must be at least {least}, got `{max_len}`"),
                "",
            ));
        }
        let genes = dictionary.match_genes(genes, key)?;
        Ok(Self {
            collapse: special.is_some() && genes.overlap.duplicates > 0,
            scale: Scale::of(kind),
            pad_id: dictionary.pad_id,
            mask_id: dictionary.mask_id,
            special,
            genes,
            max_len,
        })
    }

    /// How well the corpus fits.
    pub fn overlap(&self) -> &Overlap {
        &self.genes.overlap
    }
}

impl Tokenizer for RankTokenizer {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Worker {
            owner: self,
            ranked: Vec::new(),
            order: Vec::new(),
            place_of: HashMap::new(),
        })
    }

    fn pad_id(&self) -> i32 {
        self.pad_id
    }

    fn pad_value(&self) -> f32 {
        0.0
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn most_tokens(&self, values: usize) -> usize {
        let special = if self.special.is_some() { 2 } else { 0 };
        (values + special).min(self.max_len)
    }
}

/// A gene of a cell: its token and what it is ranked by.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    token: i32,
    value: f64,
}

struct Worker<'a> {
    owner: &'a RankTokenizer,
    /// Genes with a token, in the order of the corpus.
    ranked: Vec<Ranked>,
    /// Their places, sorted; the upper half is a sort key.
    order: Vec<u64>,
    place_of: HashMap<i32, usize>,
}

impl CellTokenizer for Worker<'_> {
    fn tokenize(&mut self, cell: Cell<'_>, _key: CellKey, out: &mut Tokens) -> bool {
        self.find(cell);
        self.sort();
        let special = self.owner.special;
        let room = self.owner.max_len - if special.is_some() { 2 } else { 0 };
        if let Some((cls, _)) = special {
            out.ids.push(cls);
        }
        let kept = self.order.iter().take(room);
        out.ids
            .extend(kept.map(|&key| self.ranked[key as u32 as usize].token));
        if let Some((_, eos)) = special {
            out.ids.push(eos);
        }
        if self.ranked.is_empty() && special.is_none() {
            // A sequence without any token has nothing to attend to.
            out.ids.push(self.owner.mask_id);
        }
        out.values.resize(out.ids.len(), 0.0);
        out.end_row();
        !self.ranked.is_empty()
    }
}

impl Worker<'_> {
    /// The genes of a cell that have a token, with their values.
    fn find(&mut self, cell: Cell<'_>) {
        let RankGenes {
            tokens,
            inverse_medians,
            ..
        } = &self.owner.genes;
        let scaled = self.owner.scale.of_cell(cell.values);
        self.ranked.clear();
        if self.owner.collapse {
            self.collapse(cell, scaled);
            return;
        }
        for (&gene, &count) in cell.genes.iter().zip(cell.values) {
            let token = tokens[gene as usize];
            if token != NO_TOKEN {
                let value = f64::from(scaled(count)) * inverse_medians[gene as usize];
                self.ranked.push(Ranked { token, value });
            }
        }
    }

    /// The same, with one entry for all genes of a token.
    fn collapse(&mut self, cell: Cell<'_>, scaled: impl Fn(f32) -> f32) {
        let RankGenes {
            tokens,
            inverse_medians,
            ..
        } = &self.owner.genes;
        self.place_of.clear();
        // First the sums, then what they are ranked by.
        let mut first_gene = Vec::new();
        for (&gene, &count) in cell.genes.iter().zip(cell.values) {
            let token = tokens[gene as usize];
            if token == NO_TOKEN {
                continue;
            }
            let next = self.ranked.len();
            let place = *self.place_of.entry(token).or_insert(next);
            if place == next {
                self.ranked.push(Ranked { token, value: 0.0 });
                first_gene.push(gene as usize);
            }
            self.ranked[place].value += f64::from(scaled(count));
        }
        for (ranked, gene) in self.ranked.iter_mut().zip(first_gene) {
            ranked.value *= inverse_medians[gene];
        }
    }

    /// Sorts by value, largest first; equal values keep the order of the corpus.
    fn sort(&mut self) {
        let ranked = &self.ranked;
        self.order.clear();
        // Values are above 0, where the bits of an f32 are in the order of the numbers. Rounding
        // keeps the order but for values that become equal, which are looked at again.
        self.order
            .extend(ranked.iter().enumerate().map(|(place, gene)| {
                let key = !(gene.value as f32).to_bits();
                u64::from(key) << 32 | place as u64
            }));
        self.order.sort_unstable();
        let high = |key: u64| key >> 32;
        for run in self.order.chunk_by_mut(|&a, &b| high(a) == high(b)) {
            if run.len() > 1 {
                run.sort_by(|&a, &b| {
                    let value = |key: u64| ranked[key as u32 as usize].value;
                    value(b).total_cmp(&value(a))
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> GeneTable {
        GeneTable {
            symbols: names.iter().map(|n| format!("symbol-{n}")).collect(),
            ensembl: names.iter().map(|n| Some((*n).to_owned())).collect(),
        }
    }

    fn dictionary(special: bool, others: &[(&str, &str)]) -> RankDictionary {
        let mut names = vec!["<pad>", "<mask>"];
        if special {
            names.extend(["<cls>", "<eos>"]);
        }
        let medians: Vec<(&str, f64)> = vec![("A", 1.0), ("B", 2.0), ("C", 4.0), ("D", 0.1)];
        names.extend(medians.iter().map(|(name, _)| *name));
        RankDictionary::new(
            names.iter().map(|n| (*n).to_owned()).zip(0..).collect(),
            medians.iter().map(|&(n, m)| (n.to_owned(), m)).collect(),
            others
                .iter()
                .map(|&(from, to)| (from.to_owned(), to.to_owned()))
                .collect(),
        )
        .unwrap()
    }

    fn tokenizer(special: bool, names: &[&str], max_len: usize) -> RankTokenizer {
        let others = [("old-A", "A"), ("symbol-X", "B")];
        RankTokenizer::new(
            &dictionary(special, &others),
            &table(names),
            GeneKey::Auto,
            ValueKind::Counts,
            max_len,
        )
        .unwrap()
    }

    fn ids(tokenizer: &RankTokenizer, genes: &[u32], values: &[f32]) -> (Vec<i32>, bool) {
        let mut out = Tokens::default();
        let cell = Cell { genes, values };
        let some = tokenizer
            .worker()
            .tokenize(cell, CellKey::new(0, 0, 0), &mut out);
        assert_eq!(out.values.len(), out.ids.len());
        (out.ids, some)
    }

    #[test]
    fn genes_come_by_their_value_over_the_median_and_ties_in_the_order_of_the_corpus() {
        let first = tokenizer(false, &["A", "unknown", "C", "B", "D"], 2048);
        assert_eq!(
            (first.overlap().matched, first.overlap().key),
            (4, GeneKey::Ensembl)
        );
        // 2/1, 9/none, 8/4, 4/2, 1/0.1: three ties of 2.
        let found = ids(&first, &[0, 1, 2, 3, 4], &[2.0, 9.0, 8.0, 4.0, 1.0]);
        assert_eq!(found, (vec![5, 2, 4, 3], true));
        let short = tokenizer(false, &["A", "unknown", "C", "B", "D"], 2);
        let found = ids(&short, &[0, 1, 2, 3, 4], &[2.0, 9.0, 8.0, 4.0, 1.0]);
        assert_eq!(found.0, [5, 2]);
        // Nothing known: an unknown gene, and said so.
        assert_eq!(ids(&first, &[1], &[3.0]), (vec![1], false));
    }

    #[test]
    fn the_second_generation_encloses_cells_and_adds_up_genes_of_one_token() {
        let second = tokenizer(true, &["A", "old-A", "C"], 5);
        assert_eq!(second.overlap().duplicates, 1);
        // A: (1 + 2)/1 beats C: 8/4, which 1 and 2 alone would not.
        assert_eq!(ids(&second, &[0, 1, 2], &[1.0, 2.0, 8.0]).0, [2, 4, 6, 3]);
        assert_eq!(ids(&second, &[], &[]), (vec![2, 3], false));
        assert_eq!(second.most_tokens(10), 5);
        // The first generation repeats the token instead.
        let first = tokenizer(false, &["A", "old-A", "C"], 5);
        assert_eq!(ids(&first, &[0, 1, 2], &[1.0, 2.0, 4.0]).0, [2, 2, 4]);
    }

    #[test]
    fn values_that_differ_only_beyond_f32_are_still_ordered() {
        let mut dictionary = dictionary(false, &[]);
        dictionary.medians.insert("A".into(), 1.0 + 2e-12);
        dictionary.medians.insert("B".into(), 1.0 + 1e-12);
        dictionary.medians.insert("C".into(), 1.0);
        let made = RankTokenizer::new(
            &dictionary,
            &table(&["A", "B", "C"]),
            GeneKey::Ensembl,
            ValueKind::Counts,
            10,
        )
        .unwrap();
        assert_eq!(ids(&made, &[0, 1, 2], &[3.0; 3]).0, [4, 3, 2]);
    }

    #[test]
    fn the_logarithm_is_taken_back_before_genes_are_compared() {
        let made = RankTokenizer::new(
            &dictionary(false, &[]),
            &table(&["A", "C"]),
            GeneKey::Ensembl,
            ValueKind::Lognorm,
            10,
        )
        .unwrap();
        // 1 and 3: by e - 1 = 1.7 and (e^3 - 1) / 4 = 4.8, though 3 / 4 is less than 1.
        assert_eq!(ids(&made, &[0, 1], &[1.0, 3.0]).0, [4, 2]);
    }

    #[test]
    fn what_cannot_be_ranked_is_refused_with_both_sides() {
        let made = |genes: &GeneTable, kind, max_len| {
            RankTokenizer::new(&dictionary(true, &[]), genes, GeneKey::Auto, kind, max_len)
                .unwrap_err()
                .to_string()
        };
        let known = table(&["A"]);
        let text = made(&known, ValueKind::Counts, 2);
        assert!(text.contains("at least 3"), "{text}");
        let mouse = table(&["ENSMUSG00000000001"]);
        let text = made(&mouse, ValueKind::Counts, 10);
        assert!(
            text.contains("ENSMUSG00000000001") && text.contains("`A`"),
            "{text}"
        );
        let medians = HashMap::from([("A".to_owned(), 0.0)]);
        let tokens = HashMap::from([("<pad>".to_owned(), 0), ("<mask>".to_owned(), 1)]);
        let error = RankDictionary::new(tokens, medians, HashMap::new()).unwrap_err();
        assert!(error.to_string().contains("median of `A` is 0"), "{error}");
    }
}
