//! Matrix Market files of features by cells.
//!
//! The file is read once for checking and counting, so that nothing is written of a bad one, and a second
//! time for its values.

use std::path::{Path, PathBuf};

use super::lines::Lines;
use crate::Result;
use crate::import::scatter::{self, Entries, VisitEntries};
use crate::import::{Numbers, Rows};

/// Entries handed on at a time.
const BLOCK: usize = 1 << 19;
/// Cells handed on at a time.
const BLOCK_CELLS: usize = 2048;
/// Entries that tell counts from other values.
const SAMPLE: usize = 100_000;

/// A Matrix Market file that has been checked.
#[derive(Debug)]
pub(in crate::import) struct Mtx {
    path: PathBuf,
    features: usize,
    /// Number of entries of each cell.
    counts: Vec<u32>,
    entries: usize,
    /// Whether the entries of a cell follow each other, cell after cell.
    by_cells: bool,
    sample: Numbers,
}

/// One entry, counted from 0.
#[derive(Clone, Copy)]
struct Entry {
    feature: u32,
    cell: u32,
    value: f64,
}

impl Mtx {
    /// Checks a file against the numbers of lines of the two files beside it.
    pub(super) fn open(
        path: &Path,
        (features, feature_file): (usize, &Path),
        (cells, barcode_file): (usize, &Path),
    ) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        for (what, found, expected, file) in [
            ("rows", reader.features, features, feature_file),
            ("columns", reader.cells, cells, barcode_file),
        ] {
            if found != expected {
                let turned = (reader.features, reader.cells) == (cells, features);
                let help = if turned {
                    "the matrix is cells by features: it must be transposed to features by cells"
                } else {
                    "the three files must come from the same run"
                };
                let problem = format!(
                    "says that the matrix has {found} {what}, but `{}` has {expected} lines",
                    file.display()
                );
                return Err(reader.lines.error(problem, help));
            }
        }
        let mut counts = vec![0_u32; cells];
        let (mut by_cells, mut last, mut sample) = (true, 0, Vec::new());
        while let Some(entry) = reader.next()? {
            counts[entry.cell as usize] += 1;
            by_cells &= entry.cell >= last;
            last = entry.cell;
            if sample.len() < SAMPLE {
                sample.push(entry.value);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            features,
            counts,
            entries: reader.entries,
            by_cells,
            sample: Numbers::F64(sample),
        })
    }

    /// The first values.
    pub(in crate::import) fn sample(&self) -> Numbers {
        self.sample.clone()
    }

    pub(in crate::import) fn stored(&self) -> usize {
        self.entries
    }

    /// Visits the cells in order, some at a time.
    pub(in crate::import) fn visit(
        &self,
        scratch: &Path,
        visit: &mut dyn FnMut(Rows) -> Result<()>,
    ) -> Result<()> {
        if !self.by_cells {
            return scatter::by_cells(self, &self.counts, scratch, visit);
        }
        let mut reader = Reader::open(&self.path)?;
        let mut first = 0;
        while first < self.counts.len() {
            let mut rows = Rows {
                first,
                offsets: vec![0],
                ..Rows::default()
            };
            let mut end = 0;
            for &n in self.counts[first..].iter().take(BLOCK_CELLS) {
                if end + n as usize > BLOCK && rows.offsets.len() > 1 {
                    break;
                }
                end += n as usize;
                rows.offsets.push(end);
            }
            let mut values = Vec::with_capacity(end);
            rows.genes.reserve(end);
            for _ in 0..end {
                let entry = reader.next()?.ok_or_else(|| reader.changed())?;
                rows.genes.push(entry.feature);
                values.push(entry.value);
            }
            rows.values = Numbers::F64(values);
            first += rows.len();
            visit(rows)?;
        }
        Ok(())
    }
}

impl Entries for Mtx {
    fn visit(&self, visit: &mut VisitEntries<'_>) -> Result<()> {
        let mut reader = Reader::open(&self.path)?;
        let (mut genes, mut cells, mut values) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(entry) = reader.next()? {
            if entry.feature as usize >= self.features || entry.cell as usize >= self.counts.len() {
                return Err(reader.changed());
            }
            genes.push(entry.feature);
            cells.push(entry.cell);
            values.push(entry.value);
            if genes.len() == BLOCK {
                visit(&genes, &cells, &values)?;
                genes.clear();
                cells.clear();
                values.clear();
            }
        }
        visit(&genes, &cells, &values)
    }
}

/// Reads the entries one by one.
struct Reader {
    lines: Lines,
    features: usize,
    cells: usize,
    entries: usize,
    read: usize,
    integers: bool,
}

const WRITTEN_BY: &str = "take the file as Cell Ranger or `scipy.io.mmwrite` writes it";

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let head = lines.next()?.unwrap_or_default();
        let head = String::from_utf8_lossy(head).to_lowercase();
        let words: Vec<&str> = head.split_whitespace().collect();
        let integers = match words[..] {
            [
                "%%matrixmarket",
                "matrix",
                "coordinate",
                "integer",
                "general",
            ] => true,
            [
                "%%matrixmarket",
                "matrix",
                "coordinate",
                "real" | "double",
                "general",
            ] => false,
            _ => {
                return Err(lines.error(
                    format!("is `{}`, expected `%%MatrixMarket matrix coordinate integer general` or the same with `real`", head.chars().take(80).collect::<String>()),
                    WRITTEN_BY,
                ));
            }
        };
        let sizes = loop {
            let Some(line) = lines.next()? else {
                return Err(lines.error(
                    "is missing: the file ends before its sizes",
                    "the file is incomplete: copy or download it again",
                ));
            };
            if !skipped(line) {
                break numbers(line);
            }
        };
        let [Some(features), Some(cells), Some(entries)] = sizes else {
            return Err(lines.error(
                "is not three numbers: rows, columns and entries",
                WRITTEN_BY,
            ));
        };
        Ok(Self {
            lines,
            features,
            cells,
            entries,
            read: 0,
            integers,
        })
    }

    /// The next entry, or nothing after the last.
    fn next(&mut self) -> Result<Option<Entry>> {
        let (lines, wanted) = (&mut self.lines, self.entries);
        let entry = loop {
            match lines.next()? {
                None if self.read == wanted => return Ok(None),
                None => {
                    let problem = format!(
                        "is missing: the file has {} entries, but says that there are {wanted}",
                        self.read
                    );
                    return Err(
                        lines.error(problem, "the file is incomplete: copy or download it again")
                    );
                }
                Some(line) if skipped(line) => {}
                Some(line) => break parse(line, self.integers),
            }
        };
        let Some((feature, cell, value)) = entry else {
            let value = if self.integers {
                "an integer"
            } else {
                "a number"
            };
            let problem = format!("is not a row, a column and {value}");
            return Err(lines.error(problem, WRITTEN_BY));
        };
        if self.read == wanted {
            let problem =
                format!("is one entry more than the {wanted} that the file says there are");
            return Err(lines.error(problem, WRITTEN_BY));
        }
        for (what, found, most) in [
            ("row", feature, self.features),
            ("column", cell, self.cells),
        ] {
            if found == 0 || found > most {
                let problem = format!("has {what} {found}, expected 1 to {most}");
                return Err(lines.error(problem, "indices are counted from 1; the file is damaged"));
            }
        }
        self.read += 1;
        Ok(Some(Entry {
            feature: feature as u32 - 1,
            cell: cell as u32 - 1,
            value,
        }))
    }

    fn changed(&self) -> crate::Error {
        self.lines.error(
            "differs from the first time it was read",
            "the file changed during the import: try again",
        )
    }
}

fn skipped(line: &[u8]) -> bool {
    line.first() == Some(&b'%') || line.iter().all(u8::is_ascii_whitespace)
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|w| !w.is_empty())
}

fn numbers(line: &[u8]) -> [Option<usize>; 3] {
    let mut words = words(line);
    let found = [(); 3].map(|()| words.next().and_then(index));
    if words.next().is_some() {
        [None; 3]
    } else {
        found
    }
}

fn index(word: &[u8]) -> Option<usize> {
    if word.is_empty() || word.len() > 10 {
        return None;
    }
    word.iter().try_fold(0, |sum, &b| {
        b.is_ascii_digit().then(|| sum * 10 + usize::from(b - b'0'))
    })
}

fn parse(line: &[u8], integers: bool) -> Option<(usize, usize, f64)> {
    let mut words = words(line);
    let (feature, cell, value) = (index(words.next()?)?, index(words.next()?)?, words.next()?);
    let value = match index(value) {
        Some(count) => count as f64,
        None if integers => {
            let text = std::str::from_utf8(value).ok()?;
            text.parse::<i64>().ok()? as f64
        }
        None => std::str::from_utf8(value).ok()?.parse().ok()?,
    };
    words.next().is_none().then_some((feature, cell, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_parsed() {
        assert_eq!(parse(b"3 4 17", true), Some((3, 4, 17.0)));
        assert_eq!(parse(b" 3\t4  1.5e1 ", false), Some((3, 4, 15.0)));
        assert_eq!(parse(b"3 4 -2", true), Some((3, 4, -2.0)));
        for (line, integers) in [
            (&b"3 4 1.5"[..], true),
            (b"3 4", true),
            (b"3 4 5 6", false),
            (b"-3 4 5", false),
            (b"3 4 x", false),
            (b"99999999999 4 5", false),
        ] {
            assert_eq!(parse(line, integers), None, "{line:?}");
        }
    }
}
