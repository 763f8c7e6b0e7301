//! The conditions of a corpus: which cells were treated alike, and which control cells are theirs.

use std::collections::{BTreeMap, BTreeSet};

use scpeft_config::Config;
use scpeft_data::{Corpus, Selection};
use scpeft_evaluation::splits::Condition;
use scpeft_evaluation::study::name_of;

use super::labels::{Columns, Labels};
use crate::failure::{Failure, Result};

/// Names in a message.
const SHOWN: usize = 12;

/// Conditions with their cells.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// All that are used, in order.
    pub list: Vec<Condition>,
    /// Treated cells of each.
    pub cells: Vec<u64>,
    /// A cell of each, the first.
    pub first_cell: Vec<u64>,
    /// The context of each: a place in `contexts`.
    pub context_of: Vec<usize>,
    /// Contexts that have cells, in order.
    pub contexts: Vec<String>,
    /// What is left out, and why, for the user.
    pub left_out: Vec<String>,
    /// The condition of each cell of the corpus, below 0 for control cells and those that are left out.
    code_of: Vec<i32>,
    /// The context of each control cell, below 0 for all others.
    control_of: Vec<i32>,
}

/// The columns that a configuration names.
pub(crate) fn columns(config: &Config) -> Columns<'_> {
    let own = &config.perturbation;
    Columns {
        perturbation: own.column.as_deref().unwrap_or_default(),
        control: own.control.as_deref().unwrap_or_default(),
        context: own.context.as_deref(),
        dose: own.dose.as_deref(),
    }
}

impl Conditions {
    /// Reads the columns of a corpus.
    ///
    /// # Errors
    /// Columns or a control label that the corpus does not have.
    pub(crate) fn read(corpus: &Corpus, config: &Config) -> Result<Self> {
        let labels = Labels::read(corpus, &columns(config))?;
        let mut known: BTreeMap<Condition, (u64, u64)> = BTreeMap::new();
        let (mut contexts, mut unknown) = (BTreeSet::new(), 0u64);
        let condition_of = |cell: u64| {
            labels
                .of(cell)
                .filter(|_| !labels.is_control(cell) && labels.has_dose(cell))
        };
        for cell in 0..corpus.n_cells() {
            if let Some(context) = labels.context_of(cell) {
                contexts.insert(context.to_owned());
            }
            match condition_of(cell) {
                Some(condition) => known.entry(condition).or_insert((0, cell)).0 += 1,
                None => {
                    unknown +=
                        u64::from(!labels.is_control(cell) || labels.context_of(cell).is_none());
                }
            }
        }
        let mut found = Self {
            contexts: contexts.into_iter().collect(),
            ..Self::default()
        };
        if unknown > 0 {
            found.left_out.push(format!(
                "{unknown} cells, which lack a perturbation, context or dose"
            ));
        }
        let fewest = config.perturbation.min_cells as u64;
        for (condition, (cells, first)) in known {
            if cells < fewest {
                let name = name_of(&condition);
                let line = format!("{name}: {cells} cells, `perturbation.min_cells` is {fewest}");
                found.left_out.push(line);
                continue;
            }
            let context = found.contexts.binary_search(&condition.context);
            found.context_of.push(context.unwrap_or_default());
            found.cells.push(cells);
            found.first_cell.push(first);
            found.list.push(condition);
        }
        let place = |names: &[String], name: &str| -> i32 {
            let place = names.binary_search_by(|n| n.as_str().cmp(name));
            place.map_or(-1, |place| place as i32)
        };
        for cell in 0..corpus.n_cells() {
            let code = condition_of(cell).and_then(|c| found.list.binary_search(&c).ok());
            found.code_of.push(code.map_or(-1, |code| code as i32));
            let context = labels.context_of(cell).filter(|_| labels.is_control(cell));
            let context = context.map_or(-1, |name| place(&found.contexts, name));
            found.control_of.push(context);
        }
        Ok(found)
    }

    /// The condition of a cell.
    pub fn of(&self, cell: u64) -> Option<usize> {
        usize::try_from(*self.code_of.get(cell as usize)?).ok()
    }

    /// The conditions of all cells, below 0 where there is none.
    pub(crate) fn codes(&self) -> &[i32] {
        &self.code_of
    }

    /// The context of a control cell.
    pub fn control(&self, cell: u64) -> Option<usize> {
        usize::try_from(*self.control_of.get(cell as usize)?).ok()
    }

    /// The conditions that some of the selected cells belong to, ascending.
    pub fn among(&self, selection: &Selection) -> Vec<usize> {
        let found: BTreeSet<usize> = (selection.cell_indices())
            .filter_map(|cell| self.of(cell))
            .collect();
        found.into_iter().collect()
    }

    /// Refuses a condition with cells in more than one of the named splits: what is held out would
    /// have been seen.
    ///
    /// # Errors
    /// All such conditions.
    pub(crate) fn require_apart(&self, splits: &[(&str, &Selection)]) -> Result<()> {
        let mut seen: BTreeMap<usize, &str> = BTreeMap::new();
        let mut twice = Vec::new();
        for (name, selection) in splits {
            for condition in self.among(selection) {
                if let Some(other) = seen.insert(condition, name) {
                    let condition = name_of(&self.list[condition]);
                    twice.push(format!("`{condition}` (in `{other}` and `{name}`)"));
                }
            }
        }
        if twice.is_empty() {
            return Ok(());
        }
        Err(Failure::data(format!(
            "{} condition(s) have cells in two splits, so that what is held out would be seen in training: {}\n\
             help: split by whole conditions, not by cells: name a column that does in `data.split_column`",
            twice.len(),
            shortened(&twice)
        )))
    }

    /// Refuses contexts of the given conditions that have no control cells.
    ///
    /// # Errors
    /// All such contexts.
    pub(crate) fn require_controls(&self, wanted: &[usize], column: &str) -> Result<()> {
        let with: BTreeSet<i32> = self.control_of.iter().copied().collect();
        let without: BTreeSet<&str> = (wanted.iter().map(|&c| self.context_of[c]))
            .filter(|&context| !with.contains(&(context as i32)))
            .map(|context| self.contexts[context].as_str())
            .collect();
        if without.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = without.iter().map(|name| format!("`{name}`")).collect();
        Err(Failure::data(format!(
            "no control cells in {} context(s): {}\n\
             help: a response is a change against control cells of the same context; \
             leave these contexts out of the splits, or check `perturbation.control` and obs column `{column}`",
            names.len(),
            shortened(&names)
        )))
    }
}

/// The first names of a list, and how many more there are.
pub(crate) fn shortened(names: &[String]) -> String {
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
