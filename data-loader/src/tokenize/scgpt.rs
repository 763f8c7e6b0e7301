//! The tokens of scGPT: one per expressed gene, with its quantile bin as value, after a class token.

use super::mask::{MaskOptions, mask_values};
use super::{Cell, CellKey, CellTokenizer, SequenceOptions, Sequencer, Tokenizer, Tokens};
use crate::corpus::ValueKind;
use crate::preprocess::{Binner, size_factor};
use crate::rng::{Purpose, Rng};
use crate::vocab::{GeneMap, Vocab};
use crate::{Error, Result};

/// How cells become tokens.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, each named in the configuration"
)]
pub struct ScgptOptions {
    /// Number of value bins, the zero bin included.
    pub n_bins: usize,
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

    fn check(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::options(problem, ""));
        if !(2..=60_000).contains(&self.n_bins) {
            return fail(format!(
                "n_bins must lie between 2 and 60000, got `{}`",
                self.n_bins
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
        self.ids.clear();
        self.values.clear();
        for (&gene, &value) in cell.genes.iter().zip(cell.values) {
            if let Some(id) = owner.genes.token(gene) {
                self.ids.push(id);
                self.values.push(value);
            }
        }
        let expressed = !self.ids.is_empty();
        self.bin(key.cell);
        let seed = owner.options.seed;
        let mut sampling = Rng::new(seed, Purpose::GeneSample, 0, key.cell);
        let begin = out.ids.len();
        if owner.options.include_zero_genes {
            self.spread(cell);
            self.sequencer
                .push(&self.all_ids, &self.all_bins, &mut sampling, out);
        } else {
            self.sequencer
                .push(&self.ids, &self.bins, &mut sampling, out);
        }
        let mut masking = Rng::new(seed, Purpose::Mask, key.mask_epoch, key.cell);
        mask_values(
            &mut out.values[begin..],
            self.mask,
            &mut masking,
            &mut self.drawn,
        );
        expressed
    }
}

impl Worker<'_> {
    /// Bins `values` into `bins`. Bins do not depend on the epoch: a cell keeps them.
    fn bin(&mut self, cell: u64) {
        let options = &self.owner.options;
        let mut draws = Rng::new(options.seed, Purpose::Binning, 0, cell);
        let factor = options.normalize_total.map_or(1.0, |target| {
            size_factor(self.values.iter().map(|&v| f64::from(v)).sum(), target)
        });
        let log = options.log1p;
        let transform = |v: f32| {
            let scaled = v / factor;
            if log { scaled.ln_1p() } else { scaled }
        };
        self.bins.clear();
        self.bins.resize(self.values.len(), 0.0);
        if self.owner.integers {
            self.binner
                .bin_counts(&self.values, transform, &mut draws, &mut self.bins);
        } else {
            for value in &mut self.values {
                *value = transform(*value);
            }
            self.binner.bin(&self.values, &mut draws, &mut self.bins);
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
