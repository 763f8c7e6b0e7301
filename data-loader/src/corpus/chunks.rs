//! Parts of a Parquet file that are in memory, in the place of the file.

use std::ops::Range;

use bytes::Bytes;
use bytes::buf::Buf;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};

/// A range of a file, when it is one.
pub(crate) fn within(start: i64, end: Option<i64>, bytes: u64) -> Option<Range<u64>> {
    let (start, end) = (u64::try_from(start).ok()?, u64::try_from(end?).ok()?);
    (start <= end && end <= bytes).then_some(start..end)
}

/// Where a column chunk lies, unless that is outside of its file.
pub(crate) fn chunk_range(chunk: &ColumnChunkMetaData, bytes: u64) -> Option<Range<u64>> {
    let start = chunk.dictionary_page_offset();
    let start = start.unwrap_or_else(|| chunk.data_page_offset());
    within(start, start.checked_add(chunk.compressed_size()), bytes)
}

/// The ranges of a file that were fetched, ascending and apart from each other.
#[derive(Debug)]
pub(crate) struct Chunks {
    length: u64,
    parts: Vec<(Range<u64>, Bytes)>,
}

impl Chunks {
    pub(crate) fn new(length: u64, parts: Vec<(Range<u64>, Bytes)>) -> Self {
        Self { length, parts }
    }

    /// What was fetched from `start` to the end of its range.
    fn from(&self, start: u64) -> Result<Bytes> {
        let place = self.parts.partition_point(|(range, _)| range.end <= start);
        match self.parts.get(place) {
            Some((range, bytes)) if range.start <= start => {
                Ok(bytes.slice((start - range.start) as usize..))
            }
            _ => Err(ParquetError::EOF(format!(
                "byte {start} lies outside of the column chunks"
            ))),
        }
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Chunks {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!(
                "{length} bytes expected from byte {start} on, the column chunk has {}",
                bytes.len()
            )));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}
