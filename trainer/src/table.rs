//! Tables that are written as they are found, a batch of rows at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use scpeft_protocol::exit;

use crate::failure::{Failure, Result, io};

/// Rows of a row group: what the writer holds in memory before it writes.
const ROW_GROUP_ROWS: usize = 16_384;

/// A column: its name, its values, and whether some may be missing.
pub(crate) type Column = (String, ArrayRef, bool);

/// A Parquet file that grows by batches of rows.
pub(crate) struct Table {
    path: PathBuf,
    writer: Option<ArrowWriter<File>>,
}

impl Table {
    /// A table whose columns are those of its first rows.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, writer: None }
    }

    /// Adds rows.
    ///
    /// # Errors
    /// When columns differ in length or from those before, or the file cannot be written.
    pub(crate) fn append(&mut self, columns: Vec<Column>) -> Result<()> {
        let batch = record_batch(columns)?;
        let failed = |e: parquet::errors::ParquetError| broken(&self.path, &e);
        if self.writer.is_none() {
            let file = File::create(&self.path).map_err(io(&self.path))?;
            let level = ZstdLevel::try_new(1).map_err(failed)?;
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(level))
                .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                .build();
            let writer = ArrowWriter::try_new(file, batch.schema(), Some(properties));
            self.writer = Some(writer.map_err(failed)?);
        }
        match &mut self.writer {
            Some(writer) => writer.write(&batch).map_err(failed),
            None => Ok(()),
        }
    }

    /// Writes what is left and the footer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn close(self) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.close().map_err(|e| broken(&self.path, &e))?;
        }
        Ok(())
    }
}

/// Vectors of the same width, one per row, as a column.
///
/// # Errors
/// When `values` is no whole number of rows.
pub(crate) fn vectors(values: Vec<f32>, width: usize) -> Result<ArrayRef> {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Arc::new(Float32Array::from(values));
    let lists = FixedSizeListArray::try_new(item, width as i32, values, None);
    Ok(Arc::new(lists.map_err(|e| arrow_failure(&e))?))
}

fn record_batch(columns: Vec<Column>) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array, nullable)| Field::new(name, array.data_type().clone(), *nullable))
        .collect();
    let arrays = columns.into_iter().map(|(_, array, _)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| arrow_failure(&e))
}

fn broken(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(exit::INTERNAL, format!("`{}`: {error}", path.display()))
}

/// The failure of a table that does not fit together.
pub(crate) fn arrow_failure(error: &arrow::error::ArrowError) -> Failure {
    Failure::new(exit::INTERNAL, format!("table: {error}"))
}
