//! The control and treated cells of a corpus, on the genes that are scored.

use std::collections::{BTreeMap, HashMap};

use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{Corpus, Selection};
use scpeft_evaluation::splits::Condition;
use scpeft_evaluation::study::Labelled;

use crate::args::EvaluateArgs;
use crate::failure::{Failure, Result};
use crate::normalized::{self, Visit};

/// The context of a corpus without a column of contexts.
pub(super) const ONE_CONTEXT: &str = "all";

/// A column of categories, cell by cell.
struct Column {
    codes: Vec<i32>,
    names: HashMap<i32, String>,
}

impl Column {
    fn read(corpus: &Corpus, name: &str) -> Result<Self> {
        let categories = corpus.categories(name)?;
        Ok(Self {
            names: (0..).zip(categories.iter().cloned()).collect(),
            codes: corpus.obs_codes(name)?,
        })
    }

    /// The category of a cell, `None` where it is missing.
    fn of(&self, cell: u64) -> Option<&String> {
        self.names.get(self.codes.get(cell as usize)?)
    }
}

/// What was done to each cell.
struct Labels {
    perturbation: Column,
    context: Option<Column>,
    dose: Option<Column>,
}

impl Labels {
    fn read(corpus: &Corpus, args: &EvaluateArgs) -> Result<Self> {
        let perturbation = Column::read(corpus, &args.perturbation)?;
        if !perturbation
            .names
            .values()
            .any(|name| *name == args.control)
        {
            let mut known: Vec<String> = perturbation
                .names
                .values()
                .map(|n| format!("`{n}`"))
                .collect();
            known.sort_unstable();
            return Err(Failure::config(format!(
                "`{}` is no category of obs column `{}`, so there are no control cells\nhelp: present are: {}",
                args.control,
                args.perturbation,
                known.join(", ")
            )));
        }
        let optional = |name: &Option<String>| {
            name.as_ref()
                .map(|name| Column::read(corpus, name))
                .transpose()
        };
        Ok(Self {
            perturbation,
            context: optional(&args.context)?,
            dose: optional(&args.dose)?,
        })
    }

    /// The condition of a cell; `None` when it is not known.
    fn of(&self, cell: u64) -> Option<Condition> {
        let context = match &self.context {
            Some(column) => column.of(cell)?.clone(),
            None => ONE_CONTEXT.to_owned(),
        };
        Some(Condition {
            perturbation: self.perturbation.of(cell)?.clone(),
            context,
            dose: self
                .dose
                .as_ref()
                .and_then(|column| column.of(cell))
                .cloned(),
        })
    }
}

/// The group of each perturbation.
///
/// # Errors
/// A perturbation in two groups or in none.
pub(super) fn groups(
    corpus: &Corpus,
    args: &EvaluateArgs,
    column: &str,
) -> Result<HashMap<String, String>> {
    let perturbation = Column::read(corpus, &args.perturbation)?;
    let group = Column::read(corpus, column)?;
    let mut groups: HashMap<String, String> = HashMap::new();
    for cell in 0..corpus.n_cells() {
        let (Some(name), Some(own)) = (perturbation.of(cell), group.of(cell)) else {
            continue;
        };
        let known = groups.entry(name.clone()).or_insert_with(|| own.clone());
        if known != own {
            return Err(Failure::data(format!(
                "`{name}` is in the groups `{known}` and `{own}` of obs column `{column}`\nhelp: a perturbation has one group"
            )));
        }
    }
    Ok(groups)
}

/// Reads the cells that are scored.
///
/// # Errors
/// Columns or a control label that the corpus does not have, or cells that cannot be read.
pub(super) fn read(corpus: &Corpus, args: &EvaluateArgs) -> Result<Labelled> {
    let labels = Labels::read(corpus, args)?;
    let chosen = choose(corpus, &labels, args);
    let genes = scored_genes(corpus, &labels, &chosen, args)?;
    let mut labelled = Labelled {
        genes: genes
            .iter()
            .map(|&g| corpus.genes().symbols[g as usize].clone())
            .collect(),
        ..Labelled::default()
    };
    let mut places = vec![None; corpus.genes().len()];
    for (place, &gene) in genes.iter().enumerate() {
        places[gene as usize] = Some(place);
    }
    let keep = |cell: u64| chosen.contains_key(&cell);
    visit(corpus, &keep, &mut |cell, own, values| {
        let mut row = vec![0.0f32; genes.len()];
        for (&gene, &value) in own.iter().zip(values) {
            if let Some(place) = places[gene as usize] {
                row[place] = value;
            }
        }
        let condition = &chosen[&cell];
        let rows = if condition.perturbation == args.control {
            labelled
                .controls
                .entry(condition.context.clone())
                .or_default()
        } else {
            labelled.treated.entry(condition.clone()).or_default()
        };
        rows.extend(row);
    })?;
    Ok(labelled)
}

/// At most so many cells of each condition, and of each context's control, drawn by seed.
fn choose(corpus: &Corpus, labels: &Labels, args: &EvaluateArgs) -> HashMap<u64, Condition> {
    let mut members: BTreeMap<Condition, Vec<(u64, u64)>> = BTreeMap::new();
    for cell in 0..corpus.n_cells() {
        if let Some(mut condition) = labels.of(cell) {
            if condition.perturbation == args.control {
                condition.dose = None;
            }
            let draw = Rng::new(args.seed, Purpose::Sampling, 0, cell).next_u64();
            members.entry(condition).or_default().push((draw, cell));
        }
    }
    let mut chosen = HashMap::new();
    for (condition, mut cells) in members {
        cells.sort_unstable();
        let cells = cells.into_iter().take(args.max_cells);
        chosen.extend(cells.map(|(_, cell)| (cell, condition.clone())));
    }
    chosen
}

/// The most variable genes among control cells, which every split lets training see; ascending.
fn scored_genes(
    corpus: &Corpus,
    labels: &Labels,
    chosen: &HashMap<u64, Condition>,
    args: &EvaluateArgs,
) -> Result<Vec<u32>> {
    let n = corpus.genes().len();
    if n <= args.genes {
        return Ok((0..n as u32).collect());
    }
    let is_control = |cell: u64| {
        chosen.contains_key(&cell) && labels.perturbation.of(cell) == Some(&args.control)
    };
    let (mut sums, mut squares, mut cells) = (vec![0.0f64; n], vec![0.0f64; n], 0u64);
    visit(corpus, &is_control, &mut |_, genes, values| {
        cells += 1;
        for (&gene, &value) in genes.iter().zip(values) {
            let value = f64::from(value);
            sums[gene as usize] += value;
            squares[gene as usize] += value * value;
        }
    })?;
    let count = cells.max(1) as f64;
    let variance = |g: usize| squares[g] / count - (sums[g] / count).powi(2);
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by(|&a, &b| variance(b as usize).total_cmp(&variance(a as usize)));
    order.truncate(args.genes);
    order.sort_unstable();
    Ok(order)
}

/// Calls `each` with the cells that are kept: index, genes, log-normalised values.
fn visit(corpus: &Corpus, keep: &dyn Fn(u64) -> bool, each: &mut Visit<'_>) -> Result<()> {
    normalized::visit(corpus, &Selection::filter(corpus, keep), each)
}
