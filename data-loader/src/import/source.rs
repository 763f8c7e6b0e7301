//! Files of cells, told apart by what they hold, and opened.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::h5ad::frame::Frame;
use super::hdf5::{self, Hdf5, import_error};
use super::matrix::Matrix;
use super::tenx::{self, Mtx};
use super::texts::Texts;
use super::{ImportOptions, MatrixOption, Numbers, Rows, h5ad};
use crate::genes::GeneTable;
use crate::{Error, Result};

/// One opened input: a table of genes, names and obs columns of cells, a matrix that is streamed.
#[derive(Debug)]
pub(super) struct Source {
    /// What the user named.
    pub(super) path: PathBuf,
    /// The short name that tells its cells from those of other sources.
    pub(super) name: String,
    /// The files that it consists of.
    pub(super) files: Vec<PathBuf>,
    pub(super) genes: GeneTable,
    pub(super) cells: usize,
    /// The obs columns, when the format has any.
    pub(super) obs: Option<Frame>,
    pub(super) names: CellNames,
    pub(super) matrix: Entries,
    /// Name of the matrix in the file.
    pub(super) place: String,
    /// The matrices it has besides, as the options that choose them.
    pub(super) others: String,
    /// The gene of each column, when not every column is a gene.
    pub(super) features: Option<Vec<Option<u32>>>,
}

#[derive(Debug)]
pub(super) enum CellNames {
    /// The index of the obs table.
    Index,
    Stored(Hdf5, hdf5::Source),
    Read(Texts),
}

#[derive(Debug)]
pub(super) enum Entries {
    Hdf5(Hdf5, Matrix),
    Mtx(Mtx),
}

impl Source {
    /// Opens an input, whatever its name: an AnnData or 10x HDF5 file, or a 10x folder.
    pub(super) fn open(path: &Path, options: &ImportOptions) -> Result<Self> {
        if path.is_dir() {
            let zarr = [".zgroup", ".zattrs", "zarr.json"];
            if zarr.iter().any(|name| path.join(name).exists()) {
                return Err(zarr_error(path));
            }
            check_matrix(path, options)?;
            return tenx::folder(path, options.genome.as_deref());
        }
        match first_bytes(path)? {
            [b'P', b'K', 3, 4, ..] => return Err(zarr_error(path)),
            [b'%', b'%', b'M', ..] | [0x1f, 0x8b, ..] => {
                let folder = path.parent().unwrap_or(path);
                let help = format!(
                    "give the folder with matrix.mtx, features.tsv and barcodes.tsv: `{}`",
                    folder.display()
                );
                return Err(import_error(
                    path,
                    "",
                    "is a single file of a 10x folder",
                    help,
                ));
            }
            _ => {}
        }
        let file = Hdf5::open(path)?;
        let has = |name: &str| file.root().link_exists(name);
        if has("obs") && has("var") {
            if options.genome.is_some() {
                return Err(no_genomes(path));
            }
            return h5ad::open(file, options);
        }
        check_matrix(path, options)?;
        match tenx::hdf5(&file, options.genome.as_deref())? {
            Some(source) => Ok(source),
            None => Err(h5ad::not_anndata(&file)),
        }
    }

    /// The ids of some cells, as the source has them.
    pub(super) fn cell_names(&self, rows: Range<usize>) -> Result<Vec<String>> {
        match (&self.names, &self.obs) {
            (CellNames::Index, Some(obs)) => obs.names(rows),
            (CellNames::Index, None) => Ok(rows.map(|row| row.to_string()).collect()),
            (CellNames::Stored(file, source), _) => file.strings(source, rows),
            (CellNames::Read(names), _) => Ok(names.owned(rows)),
        }
    }

    /// The names of its obs columns.
    pub(super) fn columns(&self) -> &[String] {
        self.obs.as_ref().map_or(&[], Frame::columns)
    }

    /// Some values that tell counts from other values.
    pub(super) fn sample(&self) -> Result<Numbers> {
        match &self.matrix {
            Entries::Hdf5(file, matrix) => matrix.sample(file),
            Entries::Mtx(mtx) => Ok(mtx.sample()),
        }
    }

    /// Number of values that are stored.
    pub(super) fn stored(&self) -> usize {
        match &self.matrix {
            Entries::Hdf5(_, matrix) => matrix.stored(),
            Entries::Mtx(mtx) => mtx.stored(),
        }
    }

    /// Visits the cells in order, some at a time. `scratch` is a folder for temporary files.
    pub(super) fn visit(
        &self,
        scratch: &Path,
        visit: &mut dyn FnMut(Rows) -> Result<()>,
    ) -> Result<()> {
        let mut genes_alone = |mut rows: Rows| {
            if let Some(features) = &self.features {
                rows.keep_genes(features);
            }
            visit(rows)
        };
        match &self.matrix {
            Entries::Hdf5(file, matrix) => matrix.visit(file, scratch, &mut genes_alone),
            Entries::Mtx(mtx) => mtx.visit(scratch, &mut genes_alone),
        }
    }

    /// An error about this source.
    pub(super) fn error(&self, problem: impl Into<String>, help: impl Into<String>) -> Error {
        import_error(&self.path, "", problem, help)
    }
}

/// The first bytes of a file, zeros where there are fewer.
fn first_bytes(path: &Path) -> Result<[u8; 4]> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut head = Vec::new();
    file.take(4)
        .read_to_end(&mut head)
        .map_err(Error::io("read", path))?;
    head.resize(4, 0);
    Ok([head[0], head[1], head[2], head[3]])
}

fn check_matrix(path: &Path, options: &ImportOptions) -> Result<()> {
    let asked = match &options.matrix {
        MatrixOption::X => return Ok(()),
        MatrixOption::Raw => "--raw".to_owned(),
        MatrixOption::Layer(name) => format!("--layer {name}"),
    };
    Err(Error::options(
        format!(
            "{asked} chooses a matrix of an .h5ad file, but `{}` is none",
            path.display()
        ),
        "leave it out, or import this input by itself",
    ))
}

fn no_genomes(path: &Path) -> Error {
    Error::options(
        format!(
            "--genome chooses a genome of a 10x file, but `{}` is an .h5ad file",
            path.display()
        ),
        "leave it out",
    )
}

fn zarr_error(path: &Path) -> Error {
    import_error(
        path,
        "",
        "is a zarr store, which is not read",
        "write it as HDF5 first: `anndata.read_zarr(a).write_h5ad(b)` in Python",
    )
}
