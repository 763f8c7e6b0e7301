//! Corpora of perturbed cells: which columns say what was done, and which conditions are held out.

mod split;

use std::collections::{BTreeMap, HashMap};

use scpeft_evaluation::splits::Condition;

use crate::doses::Unit;
use crate::error::listed;
use crate::{Corpus, Error, Result};

pub use split::{Held, Part, SplitReport, SplitRequest, split};

/// The context of a corpus without a column of contexts.
pub const ONE_CONTEXT: &str = "all";

/// Which obs columns say what was done to a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// What was done: a drug, a gene, or genes joined by `+`.
    pub perturbation: String,
    /// Its value for control cells.
    pub control: String,
    /// The cell line, or whatever else the cells are.
    pub context: Option<String>,
    /// The dose.
    pub dose: Option<String>,
    /// The unit of doses that are numbers.
    pub dose_unit: Option<Unit>,
    /// The batch that control cells are matched by.
    pub batch: Option<String>,
    /// The SMILES of the drug.
    pub smiles: Option<String>,
}

/// Published data sets whose columns are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// sciplex3 as chemCPA prepares it.
    Sciplex3,
    /// Tahoe-100M as `scpeft-data index --preset tahoe` makes a corpus of it.
    Tahoe,
}

impl Preset {
    /// The columns of the data set.
    pub fn columns(self) -> Columns {
        match self {
            Self::Sciplex3 => Columns {
                perturbation: "condition".into(),
                control: "control".into(),
                context: Some("cell_type".into()),
                dose: Some("dose".into()),
                dose_unit: Some(Unit::Nanomolar),
                batch: None,
                smiles: Some("SMILES".into()),
            },
            Self::Tahoe => Columns {
                perturbation: "drug".into(),
                control: "DMSO_TF".into(),
                context: Some("cell_line_id".into()),
                dose: Some("dose".into()),
                // The column `dose_unit` beside it says so cell by cell.
                dose_unit: None,
                batch: Some("plate".into()),
                smiles: Some("canonical_smiles".into()),
            },
        }
    }
}

/// What was done to each cell, without doses.
pub(crate) struct Labels<'a> {
    names: &'a [String],
    codes: Vec<i32>,
    control: i32,
    contexts: Option<(&'a [String], Vec<i32>)>,
}

impl<'a> Labels<'a> {
    pub(crate) fn read(corpus: &'a Corpus, columns: &Columns) -> Result<Self> {
        let names = corpus.categories(&columns.perturbation)?;
        let control = names.iter().position(|name| *name == columns.control);
        let control = control.ok_or_else(|| {
            Error::options(
                format!(
                    "`{}` is no category of obs column `{}`, so there are no control cells",
                    columns.control, columns.perturbation
                ),
                format!("present are: {}", listed(names)),
            )
        })?;
        let contexts = match &columns.context {
            Some(column) => Some((corpus.categories(column)?, corpus.obs_codes(column)?)),
            None => None,
        };
        Ok(Self {
            names,
            codes: corpus.obs_codes(&columns.perturbation)?,
            control: control as i32,
            contexts,
        })
    }

    /// Whether something was done to a cell; not where that is not known.
    fn is_treated(&self, cell: usize) -> bool {
        let code = self.codes[cell];
        code >= 0 && code != self.control
    }

    /// Cells of every condition; `None` for control cells. Cells that lack a label are left out.
    fn count(&self) -> BTreeMap<(Option<&'a str>, &'a str), u64> {
        let mut cells: HashMap<(i32, i32), u64> = HashMap::new();
        for (cell, &code) in self.codes.iter().enumerate() {
            let context = self.contexts.as_ref().map_or(0, |(_, codes)| codes[cell]);
            if code >= 0 && context >= 0 {
                *cells.entry((code, context)).or_default() += 1;
            }
        }
        let named = |((code, context), n): ((i32, i32), u64)| {
            let name = (code != self.control).then(|| self.names[code as usize].as_str());
            let context = match &self.contexts {
                Some((names, _)) => names[context as usize].as_str(),
                None => ONE_CONTEXT,
            };
            ((name, context), n)
        };
        cells.into_iter().map(named).collect()
    }
}

/// The conditions of a corpus, doses together, with their cells; and the control cells of each context.
pub(crate) struct Conditions {
    pub(crate) treated: BTreeMap<Condition, u64>,
    pub(crate) controls: BTreeMap<String, u64>,
}

impl Conditions {
    /// # Errors
    /// Columns or a control label that the corpus does not have, or contexts without control cells: all of
    /// them are listed.
    pub(crate) fn of(corpus: &Corpus, columns: &Columns) -> Result<Self> {
        let mut found = Self {
            treated: BTreeMap::new(),
            controls: BTreeMap::new(),
        };
        for ((name, context), cells) in Labels::read(corpus, columns)?.count() {
            let context = context.to_owned();
            match name {
                None => {
                    found.controls.insert(context, cells);
                }
                Some(name) => {
                    let condition = Condition {
                        perturbation: name.to_owned(),
                        context,
                        dose: None,
                    };
                    found.treated.insert(condition, cells);
                }
            }
        }
        let mut alone: Vec<String> = (found.treated.keys())
            .filter(|c| !found.controls.contains_key(&c.context))
            .map(|c| c.context.clone())
            .collect();
        alone.dedup();
        alone.sort_unstable();
        alone.dedup();
        if alone.is_empty() {
            return Ok(found);
        }
        Err(Error::corpus(
            corpus.path(),
            format!("obs column `{}`", columns.perturbation),
            format!(
                "{} contexts have treated cells and no control cell: {}\nhelp: leave their cells out when the corpus is made, or name the control cells `{}`",
                alone.len(),
                listed(&alone),
                columns.control
            ),
        ))
    }
}
