//! Checksums of the parts of a shard, so that damage is noticed by whoever reads a part, and not only by
//! `scpeft-data verify`, which reads everything.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use parquet::file::FOOTER_SIZE;
use parquet::file::metadata::ParquetMetaDataReader;

use crate::{Error, Result};

/// The checksums of one shard, as the manifest keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checksums {
    /// Hash of the footer: see [`super::Shard::footer_blake3`].
    pub(crate) footer_blake3: String,
    /// CRC-32 of each column chunk: see [`super::Shard::chunk_crc32`].
    pub(crate) chunk_crc32: Vec<Vec<u32>>,
}

impl Checksums {
    /// Reads a finished shard, one column chunk at a time.
    pub(crate) fn of_file(path: &Path) -> Result<Self> {
        let fail = |problem: String| Error::corpus(path, "shard", problem);
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = ParquetMetaDataReader::new()
            .parse_and_finish(&file)
            .map_err(|e| fail(e.to_string()))?;
        let mut part = |from: SeekFrom, length: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length as usize];
            file.seek(from).map_err(Error::io("read", path))?;
            file.read_exact(&mut bytes)
                .map_err(Error::io("read", path))?;
            Ok(bytes)
        };
        let end = FOOTER_SIZE as i64;
        let tail = part(SeekFrom::End(-end), FOOTER_SIZE as u64)?;
        let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        let footer = part(SeekFrom::End(-end - i64::from(length)), length.into())?;
        let mut chunk_crc32 = Vec::with_capacity(metadata.num_row_groups());
        for group in metadata.row_groups() {
            let chunks = group.columns().iter().map(|column| {
                let (start, length) = column.byte_range();
                part(SeekFrom::Start(start), length).map(|bytes| crc32(&bytes))
            });
            chunk_crc32.push(chunks.collect::<Result<_>>()?);
        }
        Ok(Self {
            footer_blake3: blake3::hash(&footer).to_hex().to_string(),
            chunk_crc32,
        })
    }
}

/// The CRC-32 of zlib and PNG, at several gigabytes a second.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
