//! Synthetic cells as `.h5ad`: X as compressed sparse rows, written as the cells are made.

use std::path::Path;

use hdf5_metno::types::{H5Type, VarLenUnicode};
use hdf5_metno::{Dataset, Extent, File, Group};

use super::{Cells, Plan, corrupt, names, ranges};
use crate::corpus::temp_sibling;
use crate::parallel::in_order;
use crate::{Error, Result};

/// Elements in a chunk of the large datasets.
const CHUNK_ITEMS: usize = 1 << 17;
/// Cells written at a time.
const BLOCK: u64 = 4096;

type Hdf<T> = std::result::Result<T, hdf5_metno::Error>;

pub(super) fn write(plan: &Plan<'_>, path: &Path) -> Result<()> {
    let temp = temp_sibling(path, "tmp")?;
    let fail = corrupt(path);
    let written = write_to(plan, &temp, &fail);
    if written.is_err() {
        // Nothing can be done about a failure here: an error is already on its way.
        let _ = std::fs::remove_file(&temp);
    }
    written?;
    std::fs::rename(&temp, path).map_err(Error::io("rename into", path))
}

fn write_to(plan: &Plan<'_>, temp: &Path, fail: &dyn Fn(String) -> Error) -> Result<()> {
    let hdf = |e: hdf5_metno::Error| fail(e.to_string());
    let options = plan.options;
    let file = File::create(temp).map_err(hdf)?;
    let mut open = Open::create(&file, options.cells, options.genes).map_err(hdf)?;
    let blocks: Vec<_> = ranges(0..options.cells, BLOCK).collect();
    in_order(
        options.threads,
        blocks.len(),
        |block| Ok(plan.generator.cells(blocks[block].clone())),
        |_, cells| {
            open.append(&cells).map_err(hdf)?;
            plan.advance(cells.rows());
            Ok(())
        },
    )?;
    file.flush().map_err(hdf)
}

/// The datasets that grow.
struct Open {
    data: Dataset,
    indices: Dataset,
    indptr: Dataset,
    names: Dataset,
    columns: Vec<(names::Column, Dataset)>,
    values: usize,
}

impl Open {
    fn create(file: &File, cells: u64, genes: usize) -> Hdf<Self> {
        encoding(file, "anndata", "0.1.0")?;
        let x = file.create_group("X")?;
        encoding(&x, "csr_matrix", "0.1.0")?;
        x.new_attr::<i64>()
            .shape([2])
            .create("shape")?
            .write(&[cells as i64, genes as i64])?;
        let indptr = growing::<i64>(&x, "indptr")?;
        append(&indptr, 0, &[0_i64])?;
        let obs = file.create_group("obs")?;
        let columns = names::columns();
        let order: Vec<&str> = columns.iter().map(|c| c.name).collect();
        frame(&obs, &order)?;
        let columns = columns.into_iter().map(|column| {
            let group = obs.create_group(column.name)?;
            encoding(&group, "categorical", "0.2.0")?;
            group
                .new_attr::<bool>()
                .create("ordered")?
                .write_scalar(&false)?;
            strings(&group, "categories", &column.categories)?;
            let codes = growing::<i16>(&group, "codes")?;
            encoding(&codes, "array", "0.2.0")?;
            Ok((column, codes))
        });
        let columns = columns.collect::<Hdf<Vec<_>>>()?;
        let table = names::gene_table(genes);
        let var = file.create_group("var")?;
        frame(&var, &["gene_symbol"])?;
        let ids: Vec<String> = table.ensembl.into_iter().flatten().collect();
        strings(&var, "_index", &ids)?;
        strings(&var, "gene_symbol", &table.symbols)?;
        let names = growing::<VarLenUnicode>(&obs, "_index")?;
        encoding(&names, "string-array", "0.2.0")?;
        Ok(Self {
            data: growing::<f32>(&x, "data")?,
            indices: growing::<i32>(&x, "indices")?,
            indptr,
            names,
            columns,
            values: 0,
        })
    }

    fn append(&mut self, cells: &Cells) -> Hdf<()> {
        let first = cells.first as usize;
        let data: Vec<f32> = cells.counts.iter().map(|&c| c as f32).collect();
        let indices: Vec<i32> = cells.genes.iter().map(|&g| g as i32).collect();
        append(&self.data, self.values, &data)?;
        append(&self.indices, self.values, &indices)?;
        let ends = cells.offsets[1..].iter();
        let ends: Vec<i64> = ends
            .map(|&end| self.values as i64 + i64::from(end))
            .collect();
        append(&self.indptr, first + 1, &ends)?;
        self.values += data.len();
        for (column, codes) in &self.columns {
            let values: Vec<i16> = cells.meta.iter().map(|m| (column.code)(m) as i16).collect();
            append(codes, first, &values)?;
        }
        let names: Vec<VarLenUnicode> = cells.names().map(|n| text(&n)).collect::<Hdf<_>>()?;
        append(&self.names, first, &names)
    }
}

fn growing<T: H5Type>(parent: &Group, name: &str) -> Hdf<Dataset> {
    parent
        .new_dataset::<T>()
        .chunk(CHUNK_ITEMS)
        .shape([Extent::resizable(0)])
        .create(name)
}

fn append<T: H5Type>(dataset: &Dataset, at: usize, items: &[T]) -> Hdf<()> {
    let end = at + items.len();
    dataset.resize(end)?;
    dataset.write_slice(items, at..end)
}

fn text(text: &str) -> Hdf<VarLenUnicode> {
    text.parse()
        .map_err(|_| hdf5_metno::Error::from(format!("`{text}` is no text for HDF5")))
}

fn attribute(place: &hdf5_metno::Location, name: &str, value: &str) -> Hdf<()> {
    place
        .new_attr::<VarLenUnicode>()
        .create(name)?
        .write_scalar(&text(value)?)
}

fn encoding(place: &hdf5_metno::Location, kind: &str, version: &str) -> Hdf<()> {
    attribute(place, "encoding-type", kind)?;
    attribute(place, "encoding-version", version)
}

fn strings(parent: &Group, name: &str, items: &[String]) -> Hdf<()> {
    let items: Vec<VarLenUnicode> = items.iter().map(|t| text(t)).collect::<Hdf<_>>()?;
    let dataset = parent
        .new_dataset_builder()
        .with_data(&items)
        .create(name)?;
    encoding(&dataset, "string-array", "0.2.0")
}

/// Makes a group a table with these columns.
fn frame(group: &Group, columns: &[&str]) -> Hdf<()> {
    encoding(group, "dataframe", "0.2.0")?;
    attribute(group, "_index", "_index")?;
    let columns: Vec<VarLenUnicode> = columns.iter().map(|c| text(c)).collect::<Hdf<_>>()?;
    group
        .new_attr::<VarLenUnicode>()
        .shape([columns.len()])
        .create("column-order")?
        .write(&columns)
}
