//! A small Parquet table, read whole: genes, samples, drugs.

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Float64Type};

use super::no_column;
use crate::corpus::SourceFile;
use crate::storage::{Batches, Storage, StoreOptions};
use crate::{Error, Result};

/// Tables that are larger are no tables about genes, samples or drugs.
const LARGEST: u64 = 256 << 20;

/// The values of one column, `None` where missing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Text(Vec<Option<String>>),
    Number(Vec<Option<f64>>),
}

/// A table with its columns of text and numbers.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) path: PathBuf,
    pub(super) columns: Vec<(String, Values)>,
    /// Columns of other types.
    pub(super) unread: Vec<String>,
    pub(super) source: SourceFile,
}

impl Table {
    /// Reads a file; `None` when there is none of this name.
    pub(super) fn read(path: &Path, store: &StoreOptions) -> Result<Option<Self>> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let name = name.to_string_lossy();
        let storage = Storage::open(folder, store)?;
        let Some(bytes) = storage.read_if_there(&name)? else {
            return Ok(None);
        };
        if bytes.len() as u64 > LARGEST {
            let problem = format!("has {} bytes, expected at most {LARGEST}", bytes.len());
            return Err(Error::corpus(path, "table", problem));
        }
        let source = SourceFile {
            name: name.into_owned(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        };
        let mut table = Self {
            path: path.to_owned(),
            columns: Vec::new(),
            unread: Vec::new(),
            source,
        };
        let fail = |problem: String| Error::corpus(path, "table", problem);
        let batches = Batches::of_file(bytes).map_err(fail)?;
        let schema = batches.schema();
        let batches: Vec<_> = batches.collect::<Result<_, _>>().map_err(fail)?;
        let fields = schema.iter().flat_map(|schema| schema.fields());
        for (place, field) in fields.enumerate() {
            let parts: Vec<&dyn Array> = batches.iter().map(|b| b.column(place).as_ref()).collect();
            let values = if parts.is_empty() {
                Ok(None)
            } else {
                concat(&parts)
                    .map_err(|e| e.to_string())
                    .and_then(|array| values(&array))
            };
            let name = field.name().clone();
            match values.map_err(|e| fail(format!("column `{name}`: {e}")))? {
                Some(values) => table.columns.push((name, values)),
                None => table.unread.push(name),
            }
        }
        Ok(Some(table))
    }

    /// The column of one of these names, whatever the case of its letters.
    pub(super) fn find(&self, names: &[&str]) -> Option<&(String, Values)> {
        names.iter().find_map(|name| {
            let mut columns = self.columns.iter();
            columns.find(|(column, _)| column.eq_ignore_ascii_case(name))
        })
    }

    /// The column of this name.
    pub(super) fn column(&self, name: &str) -> Result<&Values> {
        let found = self.columns.iter().find(|(column, _)| column == name);
        found.map(|(_, values)| values).ok_or_else(|| {
            let present: Vec<String> = self.columns.iter().map(|(n, _)| n.clone()).collect();
            no_column(&self.path, "table", name, &present)
        })
    }
}

impl Values {
    /// The values as text: whole numbers without a fraction.
    pub(super) fn texts(&self) -> Vec<Option<String>> {
        match self {
            Self::Text(texts) => texts.clone(),
            Self::Number(numbers) => numbers.iter().map(|n| n.map(|n| n.to_string())).collect(),
        }
    }
}

/// Whether a column holds text.
pub(super) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn values(array: &ArrayRef) -> Result<Option<Values>, String> {
    let data_type = array.data_type();
    let wanted = if is_text(data_type) || *data_type == DataType::Boolean {
        DataType::Utf8
    } else if data_type.is_numeric() {
        DataType::Float64
    } else {
        return Ok(None);
    };
    let array = cast(array, &wanted).map_err(|e| e.to_string())?;
    Ok(match wanted {
        DataType::Utf8 => array
            .as_string_opt::<i32>()
            .map(|texts| Values::Text(texts.iter().map(|t| t.map(str::to_owned)).collect())),
        _ => array
            .as_primitive_opt::<Float64Type>()
            .map(|numbers| Values::Number(numbers.iter().collect())),
    })
}
