//! What was done to each cell of a corpus, from its obs columns.

use std::collections::HashMap;

use scpeft_data::Corpus;
use scpeft_evaluation::splits::Condition;

use crate::failure::{Failure, Result};

/// The context of a corpus without a column of contexts.
pub(crate) const ONE_CONTEXT: &str = "all";

/// A column of categories, cell by cell.
#[derive(Debug)]
pub(crate) struct Column {
    codes: Vec<i32>,
    names: HashMap<i32, String>,
}

impl Column {
    pub(crate) fn read(corpus: &Corpus, name: &str) -> Result<Self> {
        let categories = corpus.categories(name)?;
        Ok(Self {
            names: (0..).zip(categories.iter().cloned()).collect(),
            codes: corpus.obs_codes(name)?,
        })
    }

    /// The category of a cell, `None` where it is missing.
    pub(crate) fn of(&self, cell: u64) -> Option<&String> {
        self.names.get(&self.code(cell))
    }

    /// The code of a cell's category; below 0 where it is missing.
    pub(crate) fn code(&self, cell: u64) -> i32 {
        self.codes.get(cell as usize).copied().unwrap_or(-1)
    }
}

/// The obs columns that say what was done to a cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) perturbation: &'a str,
    pub(crate) control: &'a str,
    pub(crate) context: Option<&'a str>,
    pub(crate) dose: Option<&'a str>,
}

/// What was done to each cell.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) perturbation: Column,
    control: String,
    context: Option<Column>,
    dose: Option<Column>,
}

impl Labels {
    /// # Errors
    /// A column that is missing or not categorical, or a control label that no cell can have.
    pub(crate) fn read(corpus: &Corpus, columns: &Columns<'_>) -> Result<Self> {
        let perturbation = Column::read(corpus, columns.perturbation)?;
        let known = || perturbation.names.values();
        if !known().any(|name| name == columns.control) {
            let mut known: Vec<String> = known().map(|n| format!("`{n}`")).collect();
            known.sort_unstable();
            return Err(Failure::config(format!(
                "`{}` is no category of obs column `{}`, so there are no control cells\nhelp: present are: {}",
                columns.control,
                columns.perturbation,
                known.join(", ")
            )));
        }
        let optional = |name: Option<&str>| name.map(|name| Column::read(corpus, name)).transpose();
        Ok(Self {
            perturbation,
            control: columns.control.to_owned(),
            context: optional(columns.context)?,
            dose: optional(columns.dose)?,
        })
    }

    /// The condition of a cell; `None` when it is not known.
    pub(crate) fn of(&self, cell: u64) -> Option<Condition> {
        Some(Condition {
            perturbation: self.perturbation.of(cell)?.clone(),
            context: self.context_of(cell)?.to_owned(),
            dose: self
                .dose
                .as_ref()
                .and_then(|column| column.of(cell))
                .cloned(),
        })
    }

    /// The context of a cell; `None` when it is not known.
    pub(crate) fn context_of(&self, cell: u64) -> Option<&str> {
        match &self.context {
            Some(column) => column.of(cell).map(String::as_str),
            None => Some(ONE_CONTEXT),
        }
    }

    /// Whether a cell is a control cell.
    pub(crate) fn is_control(&self, cell: u64) -> bool {
        self.perturbation.of(cell) == Some(&self.control)
    }

    /// Whether a cell has a value of the column of doses, where there is one.
    pub(crate) fn has_dose(&self, cell: u64) -> bool {
        self.dose
            .as_ref()
            .is_none_or(|column| column.of(cell).is_some())
    }
}
