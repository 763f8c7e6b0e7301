//! Expression matrices, streamed by rows in bounded memory: CSR, dense, and CSC through [`super::scatter`].

use std::ops::Range;
use std::path::Path;

use hdf5_metno::types::{FloatSize, H5Type, IntSize, TypeDescriptor};
use hdf5_metno::{Dataset, Group, Hyperslab, Selection, SliceOrIndex};

use super::csc::ByGenes;
use super::hdf5::{self, Hdf5, Source};
use super::{Numbers, Rows, scatter};
use crate::Result;

/// Values read at a time: 4 MB of the usual types.
pub(super) const BLOCK_VALUES: usize = 1 << 20;
/// Cells read at a time.
const BLOCK_ROWS: usize = 2048;

/// A matrix of cells by genes.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Its name in the file.
    pub(super) place: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Csr(Sparse),
    Csc(Sparse),
    Dense(Dataset),
}

/// The three arrays of a sparse matrix.
#[derive(Debug)]
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

    /// A matrix whose arrays are given, with the entries of a cell in a row.
    pub(super) fn by_cells(
        file: &Hdf5,
        (rows, columns): (usize, usize),
        place: String,
        sparse: Sparse,
    ) -> Result<Self> {
        let matrix = Self {
            rows,
            columns,
            place,
            form: Form::Csr(sparse),
        };
        matrix.check_sparse(file)?;
        Ok(matrix)
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

    /// Some values that tell counts from other values: those of the first cells, or of the first genes.
    pub(super) fn sample(&self, file: &Hdf5) -> Result<Numbers> {
        match &self.form {
            Form::Csr(sparse) => {
                let first = bounds(file, sparse, &self.place, 0..self.rows.min(BLOCK_ROWS))?;
                let end = first[first.len() - 1];
                file.numbers(&sparse.data, first[0]..end.min(first[0] + BLOCK_VALUES))
            }
            Form::Csc(sparse) => file.numbers(&sparse.data, 0..sparse.data.len().min(BLOCK_VALUES)),
            Form::Dense(dataset) => {
                let rows = 0..self.dense_step(dataset).min(self.rows);
                Ok(self.dense_rows(file, dataset, rows)?.values)
            }
        }
    }

    /// Number of values that are stored, or of places in a dense matrix.
    pub(super) fn stored(&self) -> usize {
        match &self.form {
            Form::Csr(sparse) | Form::Csc(sparse) => sparse.data.len(),
            Form::Dense(_) => self.rows.saturating_mul(self.columns),
        }
    }

    /// Visits the cells in order, some at a time. `scratch` is a folder for temporary files.
    pub(super) fn visit(
        &self,
        file: &Hdf5,
        scratch: &Path,
        visit: &mut dyn FnMut(Rows) -> Result<()>,
    ) -> Result<()> {
        match &self.form {
            Form::Csr(sparse) => self.visit_csr(file, sparse, visit),
            Form::Csc(sparse) => {
                let entries = ByGenes {
                    file,
                    sparse,
                    place: &self.place,
                    cells: self.rows,
                    genes: self.columns,
                };
                scatter::by_cells(&entries, &entries.counts()?, scratch, visit)
            }
            Form::Dense(dataset) => {
                let step = self.dense_step(dataset);
                for first in (0..self.rows).step_by(step) {
                    let last = (first + step).min(self.rows);
                    visit(self.dense_rows(file, dataset, first..last)?)?;
                }
                Ok(())
            }
        }
    }

    fn visit_csr(
        &self,
        file: &Hdf5,
        sparse: &Sparse,
        visit: &mut dyn FnMut(Rows) -> Result<()>,
    ) -> Result<()> {
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
                visit(Rows {
                    first: first + at,
                    offsets: bounds[at..=end].iter().map(|b| b - bounds[at]).collect(),
                    genes: indices(file, sparse, &self.place, span.clone(), self.columns)?,
                    values: file.numbers(&sparse.data, span)?,
                })?;
                at = end;
            }
        }
        Ok(())
    }

    /// How many cells are read at a time: whole chunks, or each would be decompressed over and over.
    fn dense_step(&self, dataset: &Dataset) -> usize {
        let chunk = dataset.chunk().map_or(1, |c| c[0].max(1));
        let fitting = (4 * BLOCK_VALUES / self.columns.max(1)).max(1);
        (fitting / chunk * chunk)
            .max(fitting.min(chunk))
            .min(BLOCK_ROWS.max(chunk))
    }

    fn dense_rows(&self, file: &Hdf5, dataset: &Dataset, rows: Range<usize>) -> Result<Rows> {
        let source = Source::whole(dataset.clone());
        let single = matches!(
            source.descriptor(file)?,
            TypeDescriptor::Float(FloatSize::U4)
        );
        if single {
            self.dense_rows_as::<f32>(file, dataset, rows, Numbers::F32)
        } else {
            self.dense_rows_as::<f64>(file, dataset, rows, Numbers::F64)
        }
    }

    fn dense_rows_as<T: H5Type + Copy + Default + PartialEq>(
        &self,
        file: &Hdf5,
        dataset: &Dataset,
        rows: Range<usize>,
        numbers: fn(Vec<T>) -> Numbers,
    ) -> Result<Rows> {
        let block = Selection::Hyperslab(Hyperslab::from(vec![
            SliceOrIndex::from(rows.clone()),
            SliceOrIndex::from(0..self.columns),
        ]));
        let read = dataset
            .read_slice_2d::<T, _>(block)
            .map_err(|e| file.hdf5_error(&self.place, &e))?;
        let (mut offsets, mut genes, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in read.rows() {
            for (gene, &value) in row.iter().enumerate().filter(|(_, v)| **v != T::default()) {
                genes.push(gene as u32);
                values.push(value);
            }
            offsets.push(genes.len());
        }
        Ok(Rows {
            first: rows.start,
            offsets,
            genes,
            values: numbers(values),
        })
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
    let out_of_range = |bad: i64| {
        let problem = format!("has index {bad}, expected 0 to {}", limit.saturating_sub(1));
        file.error(place, problem, "the file is damaged")
    };
    // The usual type is read as it is: conversions by HDF5 take longer than reading.
    if sparse.indices.descriptor(file)? == TypeDescriptor::Integer(IntSize::U4) {
        let read: Vec<i32> = file.rows(&sparse.indices, span)?;
        return match read.iter().find(|&&i| i < 0 || i as usize >= limit) {
            Some(&bad) => Err(out_of_range(i64::from(bad))),
            None => Ok(read.into_iter().map(|i| i as u32).collect()),
        };
    }
    let read: Vec<i64> = file.rows(&sparse.indices, span)?;
    match read.iter().find(|&&i| i < 0 || i >= limit as i64) {
        Some(&bad) => Err(out_of_range(bad)),
        None => Ok(read.into_iter().map(|i| i as u32).collect()),
    }
}

fn check_numeric(file: &Hdf5, data: &Source) -> Result<()> {
    match data.descriptor(file)? {
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_) => {
            Ok(())
        }
        other => Err(file.error(&data.name(), format!("holds {other}, expected numbers"), "")),
    }
}
