//! A table of cells: which of its columns can be put into a file, and where its rows go.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, SchemaRef, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::listed;
use crate::{Error, Result};

/// The column that says which cell a row is about.
const CELL: &str = "cell_id";
/// The column with the number of the cell in its corpus.
const INDEX: &str = "cell_index";
/// Rows that are read at a time.
const BATCH_ROWS: usize = 8192;
/// Columns of numbers that belong together begin like this: they become one array.
const TOGETHER: &str = "probability:";

/// The cells of the file, by name.
pub(super) struct Place<'a> {
    path: &'a Path,
    names: &'a [String],
    rows: HashMap<&'a str, usize>,
    /// A name that occurs twice.
    repeated: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn of(path: &'a Path, names: &'a [String]) -> Self {
        let mut rows = HashMap::with_capacity(names.len());
        let mut repeated = None;
        for (row, name) in names.iter().enumerate() {
            if rows.insert(name.as_str(), row).is_some() {
                repeated.get_or_insert(name.as_str());
            }
        }
        Self {
            path,
            names,
            rows,
            repeated,
        }
    }
}

/// A table, with the row of the file of each of its rows.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The row of the file that each row goes to; `None` where the file has no such cell.
    pub(super) rows: Vec<Option<usize>>,
    /// Columns of labels, numbers and truth values.
    pub(super) columns: Vec<(String, Kind)>,
    /// Columns of vectors, with their width.
    pub(super) vectors: Vec<(String, usize)>,
    /// Columns of probabilities, without what they begin with.
    pub(super) probabilities: Vec<String>,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Label,
    Truth,
    Integer,
    Single,
    Double,
}

fn wrong(path: &Path, problem: impl Into<String>, help: &str) -> Error {
    crate::import::import_error(path, "", problem, help)
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| {
        wrong(
            path,
            format!("is no Parquet file: {e}"),
            "give the output of `scpeft-train predict` or `embed`",
        )
    })
}

/// Whether a Parquet file is a table of cells.
pub(super) fn has_cells(path: &Path) -> Result<bool> {
    Ok(reader(path)?.schema().column_with_name(CELL).is_some())
}

impl Found {
    /// Opens a table and finds the cells of its rows.
    pub(super) fn open(path: &Path, place: &Place<'_>) -> Result<Self> {
        let schema = reader(path)?.schema().clone();
        if schema.column_with_name(CELL).is_none() {
            return Err(wrong(
                path,
                format!("has no column `{CELL}`"),
                "give the output of `scpeft-train predict` or `embed`",
            ));
        }
        let mut found = Self {
            path: path.to_owned(),
            rows: Vec::new(),
            columns: Vec::new(),
            vectors: Vec::new(),
            probabilities: Vec::new(),
        };
        found.sort_columns(&schema)?;
        found.find_cells(place)?;
        Ok(found)
    }

    fn sort_columns(&mut self, schema: &SchemaRef) -> Result<()> {
        for field in schema.fields() {
            let name = field.name();
            if name == CELL || name == INDEX {
                continue;
            }
            if let Some(class) = name.strip_prefix(TOGETHER) {
                self.probabilities.push(class.to_owned());
                continue;
            }
            if let DataType::FixedSizeList(_, width) = field.data_type() {
                self.vectors.push((name.clone(), *width as usize));
                continue;
            }
            let kind = kind(field.data_type()).ok_or_else(|| {
                wrong(
                    &self.path,
                    format!(
                        "column `{name}` holds {}, which is no label, number or vector of fixed width",
                        field.data_type()
                    ),
                    "leave it out of the table",
                )
            })?;
            self.columns.push((name.clone(), kind));
        }
        Ok(())
    }

    /// The rows of the file: by number where numbers and names agree, else by name.
    fn find_cells(&mut self, place: &Place<'_>) -> Result<()> {
        let mut ids: Vec<String> = Vec::new();
        let mut by_number: Option<Vec<usize>> = Some(Vec::new());
        self.visit(&[CELL, INDEX], &mut |_, batch| {
            let names = column(&self.path, batch, CELL, &DataType::Utf8)?;
            let names = names.as_string::<i32>();
            let numbers = match batch.column_by_name(INDEX) {
                Some(_) => Some(column(&self.path, batch, INDEX, &DataType::UInt64)?),
                None => None,
            };
            for row in 0..batch.num_rows() {
                let name = names.value(row);
                let number = numbers
                    .as_ref()
                    .map(|n| n.as_primitive::<UInt64Type>().value(row) as usize);
                let agrees = number.filter(|&n| place.names.get(n).is_some_and(|own| own == name));
                match (&mut by_number, agrees) {
                    (Some(found), Some(number)) => found.push(number),
                    _ => by_number = None,
                }
                ids.push(name.to_owned());
            }
            Ok(())
        })?;
        self.rows = match (by_number, place.repeated) {
            (Some(numbers), _) => numbers.into_iter().map(Some).collect(),
            (None, Some(name)) => {
                return Err(wrong(
                    place.path,
                    format!(
                        "cell id `{name}` occurs twice, and the numbers of cells in `{}` are not its rows",
                        self.path.display()
                    ),
                    "make the index of obs unique in the source file (`adata.obs_names_make_unique()`), import and predict again",
                ));
            }
            (None, None) => ids
                .iter()
                .map(|id| place.rows.get(id.as_str()).copied())
                .collect(),
        };
        self.require_sound(&ids, place)
    }

    /// Refuses tables of other cells, and those with a cell twice.
    fn require_sound(&self, ids: &[String], place: &Place<'_>) -> Result<()> {
        if self.rows.iter().all(Option::is_none) {
            let theirs: Vec<String> = place.names.iter().take(3).cloned().collect();
            return Err(wrong(
                &self.path,
                format!(
                    "none of its {} cells is in `{}`: {} here, {} there",
                    ids.len(),
                    place.path.display(),
                    listed(&ids[..ids.len().min(3)]),
                    listed(&theirs)
                ),
                "give the file that the corpus was imported from",
            ));
        }
        let mut seen = vec![false; place.names.len()];
        for (row, id) in self.rows.iter().zip(ids) {
            if let Some(row) = row
                && std::mem::replace(&mut seen[*row], true)
            {
                return Err(wrong(
                    &self.path,
                    format!("cell `{id}` has two rows"),
                    "a table has one row for each cell",
                ));
            }
        }
        Ok(())
    }

    /// Reads some columns, a batch of rows after the other; each is told its first row.
    pub(super) fn visit(
        &self,
        names: &[&str],
        each: &mut dyn FnMut(usize, &RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let builder = reader(&self.path)?;
        let wanted: Vec<usize> = (0..builder.schema().fields().len())
            .filter(|&i| names.contains(&builder.schema().field(i).name().as_str()))
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let failed = |e: &dyn std::fmt::Display| {
            wrong(
                &self.path,
                format!("cannot be read: {e}"),
                "the file is damaged: make it again",
            )
        };
        let batches = builder
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|e| failed(&e))?;
        let mut first = 0;
        for batch in batches {
            let batch = batch.map_err(|e| failed(&e))?;
            each(first, &batch)?;
            first += batch.num_rows();
        }
        Ok(())
    }

    /// Reads a column of vectors of this width; each batch is told its first row.
    pub(super) fn visit_vectors(
        &self,
        name: &str,
        width: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let item = arrow::datatypes::Field::new("item", DataType::Float32, true);
        let wanted = DataType::FixedSizeList(item.into(), width as i32);
        self.visit(&[name], &mut |first, batch| {
            let lists = column(&self.path, batch, name, &wanted)?;
            let lists = lists.as_fixed_size_list();
            if lists.null_count() > 0 || lists.values().null_count() > 0 {
                return Err(wrong(
                    &self.path,
                    format!("column `{name}` lacks a vector"),
                    "make the table again",
                ));
            }
            // A slice of lists keeps the values before it.
            let values = lists.values().as_primitive::<Float32Type>().values();
            let from = lists.offset() * width;
            each(first, &values[from..from + lists.len() * width])
        })
    }

    /// Reads the probabilities, row by row; each batch is told its first row.
    pub(super) fn visit_probabilities(
        &self,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<String> = (self.probabilities.iter())
            .map(|class| format!("{TOGETHER}{class}"))
            .collect();
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        self.visit(&wanted, &mut |first, batch| {
            let k = names.len();
            let mut rows = vec![0.0f32; batch.num_rows() * k];
            for (at, name) in names.iter().enumerate() {
                let values = column(&self.path, batch, name, &DataType::Float32)?;
                let values = values.as_primitive::<Float32Type>();
                for row in 0..batch.num_rows() {
                    rows[row * k + at] = if values.is_null(row) {
                        f32::NAN
                    } else {
                        values.value(row)
                    };
                }
            }
            each(first, &rows)
        })
    }
}

/// A column of a batch as a type.
pub(super) fn column(
    path: &Path,
    batch: &RecordBatch,
    name: &str,
    wanted: &DataType,
) -> Result<ArrayRef> {
    let found = batch.column_by_name(name).map(|c| cast(c, wanted));
    match found {
        Some(Ok(column)) => Ok(column),
        Some(Err(error)) => Err(wrong(
            path,
            format!("column `{name}` is no {wanted}: {error}"),
            "",
        )),
        None => Err(wrong(path, format!("has no column `{name}`"), "")),
    }
}

fn kind(data_type: &DataType) -> Option<Kind> {
    Some(match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Label,
        DataType::Dictionary(_, values) => match values.as_ref() {
            DataType::Utf8 | DataType::LargeUtf8 => Kind::Label,
            _ => return None,
        },
        DataType::Boolean => Kind::Truth,
        DataType::Float16 | DataType::Float32 => Kind::Single,
        DataType::Float64 => Kind::Double,
        numbers if numbers.is_integer() => Kind::Integer,
        _ => return None,
    })
}
