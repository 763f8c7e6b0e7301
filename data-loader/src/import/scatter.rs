//! Turning entries that come in any order into rows of cells, in bounded memory: they are dealt out to
//! files of consecutive cells, each small enough to be sorted in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Numbers, Rows};
use crate::{Error, Result};

/// Entries that are sorted in memory at a time: 32 MB on disk, about 70 MB in memory.
const BUCKET_ENTRIES: usize = 2 << 20;
/// Bytes of an entry on disk: cell, gene, value.
const ENTRY: usize = 16;
/// Files written at a time; with more buckets the entries are read more than once.
const OPEN_FILES: usize = 128;

/// Is given genes, cells and values of some entries.
pub(super) type VisitEntries<'a> = dyn FnMut(&[u32], &[u32], &[f64]) -> Result<()> + 'a;

/// Entries in any order, that can be read again and again.
pub(super) trait Entries {
    /// Visits all entries, some at a time.
    fn visit(&self, visit: &mut VisitEntries<'_>) -> Result<()>;
}

/// Some consecutive cells in a file that is removed when this is dropped.
struct Bucket {
    cells: Range<usize>,
    path: PathBuf,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // It is in a temporary folder that is removed as a whole anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Visits the cells in order. `counts` are the numbers of entries of each cell.
pub(super) fn by_cells(
    entries: &dyn Entries,
    counts: &[u32],
    scratch: &Path,
    visit: &mut dyn FnMut(Rows) -> Result<()>,
) -> Result<()> {
    let buckets: Vec<Bucket> = cut(counts)
        .into_iter()
        .enumerate()
        .map(|(number, cells)| Bucket {
            cells,
            path: scratch.join(format!("entries-{number}")),
        })
        .collect();
    for some in buckets.chunks(OPEN_FILES) {
        deal(entries, some)?;
    }
    for bucket in buckets {
        visit(gather(&bucket)?)?;
    }
    Ok(())
}

/// Ranges of cells with about as many entries as fit into memory.
fn cut(counts: &[u32]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut first, mut entries) = (0, 0);
    for (cell, &n) in counts.iter().enumerate() {
        if entries + n as usize > BUCKET_ENTRIES && cell > first {
            ranges.push(first..cell);
            (first, entries) = (cell, 0);
        }
        entries += n as usize;
    }
    if first < counts.len() {
        ranges.push(first..counts.len());
    }
    ranges
}

/// Writes the entries of these buckets to their files.
fn deal(entries: &dyn Entries, buckets: &[Bucket]) -> Result<()> {
    let mut files = Vec::with_capacity(buckets.len());
    for bucket in buckets {
        let file = File::create(&bucket.path).map_err(Error::io("create", &bucket.path))?;
        files.push(BufWriter::with_capacity(1 << 16, file));
    }
    let Some(first) = buckets.first().map(|b| b.cells.start) else {
        return Ok(());
    };
    entries.visit(&mut |genes, cells, values| {
        for ((&gene, &cell), &value) in genes.iter().zip(cells).zip(values) {
            let number = buckets.partition_point(|b| b.cells.end <= cell as usize);
            if (cell as usize) < first || number == buckets.len() {
                continue;
            }
            let mut entry = [0; ENTRY];
            entry[..4].copy_from_slice(&cell.to_le_bytes());
            entry[4..8].copy_from_slice(&gene.to_le_bytes());
            entry[8..].copy_from_slice(&value.to_le_bytes());
            files[number]
                .write_all(&entry)
                .map_err(Error::io("write", &buckets[number].path))?;
        }
        Ok(())
    })?;
    for (file, bucket) in files.iter_mut().zip(buckets) {
        file.flush().map_err(Error::io("write", &bucket.path))?;
    }
    Ok(())
}

/// Sorts the entries of a bucket by cell. Those of a cell stay in the order in which they came.
fn gather(bucket: &Bucket) -> Result<Rows> {
    let file = File::open(&bucket.path).map_err(Error::io("open", &bucket.path))?;
    let entries = file
        .metadata()
        .map_err(Error::io("read", &bucket.path))?
        .len() as usize
        / ENTRY;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut cells = Vec::with_capacity(entries);
    let mut pairs: Vec<(u32, f64)> = Vec::with_capacity(entries);
    let mut entry = [0; ENTRY];
    for _ in 0..entries {
        reader
            .read_exact(&mut entry)
            .map_err(Error::io("read", &bucket.path))?;
        let word = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let bits = u64::from(word(8)) | u64::from(word(12)) << 32;
        cells.push(word(0) - bucket.cells.start as u32);
        pairs.push((word(4), f64::from_bits(bits)));
    }
    let mut offsets = vec![0_usize; bucket.cells.len() + 1];
    for &cell in &cells {
        offsets[cell as usize + 1] += 1;
    }
    for row in 0..bucket.cells.len() {
        offsets[row + 1] += offsets[row];
    }
    let mut next = offsets.clone();
    let (mut genes, mut values) = (vec![0; entries], vec![0.0; entries]);
    for (&cell, &(gene, value)) in cells.iter().zip(&pairs) {
        let place = next[cell as usize];
        next[cell as usize] += 1;
        genes[place] = gene;
        values[place] = value;
    }
    Ok(Rows {
        first: bucket.cells.start,
        offsets,
        genes,
        values: Numbers::F64(values),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_cells_and_respect_the_limit() {
        let big = BUCKET_ENTRIES as u32;
        assert_eq!(
            cut(&[big, 1, big - 1, 1, big + 5]),
            [0..1, 1..3, 3..4, 4..5]
        );
        assert_eq!(cut(&[0, 0]), vec![0..2]);
        assert!(cut(&[]).is_empty());
    }
}
