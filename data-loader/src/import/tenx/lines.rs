//! Lines of a text file, compressed or not, with their numbers.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::import::hdf5::import_error;
use crate::{Error, Result};

/// No line of these files is longer.
const LONGEST: u64 = 1 << 20;

pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Opens a file; what it begins with tells whether it is compressed with gzip.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut file = BufReader::with_capacity(1 << 17, file);
        let head = file.fill_buf().map_err(Error::io("read", path))?;
        let reader: Box<dyn BufRead> = if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(1 << 17, MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            number: 0,
            line: Vec::new(),
        })
    }

    /// The next line without its end, or nothing at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>> {
        use std::io::Read;
        self.line.clear();
        self.number += 1;
        let read = self
            .reader
            .by_ref()
            .take(LONGEST)
            .read_until(b'\n', &mut self.line);
        let read = read.map_err(|e| {
            self.error(
                format!("cannot be read: {e}"),
                "the file is damaged or incomplete: copy or download it again",
            )
        })?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 == LONGEST && !self.line.ends_with(b"\n") {
            return Err(self.error("is longer than a million bytes", "the file is no text"));
        }
        while matches!(self.line.last(), Some(b'\n' | b'\r')) {
            self.line.pop();
        }
        Ok(Some(&self.line))
    }

    /// An error about the line that was read last.
    pub(super) fn error(&self, problem: impl Into<String>, help: impl Into<String>) -> Error {
        at_line(&self.path, self.number, problem, help)
    }
}

/// An error about a line of a file.
pub(super) fn at_line(
    path: &Path,
    line: u64,
    problem: impl Into<String>,
    help: impl Into<String>,
) -> Error {
    match import_error(path, "", problem, help) {
        Error::Import {
            path,
            problem,
            help,
            ..
        } => Error::Import {
            path,
            place: format!("line {line}"),
            problem,
            help,
        },
        other => other,
    }
}
