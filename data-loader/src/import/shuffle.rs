//! Writing cells in a random order, in bounded memory.
//!
//! Each cell draws a key of 64 bits from the seed and its number. The corpus holds the cells by ascending
//! key: an order that nothing but the seed and the order of the input decides, however memory is cut. Cells
//! are dealt out to files by the first bits of their keys, and each file, small enough, is sorted in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::record::{HEAD, Shape};
use crate::corpus::CellBatch;
use crate::rng::{Purpose, Rng};
use crate::{Error, Result};

/// Bytes of a file that is sorted in memory.
const IN_MEMORY: u64 = 48 << 20;
/// Files that are written at a time.
const OPEN_FILES: u64 = 256;
/// Bytes that wait for each file: with all files 32 MB.
const BUFFER: usize = 128 << 10;
/// Cells handed on at a time.
const WRITE_CELLS: usize = 512;

/// Takes cells in the order of the input, and gives them back in the order of their keys.
pub(super) struct Shuffle {
    seed: u64,
    shape: Shape,
    buckets: Buckets,
    record: Vec<u8>,
    next: u64,
}

impl Shuffle {
    /// `expected` is about how many bytes there will be.
    pub(super) fn new(seed: u64, shape: Shape, folder: &Path, expected: u64) -> Result<Self> {
        let keys = Keys {
            first: 0,
            last: u64::MAX,
        };
        Ok(Self {
            seed,
            shape,
            buckets: Buckets::new(folder, "shuffle", keys, expected)?,
            record: Vec::new(),
            next: 0,
        })
    }

    /// Adds the next cells.
    pub(super) fn add(&mut self, batch: &CellBatch) -> Result<()> {
        self.shape.learn(batch);
        for row in 0..batch.cell_ids.len() {
            let key = Rng::new(self.seed, Purpose::Import, 0, self.next).next_u64();
            self.record.clear();
            self.shape
                .write(batch, row, (key, self.next), &mut self.record)?;
            self.buckets.add(key, &self.record)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Hands all cells on by ascending key.
    pub(super) fn finish(self, take: &mut dyn FnMut(CellBatch) -> Result<()>) -> Result<()> {
        let Self { shape, buckets, .. } = self;
        for bucket in buckets.finish()? {
            bucket.sorted(&shape, take)?;
        }
        Ok(())
    }
}

/// Keys from the first to the last.
#[derive(Debug, Clone, Copy)]
struct Keys {
    first: u64,
    last: u64,
}

impl Keys {
    /// One of `n` parts of about the same size.
    fn part(self, number: u64, n: u64) -> Self {
        let width = u128::from(self.last - self.first) + 1;
        let at = |part: u64| (width * u128::from(part) / u128::from(n)) as u64;
        let last = if number + 1 == n {
            self.last
        } else {
            self.first + (at(number + 1) - 1)
        };
        Self {
            first: self.first + at(number),
            last,
        }
    }
}

/// Files of consecutive keys, open for writing.
struct Buckets {
    buckets: Vec<Bucket>,
    files: Vec<BufWriter<File>>,
}

/// One file, which is removed when this is dropped.
struct Bucket {
    path: PathBuf,
    keys: Keys,
    bytes: u64,
    cells: u64,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // It is in a temporary folder that is removed as a whole anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Buckets {
    fn new(folder: &Path, name: &str, keys: Keys, expected: u64) -> Result<Self> {
        // Files come out a little uneven: they are planned at two thirds of what fits.
        let n = (expected / (IN_MEMORY / 3 * 2) + 1).min(OPEN_FILES);
        let (mut buckets, mut files) = (Vec::new(), Vec::new());
        for number in 0..n {
            let path = folder.join(format!("{name}-{number}"));
            let file = File::create(&path).map_err(Error::io("create", &path))?;
            files.push(BufWriter::with_capacity(BUFFER, file));
            buckets.push(Bucket {
                path,
                keys: keys.part(number, n),
                bytes: 0,
                cells: 0,
            });
        }
        Ok(Self { buckets, files })
    }

    fn add(&mut self, key: u64, record: &[u8]) -> Result<()> {
        let number = self.buckets.partition_point(|b| b.keys.last < key);
        let bucket = &mut self.buckets[number];
        bucket.bytes += record.len() as u64;
        bucket.cells += 1;
        self.files[number]
            .write_all(record)
            .map_err(Error::io("write", &bucket.path))
    }

    fn finish(self) -> Result<Vec<Bucket>> {
        for (mut file, bucket) in self.files.into_iter().zip(&self.buckets) {
            file.flush().map_err(Error::io("write", &bucket.path))?;
        }
        Ok(self.buckets)
    }
}

impl Bucket {
    fn sorted(self, shape: &Shape, take: &mut dyn FnMut(CellBatch) -> Result<()>) -> Result<()> {
        if self.bytes <= IN_MEMORY || self.cells < 2 || self.keys.first == self.keys.last {
            return self.sort(shape, take);
        }
        for part in self.part()? {
            part.sorted(shape, take)?;
        }
        Ok(())
    }

    /// Deals its cells out to smaller files.
    fn part(self) -> Result<Vec<Self>> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let folder = self.path.parent().unwrap_or(&self.path);
        // At least two, whatever the sizes.
        let mut parts = Buckets::new(folder, &name, self.keys, self.bytes.max(IN_MEMORY))?;
        let file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut record = Vec::new();
        for _ in 0..self.cells {
            self.next(&mut reader, &mut record)?;
            let key = key(&record).ok_or_else(|| self.broken())?;
            parts.add(key, &record)?;
        }
        parts.finish()
    }

    fn next(&self, reader: &mut impl Read, record: &mut Vec<u8>) -> Result<()> {
        let mut length = [0; 4];
        let fail = Error::io("read", &self.path);
        reader.read_exact(&mut length).map_err(fail)?;
        let bytes = u32::from_le_bytes(length) as usize;
        record.clear();
        record.extend_from_slice(&length);
        record.resize(bytes.max(HEAD), 0);
        reader
            .read_exact(&mut record[4..])
            .map_err(Error::io("read", &self.path))
    }

    fn sort(self, shape: &Shape, take: &mut dyn FnMut(CellBatch) -> Result<()>) -> Result<()> {
        let bytes = std::fs::read(&self.path).map_err(Error::io("read", &self.path))?;
        let mut cells = Vec::with_capacity(self.cells as usize);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let record = length(rest)
                .and_then(|n| rest.split_at_checked(n))
                .filter(|(record, _)| record.len() >= HEAD);
            let (record, later) = record.ok_or_else(|| self.broken())?;
            let cell = number(record).ok_or_else(|| self.broken())?;
            let key = key(record).ok_or_else(|| self.broken())?;
            cells.push((key, cell, &record[HEAD..]));
            rest = later;
        }
        cells.sort_unstable_by_key(|&(key, cell, _)| (key, cell));
        for some in cells.chunks(WRITE_CELLS) {
            let batch = shape.read(some.iter().map(|&(_, _, record)| record));
            take(batch.ok_or_else(|| self.broken())?)?;
        }
        Ok(())
    }

    fn broken(&self) -> Error {
        Error::internal(format!(
            "`{}` is not as it was written",
            self.path.display()
        ))
    }
}

fn length(record: &[u8]) -> Option<usize> {
    record
        .first_chunk()
        .map(|&b| u32::from_le_bytes(b) as usize)
}

fn key(record: &[u8]) -> Option<u64> {
    record
        .get(4..)?
        .first_chunk()
        .map(|&b| u64::from_le_bytes(b))
}

fn number(record: &[u8]) -> Option<u64> {
    record
        .get(12..)?
        .first_chunk()
        .map(|&b| u64::from_le_bytes(b))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, StringArray};
    use arrow::datatypes::DataType;

    use super::*;
    use crate::corpus::{CellValues, ValueKind};

    fn shuffled(cells: u32, expected: u64, seed: u64) -> Vec<CellBatch> {
        let dir = tempfile::TempDir::new().unwrap();
        let types = vec![DataType::Utf8, DataType::Float64];
        let shape = Shape::new(ValueKind::Counts, types);
        let mut shuffle = Shuffle::new(seed, shape, dir.path(), expected).unwrap();
        for cell in 0..cells {
            let note = (!cell.is_multiple_of(3)).then(|| format!("note {cell}"));
            let obs: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(vec![note])),
                Arc::new(Float64Array::from(vec![
                    cell.is_multiple_of(2).then_some(f64::from(cell)),
                ])),
            ];
            let batch = CellBatch {
                cell_ids: vec![format!("c{cell}")],
                offsets: vec![0, 2],
                genes: vec![cell % 7, 100_000],
                values: CellValues::Counts(vec![1, cell * 1000]),
                obs,
            };
            shuffle.add(&batch).unwrap();
        }
        let mut out = Vec::new();
        shuffle
            .finish(&mut |batch| {
                out.push(batch);
                Ok(())
            })
            .unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        out
    }

    fn ids(batches: &[CellBatch]) -> Vec<String> {
        batches.iter().flat_map(|b| b.cell_ids.clone()).collect()
    }

    #[test]
    fn every_cell_comes_once_with_all_it_has() {
        let batches = shuffled(2000, 0, 5);
        let mut seen = Vec::new();
        for batch in &batches {
            let texts = batch.obs[0].as_any().downcast_ref::<StringArray>().unwrap();
            let numbers = batch.obs[1]
                .as_any()
                .downcast_ref::<Float64Array>()
                .unwrap();
            let CellValues::Counts(values) = &batch.values else {
                panic!("counts were written");
            };
            for (row, id) in batch.cell_ids.iter().enumerate() {
                let cell: u32 = id[1..].parse().unwrap();
                seen.push(cell);
                assert_eq!(batch.offsets[row + 1] - batch.offsets[row], 2);
                assert_eq!(batch.genes[2 * row..2 * row + 2], [cell % 7, 100_000]);
                assert_eq!(values[2 * row..2 * row + 2], [1, cell * 1000]);
                let note = (!cell.is_multiple_of(3)).then(|| format!("note {cell}"));
                assert_eq!(texts.iter().nth(row).unwrap(), note.as_deref());
                let number = cell.is_multiple_of(2).then_some(f64::from(cell));
                assert_eq!(numbers.iter().nth(row).unwrap(), number);
            }
        }
        assert_ne!(seen, (0..2000).collect::<Vec<_>>());
        seen.sort_unstable();
        assert_eq!(seen, (0..2000).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_depends_on_the_seed_but_not_on_the_files() {
        let one = ids(&shuffled(500, 0, 5));
        assert_eq!(one, ids(&shuffled(500, 100 * IN_MEMORY, 5)));
        assert_ne!(one, ids(&shuffled(500, 0, 6)));
        // Neighbours of the input are not neighbours any more.
        let numbers: Vec<i64> = one.iter().map(|id| id[1..].parse().unwrap()).collect();
        let near = numbers
            .windows(2)
            .filter(|w| (w[0] - w[1]).abs() == 1)
            .count();
        assert!(near < 15, "{near} of 499 pairs are still together");
    }

    #[test]
    fn large_files_are_parted_by_their_keys() {
        let keys = Keys {
            first: 10,
            last: 19,
        };
        let parts: Vec<(u64, u64)> = (0..3)
            .map(|n| keys.part(n, 3))
            .map(|k| (k.first, k.last))
            .collect();
        assert_eq!(parts, [(10, 12), (13, 15), (16, 19)]);
        let all = Keys {
            first: 0,
            last: u64::MAX,
        };
        assert_eq!(all.part(255, 256).last, u64::MAX);
        assert_eq!(all.part(1, 2).first, 1 << 63);
    }
}
