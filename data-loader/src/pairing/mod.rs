//! Treated cells beside control cells: the rows from which responses to perturbations are learned.
//!
//! A row is a control profile over the [`Panel`], the genes of the corpus that have a token, in one
//! order and with their zeros, and the profile of what was treated over the same genes. Profiles are
//! scaled and log-transformed cell by cell over all genes of the corpus, as evaluations do, and
//! never binned. There are two kinds of rows: whole conditions ([`Rows`](crate::pipeline::Rows)),
//! whose means are computed once, and treated cells ([`PairTokenizer`]), each with the mean of its
//! control group or with a control cell drawn at random.

mod means;
mod pools;
mod tokenizer;

use crate::corpus::{Corpus, ValueKind};
use crate::preprocess;
use crate::vocab::GeneMap;

pub use means::{Means, means};
pub use pools::{Pool, pools};
pub use tokenizer::{Controls, PairTokenizer};

/// How the values of a cell become expression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normal {
    /// What a cell is scaled to, over all genes of the corpus.
    pub total: Option<f32>,
    /// Whether log(1 + x) is taken after it.
    pub log1p: bool,
}

impl Normal {
    /// What counts are scaled to unless something else is said.
    pub const TOTAL: f32 = 1e4;

    /// What is done to values of a kind unless something else is said: counts are scaled and
    /// log-transformed, other values are taken as they are.
    pub fn of(kind: ValueKind) -> Self {
        match kind {
            ValueKind::Counts => Self {
                total: Some(Self::TOTAL),
                log1p: true,
            },
            ValueKind::Lognorm => Self {
                total: None,
                log1p: false,
            },
        }
    }

    /// Changes the values of one cell, all genes of it.
    pub fn apply(self, values: &mut [f32]) {
        if let Some(total) = self.total {
            preprocess::normalize_total(values, total);
        }
        if self.log1p {
            preprocess::log1p(values);
        }
    }
}

/// The genes of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panel {
    genes: Vec<u32>,
    tokens: Vec<i32>,
    column_of: Vec<Option<u32>>,
}

impl Panel {
    /// The genes of a corpus that have a token, in the order of the corpus.
    pub fn new(corpus: &Corpus, map: &GeneMap) -> Self {
        let all = 0..corpus.genes().len() as u32;
        let known = all.filter_map(|gene| Some((gene, map.token(gene)?)));
        Self::of(corpus.genes().len(), known)
    }

    /// Every gene of a corpus, without tokens.
    pub fn whole(corpus: &Corpus) -> Self {
        let genes = corpus.genes().len();
        Self::of(genes, (0..genes as u32).map(|gene| (gene, -1)))
    }

    fn of(corpus_genes: usize, known: impl Iterator<Item = (u32, i32)>) -> Self {
        let (genes, tokens): (Vec<u32>, Vec<i32>) = known.unzip();
        let mut column_of = vec![None; corpus_genes];
        for (column, &gene) in (0..).zip(&genes) {
            column_of[gene as usize] = Some(column);
        }
        Self {
            genes,
            tokens,
            column_of,
        }
    }

    /// Number of genes.
    pub fn len(&self) -> usize {
        self.genes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.genes.is_empty()
    }

    /// The genes of the corpus, ascending.
    pub fn genes(&self) -> &[u32] {
        &self.genes
    }

    /// Their tokens.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// The column of a gene of the corpus.
    pub fn column(&self, gene: u32) -> Option<usize> {
        self.column_of[gene as usize].map(|column| column as usize)
    }

    /// Writes a cell's values into a row of zeros.
    pub(crate) fn spread(&self, genes: &[u32], values: &[f32], row: &mut [f32]) {
        for (&gene, &value) in genes.iter().zip(values) {
            if let Some(column) = self.column(gene) {
                row[column] = value;
            }
        }
    }
}
