//! The tokens of scGPT: one per expressed gene, with its quantile bin as value, after a class token.

use super::mask::{MaskOptions, mask_values};
use super::{Cell, CellKey, CellTokenizer, SequenceOptions, Sequencer, Tokenizer, Tokens};
use crate::corpus::ValueKind;
use crate::preprocess::{Binner, size_factor};
use crate::rng::{Purpose, Rng};
use crate::vocab::{GeneMap, Vocab};
use crate::{Error, Result};

/// How the model reads values, which decides what stands for padding and for masked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValueStyle {
    /// As numbers: padding and masks are negative.
    #[default]
    Continuous,
    /// As rows of an embedding table: padding and masks have rows of their own behind the bins.
    Category,
}

impl ValueStyle {
    /// The value of padding.
    pub fn pad_value(self, n_bins: usize) -> f32 {
        match self {
            Self::Continuous => -2.0,
            Self::Category => n_bins as f32,
        }
    }

    /// The value of masked positions.
    pub fn mask_value(self, n_bins: usize) -> f32 {
        match self {
            Self::Continuous => -1.0,
            Self::Category => (n_bins + 1) as f32,
        }
    }

    /// Rows of the embedding table of values, when there is one.
    pub fn n_input_bins(self, n_bins: usize) -> Option<usize> {
        match self {
            Self::Continuous => None,
            Self::Category => Some(n_bins + 2),
        }
    }
}

/// How cells become tokens.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, each named in the configuration"
)]
pub struct ScgptOptions {
    /// Number of value bins, the zero bin included.
    pub n_bins: usize,
    /// How the model reads values; see [`ScgptOptions::styled`].
    pub value_style: ValueStyle,
    /// Longest sequence, the class token included.
    pub max_len: usize,
    /// Whether genes that a cell does not express are part of its sequence.
    pub include_zero_genes: bool,
    /// Whether the class token heads each sequence.
    pub append_cls: bool,
    /// The value of padding.
    pub pad_value: f32,
    /// The value of masked positions.
    pub mask_value: f32,
    /// Share of the values that are masked.
    pub mask_ratio: f64,
    /// Whether the class token's value can be masked too.
    pub mask_cls: bool,
    /// The sum that each cell is scaled to, over the genes in the vocabulary.
    pub normalize_total: Option<f32>,
    /// Whether to take ln(1 + x) afterwards.
    pub log1p: bool,
    /// Seed of bins that are drawn, of sampled genes, and of masks.
    pub seed: u64,
}

impl ScgptOptions {
    /// What fits a kind of values: counts are normalised and logged, log-normalised values are not.
    pub fn for_values(kind: ValueKind) -> Self {
        let counts = kind == ValueKind::Counts;
        Self {
            n_bins: 51,
            value_style: ValueStyle::Continuous,
            max_len: 2001,
            include_zero_genes: false,
            append_cls: true,
            pad_value: -2.0,
            mask_value: -1.0,
            mask_ratio: 0.0,
            mask_cls: false,
            normalize_total: counts.then_some(1e4),
            log1p: counts,
            seed: 0,
        }
    }

    /// These options for a model that reads values in this style: padding and mask values follow from
    /// it and from `n_bins`, which must be set before.
    pub fn styled(self, style: ValueStyle) -> Self {
        Self {
            value_style: style,
            pad_value: style.pad_value(self.n_bins),
            mask_value: style.mask_value(self.n_bins),
            ..self
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::options(problem, ""));
        if !(2..=60_000).contains(&self.n_bins) {
            return fail(format!(
                "n_bins must lie between 2 and 60000, got `{}`",
                self.n_bins
            ));
        }
        let fixed = self.clone().styled(self.value_style);
        let (pad, mask) = (fixed.pad_value, fixed.mask_value);
        let category = self.value_style == ValueStyle::Category;
        if category && (self.pad_value, self.mask_value) != (pad, mask) {
            return fail(format!(
                "values read as categories of {} bins need pad_value {pad} and mask_value {mask}, got `{}` and `{}`",
                self.n_bins, self.pad_value, self.mask_value
            ));
        }
        if self.max_len < 2 {
            return fail(format!(
                "max_len must be at least 2, got `{}`",
                self.max_len
            ));
        }
        if !(0.0..=1.0).contains(&self.mask_ratio) {
            return fail(format!(
                "mask_ratio must lie between 0 and 1, got `{}`",
                self.mask_ratio
            ));
        }
        if self
            .normalize_total
            .is_some_and(|t| !(t > 0.0 && t.is_finite()))
        {
            return fail(format!(
                "normalize_total must be positive, got `{:?}`",
                self.normalize_total
            ));
        }
        Ok(())
    }
}

/// Tokenises cells the way scGPT was trained.
#[derive(Debug)]
pub struct ScgptTokenizer {
    options: ScgptOptions,
    genes: GeneMap,
    /// Corpus genes in the vocabulary, ascending.
    known: Vec<u32>,
    integers: bool,
    pad_id: i32,
    cls_id: i32,
}

impl ScgptTokenizer {
    /// A tokeniser for the genes that `genes` maps to `vocab`.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(
        vocab: &Vocab,
        genes: GeneMap,
        kind: ValueKind,
        options: ScgptOptions,
    ) -> Result<Self> {
        options.check()?;
        Ok(Self {
            known: (0..genes.len() as u32)
                .filter(|&g| genes.token(g).is_some())
                .collect(),
            integers: kind == ValueKind::Counts,
            pad_id: vocab.pad_id(),
            cls_id: vocab.cls_id(),
            genes,
            options,
        })
    }

    /// The options in force.
    pub fn options(&self) -> &ScgptOptions {
        &self.options
    }

    /// Corpus genes that have a token.
    pub fn known_genes(&self) -> usize {
        self.known.len()
    }
}

impl Tokenizer for ScgptTokenizer {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Worker {
            sequencer: Sequencer::new(SequenceOptions {
                max_len: self.options.max_len,
                include_zero_genes: self.options.include_zero_genes,
                cls_id: self.options.append_cls.then_some(self.cls_id),
            }),
            mask: MaskOptions {
                ratio: self.options.mask_ratio,
                mask_value: self.options.mask_value,
                spared: usize::from(self.options.append_cls && !self.options.mask_cls),
            },
            binner: Binner::new(self.options.n_bins),
            ids: Vec::new(),
            values: Vec::new(),
            bins: Vec::new(),
            all_ids: Vec::new(),
            all_bins: Vec::new(),
            drawn: Vec::new(),
            owner: self,
        })
    }

    fn pad_id(&self) -> i32 {
        self.pad_id
    }

    fn pad_value(&self) -> f32 {
        self.options.pad_value
    }

    fn max_len(&self) -> usize {
        self.options.max_len
    }

    fn token(&self, gene: u32) -> Option<i32> {
        self.genes.token(gene)
    }

    fn most_tokens(&self, values: usize) -> usize {
        let genes = if self.options.include_zero_genes {
            self.known.len()
        } else {
            values
        };
        (genes + usize::from(self.options.append_cls)).min(self.options.max_len)
    }
}

struct Worker<'a> {
    owner: &'a ScgptTokenizer,
    sequencer: Sequencer,
    mask: MaskOptions,
    binner: Binner,
    ids: Vec<i32>,
    values: Vec<f32>,
    bins: Vec<f32>,
    all_ids: Vec<i32>,
    all_bins: Vec<f32>,
    drawn: Vec<u32>,
}

impl CellTokenizer for Worker<'_> {
    fn tokenize(&mut self, cell: Cell<'_>, key: CellKey, out: &mut Tokens) -> bool {
        let owner = self.owner;
        self.find_tokens(cell);
        let expressed = !self.ids.is_empty();
        let seed = owner.options.seed;
        // Bins do not depend on the epoch: a cell keeps them.
        let mut binning = Rng::new(seed, Purpose::Binning, 0, key.cell);
        let mut sampling = Rng::new(seed, Purpose::GeneSample, 0, key.cell);
        let begin = out.ids.len();
        if owner.integers && !owner.options.include_zero_genes {
            self.learn_bins();
            let (ids, values, binner) = (&self.ids, &self.values, &self.binner);
            self.sequencer
                .push_places(ids.len(), &mut sampling, out, |place| {
                    let bin = binner.draw_count(place, values[place], &mut binning.clone());
                    (ids[place], bin)
                });
        } else {
            self.bin(&mut binning);
            if owner.options.include_zero_genes {
                self.spread(cell);
                self.sequencer
                    .push(&self.all_ids, &self.all_bins, &mut sampling, out);
            } else {
                self.sequencer
                    .push(&self.ids, &self.bins, &mut sampling, out);
            }
        }
        if owner.options.mask_ratio > 0.0 {
            out.keep_targets();
            let mut masking = Rng::new(seed, Purpose::Mask, key.mask_epoch, key.cell);
            mask_values(
                &mut out.values[begin..],
                self.mask,
                &mut masking,
                &mut self.drawn,
            );
        }
        expressed
    }
}

impl Worker<'_> {
    /// Takes the tokens and values of the genes that have a token.
    fn find_tokens(&mut self, cell: Cell<'_>) {
        let tokens = self.owner.genes.tokens();
        let n = cell.genes.len();
        self.ids.resize(n, 0);
        self.values.resize(n, 0.0);
        // Written at every step, kept when there is a token: no branch to mispredict.
        let mut known = 0;
        for (&gene, &value) in cell.genes.iter().zip(cell.values) {
            let id = tokens[gene as usize];
            self.ids[known] = id;
            self.values[known] = value;
            known += usize::from(id >= 0);
        }
        self.ids.truncate(known);
        self.values.truncate(known);
    }

    /// Scales and logs a value.
    fn transform(&self) -> impl Fn(f32) -> f32 + use<> {
        let options = &self.owner.options;
        let factor = options.normalize_total.map_or(1.0, |target| {
            let sum = if self.owner.integers {
                whole_sum(&self.values)
            } else {
                self.values.iter().map(|&v| f64::from(v)).sum()
            };
            size_factor(sum, target)
        });
        let log = options.log1p;
        move |v| {
            let scaled = v / factor;
            if log { scaled.ln_1p() } else { scaled }
        }
    }

    /// Prepares the bins of counts.
    fn learn_bins(&mut self) {
        let transform = self.transform();
        self.binner.learn_counts(&self.values, transform);
    }

    /// Bins `values` into `bins`.
    fn bin(&mut self, draws: &mut Rng) {
        let transform = self.transform();
        self.bins.clear();
        self.bins.resize(self.values.len(), 0.0);
        if self.owner.integers {
            self.binner
                .bin_counts(&self.values, transform, draws, &mut self.bins);
        } else {
            for value in &mut self.values {
                *value = transform(*value);
            }
            self.binner.bin(&self.values, draws, &mut self.bins);
        }
    }

    /// Lays the bins out over all genes of the vocabulary that the corpus has.
    fn spread(&mut self, cell: Cell<'_>) {
        let owner = self.owner;
        self.all_ids.clear();
        self.all_bins.clear();
        let mut genes = cell
            .genes
            .iter()
            .copied()
            .filter(|&g| owner.genes.token(g).is_some())
            .peekable();
        let mut bins = self.bins.iter();
        for &gene in &owner.known {
            let here = genes.next_if_eq(&gene).and_then(|_| bins.next());
            self.all_ids
                .push(owner.genes.token(gene).unwrap_or(owner.pad_id));
            self.all_bins.push(here.copied().unwrap_or(0.0));
        }
    }
}

/// The sum of whole numbers, which is exact in any order: several at a time.
fn whole_sum(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (groups, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f64; LANES];
    for group in groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            *sum += f64::from(value);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genes::GeneTable;
    use crate::vocab::GeneKey;

    const GENES: usize = 12;

    fn tokenizer(change: impl Fn(ScgptOptions) -> ScgptOptions) -> Result<ScgptTokenizer> {
        let genes = GeneTable {
            symbols: (0..GENES).map(|g| format!("G{g}")).collect(),
            ensembl: vec![None; GENES],
        };
        let vocab = Vocab::from_genes(&genes, GeneKey::Symbol);
        let map = vocab.match_genes(&genes, GeneKey::Symbol)?;
        let options = change(ScgptOptions::for_values(ValueKind::Counts));
        ScgptTokenizer::new(&vocab, map, ValueKind::Counts, options)
    }

    /// Values and targets of a cell that expresses its first `genes` genes.
    fn tokens(tokenizer: &ScgptTokenizer, genes: u32, epoch: u64) -> Tokens {
        let genes: Vec<u32> = (0..genes).collect();
        let values: Vec<f32> = genes.iter().map(|g| (g + 1) as f32).collect();
        let cell = Cell {
            genes: &genes,
            values: &values,
        };
        let mut tokens = Tokens::default();
        let key = CellKey::new(3, epoch, 0);
        let expressed = tokenizer.worker().tokenize(cell, key, &mut tokens);
        assert_eq!(expressed, !genes.is_empty());
        tokens
    }

    fn masked(tokens: &Tokens, mask: f32) -> usize {
        tokens.values.iter().filter(|v| **v == mask).count()
    }

    #[test]
    fn categories_have_their_own_pad_and_mask_values() {
        let style = ValueStyle::Category;
        assert_eq!(style.n_input_bins(51), Some(53));
        assert_eq!(ValueStyle::Continuous.n_input_bins(51), None);
        let made = tokenizer(|o| {
            ScgptOptions {
                mask_ratio: 0.5,
                ..o
            }
            .styled(style)
        })
        .unwrap();
        assert_eq!(made.pad_value(), 51.0);
        assert_eq!(made.options().mask_value, 52.0);
        let tokens = tokens(&made, 10, 0);
        assert_eq!((tokens.values[0], tokens.targets[0]), (0.0, 0.0));
        assert_eq!(masked(&tokens, 52.0), 5);
        assert!(tokens.targets.iter().all(|t| (0.0..=50.0).contains(t)));
        // With fewer bins they move along.
        let few = ScgptOptions {
            n_bins: 7,
            ..ScgptOptions::for_values(ValueKind::Counts)
        };
        let few = few.styled(style);
        assert_eq!((few.pad_value, few.mask_value), (7.0, 8.0));
        let back = few.styled(ValueStyle::Continuous);
        assert_eq!((back.pad_value, back.mask_value), (-2.0, -1.0));
        let mixed = tokenizer(|o| ScgptOptions {
            value_style: style,
            ..o
        });
        let text = mixed.unwrap_err().to_string();
        assert!(text.contains("pad_value 51 and mask_value 52"), "{text}");
    }

    #[test]
    fn the_class_token_is_masked_only_when_told() {
        let all = |mask_cls| {
            let made = tokenizer(|o| ScgptOptions {
                mask_ratio: 0.5,
                mask_cls,
                ..o
            })
            .unwrap();
            (0..200)
                .map(|epoch| tokens(&made, 9, epoch))
                .collect::<Vec<_>>()
        };
        let spared = all(false);
        assert!(
            spared
                .iter()
                .all(|t| t.values[0] == 0.0 && masked(t, -1.0) == 4)
        );
        // 10 places then, the class token's among them: 100 of 200 expected, 5 deviations are 35.
        let open = all(true);
        assert!(open.iter().all(|t| masked(t, -1.0) == 5));
        let hits = open.iter().filter(|t| t.values[0] == -1.0).count();
        assert!(hits.abs_diff(100) < 35, "{hits}");
        assert!(open.iter().all(|t| t.targets[0] == 0.0));
    }

    #[test]
    fn a_cell_without_expression_is_a_class_token_or_all_zeros() {
        for style in [ValueStyle::Continuous, ValueStyle::Category] {
            let made = tokenizer(|o| {
                ScgptOptions {
                    mask_ratio: 0.5,
                    ..o
                }
                .styled(style)
            })
            .unwrap();
            let alone = tokens(&made, 0, 0);
            assert_eq!((alone.rows(), &alone.values[..]), (1, &[0.0][..]));
            let zeros = tokenizer(|o| {
                let include_zero_genes = true;
                ScgptOptions {
                    include_zero_genes,
                    mask_ratio: 0.5,
                    ..o
                }
                .styled(style)
            });
            let zeros = tokens(&zeros.unwrap(), 0, 0);
            assert_eq!(zeros.targets, [0.0; GENES + 1]);
            assert_eq!(masked(&zeros, style.mask_value(51)), GENES / 2);
        }
    }
}
