//! The tokens of scFoundation: the genes that a cell expresses, in the order of the model's own list,
//! each with its log-normalised value, and perhaps two read depths behind them.

use super::{Cell, CellKey, CellTokenizer, Tokenizer, Tokens};
use crate::preprocess::{Draws, size_factor};
use crate::rng::{Purpose, Rng};
use crate::vocab::GeneMap;
use crate::{Error, Result};

/// How deep a cell should have been sequenced, as the log10 of all its counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetDepth {
    /// The same for every cell.
    Fixed(f32),
    /// A multiple of the cell's own counts.
    Fold(f32),
    /// So much more than the cell's own.
    Added(f32),
}

impl TargetDepth {
    /// The target of a cell whose values sum to `total`.
    fn of(self, total: f64) -> f32 {
        match self {
            Self::Fixed(depth) => depth,
            Self::Fold(fold) => (total * f64::from(fold)).log10() as f32,
            Self::Added(more) => total.log10() as f32 + more,
        }
    }
}

/// How cells become tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ScfoundationOptions {
    /// Genes of the model: those with a token are below, the depths T and S are the next two, and
    /// padding is behind them.
    pub genes: i32,
    /// Longest sequence, depths included.
    pub max_len: usize,
    /// The sum that each cell is scaled to, over the genes that the model knows.
    pub normalize_total: Option<f32>,
    /// Whether to take ln(1 + x) afterwards.
    pub log1p: bool,
    /// The depth T that is asked for; without it a cell has neither T nor its own depth S.
    pub target_depth: Option<TargetDepth>,
    /// The value of padding.
    pub pad_value: f32,
    /// Seed of the genes that are drawn where a cell has too many.
    pub seed: u64,
}

/// Tokenises cells the way scFoundation was trained.
#[derive(Debug)]
pub struct ScfoundationTokenizer {
    options: ScfoundationOptions,
    genes: GeneMap,
}

impl ScfoundationTokenizer {
    /// A tokeniser for the genes that `genes` maps to the model's.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(genes: GeneMap, options: ScfoundationOptions) -> Result<Self> {
        let least = if options.target_depth.is_some() { 3 } else { 1 };
        if options.max_len < least {
            return Err(Error::options(
                format!(
                    "max_len must be at least {least}, got `{}`",
                    options.max_len
                ),
                "",
            ));
        }
        Ok(Self { options, genes })
    }
}

impl Tokenizer for ScfoundationTokenizer {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Worker {
            owner: self,
            expressed: Vec::new(),
            drawn: Vec::new(),
        })
    }

    fn pad_id(&self) -> i32 {
        self.options.genes + 2
    }

    fn pad_value(&self) -> f32 {
        self.options.pad_value
    }

    fn max_len(&self) -> usize {
        self.options.max_len
    }

    fn most_tokens(&self, values: usize) -> usize {
        let depths = if self.options.target_depth.is_some() {
            2
        } else {
            0
        };
        (values.max(1) + depths).min(self.options.max_len)
    }
}

struct Worker<'a> {
    owner: &'a ScfoundationTokenizer,
    /// Token in the upper half, bits of the value in the lower: sorts by token.
    expressed: Vec<u64>,
    drawn: Vec<u32>,
}

impl CellTokenizer for Worker<'_> {
    fn tokenize(&mut self, cell: Cell<'_>, key: CellKey, out: &mut Tokens) -> bool {
        let options = &self.owner.options;
        let total = self.find(cell);
        let known = !self.expressed.is_empty();
        let depths = if options.target_depth.is_some() { 2 } else { 0 };
        let room = options.max_len - depths;
        if self.expressed.len() > room {
            let mut draws = Rng::new(options.seed, Purpose::GeneSample, 0, key.cell);
            draws.sample(self.expressed.len(), room, &mut self.drawn);
            self.drawn.sort_unstable();
            for (kept, &place) in self.drawn.iter().enumerate() {
                // Ascending: a place that is read later is never written before.
                self.expressed[kept] = self.expressed[place as usize];
            }
            self.expressed.truncate(room);
        }
        if !known && depths == 0 {
            // A sequence without any token has nothing to attend to; no gene is expressed, so the
            // first is not.
            self.expressed.push(0);
        }
        let factor = options
            .normalize_total
            .map_or(1.0, |target| size_factor(total, target));
        out.ids
            .extend(self.expressed.iter().map(|&pair| (pair >> 32) as i32));
        out.values.extend(self.expressed.iter().map(|&pair| {
            let scaled = f32::from_bits(pair as u32) / factor;
            if options.log1p {
                scaled.ln_1p()
            } else {
                scaled
            }
        }));
        if let Some(target) = options.target_depth {
            // One count is the least that a cell with counts can have.
            let total = total.max(1.0);
            out.ids.extend([options.genes, options.genes + 1]);
            out.values.extend([target.of(total), total.log10() as f32]);
        }
        out.end_row();
        known
    }
}

impl Worker<'_> {
    /// Finds the expressed genes that have a token, ascending; returns the sum of their values.
    fn find(&mut self, cell: Cell<'_>) -> f64 {
        let tokens = self.owner.genes.tokens();
        self.expressed.clear();
        let (mut total, mut sorted, mut last) = (0.0, true, -1);
        for (&gene, &value) in cell.genes.iter().zip(cell.values) {
            let id = tokens[gene as usize];
            if id >= 0 {
                total += f64::from(value);
                sorted &= last < id;
                last = id;
                let pair = (id as u64) << 32 | u64::from(value.to_bits());
                self.expressed.push(pair);
            }
        }
        if !sorted {
            self.expressed.sort_unstable();
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genes::GeneTable;
    use crate::vocab::{GeneKey, Vocab};

    /// A model of five genes; the corpus has three of them in another order, and one of its own.
    fn tokenizer(change: impl Fn(&mut ScfoundationOptions)) -> ScfoundationTokenizer {
        let model = ["A", "B", "C", "D", "E"].map(String::from).to_vec();
        let genes = GeneTable {
            symbols: ["E", "X", "B", "A"].map(String::from).to_vec(),
            ensembl: vec![None; 4],
        };
        let vocab = Vocab::from_tokens(model);
        let map = vocab.match_genes(&genes, GeneKey::Auto).unwrap();
        assert_eq!((map.overlap().matched, map.overlap().corpus_genes), (3, 4));
        let mut options = ScfoundationOptions {
            genes: 5,
            max_len: 100,
            normalize_total: Some(1e4),
            log1p: true,
            target_depth: None,
            pad_value: 103.0,
            seed: 1,
        };
        change(&mut options);
        ScfoundationTokenizer::new(map, options).unwrap()
    }

    fn tokens(tokenizer: &ScfoundationTokenizer, genes: &[u32], values: &[f32]) -> (Tokens, bool) {
        let mut out = Tokens::default();
        let cell = Cell { genes, values };
        let known = tokenizer
            .worker()
            .tokenize(cell, CellKey::new(0, 0, 0), &mut out);
        (out, known)
    }

    #[test]
    fn genes_stand_in_the_order_of_the_model_scaled_by_those_it_knows() {
        let tokenizer = tokenizer(|_| {});
        let (out, known) = tokens(&tokenizer, &[0, 1, 2], &[3.0, 50.0, 1.0]);
        assert_eq!(out.ids, [1, 4]);
        // 1 and 3 of 4 counts; the 50 of the unknown gene count nowhere.
        let expected = [2500.0_f32.ln_1p(), 7500.0_f32.ln_1p()];
        assert!(
            out.values
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6),
            "{:?}",
            out.values
        );
        assert!(known);
        assert_eq!((tokenizer.pad_id(), tokenizer.most_tokens(2)), (7, 2));
    }

    #[test]
    fn read_depths_come_last_and_are_of_raw_counts() {
        for (target, expected) in [
            (TargetDepth::Fixed(4.0), 4.0),
            (TargetDepth::Fold(10.0), 3.0),
            (TargetDepth::Added(0.5), 2.5),
        ] {
            let tokenizer = tokenizer(|options| options.target_depth = Some(target));
            let (out, _) = tokens(&tokenizer, &[0, 3], &[60.0, 40.0]);
            assert_eq!(out.ids, [0, 4, 5, 6]);
            assert!((out.values[2] - expected).abs() < 1e-6, "{:?}", out.values);
            assert!((out.values[3] - 2.0).abs() < 1e-6, "{:?}", out.values);
        }
    }

    #[test]
    fn a_long_cell_keeps_its_order_and_its_depths() {
        let tokenizer = tokenizer(|options| {
            options.target_depth = Some(TargetDepth::Fixed(4.0));
            options.max_len = 4;
        });
        let (out, _) = tokens(&tokenizer, &[0, 2, 3], &[1.0, 1.0, 1.0]);
        assert_eq!(out.ids.len(), 4);
        assert_eq!(out.ids[2..], [5, 6]);
        assert!(out.ids[0] < out.ids[1] && out.ids[1] < 5, "{:?}", out.ids);
        // Drawn from all three, and the scale is that of the whole cell.
        assert!((out.values[0] - (1e4_f32 / 3.0).ln_1p()).abs() < 1e-5);
        assert!((out.values[3] - 3.0_f32.log10()).abs() < 1e-6);
    }

    #[test]
    fn a_cell_without_a_known_gene_has_a_token_and_is_told() {
        let (out, known) = tokens(&tokenizer(|_| {}), &[1], &[9.0]);
        assert_eq!(
            (out.ids.as_slice(), out.values.as_slice()),
            (&[0][..], &[0.0][..])
        );
        assert!(!known);
        let depths = tokenizer(|options| options.target_depth = Some(TargetDepth::Fold(2.0)));
        let (out, known) = tokens(&depths, &[1], &[9.0]);
        assert_eq!(out.ids, [5, 6]);
        assert!(!known && out.values.iter().all(|v| v.is_finite()));
    }
}
