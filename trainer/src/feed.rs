//! From the configured corpus to the loaders of each split.

use std::sync::Arc;

use scpeft_config::{Config, GeneKey, TaskKind};
use scpeft_data::{
    Corpus, Corrupt, Loader, LoaderOptions, MaskDraw, Overlap, Sampler, Selection, Shuffle,
    Tokenizer,
};

use crate::backbone::Backbone;
use crate::failure::{Failure, Result};
use crate::settings;
use crate::task::{Batches, LabelInfo};

/// The split name that stands for every cell of the corpus.
const EVERY_CELL: &str = "all";

/// Corpus, tokeniser and the settings that loaders share.
pub struct Feed {
    /// The corpus.
    pub corpus: Arc<Corpus>,
    /// How its genes match the vocabulary.
    pub overlap: Overlap,
    tokenizer: Arc<dyn Tokenizer>,
    label: Option<String>,
}

/// The ranks that share a loader's global batches.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// This rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
}

impl Feed {
    /// The feed of a corpus for a backbone.
    ///
    /// # Errors
    /// No gene in the vocabulary, or settings that do not suit the backbone.
    pub fn open(config: &Config, corpus: Arc<Corpus>, backbone: &Backbone) -> Result<Self> {
        let (tokenizer, overlap) = backbone.tokenizer(config, &corpus)?;
        Ok(Self {
            corpus,
            overlap,
            tokenizer,
            label: config.data.label.clone(),
        })
    }

    /// Tokens of the longest cell there can be.
    pub fn longest(&self) -> usize {
        self.tokenizer.most_tokens(self.overlap.matched)
    }

    /// Id of `<pad>`.
    pub fn pad_id(&self) -> i32 {
        self.tokenizer.pad_id()
    }

    /// The token of each gene of the corpus; `None` for those that have none, and for all of them where
    /// tokens do not stand for genes alone.
    pub(crate) fn gene_tokens(&self) -> Vec<Option<i32>> {
        let genes = 0..self.corpus.genes().len() as u32;
        genes.map(|gene| self.tokenizer.token(gene)).collect()
    }

    /// The cells of a split; the name `all` means every cell.
    ///
    /// # Errors
    /// No such column or value, or no cell in it.
    pub fn split(&self, config: &Config, name: &str) -> Result<Selection> {
        split(&self.corpus, config, name)
    }

    /// The cells of a split that the task can train on or score: for identification those with a
    /// label. Also returns how many were left out.
    ///
    /// # Errors
    /// As [`Feed::split`], or the label column is missing, or no cell has a label.
    pub fn labelled_split(&self, config: &Config, name: &str) -> Result<(Selection, u64)> {
        let selection = self.split(config, name)?;
        let Some(label) = self
            .label
            .as_ref()
            .filter(|_| config.task.kind == TaskKind::Identification)
        else {
            return Ok((selection, 0));
        };
        let codes = self.corpus.obs_codes(label)?;
        let labelled = selection.and(|cell| codes[cell as usize] >= 0);
        let left_out = selection.cells() - labelled.cells();
        if labelled.cells() == 0 {
            return Err(Failure::data(format!(
                "split `{name}`: no cell has a value of obs column `{label}`"
            )));
        }
        Ok((labelled, left_out))
    }

    /// Categories of the label column and how often they occur in the training and validation
    /// cells, and in the corpus.
    ///
    /// # Errors
    /// When the label column is missing or not categorical.
    pub fn label_info(&self, train: &Selection, valid: &Selection) -> Result<LabelInfo> {
        match &self.label {
            Some(label) => self.column_info(label, train, valid),
            None => Ok(LabelInfo::default()),
        }
    }

    /// The batches of the training cells; `None` when no batch column is configured.
    ///
    /// # Errors
    /// When the column is missing or not categorical, a cell has no value in it, or validation
    /// cells come from a batch of their own.
    pub fn batches(
        &self,
        config: &Config,
        train: &Selection,
        valid: &Selection,
    ) -> Result<Option<Batches>> {
        let Some(column) = settings::batch_column(config) else {
            return Ok(None);
        };
        let codes = self.corpus.obs_codes(column)?;
        let mut cells = train.cell_indices().chain(valid.cell_indices());
        if let Some(cell) = cells.find(|&cell| codes[cell as usize] < 0) {
            return Err(Failure::data(format!(
                "obs column `{column}`: cell {cell} has no value, so its batch is not known\n\
                 help: fill the column, or leave such cells out of the splits"
            )));
        }
        let info = self.column_info(column, train, valid)?;
        Batches::for_training(
            column,
            &info.categories,
            &info.train_counts,
            &info.valid_counts,
        )
        .map(Some)
    }

    fn column_info(&self, column: &str, train: &Selection, valid: &Selection) -> Result<LabelInfo> {
        let categories = self.corpus.categories(column)?.to_vec();
        let codes = self.corpus.obs_codes(column)?;
        let count = |cells: &mut dyn Iterator<Item = u64>| {
            let mut counts = vec![0; categories.len()];
            for cell in cells {
                if let Ok(code) = usize::try_from(codes[cell as usize]) {
                    counts[code] += 1;
                }
            }
            counts
        };
        Ok(LabelInfo {
            train_counts: count(&mut train.cell_indices()),
            valid_counts: count(&mut valid.cell_indices()),
            all_counts: count(&mut (0..codes.len() as u64)),
            categories,
        })
    }

    /// Cells of the row groups that a shuffle window of `row_groups` and the next one hold, at most.
    pub fn cells_of_windows(&self, row_groups: usize) -> u64 {
        let groups = self.corpus.row_groups();
        let largest = groups.iter().map(|group| group.rows).max().unwrap_or(0);
        (2 * row_groups as u64 * u64::from(largest)).min(self.corpus.n_cells())
    }

    /// The shuffled loader of training.
    ///
    /// # Errors
    /// Batch sizes that the ranks do not divide.
    pub fn train_loader(
        &self,
        config: &Config,
        selection: Selection,
        share: Share,
    ) -> Result<Loader> {
        let shuffle = Shuffle::Windowed {
            row_groups: config.data.shuffle_window,
        };
        let options = LoaderOptions {
            batch_cells: config.train.batch_cells,
            micro_batch_cells: micro_batch_cells(config, share)?,
            shuffle,
            drop_last: config.train.drop_last,
            mask: MaskDraw::PerEpoch,
            sampler: self.sampler(config, &selection)?,
            length_buckets: config.data.length_buckets,
            micro_batch_tokens: config.train.micro_batch_tokens,
            ..self.options(config, share)
        };
        self.loader(selection, options)
    }

    fn sampler(&self, config: &Config, selection: &Selection) -> Result<Sampler> {
        Ok(match config.data.sampler {
            scpeft_config::Sampler::Uniform => Sampler::Uniform,
            scpeft_config::Sampler::ClassBalanced => Sampler::ClassBalanced,
            scpeft_config::Sampler::Stratified => {
                let column = config.data.stratify_by.as_deref().unwrap_or_default();
                let codes = self.corpus.obs_codes(column)?;
                let chosen = selection.cell_indices().map(|cell| codes[cell as usize]);
                Sampler::Stratified(chosen.collect())
            }
            scpeft_config::Sampler::Weighted => {
                let column = config.data.weight_by.as_deref().unwrap_or_default();
                let weights = self.corpus.obs_numbers(column)?;
                let chosen: Vec<u64> = selection.cell_indices().collect();
                let weight = |&cell: &u64| weights[cell as usize];
                let unusable = |cell: &&u64| !weight(cell).is_finite() || weight(cell) < 0.0;
                if let Some(&cell) = chosen.iter().find(unusable) {
                    let id = self.corpus.cell_ids(&[cell])?.pop().unwrap_or_default();
                    return Err(Failure::data(format!(
                        "cell `{id}`: obs column `{column}` is {}, expected a weight of 0 or more\n\
                         help: fill the column in the source file, or leave the cell out of the split",
                        weight(&cell)
                    )));
                }
                Sampler::Weighted(chosen.iter().map(weight).collect())
            }
        })
    }

    /// The loader of evaluation and prediction: corpus order, every cell once, masks that never
    /// change.
    ///
    /// # Errors
    /// Batch sizes that the ranks do not divide.
    pub fn evaluation_loader(
        &self,
        config: &Config,
        selection: Selection,
        share: Share,
    ) -> Result<Loader> {
        // Scores add up over cells, so a share of any size will do.
        let micro = config
            .train
            .micro_batch_cells
            .unwrap_or_else(|| config.train.batch_cells.div_ceil(share.world_size));
        let options = LoaderOptions {
            batch_cells: micro * share.world_size,
            micro_batch_cells: micro,
            ..self.options(config, share)
        };
        self.loader(selection, options)
    }

    fn loader(&self, selection: Selection, options: LoaderOptions) -> Result<Loader> {
        Ok(Loader::new(
            self.corpus.clone(),
            selection,
            self.tokenizer.clone(),
            options,
        )?)
    }

    fn options(&self, config: &Config, share: Share) -> LoaderOptions {
        LoaderOptions {
            seed: config.run.seed,
            batch_cells: 0,
            micro_batch_cells: 0,
            rank: share.rank,
            world_size: share.world_size,
            shuffle: Shuffle::Sequential,
            drop_last: false,
            threads: config.data.loader_threads,
            prefetch_steps: config.data.prefetch_steps,
            label_column: self.label.clone(),
            mask: MaskDraw::Fixed,
            batch_column: settings::batch_column(config).map(str::to_owned),
            domain_column: settings::domain_column(config).map(str::to_owned),
            corrupt: match config.data.corrupt {
                scpeft_config::Corrupt::Fail => Corrupt::Fail,
                scpeft_config::Corrupt::Skip => Corrupt::Skip,
            },
            ..LoaderOptions::default()
        }
    }
}

/// The cells of a split; the name `all` means every cell.
///
/// # Errors
/// No such column or value, or no cell in it.
pub(crate) fn split(corpus: &Corpus, config: &Config, name: &str) -> Result<Selection> {
    let selection = if name == EVERY_CELL {
        Selection::all(corpus)
    } else {
        Selection::where_equals(corpus, &config.data.split_column, &[name]).map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(
                failure.code,
                format!(
                    "{}\nhelp: `scpeft-data import --split train=0.8,valid=0.1,test=0.1` writes a split column; \
                     the split name `{EVERY_CELL}` means every cell",
                    failure.message
                ),
            )
        })?
    };
    if selection.cells() == 0 {
        return Err(Failure::data(format!(
            "split `{name}`: the corpus has no such cells"
        )));
    }
    Ok(selection)
}

/// Cells of a micro-batch: as configured, else an equal share of the global batch per rank.
fn micro_batch_cells(config: &Config, share: Share) -> Result<usize> {
    let batch = config.train.batch_cells;
    match config.train.micro_batch_cells {
        Some(micro) => Ok(micro),
        // Micro-batches are made by tokens: this number is not used.
        None if config.train.micro_batch_tokens.is_some() => Ok(batch),
        None if batch.is_multiple_of(share.world_size) => Ok(batch / share.world_size),
        None => Err(Failure::config(format!(
            "`train.batch_cells` is {batch}, which {} ranks do not divide: {batch} / {} = {:.2}\n\
             help: use a multiple of {}, or another number of ranks",
            share.world_size,
            share.world_size,
            batch as f64 / share.world_size as f64,
            share.world_size
        ))),
    }
}

/// The corpus crate's key for the configured one.
pub(crate) fn gene_key(key: GeneKey) -> scpeft_data::GeneKey {
    match key {
        GeneKey::Auto => scpeft_data::GeneKey::Auto,
        GeneKey::Symbol => scpeft_data::GeneKey::Symbol,
        GeneKey::Ensembl => scpeft_data::GeneKey::Ensembl,
    }
}
