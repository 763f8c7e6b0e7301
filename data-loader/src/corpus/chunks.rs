//! Parts of a Parquet file that are in memory, in the place of the file.

use std::ops::Range;

use bytes::Bytes;
use bytes::buf::Buf;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

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
