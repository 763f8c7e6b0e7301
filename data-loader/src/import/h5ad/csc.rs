//! Turning a matrix stored by genes into rows of cells, in bounded memory: its entries are dealt out
//! to files of consecutive cells, each small enough to be sorted in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::hdf5::Hdf5;
use super::matrix::{BLOCK_VALUES, Sparse, bounds, indices};
use crate::import::Rows;
use crate::{Error, Result};

/// Entries that are sorted in memory at a time: 64 MB on disk, about 130 MB in memory.
const BUCKET_ENTRIES: usize = 4 << 20;
/// Bytes of an entry on disk: cell, gene, value.
const ENTRY: usize = 16;
/// Genes whose bounds are read at a time.
const BLOCK_GENES: usize = 8192;
/// Files written at a time; with more buckets the matrix is read more than once.
const OPEN_FILES: usize = 64;

/// A matrix by cells, in files that are removed when this is dropped.
pub(super) struct Transposed {
    buckets: Vec<Bucket>,
}

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

impl Transposed {
    pub(super) fn new(
        file: &Hdf5,
        sparse: &Sparse,
        place: &str,
        cells: usize,
        genes: usize,
        scratch: &Path,
    ) -> Result<Self> {
        let mut counts = vec![0_u32; cells];
        let matrix = Entries {
            file,
            sparse,
            place,
            cells,
            genes,
        };
        matrix.visit(
            &mut |_, cells, _| {
                for &cell in cells {
                    counts[cell as usize] += 1;
                }
                Ok(())
            },
            Values::Skip,
        )?;
        let buckets: Vec<Bucket> = cut(&counts)
            .into_iter()
            .enumerate()
            .map(|(number, cells)| Bucket {
                cells,
                path: scratch.join(format!("transpose-{number}")),
            })
            .collect();
        for some in buckets.chunks(OPEN_FILES) {
            deal(&matrix, some)?;
        }
        Ok(Self { buckets })
    }

    pub(super) fn visit(self, visit: &mut dyn FnMut(&Rows) -> Result<()>) -> Result<()> {
        for bucket in self.buckets {
            visit(&gather(&bucket)?)?;
        }
        Ok(())
    }
}

/// Is given genes, cells and values of some entries.
type VisitEntries<'a> = dyn FnMut(&[u32], &[u32], &[f64]) -> Result<()> + 'a;

struct Entries<'a> {
    file: &'a Hdf5,
    sparse: &'a Sparse,
    place: &'a str,
    cells: usize,
    genes: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Values {
    Read,
    Skip,
}

impl Entries<'_> {
    /// Visits all entries by genes, in blocks: genes, cells, values.
    fn visit(&self, visit: &mut VisitEntries<'_>, values: Values) -> Result<()> {
        let mut gene_of = Vec::new();
        for first in (0..self.genes).step_by(BLOCK_GENES) {
            let last = (first + BLOCK_GENES).min(self.genes);
            let bounds = bounds(self.file, self.sparse, self.place, first..last)?;
            let end = bounds[bounds.len() - 1];
            let (mut at, mut gene) = (bounds[0], 0);
            while at < end {
                let span = at..(at + BLOCK_VALUES).min(end);
                gene_of.clear();
                for entry in span.clone() {
                    while bounds[gene + 1] <= entry {
                        gene += 1;
                    }
                    gene_of.push((first + gene) as u32);
                }
                let cells = indices(self.file, self.sparse, self.place, span.clone(), self.cells)?;
                let read = match values {
                    Values::Read => self.file.rows(&self.sparse.data, span.clone())?,
                    Values::Skip => Vec::new(),
                };
                visit(&gene_of, &cells, &read)?;
                at = span.end;
            }
        }
        Ok(())
    }
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
fn deal(matrix: &Entries<'_>, buckets: &[Bucket]) -> Result<()> {
    let mut files = Vec::with_capacity(buckets.len());
    for bucket in buckets {
        let file = File::create(&bucket.path).map_err(Error::io("create", &bucket.path))?;
        files.push(BufWriter::with_capacity(1 << 16, file));
    }
    let Some(first) = buckets.first().map(|b| b.cells.start) else {
        return Ok(());
    };
    matrix.visit(
        &mut |genes, cells, values| {
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
        },
        Values::Read,
    )?;
    for (file, bucket) in files.iter_mut().zip(buckets) {
        file.flush().map_err(Error::io("write", &bucket.path))?;
    }
    Ok(())
}

/// Sorts the entries of a bucket by cell. They come by genes, so the genes of a cell stay in order.
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
    let mut rows = Rows {
        first: bucket.cells.start,
        genes: vec![0; entries],
        values: vec![0.0; entries],
        offsets,
    };
    for (&cell, &(gene, value)) in cells.iter().zip(&pairs) {
        let place = next[cell as usize];
        next[cell as usize] += 1;
        rows.genes[place] = gene;
        rows.values[place] = value;
    }
    Ok(rows)
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
