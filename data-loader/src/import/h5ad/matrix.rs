//! Expression matrices, streamed by rows in bounded memory: CSR, dense, and CSC through [`super::csc`].

use std::ops::Range;
use std::path::Path;

use hdf5_metno::types::TypeDescriptor;
use hdf5_metno::{Dataset, Group, Hyperslab, Selection, SliceOrIndex};

use super::csc::Transposed;
use super::hdf5::{self, Hdf5, Source};
use crate::Result;
use crate::import::Rows;

/// Values read at a time: 8 MB of f64.
pub(super) const BLOCK_VALUES: usize = 1 << 20;
/// Cells read at a time.
const BLOCK_ROWS: usize = 2048;

/// A matrix of cells by genes.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Its name in the file.
    pub(super) place: String,
    form: Form,
}

enum Form {
    Csr(Sparse),
    Csc(Sparse),
    Dense(Dataset),
}

/// The three arrays of a sparse matrix.
pub(super) struct Sparse {
    pub(super) data: Source,
    pub(super) indices: Source,
    pub(super) indptr: Source,
}

impl Matrix {
    /// Opens a matrix; `None` when there is no such object or it holds nothing.
    pub(super) fn open(file: &Hdf5, parent: &Group, name: &str) -> Result<Option<Self>> {
        let place = format!("{}/{name}", parent.name().trim_end_matches('/'));
        if let Some(dataset) = hdf5::dataset(parent, name) {
            if hdf5::text(&dataset, "encoding-type").as_deref() == Some("null") {
                return Ok(None);
            }
            return Self::open_dense(file, dataset, place).map(Some);
        }
        let Some(group) = hdf5::group(parent, name) else {
            return Ok(None);
        };
        let encoding = hdf5::text(&group, "encoding-type");
        let encoding = encoding
            .or_else(|| hdf5::text(&group, "h5sparse_format"))
            .unwrap_or_default();
        let shape =
            hdf5::integers(&group, "shape").or_else(|| hdf5::integers(&group, "h5sparse_shape"));
        let shape = shape.filter(|s| s.len() == 2 && s.iter().all(|&n| n >= 0));
        let shape = shape
            .ok_or_else(|| file.error(&place, "has no attribute `shape` of two numbers", ""))?;
        let sparse = Sparse {
            data: Source::whole(file.needed(&group, "data")?),
            indices: Source::whole(file.needed(&group, "indices")?),
            indptr: Source::whole(file.needed(&group, "indptr")?),
        };
        let form = match encoding.as_str() {
            "csr_matrix" | "csr" => Form::Csr(sparse),
            "csc_matrix" | "csc" => Form::Csc(sparse),
            other => {
                let problem = format!(
                    "has encoding `{other}`, expected csr_matrix, csc_matrix or a dense array"
                );
                return Err(file.error(&place, problem, ""));
            }
        };
        let matrix = Self {
            rows: shape[0] as usize,
            columns: shape[1] as usize,
            place,
            form,
        };
        matrix.check_sparse(file)?;
        Ok(Some(matrix))
    }

    fn open_dense(file: &Hdf5, dataset: Dataset, place: String) -> Result<Self> {
        file.check_filters(&dataset)?;
        let shape = dataset.shape();
        let [rows, columns] = shape[..] else {
            return Err(file.error(
                &place,
                format!("has shape {shape:?}, expected cells by genes"),
                "",
            ));
        };
        check_numeric(file, &Source::whole(dataset.clone()))?;
        Ok(Self {
            rows,
            columns,
            place,
            form: Form::Dense(dataset),
        })
    }

    fn check_sparse(&self, file: &Hdf5) -> Result<()> {
        let (Form::Csr(sparse) | Form::Csc(sparse)) = &self.form else {
            return Ok(());
        };
        let major = if matches!(self.form, Form::Csr(_)) {
            self.rows
        } else {
            self.columns
        };
        check_numeric(file, &sparse.data)?;
        let (indptr, data, indices) =
            (sparse.indptr.len(), sparse.data.len(), sparse.indices.len());
        if indptr != major + 1 {
            let problem = format!("indptr has {indptr} entries, expected {}", major + 1);
            return Err(file.error(&self.place, problem, "the file is damaged"));
        }
        if data != indices {
            let problem = format!("has {data} values but {indices} indices");
            return Err(file.error(&self.place, problem, "the file is damaged"));
        }
        Ok(())
    }

    /// Visits the cells in order, some at a time. `scratch` is a folder for temporary files.
    pub(super) fn visit(
        &self,
        file: &Hdf5,
        scratch: &Path,
        visit: &mut dyn FnMut(&Rows) -> Result<()>,
    ) -> Result<()> {
        match &self.form {
            Form::Csr(sparse) => self.visit_csr(file, sparse, visit),
            Form::Csc(sparse) => {
                Transposed::new(file, sparse, &self.place, self.rows, self.columns, scratch)?
                    .visit(visit)
            }
            Form::Dense(dataset) => self.visit_dense(file, dataset, visit),
        }
    }

    fn visit_csr(
        &self,
        file: &Hdf5,
        sparse: &Sparse,
        visit: &mut dyn FnMut(&Rows) -> Result<()>,
    ) -> Result<()> {
        let mut rows = Rows::default();
        for first in (0..self.rows).step_by(BLOCK_ROWS) {
            let last = (first + BLOCK_ROWS).min(self.rows);
            let bounds = bounds(file, sparse, &self.place, first..last)?;
            let mut at = 0;
            while at < bounds.len() - 1 {
                let mut end = at + 1;
                while end + 1 < bounds.len() && bounds[end + 1] - bounds[at] <= BLOCK_VALUES {
                    end += 1;
                }
                let span = bounds[at]..bounds[end];
                rows.first = first + at;
                rows.offsets.clear();
                rows.offsets
                    .extend(bounds[at..=end].iter().map(|b| b - bounds[at]));
                rows.genes = indices(file, sparse, &self.place, span.clone(), self.columns)?;
                rows.values = file.rows(&sparse.data, span)?;
                visit(&rows)?;
                at = end;
            }
        }
        Ok(())
    }

    fn visit_dense(
        &self,
        file: &Hdf5,
        dataset: &Dataset,
        visit: &mut dyn FnMut(&Rows) -> Result<()>,
    ) -> Result<()> {
        // Whole chunks at a time, or each chunk would be decompressed over and over.
        let chunk = dataset.chunk().map_or(1, |c| c[0].max(1));
        let fitting = (4 * BLOCK_VALUES / self.columns.max(1)).max(1);
        let step = (fitting / chunk * chunk)
            .max(fitting.min(chunk))
            .min(BLOCK_ROWS.max(chunk));
        let mut rows = Rows::default();
        for first in (0..self.rows).step_by(step) {
            let last = (first + step).min(self.rows);
            let block = Selection::Hyperslab(Hyperslab::from(vec![
                SliceOrIndex::from(first..last),
                SliceOrIndex::from(0..self.columns),
            ]));
            let values = dataset
                .read_slice_2d::<f64, _>(block)
                .map_err(|e| file.hdf5_error(&self.place, &e))?;
            rows.first = first;
            rows.offsets.clear();
            rows.offsets.push(0);
            rows.genes.clear();
            rows.values.clear();
            for row in values.rows() {
                for (gene, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                    rows.genes.push(gene as u32);
                    rows.values.push(value);
                }
                rows.offsets.push(rows.genes.len());
            }
            visit(&rows)?;
        }
        Ok(())
    }
}

/// Where the entries of some rows (of columns, in CSC) begin and end.
pub(super) fn bounds(
    file: &Hdf5,
    sparse: &Sparse,
    place: &str,
    major: Range<usize>,
) -> Result<Vec<usize>> {
    let read: Vec<i64> = file.rows(&sparse.indptr, major.start..major.end + 1)?;
    let stored = sparse.data.len() as i64;
    let ascending = read.windows(2).all(|w| w[0] <= w[1]);
    let ends_well =
        read.first().is_none_or(|&b| b >= 0) && read.last().is_none_or(|&b| b <= stored);
    if ascending && ends_well {
        return Ok(read.into_iter().map(|b| b as usize).collect());
    }
    let problem = format!(
        "indptr does not ascend from 0 to {stored} between entries {} and {}",
        major.start, major.end
    );
    Err(file.error(place, problem, "the file is damaged"))
}

/// Some indices, checked to be below `limit`.
pub(super) fn indices(
    file: &Hdf5,
    sparse: &Sparse,
    place: &str,
    span: Range<usize>,
    limit: usize,
) -> Result<Vec<u32>> {
    let read: Vec<i64> = file.rows(&sparse.indices, span)?;
    if let Some(bad) = read.iter().find(|&&i| i < 0 || i >= limit as i64) {
        let problem = format!("has index {bad}, expected 0 to {}", limit.saturating_sub(1));
        return Err(file.error(place, problem, "the file is damaged"));
    }
    Ok(read.into_iter().map(|i| i as u32).collect())
}

fn check_numeric(file: &Hdf5, data: &Source) -> Result<()> {
    match data.descriptor(file)? {
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_) => {
            Ok(())
        }
        other => Err(file.error(&data.name(), format!("holds {other}, expected numbers"), "")),
    }
}
