//! What a corpus says about its cells: ids and obs columns.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int32Type};

use super::{Corpus, Layout, ObsColumn, ObsKind, obs_array_type};
use crate::{Error, Result};

/// Cells of an obs column decoded at a time.
const OBS_CELLS: usize = 8192;

impl Corpus {
    /// One obs column of the manifest.
    ///
    /// # Errors
    /// When there is none of this name; the error lists those present.
    pub fn column(&self, name: &str) -> Result<&ObsColumn> {
        self.manifest()
            .obs
            .iter()
            .find(|c| c.name == name)
            .ok_or_else(|| {
                let present = self.manifest().obs.iter().map(|c| c.name.clone()).collect();
                Error::missing_column(format!("corpus `{}`", self.path().display()), name, present)
            })
    }

    /// The categories of an obs column, in the order of their codes.
    ///
    /// # Errors
    /// When there is no such column, or it is not categorical.
    pub fn categories(&self, column: &str) -> Result<&[String]> {
        let found = self.column(column)?;
        if found.kind == ObsKind::Category {
            return Ok(&found.categories);
        }
        let categorical = self
            .manifest()
            .obs
            .iter()
            .filter(|c| c.kind == ObsKind::Category);
        Err(Error::NotCategorical {
            column: column.to_owned(),
            kind: found.kind.plural(),
            present: categorical.map(|c| c.name.clone()).collect(),
        })
    }

    /// The codes of a categorical obs column for all cells in corpus order, -1 where missing.
    ///
    /// # Errors
    /// When there is no such column, or it is not categorical, or cannot be read.
    pub fn obs_codes(&self, column: &str) -> Result<Vec<i32>> {
        let categories = self.categories(column)?;
        let code_of: HashMap<&str, i32> = categories.iter().map(String::as_str).zip(0..).collect();
        let column = self.column(column)?;
        if let Some(derived) = &column.derived {
            return self.derived_codes(column, derived, &code_of);
        }
        let (source, looked_up) = match &column.lookup {
            None => (column.source.as_deref().unwrap_or(&column.name), None),
            Some(lookup) => {
                let stands_for = lookup.values.iter().filter_map(|(value, category)| {
                    let code = category.as_str().and_then(|c| code_of.get(c))?;
                    Some((value.as_str(), *code))
                });
                let codes: HashMap<&str, i32> = stands_for.collect();
                (lookup.column.as_str(), Some(codes))
            }
        };
        let code = |value: &str| match &looked_up {
            Some(codes) => Ok(codes.get(value).copied().unwrap_or(-1)),
            None => code_of
                .get(value)
                .copied()
                .ok_or_else(|| format!("category `{value}` is not in the manifest")),
        };
        let mut codes = Vec::with_capacity(self.n_cells() as usize);
        self.scan_obs(source, |array| append_codes(array, &code, &mut codes))?;
        Ok(codes)
    }

    /// The values of a numeric obs column for all cells in corpus order, NaN where missing.
    ///
    /// # Errors
    /// When there is no such column, or it does not hold numbers, or cannot be read.
    pub fn obs_numbers(&self, column: &str) -> Result<Vec<f64>> {
        let found = self.column(column)?;
        if found.kind != ObsKind::Number {
            let numeric = self.manifest().obs.iter();
            return Err(Error::NotNumeric {
                column: column.to_owned(),
                kind: found.kind.plural(),
                present: numeric
                    .filter(|c| c.kind == ObsKind::Number)
                    .map(|c| c.name.clone())
                    .collect(),
            });
        }
        let mut numbers = Vec::with_capacity(self.n_cells() as usize);
        if let Some(lookup) = &found.lookup {
            let stands_for = lookup.values.iter();
            let stands_for: HashMap<&str, f64> = stands_for
                .filter_map(|(value, number)| Some((value.as_str(), number.as_f64()?)))
                .collect();
            let number = |value: &str| stands_for.get(value).copied().unwrap_or(f64::NAN);
            self.scan_obs(&lookup.column, |array| {
                let texts = as_text(array)?;
                let texts = texts.as_string::<i32>().iter();
                numbers.extend(texts.map(|value| value.map_or(f64::NAN, number)));
                Ok(())
            })?;
        } else {
            let source = found.source.as_deref().unwrap_or(&found.name);
            self.scan_obs(source, |array| {
                let cast = arrow::compute::cast(array, &DataType::Float64);
                let cast = cast.map_err(|e| e.to_string())?;
                let values = cast.as_primitive::<Float64Type>().iter();
                numbers.extend(values.map(|value| value.unwrap_or(f64::NAN)));
                Ok(())
            })?;
        }
        Ok(numbers)
    }

    /// Runs over one column of all cells.
    fn scan_obs(
        &self,
        column: &str,
        mut visit: impl FnMut(&ArrayRef) -> Result<(), String>,
    ) -> Result<()> {
        for group in 0..self.row_groups().len() {
            self.scan(group, &[column], OBS_CELLS, |batch| visit(batch.column(0)))?;
        }
        Ok(())
    }

    /// The obs columns with the Arrow types that they have on disk.
    pub(crate) fn obs_types(&self) -> Result<Vec<(ObsColumn, DataType)>> {
        let schema = match self.row_groups().first() {
            Some(_) => Some(self.footer(0)?.schema()),
            None => None,
        };
        let columns = self.manifest().obs.iter().map(|column| {
            let data_type = match schema {
                None => obs_array_type(column.kind, false),
                Some(schema) => schema
                    .field_with_name(&column.name)
                    .map_err(|e| self.shard_error(0, e.to_string()))?
                    .data_type()
                    .clone(),
            };
            Ok((column.clone(), data_type))
        });
        columns.collect()
    }

    /// The ids of some cells, in the order asked for.
    ///
    /// # Errors
    /// When a cell index is out of range or a shard cannot be read.
    pub fn cell_ids(&self, cells: &[u64]) -> Result<Vec<String>> {
        let mut by_group: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
        for (place, &cell) in cells.iter().enumerate() {
            let group = self.row_groups().partition_point(|g| g.first_cell <= cell);
            if group == 0 || cell >= self.n_cells() {
                return Err(Error::internal(format!(
                    "cell {cell} asked of a corpus of {} cells",
                    self.n_cells()
                )));
            }
            let row = cell - self.row_groups()[group - 1].first_cell;
            by_group
                .entry(group - 1)
                .or_default()
                .push((place, row as usize));
        }
        let mut ids = vec![String::new(); cells.len()];
        let column = match &self.manifest().layout {
            Layout::Foreign(foreign) => foreign.cell_id.as_deref(),
            Layout::List | Layout::Packed => Some("cell_id"),
        };
        for (group, wanted) in by_group {
            let Some(column) = column else {
                for (place, row) in wanted {
                    ids[place] = self.place_name(group, row);
                }
                continue;
            };
            let mut names: Vec<String> = Vec::new();
            self.scan(group, &[column], 8192, |batch| {
                let text = as_text(batch.column(0))?;
                let text = text.as_string::<i32>().iter();
                names.extend(text.map(|id| id.unwrap_or_default().to_owned()));
                Ok(())
            })?;
            for (place, row) in wanted {
                ids[place].clone_from(&names[row]);
            }
        }
        Ok(ids)
    }

    /// The row group of a cell, and its row there.
    pub(crate) fn locate(&self, cell: u64) -> (usize, u32) {
        let groups = self.row_groups();
        let number = groups.partition_point(|group| group.first_cell <= cell);
        let number = number.saturating_sub(1);
        (number, (cell - groups[number].first_cell) as u32)
    }

    /// Where a cell is: its shard, row group and row.
    pub fn place_of(&self, cell: u64) -> String {
        let (number, row) = self.locate(cell);
        let group = self.row_groups()[number];
        let shard = &self.manifest().shards[group.shard].path;
        format!("{shard}, row group {}, row {row}", group.index)
    }

    /// The name of a cell without an id: its shard and its row there.
    fn place_name(&self, group: usize, row: usize) -> String {
        let group = self.row_groups()[group];
        let shard = &self.manifest().shards[group.shard];
        let before = &shard.row_group_rows[..group.index];
        let before: u64 = before.iter().map(|&rows| u64::from(rows)).sum();
        format!("{}:{}", shard.path, before + row as u64)
    }
}

fn append_codes(
    array: &ArrayRef,
    code: &dyn Fn(&str) -> Result<i32, String>,
    codes: &mut Vec<i32>,
) -> Result<(), String> {
    if let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() {
        let names = as_text(dictionary.values())?;
        // A dictionary may hold entries that no cell of this row group has: they may be unknown.
        let map: Vec<Result<i32, String>> = names
            .as_string::<i32>()
            .iter()
            .map(|name| name.map_or(Ok(-1), code))
            .collect();
        for key in dictionary.keys() {
            codes.push(match key {
                None => -1,
                Some(key) => map[key as usize].clone()?,
            });
        }
        return Ok(());
    }
    let names = as_text(array)?;
    for name in names.as_string::<i32>() {
        codes.push(name.map_or(Ok(-1), code)?);
    }
    Ok(())
}

/// Text of any of Arrow's types as plain strings.
fn as_text(array: &ArrayRef) -> Result<ArrayRef, String> {
    match array.data_type() {
        DataType::Utf8 => Ok(array.clone()),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            arrow::compute::cast(array, &DataType::Utf8).map_err(|e| e.to_string())
        }
        other => Err(format!("is {other}, expected text")),
    }
}
