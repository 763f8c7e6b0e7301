//! The tokens of scBERT: for every gene of a fixed panel, expressed or not, the bin that its
//! expression lies in. A gene is known by its place.

use super::{Cell, CellKey, CellTokenizer, Tokenizer, Tokens};
use crate::corpus::ValueKind;
use crate::genes::GeneTable;
use crate::vocab::{GeneKey, GeneMap, Overlap, Vocab};
use crate::{Error, Result};

/// What the counts of a cell's panel genes are scaled to.
const TARGET_SUM: f64 = 10_000.0;

/// What becomes of a value before it is cut off to a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BinScale {
    /// log2(1 + x) of counts scaled to 10,000 over the genes of the panel, as scBERT was pretrained.
    /// Of a corpus of ln(1 + x): the same of what was scaled there.
    #[default]
    Log2,
    /// Counts scaled to 10,000, without a logarithm.
    Scaled,
    /// The values as they are.
    AsTheyAre,
}

/// Tokenises cells for scBERT: `panel.len() + 1` tokens each, the last of which is 0.
#[derive(Debug)]
pub struct PanelTokenizer {
    genes: GeneMap,
    scale: BinScale,
    kind: ValueKind,
    /// Places of a sequence.
    places: usize,
    /// The highest bin.
    highest: i32,
}

impl PanelTokenizer {
    /// A tokeniser for the genes of a corpus. Of corpus genes with one name the first counts.
    /// `tokens` is the number of tokens of the model: bins 0 to `tokens - 2`, of which the last takes
    /// all higher values, and one more for masks and padding.
    ///
    /// # Errors
    /// When no gene of the panel is in the corpus, or values that are logarithms already would be
    /// scaled.
    pub fn new(
        panel: &[String],
        tokens: usize,
        genes: &GeneTable,
        key: GeneKey,
        kind: ValueKind,
        scale: BinScale,
    ) -> Result<Self> {
        if scale == BinScale::Scaled && kind == ValueKind::Lognorm {
            return Err(Error::options(
                "counts cannot be scaled: the corpus holds logarithms",
                "set `data.bin_scale = \"log2\"`, or import the counts (`--raw` or `--layer`)",
            ));
        }
        Ok(Self {
            genes: Vocab::from_tokens(panel.to_vec()).match_genes(genes, key)?,
            scale,
            kind,
            places: panel.len() + 1,
            highest: tokens as i32 - 2,
        })
    }

    /// How well the corpus fits.
    pub fn overlap(&self) -> &Overlap {
        self.genes.overlap()
    }

    /// The bin of each value of a cell whose panel genes have `total` counts.
    fn bin(&self, value: f32, total: f64) -> i32 {
        let value = f64::from(value);
        let x = match (self.scale, self.kind) {
            (BinScale::AsTheyAre, _) => value,
            (BinScale::Scaled, _) => value * TARGET_SUM / total,
            (BinScale::Log2, ValueKind::Counts) => (1.0 + value * TARGET_SUM / total).log2(),
            (BinScale::Log2, ValueKind::Lognorm) => value / std::f64::consts::LN_2,
        };
        (x as i32).min(self.highest)
    }
}

impl Tokenizer for PanelTokenizer {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Worker { owner: self })
    }

    /// The token of masks and padding, which no cell has: all cells are of one length.
    fn pad_id(&self) -> i32 {
        self.highest + 1
    }

    fn pad_value(&self) -> f32 {
        0.0
    }

    fn max_len(&self) -> usize {
        self.places
    }

    fn most_tokens(&self, _values: usize) -> usize {
        self.places
    }
}

struct Worker<'a> {
    owner: &'a PanelTokenizer,
}

impl CellTokenizer for Worker<'_> {
    fn tokenize(&mut self, cell: Cell<'_>, _key: CellKey, out: &mut Tokens) -> bool {
        let owner = self.owner;
        let known = || {
            let pairs = cell.genes.iter().zip(cell.values);
            pairs.filter_map(|(&gene, &value)| Some((owner.genes.token(gene)?, value)))
        };
        let total: f64 = known().map(|(_, value)| f64::from(value)).sum();
        let begin = out.ids.len();
        out.ids.resize(begin + owner.places, 0);
        out.values.resize(begin + owner.places, 0.0);
        let mut any = false;
        for (place, value) in known() {
            out.ids[begin + place as usize] = owner.bin(value, total);
            any = true;
        }
        out.end_row();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> Vec<String> {
        ["A", "B", "C", "D"].map(String::from).to_vec()
    }

    fn tokens(kind: ValueKind, scale: BinScale, cell: Cell<'_>) -> (Vec<i32>, bool) {
        let genes = GeneTable {
            symbols: ["C", "X", "A", "C"].map(String::from).to_vec(),
            ensembl: vec![None; 4],
        };
        let tokenizer =
            PanelTokenizer::new(&panel(), 7, &genes, GeneKey::Auto, kind, scale).unwrap();
        assert_eq!(tokenizer.overlap().matched, 2);
        assert_eq!(tokenizer.overlap().duplicates, 1);
        let mut out = Tokens::default();
        let any = tokenizer
            .worker()
            .tokenize(cell, CellKey::new(0, 0, 0), &mut out);
        assert_eq!(out.values, [0.0; 5]);
        (out.ids, any)
    }

    #[test]
    fn every_gene_of_the_panel_has_a_place_and_the_last_place_is_zero() {
        let cell = Cell {
            genes: &[0, 1, 2, 3],
            values: &[3.0, 90.0, 1.0, 50.0],
        };
        // Of 4 counts in the panel: A has 2,500 of 10,000, C (the first) 7,500.
        let (ids, any) = tokens(ValueKind::Counts, BinScale::Log2, cell);
        assert_eq!((ids, any), (vec![5, 0, 5, 0, 0], true));
        let (ids, _) = tokens(ValueKind::Counts, BinScale::AsTheyAre, cell);
        assert_eq!(ids, [1, 0, 3, 0, 0]);
        let (ids, _) = tokens(ValueKind::Lognorm, BinScale::Log2, cell);
        // 3 / ln 2 = 4.3, 1 / ln 2 = 1.4.
        assert_eq!(ids, [1, 0, 4, 0, 0]);
        let unknown = Cell {
            genes: &[1],
            values: &[2.0],
        };
        let (ids, any) = tokens(ValueKind::Counts, BinScale::Log2, unknown);
        assert_eq!((ids, any), (vec![0; 5], false));
    }

    #[test]
    fn another_panel_and_scaled_logarithms_are_refused() {
        let genes = GeneTable {
            symbols: vec!["mt-Co1".into()],
            ensembl: vec![None],
        };
        let refused = |genes: &GeneTable, kind, scale| {
            let made = PanelTokenizer::new(&panel(), 7, genes, GeneKey::Auto, kind, scale);
            made.unwrap_err().to_string()
        };
        let text = refused(&genes, ValueKind::Counts, BinScale::Log2);
        assert!(text.contains("`mt-Co1`") && text.contains("`A`"), "{text}");
        let genes = GeneTable {
            symbols: vec!["A".into()],
            ensembl: vec![None],
        };
        let text = refused(&genes, ValueKind::Lognorm, BinScale::Scaled);
        assert!(text.contains("data.bin_scale"), "{text}");
    }
}
