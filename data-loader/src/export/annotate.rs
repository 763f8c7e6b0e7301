//! An `.h5ad` file that is added to: obs columns, obsm arrays and a record in `uns`, in anndata's
//! present encodings.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use hdf5_metno::types::{H5Type, VarLenUnicode};
use hdf5_metno::{Dataset, Dataspace, File, Group, Location};
use hdf5_metno_sys::h5d::H5Dwrite;
use hdf5_metno_sys::h5p::H5P_DEFAULT;

use super::ExportedTable;
use super::found::{Found, Kind, column};
use crate::error::listed;
use crate::import::{column_order, import_error};
use crate::{Error, Result};

/// The column of a table whose vectors are the embedding: its obsm key has no suffix.
const EMBEDDING: &str = "embedding";

/// The file.
pub(super) struct Annotated<'a> {
    path: &'a Path,
    file: File,
    obs: Group,
    obsm: Group,
    uns: Group,
    /// Names of the obs columns, in order.
    columns: Vec<String>,
    cells: usize,
}

/// HDF5 says what it cannot do; the file is a copy of ours, so the cause is the disk or a defect.
fn failed(path: &Path, place: &str) -> impl FnOnce(hdf5_metno::Error) -> Error + use<> {
    let (path, place) = (path.to_owned(), place.to_owned());
    move |error| {
        import_error(
            &path,
            &place,
            format!("cannot be written: {error}"),
            "look at the space on the disk",
        )
    }
}

impl<'a> Annotated<'a> {
    /// Opens a file of today's form to add to it.
    pub(super) fn open(path: &'a Path, cells: usize) -> Result<Self> {
        let file = File::open_rw(path).map_err(failed(path, ""))?;
        let obs = file.group("obs").map_err(failed(path, "obs"))?;
        let folder = |name: &str| -> Result<Group> {
            if file.link_exists(name) {
                return file.group(name).map_err(failed(path, name));
            }
            let group = file.create_group(name).map_err(failed(path, name))?;
            encoding(path, &group, "dict", "0.1.0")?;
            Ok(group)
        };
        Ok(Self {
            obsm: folder("obsm")?,
            uns: folder("uns")?,
            columns: column_order(&obs).map_err(failed(path, "obs"))?,
            obs,
            path,
            file,
            cells,
        })
    }

    /// Adds the columns of a table under a name.
    pub(super) fn add(&mut self, name: &str, table: &Found) -> Result<ExportedTable> {
        let mut done = ExportedTable {
            path: table.path.clone(),
            cells: table.rows.iter().flatten().count() as u64,
            elsewhere: table.rows.iter().filter(|row| row.is_none()).count() as u64,
            obs: Vec::new(),
            obsm: Vec::new(),
        };
        for (column, kind) in &table.columns {
            let key = format!("{name}_{}", safe(column));
            Self::require_new(&self.obs, "obs", &key, table)?;
            self.add_column(&key, column, *kind, table)?;
            self.columns.push(key.clone());
            done.obs.push(key);
        }
        for (column, width) in &table.vectors {
            let key = match column.as_str() {
                EMBEDDING => format!("X_{name}"),
                other => format!("X_{name}_{}", safe(other)),
            };
            let array = self.array(&key, *width, table)?;
            table.visit_vectors(column, *width, &mut |first, values| {
                self.write_rows(&array, *width, &table.rows[first..], values)
            })?;
            done.obsm.push(key);
        }
        let classes = &table.probabilities;
        if !classes.is_empty() {
            let key = format!("X_{name}_probability");
            let array = self.array(&key, classes.len(), table)?;
            table.visit_probabilities(&mut |first, values| {
                self.write_rows(&array, classes.len(), &table.rows[first..], values)
            })?;
            done.obsm.push(key);
        }
        self.record(name, table)?;
        Ok(done)
    }

    /// Writes the order of the columns and closes the file.
    pub(super) fn close(self) -> Result<()> {
        let fail = || failed(self.path, "obs");
        if self.obs.attr("column-order").is_ok() {
            self.obs.delete_attr("column-order").map_err(fail())?;
        }
        let order: Vec<VarLenUnicode> = self
            .columns
            .iter()
            .map(|name| text(self.path, name))
            .collect::<Result<_>>()?;
        self.obs
            .new_attr_builder()
            .with_data(&order)
            .create("column-order")
            .map_err(fail())?;
        self.file.flush().map_err(failed(self.path, ""))?;
        Ok(())
    }

    fn require_new(parent: &Group, place: &str, key: &str, table: &Found) -> Result<()> {
        if !parent.link_exists(key) {
            return Ok(());
        }
        let present = parent.member_names().unwrap_or_default();
        Err(Error::options(
            format!(
                "`{}`: {place} has `{key}` already; it has {}",
                table.path.display(),
                listed(&present)
            ),
            "give the table another name: `--table NAME=PATH`",
        ))
    }

    /// A new array in obsm, NaN for every cell.
    fn array(&self, key: &str, width: usize, table: &Found) -> Result<Dataset> {
        Self::require_new(&self.obsm, "obsm", key, table)?;
        let place = format!("obsm/{key}");
        let array = self
            .obsm
            .new_dataset::<f32>()
            .fill_value(f32::NAN)
            .shape((self.cells, width))
            .create(key)
            .map_err(failed(self.path, &place))?;
        encoding(self.path, &array, "array", "0.2.0")?;
        Ok(array)
    }

    /// Writes vectors into the rows that they go to; neighbours at once.
    fn write_rows(
        &self,
        array: &Dataset,
        width: usize,
        rows: &[Option<usize>],
        values: &[f32],
    ) -> Result<()> {
        let count = values.len().checked_div(width).unwrap_or(0);
        let mut order: Vec<(usize, usize)> = rows[..count]
            .iter()
            .enumerate()
            .filter_map(|(from, to)| Some(((*to)?, from)))
            .collect();
        order.sort_unstable();
        let mut sorted = Vec::with_capacity(order.len() * width);
        for &(_, from) in &order {
            sorted.extend_from_slice(&values[from * width..(from + 1) * width]);
        }
        let mut begin = 0;
        while begin < order.len() {
            let mut end = begin + 1;
            while end < order.len() && order[end].0 == order[end - 1].0 + 1 {
                end += 1;
            }
            let to = order[begin].0..order[begin].0 + (end - begin);
            write_block(array, to, width, &sorted[begin * width..end * width])
                .map_err(failed(self.path, &array.name()))?;
            begin = end;
        }
        Ok(())
    }

    fn add_column(&self, key: &str, name: &str, kind: Kind, table: &Found) -> Result<()> {
        match kind {
            Kind::Label | Kind::Truth => self.add_labels(key, name, table),
            Kind::Integer => {
                let (values, whole) = self.numbers(name, table)?;
                if whole {
                    let whole: Vec<i64> = values.iter().map(|&v| v as i64).collect();
                    self.add_numbers(key, &whole)
                } else {
                    self.add_numbers(key, &values)
                }
            }
            Kind::Single => {
                let (values, _) = self.numbers(name, table)?;
                let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                self.add_numbers(key, &values)
            }
            Kind::Double => self.add_numbers(key, &self.numbers(name, table)?.0),
        }
    }

    /// A column as numbers, NaN where missing; and whether every cell has a whole one.
    fn numbers(&self, name: &str, table: &Found) -> Result<(Vec<f64>, bool)> {
        let mut values = vec![f64::NAN; self.cells];
        let mut whole = 0;
        table.visit(&[name], &mut |first, batch| {
            let found = column(&table.path, batch, name, &DataType::Float64)?;
            let found = found.as_primitive::<Float64Type>();
            let exact = column(&table.path, batch, name, &DataType::Int64).ok();
            for row in 0..batch.num_rows() {
                let Some(to) = table.rows[first + row].filter(|_| found.is_valid(row)) else {
                    continue;
                };
                values[to] = found.value(row);
                let same = exact.as_ref().is_some_and(|exact| {
                    exact.as_primitive::<Int64Type>().value(row) == values[to] as i64
                });
                whole += usize::from(same);
            }
            Ok(())
        })?;
        Ok((values, whole == self.cells))
    }

    fn add_numbers<T: H5Type>(&self, key: &str, values: &[T]) -> Result<()> {
        let place = format!("obs/{key}");
        let data = self
            .obs
            .new_dataset_builder()
            .with_data(values)
            .create(key)
            .map_err(failed(self.path, &place))?;
        encoding(self.path, &data, "array", "0.2.0")
    }

    /// Labels as a categorical column; truth values too, since a cell may have none.
    fn add_labels(&self, key: &str, name: &str, table: &Found) -> Result<()> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        table.visit(&[name], &mut |first, batch| {
            let labels = column(&table.path, batch, name, &DataType::Utf8)?;
            let here = (first..).zip(labels.as_string::<i32>());
            names.extend(here.filter_map(|(row, label)| {
                label
                    .filter(|_| table.rows[row].is_some())
                    .map(str::to_owned)
            }));
            Ok(())
        })?;
        let names: Vec<String> = names.into_iter().collect();
        let mut codes = vec![-1i32; self.cells];
        table.visit(&[name], &mut |first, batch| {
            let labels = column(&table.path, batch, name, &DataType::Utf8)?;
            for (row, label) in (first..).zip(labels.as_string::<i32>()) {
                if let (Some(to), Some(label)) = (table.rows[row], label) {
                    let code = names.binary_search_by(|n| n.as_str().cmp(label));
                    codes[to] = code.map_or(-1, |code| code as i32);
                }
            }
            Ok(())
        })?;
        self.write_categories(key, &names, &codes)
    }

    fn write_categories(&self, key: &str, names: &[String], codes: &[i32]) -> Result<()> {
        let place = format!("obs/{key}");
        let fail = || failed(self.path, &place);
        let group = self.obs.create_group(key).map_err(fail())?;
        encoding(self.path, &group, "categorical", "0.2.0")?;
        let ordered = group.new_attr::<bool>().create("ordered").map_err(fail())?;
        ordered.write_scalar(&false).map_err(fail())?;
        let texts: Vec<VarLenUnicode> = names
            .iter()
            .map(|name| text(self.path, name))
            .collect::<Result<_>>()?;
        let categories = group
            .new_dataset_builder()
            .with_data(&texts)
            .create("categories")
            .map_err(fail())?;
        encoding(self.path, &categories, "string-array", "0.2.0")?;
        let builder = group.new_dataset_builder();
        // As pandas does: the smallest type that all codes fit.
        let data = if i8::try_from(names.len()).is_ok() {
            let small: Vec<i8> = codes.iter().map(|&c| c as i8).collect();
            builder.with_data(&small).create("codes")
        } else if i16::try_from(names.len()).is_ok() {
            let small: Vec<i16> = codes.iter().map(|&c| c as i16).collect();
            builder.with_data(&small).create("codes")
        } else {
            builder.with_data(codes).create("codes")
        };
        let data = data.map_err(fail())?;
        encoding(self.path, &data, "array", "0.2.0")
    }

    /// `uns/NAME/FILE`: where the columns came from, and the classes of the probabilities.
    fn record(&self, name: &str, table: &Found) -> Result<()> {
        let folder = |parent: &Group, name: &str| -> Result<Group> {
            let fail = || failed(self.path, &format!("uns/{name}"));
            if parent.link_exists(name) {
                return parent.group(name).map_err(fail());
            }
            let group = parent.create_group(name).map_err(fail())?;
            encoding(self.path, &group, "dict", "0.1.0")?;
            Ok(group)
        };
        let stem = table.path.file_stem().unwrap_or_default().to_string_lossy();
        let own = folder(&self.uns, name)?;
        Self::require_new(&own, &format!("uns/{name}"), &safe(&stem), table)?;
        let about = folder(&own, &safe(&stem))?;
        let fail = || failed(self.path, "uns");
        let program = format!("scpeft-data {}", env!("CARGO_PKG_VERSION"));
        let path = table.path.display().to_string();
        for (key, value) in [("file", path), ("program", program)] {
            let data = about
                .new_dataset::<VarLenUnicode>()
                .create(key)
                .map_err(fail())?;
            data.write_scalar(&text(self.path, &value)?)
                .map_err(fail())?;
            encoding(self.path, &data, "string", "0.2.0")?;
        }
        if !table.probabilities.is_empty() {
            let classes: Vec<VarLenUnicode> = (table.probabilities.iter())
                .map(|class| text(self.path, class))
                .collect::<Result<_>>()?;
            let data = about
                .new_dataset_builder()
                .with_data(&classes)
                .create("probability_classes")
                .map_err(fail())?;
            encoding(self.path, &data, "string-array", "0.2.0")?;
        }
        Ok(())
    }
}

/// A name that HDF5 does not take for a path.
fn safe(name: &str) -> String {
    name.replace('/', "_")
}

fn text(path: &Path, value: &str) -> Result<VarLenUnicode> {
    VarLenUnicode::from_str(value).map_err(|_| {
        import_error(
            path,
            "",
            format!(
                "the text `{}` holds a NUL, which HDF5 cannot store",
                value.replace('\0', "\\0")
            ),
            "rename it in the table",
        )
    })
}

/// What an object is, in anndata's words.
fn encoding(path: &Path, object: &Location, kind: &str, version: &str) -> Result<()> {
    for (key, value) in [("encoding-type", kind), ("encoding-version", version)] {
        let fail = || failed(path, &object.name());
        let attribute = object
            .new_attr::<VarLenUnicode>()
            .create(key)
            .map_err(fail())?;
        attribute
            .write_scalar(&text(path, value)?)
            .map_err(fail())?;
    }
    Ok(())
}

/// Writes whole rows of a two-dimensional dataset of f32.
fn write_block(
    array: &Dataset,
    rows: std::ops::Range<usize>,
    width: usize,
    values: &[f32],
) -> hdf5_metno::Result<()> {
    assert_eq!(values.len(), rows.len() * width, "whole rows");
    let memory = Dataspace::try_new([rows.len(), width])?;
    let disk = array.space()?.select((rows, 0..width))?;
    let kind = hdf5_metno::Datatype::from_type::<f32>()?;
    let status = hdf5_metno::sync::sync(|| {
        // SAFETY: all ids are alive, and `values` holds as many elements as both spaces select.
        unsafe {
            H5Dwrite(
                array.id(),
                kind.id(),
                memory.id(),
                disk.id(),
                H5P_DEFAULT,
                values.as_ptr().cast(),
            )
        }
    });
    if status < 0 {
        return Err(hdf5_metno::Error::Internal("H5Dwrite failed".to_owned()));
    }
    Ok(())
}
