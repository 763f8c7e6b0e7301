//! Which obs columns are kept, and as what.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int32Array, StringArray,
};
use arrow::datatypes::{DataType, Int32Type};

use super::frame::{Column, Frame};
use super::hdf5::Hdf5;
use crate::corpus::{ObsColumn, ObsKind, obs_array_type};
use crate::import::{ImportOptions, split::SPLIT_COLUMN};
use crate::{Error, Result};

/// Rows read at a time when a whole column is looked through.
const SCAN_ROWS: usize = 65_536;
/// Names of the other columns of a shard.
const RESERVED: [&str; 4] = ["cell_id", "n_stored", "genes", "values"];
/// A column of texts with more different values than this stays text, unless it is the label.
const MOST_CATEGORIES: usize = 100_000;

/// The obs columns that are kept.
pub(super) struct Obs<'a> {
    frame: &'a Frame,
    columns: Vec<Kept>,
    split: Option<Vec<i32>>,
}

struct Kept {
    column: ObsColumn,
    data_type: DataType,
    source: Column,
    /// For columns that become categorical on import: the code of each text.
    codes: Option<HashMap<String, i32>>,
    dictionary: ArrayRef,
}

impl<'a> Obs<'a> {
    pub(super) fn plan(file: &Hdf5, frame: &'a Frame, options: &ImportOptions) -> Result<Self> {
        let hvg = options.filter.hvg.as_ref();
        let hvg_batch = hvg.and_then(|hvg| hvg.batch.as_ref());
        let asked: Vec<&String> = options
            .label
            .iter()
            .chain(&options.batch)
            .chain(hvg_batch)
            .collect();
        let wanted: Vec<String> = match &options.obs {
            None => frame.columns().to_vec(),
            Some(list) => {
                let mut all: Vec<String> = asked.iter().map(|s| (*s).clone()).collect();
                all.extend(list.iter().filter(|c| !asked.contains(c)).cloned());
                all.dedup();
                all
            }
        };
        for name in asked.iter().copied().chain(&wanted) {
            if !frame.columns().contains(name) {
                let whose = format!("`{}`", file.path().display());
                return Err(Error::missing_column(whose, name, frame.columns().to_vec()));
            }
        }
        if options.split.is_some() && wanted.iter().any(|c| c == SPLIT_COLUMN) {
            return Err(Error::options(
                format!(
                    "--split would write obs column `{SPLIT_COLUMN}`, but `{}` has one",
                    file.path().display()
                ),
                "leave --split out to use the file's own, or list the columns to keep with --obs",
            ));
        }
        let mut columns = Vec::new();
        for name in wanted {
            let needed = asked.contains(&&name) || options.obs.is_some();
            if RESERVED.contains(&name.as_str()) {
                let problem = format!("obs column `{name}` has the name of a column of the corpus");
                if needed {
                    return Err(Error::options(problem, "rename it in the source file"));
                }
                tracing::warn!("{problem}: left out");
                continue;
            }
            let categories = asked.contains(&&name);
            match frame
                .column(&name)
                .and_then(|c| Kept::new(frame, name, c, categories))
            {
                Ok(kept) => columns.push(kept),
                Err(error) if needed => return Err(error),
                Err(error) => tracing::warn!("obs column left out: {error}"),
            }
        }
        let mut obs = Self {
            frame,
            columns,
            split: None,
        };
        obs.split = obs.deal(options)?;
        Ok(obs)
    }

    /// The part of each cell, stratified by the label when there is one.
    fn deal(&self, options: &ImportOptions) -> Result<Option<Vec<i32>>> {
        let Some(split) = &options.split else {
            return Ok(None);
        };
        let label = options.label.as_ref();
        let label = label.and_then(|name| self.columns.iter().find(|c| c.column.name == *name));
        let mut strata = Vec::with_capacity(self.frame.rows());
        if let Some(label) = label {
            for rows in spans(self.frame.rows()) {
                strata.extend(label.codes(self.frame, rows)?);
            }
        } else {
            strata.resize(self.frame.rows(), 0);
        }
        Ok(Some(split.deal(&strata)))
    }

    /// The schema: columns with their Arrow types.
    pub(super) fn schema(&self, options: &ImportOptions) -> Vec<(ObsColumn, DataType)> {
        let kept = self
            .columns
            .iter()
            .map(|c| (c.column.clone(), c.data_type.clone()));
        let split = options.split.as_ref().map(|split| {
            let parts = split.parts.iter().map(|(name, _)| name.clone());
            let column = ObsColumn::new(SPLIT_COLUMN, ObsKind::Category, parts.collect());
            (column, obs_array_type(ObsKind::Category, false))
        });
        kept.chain(split).collect()
    }

    /// Some rows of all columns.
    pub(super) fn arrays(
        &self,
        rows: Range<usize>,
        options: &ImportOptions,
    ) -> Result<Vec<ArrayRef>> {
        let mut arrays = Vec::with_capacity(self.columns.len() + 1);
        for column in &self.columns {
            arrays.push(column.array(self.frame, rows.clone())?);
        }
        if let (Some(parts), Some(split)) = (&self.split, &options.split) {
            let names: ArrayRef = Arc::new(StringArray::from_iter_values(
                split.parts.iter().map(|(n, _)| n),
            ));
            arrays.push(dictionary(&parts[rows], &names)?);
        }
        Ok(arrays)
    }
}

impl Kept {
    fn new(frame: &Frame, name: String, source: Column, as_category: bool) -> Result<Self> {
        let texts = matches!(source, Column::Strings { .. } | Column::Booleans { .. });
        let codes = if texts || (as_category && !matches!(source, Column::Category { .. })) {
            distinct(frame, &source, as_category)?
        } else {
            None
        };
        let (kind, double, categories) = match (&source, &codes) {
            (Column::Category { categories, .. }, _) => {
                (ObsKind::Category, false, categories.clone())
            }
            (_, Some(codes)) => {
                let mut names = vec![String::new(); codes.len()];
                for (name, &code) in codes {
                    names[code as usize].clone_from(name);
                }
                (ObsKind::Category, false, names)
            }
            (Column::Strings { .. } | Column::Booleans { .. }, None) => {
                (ObsKind::String, false, Vec::new())
            }
            (Column::Integers { .. }, None) => (ObsKind::Number, true, Vec::new()),
            (Column::Floats { double, .. }, None) => (ObsKind::Number, *double, Vec::new()),
        };
        Ok(Self {
            data_type: obs_array_type(kind, double),
            dictionary: Arc::new(StringArray::from_iter_values(&categories)),
            column: ObsColumn::new(name, kind, categories),
            source,
            codes,
        })
    }

    fn codes(&self, frame: &Frame, rows: Range<usize>) -> Result<Vec<i32>> {
        let Some(codes) = &self.codes else {
            return frame.codes(&self.source, rows);
        };
        let texts = frame.texts(&self.source, rows)?;
        Ok(texts
            .iter()
            .map(|t| t.as_ref().and_then(|t| codes.get(t)).copied().unwrap_or(-1))
            .collect())
    }

    fn array(&self, frame: &Frame, rows: Range<usize>) -> Result<ArrayRef> {
        Ok(match self.column.kind {
            ObsKind::Category => dictionary(&self.codes(frame, rows)?, &self.dictionary)?,
            ObsKind::String => Arc::new(
                frame
                    .texts(&self.source, rows)?
                    .into_iter()
                    .collect::<StringArray>(),
            ),
            ObsKind::Number if self.data_type == DataType::Float32 => {
                let numbers = frame.numbers(&self.source, rows)?;
                let narrow = numbers.into_iter().map(|n| n.map(|n| n as f32));
                Arc::new(narrow.collect::<Float32Array>())
            }
            ObsKind::Number => {
                Arc::new(Float64Array::from_iter(frame.numbers(&self.source, rows)?))
            }
        })
    }
}

/// The different texts of a column, sorted; integers by value. `None` when nearly every cell has a
/// text of its own and the column need not be categorical.
fn distinct(frame: &Frame, source: &Column, needed: bool) -> Result<Option<HashMap<String, i32>>> {
    let mut seen = BTreeSet::new();
    for rows in spans(frame.rows()) {
        seen.extend(frame.texts(source, rows)?.into_iter().flatten());
        if !needed && seen.len() > MOST_CATEGORIES {
            return Ok(None);
        }
    }
    if !needed && seen.len() == frame.rows() {
        return Ok(None);
    }
    let mut names: Vec<String> = seen.into_iter().collect();
    if matches!(source, Column::Integers { .. }) {
        names.sort_by_key(|n| n.parse::<i64>().unwrap_or(i64::MAX));
    }
    Ok(Some(names.into_iter().zip(0..).collect()))
}

fn spans(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(SCAN_ROWS)
        .map(move |first| first..(first + SCAN_ROWS).min(rows))
}

fn dictionary(codes: &[i32], names: &ArrayRef) -> Result<ArrayRef> {
    let keys: Int32Array = codes
        .iter()
        .map(|&code| (code >= 0).then_some(code))
        .collect();
    DictionaryArray::<Int32Type>::try_new(keys, names.clone())
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(|e| Error::internal(format!("codes do not fit their categories: {e}")))
}
