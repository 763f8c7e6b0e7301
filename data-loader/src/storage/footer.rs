//! The footer of a Parquet file, with its hash.

use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::FOOTER_SIZE;
use parquet::file::metadata::{FooterTail, ParquetMetaDataReader};
use std::sync::Arc;

use super::Storage;
use super::batches::guarded;
use crate::{Error, Result};

/// Bytes at the end of a file that hold the footer of most: it is fetched together with them.
const GUESS: u64 = 64 * 1024;

/// The metadata of a Parquet file.
#[derive(Debug, Clone)]
pub(crate) struct Footer {
    pub(crate) metadata: ArrowReaderMetadata,
    /// Hash of the metadata as it lies in the file, in hexadecimal.
    pub(crate) blake3: String,
}

impl Footer {
    /// Reads the footer of a file of a known size.
    pub(crate) fn read(storage: &Storage, name: &str, size: u64) -> Result<Self> {
        let fail = |problem: String| Error::corpus(&storage.path(name), "footer", problem);
        let parquet = |e: ParquetError| fail(e.to_string());
        let end = FOOTER_SIZE as u64;
        if size < end {
            return Err(fail(format!("{size} bytes are too few for a Parquet file")));
        }
        let fetch = |bytes: u64| -> Result<Bytes> {
            let parts = storage.fetch(name, std::slice::from_ref(&(size - bytes..size)))?;
            Ok(parts.into_iter().next().unwrap_or_default())
        };
        let mut tail = fetch(GUESS.min(size))?;
        let last = tail.len() - FOOTER_SIZE;
        let length = tail[last..]
            .try_into()
            .map_err(|_| fail("is cut off".into()))
            .and_then(|last: &[u8; FOOTER_SIZE]| FooterTail::try_new(last).map_err(parquet))?
            .metadata_length() as u64;
        if length + end > size {
            return Err(fail(format!(
                "says that it has {length} bytes, the file has {size}"
            )));
        }
        if length + end > tail.len() as u64 {
            tail = fetch(length + end)?;
        }
        let last = tail.len() - FOOTER_SIZE;
        let bytes = tail.slice(last - length as usize..last);
        let metadata = guarded(|| {
            let metadata = ParquetMetaDataReader::decode_metadata(&bytes)?;
            ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())
        });
        let metadata = metadata.map_err(fail)?;
        Ok(Self {
            metadata,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        })
    }
}
