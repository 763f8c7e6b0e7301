//! `.h5ad` files: all encodings that anndata has written since 0.5.

pub(super) mod frame;
pub(super) mod genes;

use frame::Frame;

use super::hdf5::{self, Hdf5};
use super::matrix::Matrix;
use super::source::{CellNames, Entries, Source};
use super::{ImportOptions, MatrixOption};
use crate::{Error, Result};

/// Opens an `.h5ad` file.
pub(super) fn open(file: Hdf5, options: &ImportOptions) -> Result<Source> {
    let frame = |name: &str| Frame::open(&file, name);
    let (Some(obs), Some(var)) = (frame("obs")?, frame("var")?) else {
        return Err(not_anndata(&file));
    };
    let matrix = open_matrix(&file, &options.matrix)?;
    let var = match options.matrix {
        MatrixOption::Raw => match frame("raw/var")? {
            Some(var) => var,
            None => frame("raw.var")?.ok_or_else(|| {
                file.error("raw/var", "is missing", "the file is no complete AnnData")
            })?,
        },
        _ => var,
    };
    for (what, found, frame) in [
        ("cells", matrix.rows, obs.rows()),
        ("genes", matrix.columns, var.rows()),
    ] {
        if found != frame {
            let problem = format!("has {found} {what}, but the table of {what} has {frame} rows");
            return Err(file.error(&matrix.place, problem, "the file is damaged"));
        }
    }
    let path = file.path().to_owned();
    Ok(Source {
        name: String::new(),
        files: vec![path.clone()],
        path,
        genes: genes::gene_table(&var)?,
        cells: matrix.rows,
        obs: Some(obs),
        names: CellNames::Index,
        place: matrix.place.clone(),
        others: other_matrices(&file, &options.matrix),
        features: None,
        matrix: Entries::Hdf5(file, matrix),
    })
}

/// Names of the cells of a file that columns can be added to.
///
/// # Errors
/// When it is no AnnData, or one of before 0.7, whose `obs` is a table of records.
pub(crate) fn annotated_cells(path: &std::path::Path) -> Result<Vec<String>> {
    let file = Hdf5::open(path)?;
    let Some(obs) = Frame::open(&file, "obs")? else {
        return Err(not_anndata(&file));
    };
    if hdf5::group(file.root(), "obs").is_none() {
        return Err(file.error(
            "obs",
            "is a table of records, which has no room for columns",
            "write the file anew with anndata 0.7 or newer: `anndata.read_h5ad(a).write_h5ad(b)` in Python",
        ));
    }
    obs.names(0..obs.rows())
}

/// Names of the columns of `obs` or `var`, in order, without the index.
pub(crate) fn column_order(frame: &hdf5_metno::Group) -> hdf5_metno::Result<Vec<String>> {
    let index = hdf5::text(frame, "_index").unwrap_or_else(|| "_index".to_owned());
    let mut columns = hdf5::texts(frame, "column-order").unwrap_or_default();
    if columns.is_empty() {
        columns = frame.member_names()?;
    }
    columns.retain(|c| *c != index && c != "__categories");
    Ok(columns)
}

fn open_matrix(file: &Hdf5, option: &MatrixOption) -> Result<Matrix> {
    let root = file.root();
    let found = match option {
        MatrixOption::X => Matrix::open(file, root, "X")?,
        MatrixOption::Raw => match hdf5::group(root, "raw") {
            Some(raw) => Matrix::open(file, &raw, "X")?,
            None => Matrix::open(file, root, "raw.X")?,
        },
        MatrixOption::Layer(name) => match hdf5::group(root, "layers") {
            Some(layers) => Matrix::open(file, &layers, name)?,
            None => None,
        },
    };
    found.ok_or_else(|| {
        let (place, problem) = match option {
            MatrixOption::X => ("X".to_owned(), "is missing or empty"),
            MatrixOption::Raw => ("raw/X".to_owned(), "is missing"),
            MatrixOption::Layer(name) => (format!("layers/{name}"), "is missing"),
        };
        file.error(
            &place,
            problem,
            format!("take another matrix: {}", other_matrices(file, option)),
        )
    })
}

/// The matrices a file has besides the one in use, as the options that choose them.
fn other_matrices(file: &Hdf5, but: &MatrixOption) -> String {
    let root = file.root();
    let mut found = Vec::new();
    if *but != MatrixOption::X && root.link_exists("X") {
        found.push("X (no option)".to_owned());
    }
    if *but != MatrixOption::Raw
        && (root.link_exists("raw.X")
            || hdf5::group(root, "raw").is_some_and(|r| r.link_exists("X")))
    {
        found.push("--raw".to_owned());
    }
    let layers = hdf5::group(root, "layers").and_then(|l| l.member_names().ok());
    for layer in layers.unwrap_or_default() {
        if *but != MatrixOption::Layer(layer.clone()) {
            found.push(format!("--layer {layer}"));
        }
    }
    if found.is_empty() {
        "the file has no other (neither raw nor layers)".to_owned()
    } else {
        found.join(", ")
    }
}

/// Says what an HDF5 file holds that is neither AnnData nor 10x.
pub(super) fn not_anndata(file: &Hdf5) -> Error {
    let names = file.root().member_names().unwrap_or_default();
    let help = format!(
        "an AnnData file has `obs` and `var`, a 10x file has `matrix` or a group per genome; this one has: {}",
        crate::error::listed(&names)
    );
    file.error(
        "",
        "is HDF5, but neither an AnnData file nor a 10x matrix",
        help,
    )
}
