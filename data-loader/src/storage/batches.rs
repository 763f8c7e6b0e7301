//! Record batches of Parquet files that may be damaged.
//!
//! The decoders of the `parquet` crate panic on some damaged pages. That is an error of the file, not of
//! the program: it is caught here, and what a panic hook of the program would say or do about it is left
//! out. No state outlives a panic: the reader is not used again.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::reader::ChunkReader;

thread_local! {
    /// Whether this thread decodes Parquet just now.
    static DECODES: Cell<bool> = const { Cell::new(false) };
}

/// The record batches of a reader. After an error there are no more.
#[derive(Debug)]
pub(crate) struct Batches(Option<ParquetRecordBatchReader>);

impl Batches {
    /// The batches that a builder asks for.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn new<T: ChunkReader + 'static>(
        builder: ParquetRecordBatchReaderBuilder<T>,
    ) -> Result<Self, String> {
        guarded(|| builder.build()).map(|reader| Self(Some(reader)))
    }

    /// All columns and rows of a file in memory.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn of_file(bytes: bytes::Bytes) -> Result<Self, String> {
        Self::new(guarded(|| ParquetRecordBatchReaderBuilder::try_new(bytes))?)
    }

    /// The columns of the batches; `None` after an error.
    pub(crate) fn schema(&self) -> Option<SchemaRef> {
        self.0.as_ref().map(RecordBatchReader::schema)
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = self.0.take()?;
        let batch = guarded(|| reader.next().transpose());
        if let Ok(Some(_)) = &batch {
            self.0 = Some(reader);
        }
        batch.transpose()
    }
}

/// Runs something that decodes Parquet; a panic becomes an error.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn guarded<T, E: Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    silence_decoders();
    let before = DECODES.replace(true);
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    DECODES.set(before);
    match decoded {
        Ok(decoded) => decoded.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("is damaged: {}", text(panic.as_ref()))),
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("its decoder gave up")
}

/// Keeps panics of decoders from the panic hook that is installed, once.
fn silence_decoders() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A thread that ends has no such variable any more, and decodes nothing.
            if !DECODES.try_with(Cell::get).unwrap_or(false) {
                hook(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error_and_others_stay_panics() {
        let caught = guarded(|| -> Result<(), String> { panic!("page {} is no page", 3) });
        assert_eq!(caught.unwrap_err(), "is damaged: page 3 is no page");
        let passed = guarded(|| Err::<(), _>("too short"));
        assert_eq!(passed.unwrap_err(), "too short");
        assert_eq!(guarded(|| Ok::<_, String>(7)), Ok(7));
        assert!(!DECODES.get());
    }
}
