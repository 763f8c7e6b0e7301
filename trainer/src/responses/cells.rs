//! The control and treated cells of a corpus, on the genes that are scored.

use std::collections::{BTreeMap, HashMap};

use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{Corpus, Selection};
use scpeft_evaluation::splits::Condition;
use scpeft_evaluation::study::Labelled;

use crate::args::EvaluateArgs;
use crate::failure::{Failure, Result};
use crate::normalized::{self, Visit};
use crate::perturbation::labels::{Column, Columns, Labels};

fn columns(args: &EvaluateArgs) -> Columns<'_> {
    Columns {
        perturbation: &args.perturbation,
        control: &args.control,
        context: args.context.as_deref(),
        dose: args.dose.as_deref(),
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
    let labels = Labels::read(corpus, &columns(args))?;
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
    let is_control = |cell: u64| chosen.contains_key(&cell) && labels.is_control(cell);
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
