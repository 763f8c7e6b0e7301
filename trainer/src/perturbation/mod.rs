//! Responses to perturbations: what was done to the cells of a corpus, the control profiles beside
//! them, and what the model is told of a treatment.
//!
//! [`Responses`] is made once, before any tensor: `conditions` finds who was treated alike,
//! `treatments` the vector that the drug adapter is told of a condition, and
//! `scpeft_data::pairing` the profiles. The loaders of the two kinds of rows follow from it.
//! A trained model is asked through [`predictor`](self::predictor), for a list of conditions by
//! `predict` or for those of a test split by `scpeft-train evaluate`.

pub(crate) mod conditions;
pub(crate) mod labels;
mod list;
pub(crate) mod predict;
mod predictor;
pub(crate) mod treatments;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use scpeft_config::{Config, Pairing, ResponseLoss, Unit};
use scpeft_data::pairing::{Controls, Means, Normal, PairTokenizer, Panel, Pool, means, pools};
use scpeft_data::{Corpus, Loader, LoaderOptions, Rows, Selection, Tokenizer};

use crate::backbone::Backbone;
use crate::failure::{Failure, Result};
use conditions::{Conditions, shortened};
use labels::Column;
use treatments::Treatments;

pub(crate) use predictor::Predictor;
pub(crate) use treatments::complete;

/// Everything of a corpus that responses are learned from, but its treated cells one by one.
#[derive(Debug)]
pub struct Responses {
    /// The modelled genes.
    pub panel: Arc<Panel>,
    /// Who was treated alike.
    pub conditions: Conditions,
    /// Profiles of control cells over the panel, by context.
    pub controls: Means,
    /// What the drug adapter is told; `None` without one.
    pub treatments: Option<Treatments>,
    /// Conditions of the training and the validation cells.
    pub used: [Vec<usize>; 2],
    /// Mean profiles of conditions, where rows are conditions.
    profiles: Option<Means>,
    tokenizer: Arc<PairTokenizer>,
    in_sets: bool,
}

impl Responses {
    /// What a configuration trains on: the cells `train` and `valid`, of which the treated ones count.
    ///
    /// # Errors
    /// Columns or labels that the corpus does not have, conditions in two splits, contexts without
    /// control cells, molecules without an embedding, doses without a unit, a panel that is too long.
    pub(crate) fn open(
        config: &Config,
        corpus: &Corpus,
        backbone: &Backbone,
        train: &Selection,
        valid: &Selection,
    ) -> Result<Self> {
        let conditions = Conditions::read(corpus, config)?;
        let (train_name, valid_name) = (config.data.train.as_str(), config.data.valid.as_str());
        let test = config.data.test.as_str();
        let held_out = crate::feed::split(corpus, config, test).ok();
        let mut splits = vec![(train_name, train), (valid_name, valid)];
        splits.extend(held_out.as_ref().map(|cells| (test, cells)));
        conditions.require_apart(&splits)?;
        let used = [conditions.among(train), conditions.among(valid)];
        for (name, own) in [train_name, valid_name].iter().zip(&used) {
            if own.is_empty() {
                return Err(Failure::data(format!(
                    "split `{name}` has no treated cells of a condition that can be used\n\
                     help: {}",
                    reasons(&conditions)
                )));
            }
        }
        let wanted: Vec<usize> = used.concat();
        let context = config.perturbation.context.as_deref().unwrap_or("none");
        conditions.require_controls(&wanted, context)?;
        let treatments = match treatments::table(config)? {
            Some(table) => Some(Treatments::of(
                config,
                corpus,
                &table,
                &conditions,
                &wanted,
            )?),
            None => None,
        };
        let panel = Arc::new(Panel::new(corpus, &backbone.gene_map(config, corpus)?));
        require_length(config, &panel)?;
        let normal = normal(config, corpus);
        let controls = controls(corpus, normal, &panel, &conditions)?;
        let profiles = match config.perturbation.unit {
            Unit::Cells => None,
            Unit::Pseudobulk => Some(means(
                corpus,
                normal,
                &panel,
                conditions.list.len(),
                &|cell| conditions.of(cell).filter(|c| wanted.contains(c)),
            )?),
        };
        let tokenizer = tokenizer(
            config,
            corpus,
            &panel,
            normal,
            &conditions,
            &controls,
            &wanted,
        )?;
        let loss = config.perturbation.loss;
        Ok(Self {
            panel,
            controls,
            treatments,
            used,
            profiles,
            tokenizer: Arc::new(PairTokenizer {
                pad_id: backbone.shape.pad_id as i32,
                ..tokenizer
            }),
            in_sets: matches!(loss, ResponseLoss::Mmd | ResponseLoss::Energy),
            conditions,
        })
    }

    /// What a trained model predicts from: the control cells of a corpus. No row is made.
    ///
    /// # Errors
    /// Columns or labels that the corpus does not have, a panel that is too long.
    pub(crate) fn of_controls(
        config: &Config,
        corpus: &Corpus,
        backbone: &Backbone,
    ) -> Result<Self> {
        let conditions = Conditions::read(corpus, config)?;
        let panel = Arc::new(Panel::new(corpus, &backbone.gene_map(config, corpus)?));
        require_length(config, &panel)?;
        let normal = normal(config, corpus);
        let controls = controls(corpus, normal, &panel, &conditions)?;
        Ok(Self {
            tokenizer: Arc::new(PairTokenizer {
                panel: panel.clone(),
                normal,
                controls: Controls::Means(Vec::new()),
                group_of: Vec::new(),
                seed: config.run.seed,
                pad_id: backbone.shape.pad_id as i32,
            }),
            panel,
            controls,
            treatments: None,
            used: [Vec::new(), Vec::new()],
            profiles: None,
            in_sets: false,
            conditions,
        })
    }

    /// At most `most` control cells of each context, in memory.
    ///
    /// # Errors
    /// When cells cannot be read.
    pub(crate) fn control_cells(&self, corpus: &Corpus, most: usize) -> Result<Vec<Pool>> {
        let of = |cell: u64| self.conditions.control(cell);
        let (contexts, seed) = (self.conditions.contexts.len(), self.tokenizer.seed);
        let normal = self.tokenizer.normal;
        Ok(pools(
            corpus,
            normal,
            &self.panel,
            contexts,
            &of,
            most,
            seed,
        )?)
    }

    /// The cells of a selection that are treated, and used.
    pub(crate) fn treated(&self, selection: &Selection) -> Selection {
        selection.and(|cell| self.conditions.of(cell).is_some())
    }

    /// The loader of treated cells, or of their conditions.
    ///
    /// # Errors
    /// Batch sizes that the ranks do not divide.
    pub(crate) fn loader(
        &self,
        corpus: &Arc<Corpus>,
        selection: Selection,
        options: LoaderOptions,
    ) -> Result<Loader> {
        let tokenizer: Arc<dyn Tokenizer> = self.tokenizer.clone();
        let Some(profiles) = &self.profiles else {
            let domain_codes = self.in_sets.then(|| self.conditions.codes().into());
            let options = LoaderOptions {
                domain_codes,
                ..options
            };
            return Ok(Loader::new(corpus.clone(), selection, tokenizer, options)?);
        };
        let chosen = self.conditions.among(&selection);
        let flat = |profile: &Vec<f64>| profile.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let rows = Rows {
            cells: chosen
                .iter()
                .map(|&c| self.conditions.first_cell[c])
                .collect(),
            tokens: self.panel.tokens().to_vec(),
            inputs: self.controls.mean.iter().flat_map(flat).collect(),
            input_of: chosen
                .iter()
                .map(|&c| self.conditions.context_of[c])
                .collect(),
            targets: chosen
                .iter()
                .flat_map(|&c| flat(&profiles.mean[c]))
                .collect(),
        };
        Ok(Loader::of_rows(
            corpus.clone(),
            selection,
            tokenizer,
            Arc::new(rows),
            options,
        )?)
    }

    /// The condition of a cell of a row.
    ///
    /// # Errors
    /// A cell that was not treated, which no row holds.
    pub fn condition(&self, cell: u64) -> Result<usize> {
        self.conditions.of(cell).ok_or_else(|| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                format!("cell {cell} belongs to no condition; please report it"),
            )
        })
    }

    /// What the cell of a row was treated with.
    ///
    /// # Errors
    /// A cell of a condition that no row was made for.
    pub fn treatment(&self, cell: u64) -> Result<&[f32]> {
        let condition = self.condition(cell)?;
        let vector = self.treatments.as_ref().and_then(|t| t.get(condition));
        vector.ok_or_else(|| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                format!("cell {cell} has no known treatment; please report it"),
            )
        })
    }

    /// What a user should see before the first step.
    pub fn summary(&self) -> String {
        let conditions = &self.conditions;
        let mut lines = vec![format!(
            "{} training and {} validation conditions in {} context(s), {} genes in the panel",
            self.used[0].len(),
            self.used[1].len(),
            conditions.contexts.len(),
            self.panel.len(),
        )];
        if !conditions.left_out.is_empty() {
            lines.push(format!("left out: {}", shortened(&conditions.left_out)));
        }
        lines.join("\n")
    }
}

fn reasons(conditions: &Conditions) -> String {
    match &conditions.left_out[..] {
        [] => "cells of this split are control cells alone; split by whole conditions".to_owned(),
        left_out => format!("left out are: {}", shortened(left_out)),
    }
}

/// How values become expression: as configured, else as their kind asks for.
pub(crate) fn normal(config: &Config, corpus: &Corpus) -> Normal {
    let usual = Normal::of(corpus.value_kind());
    let total = config.data.normalize_total.map(|total| total as f32);
    Normal {
        total: total.or(usual.total),
        log1p: config.data.log1p.unwrap_or(usual.log1p),
    }
}

/// Mean control profiles over a panel, by context.
pub(crate) fn controls(
    corpus: &Corpus,
    normal: Normal,
    panel: &Panel,
    conditions: &Conditions,
) -> Result<Means> {
    let contexts = conditions.contexts.len();
    let of = |cell: u64| conditions.control(cell);
    Ok(means(corpus, normal, panel, contexts, &of)?)
}

fn require_length(config: &Config, panel: &Panel) -> Result<()> {
    let most = config.data.max_len;
    if panel.len() <= most {
        return Ok(());
    }
    Err(Failure::config(format!(
        "the corpus has {} genes with a token, `data.max_len` is {most}: a row holds all of them\n\
         help: raise `data.max_len`, or import fewer genes (`scpeft-data import --hvg 2000`)",
        panel.len()
    )))
}

/// Rows of cells: each with the mean of its context, or with a cell of the pool that matches it.
fn tokenizer(
    config: &Config,
    corpus: &Corpus,
    panel: &Arc<Panel>,
    normal: Normal,
    conditions: &Conditions,
    means: &Means,
    wanted: &[usize],
) -> Result<PairTokenizer> {
    let own = &config.perturbation;
    let context = |cell: u64| {
        let treated = conditions.of(cell).map(|c| conditions.context_of[c]);
        treated.or_else(|| conditions.control(cell))
    };
    let (controls, group_of) = if own.unit == Unit::Pseudobulk || own.pairing == Pairing::Mean {
        let flat = means.mean.iter().flatten().map(|&x| x as f32).collect();
        let group_of = (0..corpus.n_cells()).map(|cell| context(cell).unwrap_or_default() as u32);
        (Controls::Means(flat), group_of.collect())
    } else {
        let groups = Groups::read(corpus, &own.match_by, &context)?;
        let control = |cell: u64| conditions.control(cell).and_then(|_| groups.of(cell));
        let count = groups.names.len();
        let (most, seed) = (own.pool_cells, config.run.seed);
        let pools = pools(corpus, normal, panel, count, &control, most, seed)?;
        groups.require_controls(corpus, &pools, conditions, wanted, &own.match_by)?;
        (Controls::Pools(pools), groups.all(corpus))
    };
    Ok(PairTokenizer {
        panel: panel.clone(),
        normal,
        controls,
        group_of,
        seed: config.run.seed,
        pad_id: 0,
    })
}

/// Context and values of further columns that control cells share with treated ones.
struct Groups {
    names: Vec<GroupName>,
    of: Vec<i32>,
}

/// A place in the list of contexts, and categories.
type GroupName = (usize, Vec<String>);

impl Conditions {
    fn named(&self, (context, rest): &GroupName) -> String {
        let context = self.contexts[*context].as_str();
        let parts = std::iter::once(context).chain(rest.iter().map(String::as_str));
        parts.collect::<Vec<_>>().join(" | ")
    }
}

impl Groups {
    fn read(
        corpus: &Corpus,
        match_by: &[String],
        context: &dyn Fn(u64) -> Option<usize>,
    ) -> Result<Self> {
        let columns = match_by.iter().map(|name| Column::read(corpus, name));
        let columns: Vec<Column> = columns.collect::<Result<_>>()?;
        let mut known: BTreeMap<(usize, Vec<i32>), usize> = BTreeMap::new();
        let (mut names, mut of) = (Vec::new(), Vec::new());
        for cell in 0..corpus.n_cells() {
            let values: Option<Vec<String>> = columns.iter().map(|c| c.of(cell).cloned()).collect();
            let (Some(context), Some(values)) = (context(cell), values) else {
                of.push(-1);
                continue;
            };
            let codes = columns.iter().map(|c| c.code(cell)).collect();
            let next = known.len();
            let group = *known.entry((context, codes)).or_insert(next);
            if group == next {
                names.push((context, values));
            }
            of.push(group as i32);
        }
        Ok(Self { names, of })
    }

    fn of(&self, cell: u64) -> Option<usize> {
        usize::try_from(self.of[cell as usize]).ok()
    }

    /// Refuses treated cells that no control cell matches.
    fn require_controls(
        &self,
        corpus: &Corpus,
        pools: &[Pool],
        conditions: &Conditions,
        wanted: &[usize],
        match_by: &[String],
    ) -> Result<()> {
        let mut without = BTreeSet::new();
        for cell in 0..corpus.n_cells() {
            if !conditions.of(cell).is_some_and(|c| wanted.contains(&c)) {
                continue;
            }
            match self.of(cell) {
                Some(group) if !pools[group].is_empty() => {}
                Some(group) => {
                    without.insert(format!("`{}`", conditions.named(&self.names[group])));
                }
                None => {
                    without.insert("cells without a value in one of the columns".to_owned());
                }
            }
        }
        if without.is_empty() {
            return Ok(());
        }
        let without: Vec<String> = without.into_iter().collect();
        Err(Failure::data(format!(
            "no control cells match the treated ones of {} group(s): {}\n\
             help: leave a column out of `perturbation.match_by` ({})",
            without.len(),
            shortened(&without),
            match_by.join(", ")
        )))
    }

    fn all(&self, corpus: &Corpus) -> Vec<u32> {
        let all = 0..corpus.n_cells();
        all.map(|cell| self.of(cell).unwrap_or_default() as u32)
            .collect()
    }
}
