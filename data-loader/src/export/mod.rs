//! Putting what was found about cells back beside them: columns of tables go into a copy of an
//! `.h5ad` file, which is otherwise as it was.

mod annotate;
mod found;

use std::path::{Path, PathBuf};

use crate::import::annotated_cells;
use crate::{Error, Result};

use annotate::Annotated;
use found::{Found, Place};

/// A table to put into the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOption {
    /// What names in the file begin with: obs column `NAME_column`, obsm key `X_NAME`.
    pub name: String,
    /// A Parquet file with a column `cell_id`, or a folder with such files.
    pub path: PathBuf,
}

impl TableOption {
    /// A table as a command line names it: `PATH`, or `NAME=PATH`, where a name has no `/`.
    ///
    /// # Errors
    /// When name or path are empty.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !name.contains('/') => (name, path),
            _ => ("scpeft", text),
        };
        if name.is_empty() || path.is_empty() {
            return Err(Error::options(
                format!("--table must be PATH or NAME=PATH, got `{text}`"),
                "",
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            path: PathBuf::from(path),
        })
    }
}

/// What to export, and where.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// The `.h5ad` file that the cells came from.
    pub input: PathBuf,
    /// The tables.
    pub tables: Vec<TableOption>,
    /// The copy to make.
    pub output: PathBuf,
    /// Replace an existing one.
    pub overwrite: bool,
}

/// What became of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedTable {
    /// The Parquet file.
    pub path: PathBuf,
    /// Its rows whose cell is in the file.
    pub cells: u64,
    /// Its rows whose cell is not.
    pub elsewhere: u64,
    /// Obs columns that were added.
    pub obs: Vec<String>,
    /// Obsm keys that were added.
    pub obsm: Vec<String>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// Cells of the file.
    pub cells: u64,
    /// What became of each table.
    pub tables: Vec<ExportedTable>,
}

/// Copies the input and adds the columns of the tables. Cells without a row get a missing value.
/// Vectors are streamed; other columns are held in memory, one number per cell.
///
/// # Errors
/// A file that is no AnnData of today's form, a table without cell ids, of other cells or with a cell
/// twice, a name that is taken, or an output that exists or cannot be written. Nothing is left behind
/// then.
pub fn export(options: &ExportOptions) -> Result<ExportReport> {
    if options.output.exists() && !options.overwrite {
        return Err(Error::OutputExists {
            path: options.output.clone(),
        });
    }
    let cells = annotated_cells(&options.input)?;
    let place = Place::of(&options.input, &cells);
    let mut found = Vec::new();
    for table in &options.tables {
        for path in files(&table.path)? {
            found.push((table.name.as_str(), Found::open(&path, &place)?));
        }
    }
    let prepared = crate::corpus::temp_sibling(&options.output, "export")?;
    let done = write(options, cells.len(), &found, &prepared);
    if done.is_err() {
        // What is left has a hidden name; the error on its way is what matters.
        let _ = std::fs::remove_file(&prepared);
    }
    done
}

fn write(
    options: &ExportOptions,
    cells: usize,
    found: &[(&str, Found)],
    prepared: &Path,
) -> Result<ExportReport> {
    std::fs::copy(&options.input, prepared).map_err(Error::io("write", prepared))?;
    let mut permissions = std::fs::metadata(prepared)
        .map_err(Error::io("read", prepared))?
        .permissions();
    if permissions.readonly() {
        // The copy of a protected file is not protected.
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(permissions.mode() | 0o600);
        std::fs::set_permissions(prepared, permissions).map_err(Error::io("write", prepared))?;
    }
    let mut tables = Vec::new();
    let mut file = Annotated::open(prepared, cells)?;
    for (name, table) in found {
        tables.push(file.add(name, table)?);
    }
    file.close()?;
    std::fs::File::open(prepared)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("write", prepared))?;
    std::fs::rename(prepared, &options.output).map_err(Error::io("write", &options.output))?;
    Ok(ExportReport {
        cells: cells as u64,
        tables,
    })
}

/// The Parquet files that a path names, in order.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?.path();
        if entry.extension().is_some_and(|e| e == "parquet") && found::has_cells(&entry)? {
            files.push(entry);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::options(
            format!(
                "`{}` holds no Parquet file with a column `cell_id`",
                path.display()
            ),
            "give the output of `scpeft-train predict` or `embed`, or a Parquet file",
        ));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_on_the_command_line() {
        let parse = |text: &str| TableOption::parse(text).map(|t| (t.name, t.path));
        assert_eq!(
            parse("a/b.parquet").unwrap(),
            ("scpeft".to_owned(), PathBuf::from("a/b.parquet"))
        );
        assert_eq!(
            parse("mine=a").unwrap(),
            ("mine".to_owned(), PathBuf::from("a"))
        );
        assert_eq!(
            parse("a/lr=3").unwrap(),
            ("scpeft".to_owned(), PathBuf::from("a/lr=3"))
        );
        for bad in ["=a", "mine=", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
