//! Which obs columns are kept, and as what, when one or several sources have them.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int32Array, StringArray, new_null_array,
};
use arrow::datatypes::{DataType, Int32Type};

use super::ImportOptions;
use super::h5ad::frame::Column;
use super::source::Source;
use super::split::{Parts, SPLIT_COLUMN};
use crate::corpus::{ObsColumn, ObsKind, obs_array_type};
use crate::{Error, Result};

/// Rows read at a time when a whole column is looked through.
const SCAN_ROWS: usize = 65_536;
/// Names of the other columns of a shard.
const RESERVED: [&str; 4] = ["cell_id", "n_stored", "genes", "values"];
/// A column with more different texts than this is text, unless it is asked for as categories.
const MOST_CATEGORIES: usize = 100_000;

/// The obs columns that are kept.
pub(super) struct Obs<'a> {
    sources: &'a [Source],
    columns: Vec<Merged>,
    /// The column that names the source.
    source_column: Option<(ObsColumn, ArrayRef)>,
    pub(super) parts: Option<Parts>,
}

/// One column of all sources.
pub(super) struct Merged {
    pub(super) column: ObsColumn,
    data_type: DataType,
    dictionary: ArrayRef,
    /// What each source has of it.
    parts: Vec<Option<Part>>,
}

struct Part {
    column: Column,
    recode: Recode,
}

/// From what a source stores to the categories of the corpus.
enum Recode {
    Nothing,
    Codes(Vec<i32>),
    Texts(Arc<HashMap<String, i32>>),
}

impl<'a> Obs<'a> {
    pub(super) fn plan(sources: &'a [Source], options: &ImportOptions) -> Result<Self> {
        let asked = asked(options);
        let wanted = wanted(sources, options, &asked)?;
        let mut columns = Vec::new();
        for name in wanted {
            let needed = asked.contains(&name.as_str()) || options.obs.is_some();
            if RESERVED.contains(&name.as_str()) {
                let problem = format!("obs column `{name}` has the name of a column of the corpus");
                if needed {
                    return Err(Error::options(problem, "rename it in the source file"));
                }
                tracing::warn!("{problem}: left out");
                continue;
            }
            match Merged::new(sources, &name, asked.contains(&name.as_str())) {
                Ok(merged) => columns.push(merged),
                Err(error) if needed => return Err(error),
                Err(error) => tracing::warn!("obs column left out: {error}"),
            }
        }
        let mut obs = Self {
            sources,
            columns,
            source_column: None,
            parts: None,
        };
        obs.name_sources(options)?;
        obs.parts = Parts::plan(&obs, options)?;
        Ok(obs)
    }

    fn name_sources(&mut self, options: &ImportOptions) -> Result<()> {
        let name = match &options.source_column {
            Some(name) => name,
            None if self.sources.len() > 1 => "source",
            None => return Ok(()),
        };
        if self.column(name).is_some() || RESERVED.contains(&name) || name == SPLIT_COLUMN {
            return Err(Error::options(
                format!(
                    "the column that names the input of each cell would be `{name}`, but there is one of this name"
                ),
                "choose another name with --source-column, or list the columns to keep with --obs",
            ));
        }
        let names: Vec<String> = self.sources.iter().map(|s| s.name.clone()).collect();
        let dictionary: ArrayRef = Arc::new(StringArray::from_iter_values(&names));
        let column = ObsColumn::new(name, ObsKind::Category, names);
        self.source_column = Some((column, dictionary));
        Ok(())
    }

    pub(super) fn sources(&self) -> &[Source] {
        self.sources
    }

    /// A kept column.
    pub(super) fn column(&self, name: &str) -> Option<&Merged> {
        self.columns.iter().find(|c| c.column.name == name)
    }

    /// The codes of all cells of a categorical column, source after source.
    pub(super) fn codes(&self, merged: &Merged) -> Result<Vec<i32>> {
        let cells = self.sources.iter().map(|s| s.cells).sum();
        let mut codes = Vec::with_capacity(cells);
        for (number, source) in self.sources.iter().enumerate() {
            for rows in spans(source.cells) {
                codes.extend(merged.codes(number, source, rows)?);
            }
        }
        Ok(codes)
    }

    /// The schema: columns with their Arrow types.
    pub(super) fn schema(&self) -> Vec<(ObsColumn, DataType)> {
        let category =
            |column: &ObsColumn| (column.clone(), obs_array_type(ObsKind::Category, false));
        let kept = self
            .columns
            .iter()
            .map(|c| (c.column.clone(), c.data_type.clone()));
        let source = self
            .source_column
            .iter()
            .map(|(column, _)| category(column));
        let split = self.parts.iter().map(|parts| category(&parts.column));
        kept.chain(source).chain(split).collect()
    }

    /// Some rows of one source, all columns. `first` is the number of the first row among all cells.
    pub(super) fn arrays(
        &self,
        number: usize,
        rows: Range<usize>,
        first: usize,
    ) -> Result<Vec<ArrayRef>> {
        let source = &self.sources[number];
        let mut arrays = Vec::with_capacity(self.columns.len() + 2);
        for column in &self.columns {
            arrays.push(column.array(number, source, rows.clone())?);
        }
        if let Some((_, names)) = &self.source_column {
            arrays.push(dictionary(vec![number as i32; rows.len()], names)?);
        }
        if let Some(parts) = &self.parts {
            let codes = parts.codes(first..first + rows.len());
            arrays.push(dictionary(codes, &parts.names)?);
        }
        Ok(arrays)
    }
}

/// The columns that options name, which must be categorical.
fn asked(options: &ImportOptions) -> Vec<&str> {
    let hvg = options.filter.hvg.as_ref();
    let mut asked: Vec<&str> = Vec::new();
    let named = [
        options.label.as_ref(),
        options.batch.as_ref(),
        hvg.and_then(|hvg| hvg.batch.as_ref()),
        options.split.as_ref().and_then(|split| split.by.as_ref()),
        options.split_column.as_ref(),
    ];
    for name in named.into_iter().flatten() {
        if !asked.contains(&name.as_str()) {
            asked.push(name);
        }
    }
    asked
}

/// The columns to keep, each of which at least one source has.
fn wanted(sources: &[Source], options: &ImportOptions, asked: &[&str]) -> Result<Vec<String>> {
    let mut present: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for name in sources.iter().flat_map(Source::columns) {
        if seen.insert(name) {
            present.push(name.clone());
        }
    }
    let mut wanted = match &options.obs {
        None => present.clone(),
        Some(list) => {
            let mut all: Vec<String> = asked.iter().map(|s| (*s).to_owned()).collect();
            all.extend(
                list.iter()
                    .filter(|c| !asked.contains(&c.as_str()))
                    .cloned(),
            );
            all
        }
    };
    let mut seen = std::collections::HashSet::new();
    wanted.retain(|name| seen.insert(name.clone()));
    for name in asked
        .iter()
        .copied()
        .chain(wanted.iter().map(String::as_str))
    {
        if !present.iter().any(|p| p == name) {
            let whose: Vec<String> = sources
                .iter()
                .map(|s| format!("`{}`", s.path.display()))
                .collect();
            return Err(Error::missing_column(whose.join(", "), name, present));
        }
    }
    let splits = options.split.is_some()
        || options
            .split_column
            .as_deref()
            .is_some_and(|c| c != SPLIT_COLUMN);
    if splits && wanted.iter().any(|c| c == SPLIT_COLUMN) {
        return Err(Error::options(
            format!(
                "obs column `{SPLIT_COLUMN}` would be written, but `{}` has one",
                sources[0].path.display()
            ),
            "pass --split-column split to use the file's own, or list the columns to keep with --obs",
        ));
    }
    Ok(wanted)
}

impl Merged {
    fn new(sources: &[Source], name: &str, asked: bool) -> Result<Self> {
        let mut columns: Vec<Option<Column>> = Vec::new();
        for source in sources {
            let frame = source
                .obs
                .as_ref()
                .filter(|f| f.columns().iter().any(|c| c == name));
            columns.push(frame.map(|f| f.column(name)).transpose()?);
        }
        let number = |c: &Column| matches!(c, Column::Integers { .. } | Column::Floats { .. });
        let present = || columns.iter().flatten();
        let (numbers, all) = (present().filter(|c| number(c)).count(), present().count());
        if numbers == all && !asked {
            return Ok(Self::numbers(name, columns));
        }
        if numbers > 0 && numbers < all {
            tracing::warn!(
                "obs column `{name}` holds numbers in some inputs and texts in others: all become texts"
            );
        }
        match categories(sources, &columns, asked)? {
            Some(names) => Ok(Self::categories(name, columns, names)),
            None => Ok(Self::plain(name, ObsKind::String, false, columns)),
        }
    }

    fn plain(name: &str, kind: ObsKind, double: bool, columns: Vec<Option<Column>>) -> Self {
        let part = |column| Part {
            column,
            recode: Recode::Nothing,
        };
        Self {
            column: ObsColumn::new(name, kind, Vec::new()),
            data_type: obs_array_type(kind, double),
            dictionary: Arc::new(StringArray::from_iter_values::<&str, _>([])),
            parts: columns.into_iter().map(|c| c.map(part)).collect(),
        }
    }

    fn numbers(name: &str, columns: Vec<Option<Column>>) -> Self {
        let single = |c: &Column| matches!(c, Column::Floats { double: false, .. });
        let double = !columns.iter().flatten().all(single);
        Self::plain(name, ObsKind::Number, double, columns)
    }

    fn categories(name: &str, columns: Vec<Option<Column>>, names: Vec<String>) -> Self {
        let codes: HashMap<String, i32> = names.iter().cloned().zip(0..).collect();
        let codes = Arc::new(codes);
        let part = |column: Column| {
            let recode = match &column {
                Column::Category { categories, .. } => {
                    Recode::Codes(categories.iter().map(|c| codes[c]).collect())
                }
                _ => Recode::Texts(codes.clone()),
            };
            Part { column, recode }
        };
        Self {
            parts: columns.into_iter().map(|c| c.map(part)).collect(),
            data_type: obs_array_type(ObsKind::Category, false),
            dictionary: Arc::new(StringArray::from_iter_values(&names)),
            column: ObsColumn::new(name, ObsKind::Category, names),
        }
    }

    fn codes(&self, number: usize, source: &Source, rows: Range<usize>) -> Result<Vec<i32>> {
        let (Some(part), Some(frame)) = (&self.parts[number], &source.obs) else {
            return Ok(vec![-1; rows.len()]);
        };
        match &part.recode {
            Recode::Nothing => frame.codes(&part.column, rows),
            Recode::Codes(codes) => {
                let stored = frame.codes(&part.column, rows)?;
                let place = |code| usize::try_from(code).map_or(-1, |c| codes[c]);
                Ok(stored.into_iter().map(place).collect())
            }
            Recode::Texts(codes) => {
                let texts = frame.texts(&part.column, rows)?;
                let place = |text: &String| codes.get(text).copied();
                Ok(texts
                    .iter()
                    .map(|t| t.as_ref().and_then(place).unwrap_or(-1))
                    .collect())
            }
        }
    }

    fn array(&self, number: usize, source: &Source, rows: Range<usize>) -> Result<ArrayRef> {
        if self.column.kind == ObsKind::Category {
            return dictionary(self.codes(number, source, rows)?, &self.dictionary);
        }
        let (Some(part), Some(frame)) = (&self.parts[number], &source.obs) else {
            return Ok(new_null_array(&self.data_type, rows.len()));
        };
        let column = &part.column;
        Ok(match self.data_type {
            DataType::Utf8 => Arc::new(
                frame
                    .texts(column, rows)?
                    .into_iter()
                    .collect::<StringArray>(),
            ),
            DataType::Float32 => {
                let numbers = frame.numbers(column, rows)?.into_iter();
                let narrow = numbers.map(|n| n.map(|n| n as f32));
                Arc::new(narrow.collect::<Float32Array>())
            }
            _ => Arc::new(Float64Array::from(frame.numbers(column, rows)?)),
        })
    }
}

/// The categories of a column: those that sources list, in their order, then other texts, sorted;
/// integers by value. `None` when it had better stay text: there are very many, or each cell has its own.
fn categories(
    sources: &[Source],
    columns: &[Option<Column>],
    asked: bool,
) -> Result<Option<Vec<String>>> {
    let (mut names, mut known): (Vec<String>, BTreeSet<String>) = (Vec::new(), BTreeSet::new());
    let mut listed = false;
    for column in columns.iter().flatten() {
        if let Column::Category { categories, .. } = column {
            listed = true;
            for name in categories {
                if !known.contains(name) {
                    known.insert(name.clone());
                    names.push(name.clone());
                }
            }
        }
    }
    let (mut found, mut cells) = (BTreeSet::new(), 0);
    let mut integers = true;
    for (source, column) in sources.iter().zip(columns) {
        let (Some(column), Some(frame)) = (column, &source.obs) else {
            continue;
        };
        if matches!(column, Column::Category { .. }) {
            continue;
        }
        integers &= matches!(column, Column::Integers { .. });
        cells += source.cells;
        for rows in spans(source.cells) {
            for text in frame.texts(column, rows)?.into_iter().flatten() {
                if !known.contains(&text) {
                    found.insert(text);
                }
            }
            if !asked && found.len() > MOST_CATEGORIES {
                return Ok(None);
            }
        }
    }
    if !asked && (names.len() > MOST_CATEGORIES || (!listed && found.len() == cells)) {
        return Ok(None);
    }
    let mut found: Vec<String> = found.into_iter().collect();
    if integers {
        found.sort_by_key(|n| n.parse::<i64>().unwrap_or(i64::MAX));
    }
    names.extend(found);
    Ok(Some(names))
}

fn spans(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(SCAN_ROWS)
        .map(move |first| first..(first + SCAN_ROWS).min(rows))
}

fn dictionary(codes: Vec<i32>, names: &ArrayRef) -> Result<ArrayRef> {
    let keys: Int32Array = codes
        .into_iter()
        .map(|code| (code >= 0).then_some(code))
        .collect();
    DictionaryArray::<Int32Type>::try_new(keys, names.clone())
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(|e| Error::internal(format!("codes do not fit their categories: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_all_rows() {
        let all: Vec<_> = spans(SCAN_ROWS + 5).collect();
        assert_eq!(all, [0..SCAN_ROWS, SCAN_ROWS..SCAN_ROWS + 5]);
        assert_eq!(spans(0).count(), 0);
    }
}
