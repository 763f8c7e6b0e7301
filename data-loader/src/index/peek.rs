//! A look at the first cells: what their values are, and whether their genes are known.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::IndexOptions;
use super::genes::Genes;
use super::shards::unknown;
use crate::corpus::{Chunks, Shard, chunk_range};
use crate::import::ValuesOption;
use crate::storage::{Batches, Footer, Storage};
use crate::{Error, Result, ValueKind};

/// Cells that are looked at.
const CELLS: usize = 1024;
/// Bytes of a column chunk in which they must lie.
const BYTES: u64 = 64 << 20;

pub(super) struct Peek {
    pub(super) value_kind: ValueKind,
    pub(super) notes: Vec<String>,
}

/// Entries of the first cells.
#[derive(Default)]
struct Tally {
    cells: usize,
    entries: usize,
    unknown: usize,
    first_unknown: Option<i64>,
    fraction: bool,
}

pub(super) fn peek(
    storage: &Storage,
    shards: &[Shard],
    options: &IndexOptions,
    genes: &Genes,
) -> Result<Peek> {
    let first = shards.iter().find_map(|shard| {
        let group = shard.row_group_rows.iter().position(|&rows| rows > 0)?;
        Some((shard, group))
    });
    let Some((shard, group)) = first else {
        return Err(Error::corpus(
            storage.root(),
            "source",
            "there are no cells",
        ));
    };
    let path = storage.path(&shard.path);
    let fail = |problem: String| Error::corpus(&path, format!("row group {group}"), problem);
    let mut tally = Tally::default();
    for (genes_array, values) in lists(storage, shard, group, options)? {
        tally
            .add(&genes_array, &values, options, genes)
            .map_err(fail)?;
    }
    let mut notes = Vec::new();
    if let Some(id) = tally.first_unknown {
        let how_many = format!(
            " ({} of {} entries of the first {} cells are unknown)",
            tally.unknown, tally.entries, tally.cells
        );
        if !options.columns.drop_unknown {
            return Err(fail(unknown(id, genes, &how_many)));
        }
        notes.push(format!(
            "entries with unknown gene ids are left out{how_many}"
        ));
    }
    let value_kind = match options.values {
        ValuesOption::Lognorm => ValueKind::Lognorm,
        ValuesOption::Auto if tally.fraction => ValueKind::Lognorm,
        ValuesOption::Counts | ValuesOption::Auto => ValueKind::Counts,
    };
    if value_kind == ValueKind::Counts && tally.fraction {
        return Err(fail(
            "there are values with a fraction, but counts were asked for\nhelp: pass --values lognorm or --values auto"
                .into(),
        ));
    }
    Ok(Peek { value_kind, notes })
}

type Lists = Vec<(ArrayRef, ArrayRef)>;

/// The lists of genes and values of the first cells.
fn lists(storage: &Storage, shard: &Shard, group: usize, options: &IndexOptions) -> Result<Lists> {
    let path = storage.path(&shard.path);
    let fail = |problem: String| Error::corpus(&path, format!("row group {group}"), problem);
    let footer = Footer::read(storage, &shard.path, shard.bytes)?.metadata;
    let names = [&options.columns.genes, &options.columns.values];
    let mut ranges = Vec::new();
    let mut leaves = Vec::new();
    for (leaf, column) in footer
        .metadata()
        .row_group(group)
        .columns()
        .iter()
        .enumerate()
    {
        if names
            .iter()
            .any(|name| **name == column.column_path().parts()[0])
        {
            let range = chunk_range(column, shard.bytes)
                .ok_or_else(|| fail(format!("column {leaf} lies outside of the file")))?;
            ranges.push(range.start..range.end.min(range.start + BYTES));
            leaves.push(leaf);
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let parts = storage.fetch(&shard.path, &ranges)?;
    let chunks = Chunks::new(shard.bytes, ranges.into_iter().zip(parts).collect());
    let mask = ProjectionMask::leaves(footer.parquet_schema(), leaves);
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer)
        .with_row_groups(vec![group])
        .with_projection(mask)
        .with_batch_size(CELLS)
        .with_limit(CELLS);
    let mut lists = Vec::new();
    for batch in Batches::new(builder).map_err(fail)? {
        let batch = batch.map_err(fail)?;
        let column = |name: &str| {
            let column = batch.column_by_name(name).cloned();
            column.ok_or_else(|| fail(format!("column `{name}` was not read")))
        };
        lists.push((column(names[0])?, column(names[1])?));
    }
    Ok(lists)
}

/// The items of a list array, and where each row begins.
fn items(array: &ArrayRef) -> Result<(ArrayRef, Vec<usize>), String> {
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets().iter().map(|&o| o as usize);
            Ok((list.values().clone(), offsets.collect()))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets().iter().map(|&o| o as usize);
            Ok((list.values().clone(), offsets.collect()))
        }
        other => Err(format!("is {other}, expected a list")),
    }
}

impl Tally {
    fn add(
        &mut self,
        ids: &ArrayRef,
        values: &ArrayRef,
        options: &IndexOptions,
        genes: &Genes,
    ) -> Result<(), String> {
        let layout = &options.columns;
        let (ids, ends) = items(ids)?;
        let (values, value_ends) = items(values)?;
        if ends != value_ends {
            return Err(format!(
                "`{}` and `{}` of a cell differ in length",
                layout.genes, layout.values
            ));
        }
        let ids = cast(&ids, &DataType::Int64).map_err(|e| e.to_string())?;
        let values = cast(&values, &DataType::Float64).map_err(|e| e.to_string())?;
        if ids.null_count() + values.null_count() > 0 {
            return Err(format!(
                "`{}` or `{}` has missing entries",
                layout.genes, layout.values
            ));
        }
        let ids = ids.as_primitive::<Int64Type>().values();
        let values = values.as_primitive::<Float64Type>().values();
        for cell in ends.windows(2) {
            self.cells += 1;
            let mut first = cell[0];
            while layout.drop_negative_head && first < cell[1] && values[first] < 0.0 {
                first += 1;
            }
            for (&id, &value) in ids[first..cell[1]].iter().zip(&values[first..cell[1]]) {
                self.entries += 1;
                if !genes.has(id) {
                    self.unknown += 1;
                    self.first_unknown.get_or_insert(id);
                } else if !value.is_finite() || value < 0.0 {
                    return Err(format!(
                        "cell {} has the value {value} for gene id {id}, expected finite and not negative",
                        self.cells - 1
                    ));
                }
                self.fraction |= value.fract() != 0.0;
            }
        }
        Ok(())
    }
}
