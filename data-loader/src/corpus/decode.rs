//! From the columns of a record batch to cells, whatever the layout, with every cell checked.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, Int32Type, Int64Type,
    UInt16Type, UInt32Type,
};

use super::{CellBuffer, ForeignLayout, Layout, ValueKind};

/// One cell, as it comes out of a shard.
pub(super) enum Decoded<'a> {
    /// Gene indices, strictly ascending and in range, and values, positive.
    Lists(&'a [u32], &'a [f32]),
    /// Packed bytes, which are checked when they are unpacked.
    Packed(&'a [u8], &'a [u8]),
    /// What is wrong with it.
    Fault(String),
}

/// Ids up to here are looked up in a table, beyond it in a map.
const TABLE_IDS: i64 = 1 << 22;
const NO_GENE: u32 = u32::MAX;

/// From the ids of foreign files to rows of the gene table.
#[derive(Debug)]
enum IdMap {
    Table(Vec<u32>),
    Map(HashMap<i64, u32>),
}

impl IdMap {
    fn new(ids: &[i64]) -> Self {
        if ids.iter().all(|id| (0..TABLE_IDS).contains(id)) {
            let mut table = vec![NO_GENE; ids.iter().max().map_or(0, |&id| id as usize + 1)];
            for (gene, &id) in (0..).zip(ids) {
                table[id as usize] = gene;
            }
            return Self::Table(table);
        }
        Self::Map(ids.iter().copied().zip(0..).collect())
    }
}

/// Takes cells out of the record batches of a corpus.
#[derive(Debug)]
pub(super) struct Decoder {
    layout: Layout,
    ids: Option<IdMap>,
    kind: ValueKind,
    n_genes: u32,
}

impl Decoder {
    pub(super) fn new(layout: &Layout, kind: ValueKind, n_genes: u32) -> Self {
        let ids = match layout {
            Layout::Foreign(foreign) => foreign.gene_ids.as_deref().map(IdMap::new),
            Layout::List | Layout::Packed => None,
        };
        Self {
            layout: layout.clone(),
            ids,
            kind,
            n_genes,
        }
    }

    /// The columns that it needs, in this order.
    pub(super) fn columns(&self) -> [&str; 2] {
        match &self.layout {
            Layout::List | Layout::Packed => ["genes", "values"],
            Layout::Foreign(foreign) => [&foreign.genes, &foreign.values],
        }
    }

    /// Hands the `chosen` rows of a batch of these columns to `each`, in order.
    pub(super) fn cells(
        &self,
        batch: &RecordBatch,
        chosen: impl Iterator<Item = usize>,
        buffer: &mut CellBuffer,
        mut each: impl FnMut(Decoded<'_>),
    ) -> Result<(), String> {
        let [genes_name, values_name] = self.columns();
        if matches!(self.layout, Layout::Packed) {
            let genes = bytes_of(batch.column(0), genes_name)?;
            let values = bytes_of(batch.column(1), values_name)?;
            for row in chosen {
                each(Decoded::Packed(genes.value(row), values.value(row)));
            }
            return Ok(());
        }
        let (gene_rows, gene_items) = list_of(batch.column(0), genes_name)?;
        let (value_rows, value_items) = list_of(batch.column(1), values_name)?;
        let lists = Lists {
            gene_rows,
            ids: Ids::new(gene_items, genes_name)?,
            value_rows,
            numbers: Numbers::new(value_items, values_name)?,
        };
        self.lists(&lists, chosen, buffer, each);
        Ok(())
    }

    /// Hands the `chosen` rows of two columns of lists to `each`, in order.
    pub(super) fn lists(
        &self,
        lists: &Lists<'_>,
        chosen: impl Iterator<Item = usize>,
        buffer: &mut CellBuffer,
        mut each: impl FnMut(Decoded<'_>),
    ) {
        let own = !matches!(self.layout, Layout::Foreign(_));
        for row in chosen {
            let (genes, values) = (lists.gene_rows.range(row), lists.value_rows.range(row));
            if genes.len() != values.len() {
                let (genes, values) = (genes.len(), values.len());
                each(Decoded::Fault(format!(
                    "lists {genes} genes but {values} values"
                )));
                continue;
            }
            let done = match (&self.layout, &lists.ids, &lists.numbers) {
                (_, Ids::U32(ids), Numbers::F32(numbers)) if own => {
                    // As cells want them already.
                    let (ids, numbers) = (&ids[genes], &numbers[values]);
                    match self.check(ids, numbers) {
                        Ok(()) => each(Decoded::Lists(ids, numbers)),
                        Err(problem) => each(Decoded::Fault(problem)),
                    }
                    continue;
                }
                (Layout::Foreign(foreign), ids, numbers) => {
                    self.foreign_cell(foreign, ids, numbers, genes, values, buffer)
                }
                (_, ids, numbers) => self.list_cell(ids, numbers, genes, values, buffer),
            };
            match done {
                Ok(()) => each(Decoded::Lists(&buffer.genes, &buffer.values)),
                Err(problem) => each(Decoded::Fault(problem)),
            }
        }
    }

    fn list_cell(
        &self,
        ids: &Ids<'_>,
        numbers: &Numbers<'_>,
        genes: Range<usize>,
        values: Range<usize>,
        out: &mut CellBuffer,
    ) -> Result<(), String> {
        ids.copy(genes, &mut out.genes)?;
        numbers.copy(values, &mut out.values);
        self.check(&out.genes, &out.values)
    }

    fn foreign_cell(
        &self,
        foreign: &ForeignLayout,
        ids: &Ids<'_>,
        numbers: &Numbers<'_>,
        genes: Range<usize>,
        values: Range<usize>,
        out: &mut CellBuffer,
    ) -> Result<(), String> {
        numbers.copy(values, &mut out.values);
        let head = if foreign.drop_negative_head {
            out.values.iter().take_while(|value| **value < 0.0).count()
        } else {
            0
        };
        out.values.drain(..head);
        let ids_of = genes.start + head..genes.end;
        if let Some(map) = &self.ids {
            match map {
                IdMap::Table(table) => ids.map(ids_of.clone(), &mut out.genes, |id| {
                    // Negative ids are beyond any table.
                    table.get(id as u64 as usize).copied().unwrap_or(NO_GENE)
                }),
                IdMap::Map(map) => ids.map(ids_of.clone(), &mut out.genes, |id| {
                    map.get(&id).copied().unwrap_or(NO_GENE)
                }),
            }
        } else if foreign.drop_unknown {
            ids.map(ids_of.clone(), &mut out.genes, |id| {
                let gene = u32::try_from(id).ok().filter(|&gene| gene < self.n_genes);
                gene.unwrap_or(NO_GENE)
            });
        } else {
            ids.copy(ids_of.clone(), &mut out.genes)?;
        }
        if out.genes.contains(&NO_GENE) {
            if !foreign.drop_unknown {
                let place = out.genes.iter().position(|&gene| gene == NO_GENE);
                let id = ids.get(ids_of.start + place.unwrap_or(0));
                return Err(format!("has gene id {id}, which the gene table lacks"));
            }
            drop_unknown(out);
        }
        if foreign.sum_duplicates && !strictly_ascending(&out.genes) {
            sort_and_sum(out);
        }
        self.check(&out.genes, &out.values)
    }

    /// Checks a cell: genes strictly ascending and in range, values that can be.
    fn check(&self, genes: &[u32], values: &[f32]) -> Result<(), String> {
        if !strictly_ascending(genes) {
            let pair = genes.windows(2).find(|pair| pair[0] >= pair[1]);
            let pair = pair.unwrap_or_default();
            return Err(format!(
                "gene index {} follows {}, expected strictly ascending",
                pair[1], pair[0]
            ));
        }
        if let Some(gene) = genes.last().filter(|&&gene| gene >= self.n_genes) {
            return Err(format!(
                "has gene index {gene}, but the gene table has {} genes",
                self.n_genes
            ));
        }
        let counts = self.kind == ValueKind::Counts;
        // To the end, without a branch, and without a conversion, which takes several instructions.
        let usual = |v: f32| v > 0.0 && v < f32::INFINITY && (!counts || is_small_whole(v));
        if values.iter().fold(0, |odd, &v| odd | u8::from(!usual(v))) == 0 {
            return Ok(());
        }
        let good = |v: f32| v > 0.0 && v < f32::INFINITY && (!counts || v.fract() == 0.0);
        if values.iter().all(|&v| good(v)) {
            return Ok(());
        }
        let place = values.iter().position(|&v| !good(v)).unwrap_or(0);
        let expected = if counts {
            "positive and whole"
        } else {
            "finite and positive"
        };
        Err(format!(
            "gene index {} has value `{}`, expected {expected}",
            genes[place], values[place]
        ))
    }
}

/// Whether a positive number is whole and below 2^23, from where on all are: adding 2^23 leaves no room
/// for a fraction.
#[inline]
fn is_small_whole(value: f32) -> bool {
    const LIMIT: f32 = 8_388_608.0;
    value < LIMIT && (value + LIMIT) - LIMIT == value
}

fn strictly_ascending(genes: &[u32]) -> bool {
    let pairs = genes.iter().zip(genes.get(1..).unwrap_or_default());
    // To the end, without a branch: such a loop runs on several genes at once.
    pairs.fold(0, |falls, (a, b)| falls | u8::from(a >= b)) == 0
}

/// Leaves out the entries without a gene.
fn drop_unknown(cell: &mut CellBuffer) {
    let mut genes = cell.genes.iter();
    cell.values
        .retain(|_| genes.next().is_some_and(|&gene| gene != NO_GENE));
    cell.genes.retain(|&gene| gene != NO_GENE);
}

/// Sorts the genes of a cell; the values of a gene that comes more than once are summed.
fn sort_and_sum(cell: &mut CellBuffer) {
    let mut pairs: Vec<(u32, f32)> = (cell.genes.iter().copied())
        .zip(cell.values.iter().copied())
        .collect();
    pairs.sort_by_key(|pair| pair.0);
    cell.genes.clear();
    cell.values.clear();
    for (gene, value) in pairs {
        match cell.values.last_mut() {
            Some(sum) if cell.genes.last() == Some(&gene) => *sum += value,
            _ => {
                cell.genes.push(gene);
                cell.values.push(value);
            }
        }
    }
}

fn bytes_of<'a>(
    array: &'a ArrayRef,
    column: &str,
) -> Result<&'a arrow::array::BinaryArray, String> {
    let found = array.as_binary_opt::<i32>().ok_or_else(|| {
        format!(
            "column `{column}` is {}, expected binary",
            array.data_type()
        )
    })?;
    if found.null_count() > 0 {
        return Err(format!("column `{column}` has missing entries"));
    }
    Ok(found)
}

/// Two columns of lists: the genes and the values of some rows.
pub(super) struct Lists<'a> {
    pub(super) gene_rows: Rows<'a>,
    pub(super) ids: Ids<'a>,
    pub(super) value_rows: Rows<'a>,
    pub(super) numbers: Numbers<'a>,
}

/// Where the entries of each row lie.
pub(super) enum Rows<'a> {
    /// Where rows begin, and where the last one ends.
    Narrow(&'a [i32]),
    /// The same.
    Wide(&'a [i64]),
    /// Where rows begin; the end of the last one.
    Starts(&'a [usize], usize),
}

impl Rows<'_> {
    fn range(&self, row: usize) -> Range<usize> {
        match self {
            Self::Narrow(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Self::Wide(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Self::Starts(starts, end) => starts[row]..starts.get(row + 1).copied().unwrap_or(*end),
        }
    }
}

fn list_of<'a>(array: &'a ArrayRef, column: &str) -> Result<(Rows<'a>, &'a ArrayRef), String> {
    let (rows, items) = if let Some(list) = array.as_list_opt::<i32>() {
        (Rows::Narrow(list.value_offsets()), list.values())
    } else if let Some(list) = array.as_list_opt::<i64>() {
        (Rows::Wide(list.value_offsets()), list.values())
    } else {
        return Err(format!(
            "column `{column}` is {}, expected a list",
            array.data_type()
        ));
    };
    if array.null_count() + items.null_count() > 0 {
        return Err(format!("column `{column}` has missing entries"));
    }
    Ok((rows, items))
}

fn slice<T: ArrowPrimitiveType>(array: &ArrayRef) -> &[T::Native] {
    array.as_primitive::<T>().values()
}

/// The gene ids of a batch, of any integer type.
pub(super) enum Ids<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
    I32(&'a [i32]),
    I64(&'a [i64]),
}

impl<'a> From<&'a [u32]> for Ids<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::U32(ids)
    }
}

impl<'a> From<&'a [i64]> for Ids<'a> {
    fn from(ids: &'a [i64]) -> Self {
        Self::I64(ids)
    }
}

impl<'a> Ids<'a> {
    fn new(array: &'a ArrayRef, column: &str) -> Result<Self, String> {
        Ok(match array.data_type() {
            DataType::UInt16 => Self::U16(slice::<UInt16Type>(array)),
            DataType::UInt32 => Self::U32(slice::<UInt32Type>(array)),
            DataType::Int32 => Self::I32(slice::<Int32Type>(array)),
            DataType::Int64 => Self::I64(slice::<Int64Type>(array)),
            other => {
                return Err(format!(
                    "column `{column}` lists {other}, expected integers"
                ));
            }
        })
    }

    /// Copies ids that are gene indices.
    fn copy(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), String> {
        out.clear();
        match self {
            Self::U16(ids) => out.extend(ids[range].iter().map(|&id| u32::from(id))),
            Self::U32(ids) => out.extend_from_slice(&ids[range]),
            Self::I32(ids) => copy_signed(ids[range].iter().map(|&id| i64::from(id)), out)?,
            Self::I64(ids) => copy_signed(ids[range].iter().copied(), out)?,
        }
        Ok(())
    }

    /// Copies what ids stand for.
    fn map(&self, range: Range<usize>, out: &mut Vec<u32>, gene: impl Fn(i64) -> u32) {
        out.clear();
        match self {
            Self::U16(ids) => out.extend(ids[range].iter().map(|&id| gene(i64::from(id)))),
            Self::U32(ids) => out.extend(ids[range].iter().map(|&id| gene(i64::from(id)))),
            Self::I32(ids) => out.extend(ids[range].iter().map(|&id| gene(i64::from(id)))),
            Self::I64(ids) => out.extend(ids[range].iter().map(|&id| gene(id))),
        }
    }

    fn get(&self, place: usize) -> i64 {
        match self {
            Self::U16(ids) => i64::from(ids[place]),
            Self::U32(ids) => i64::from(ids[place]),
            Self::I32(ids) => i64::from(ids[place]),
            Self::I64(ids) => ids[place],
        }
    }
}

fn copy_signed(ids: impl Iterator<Item = i64> + Clone, out: &mut Vec<u32>) -> Result<(), String> {
    out.extend(ids.clone().map(|id| id as u32));
    match ids.into_iter().find(|id| u32::try_from(*id).is_err()) {
        Some(id) => Err(format!("has gene index {id}, expected a positive one")),
        None => Ok(()),
    }
}

/// The values of a batch, of any type of numbers.
pub(super) enum Numbers<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F16(&'a [<Float16Type as ArrowPrimitiveType>::Native]),
    F32(&'a [f32]),
    F64(&'a [f64]),
}

impl<'a> Numbers<'a> {
    fn new(array: &'a ArrayRef, column: &str) -> Result<Self, String> {
        Ok(match array.data_type() {
            DataType::UInt16 => Self::U16(slice::<UInt16Type>(array)),
            DataType::UInt32 => Self::U32(slice::<UInt32Type>(array)),
            DataType::Int32 => Self::I32(slice::<Int32Type>(array)),
            DataType::Int64 => Self::I64(slice::<Int64Type>(array)),
            DataType::Float16 => Self::F16(slice::<Float16Type>(array)),
            DataType::Float32 => Self::F32(slice::<Float32Type>(array)),
            DataType::Float64 => Self::F64(slice::<Float64Type>(array)),
            other => return Err(format!("column `{column}` lists {other}, expected numbers")),
        })
    }

    fn copy(&self, range: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        match self {
            Self::U16(v) => out.extend(v[range].iter().map(|&v| f32::from(v))),
            Self::U32(v) => out.extend(v[range].iter().map(|&v| v as f32)),
            Self::I32(v) => out.extend(v[range].iter().map(|&v| v as f32)),
            Self::I64(v) => out.extend(v[range].iter().map(|&v| v as f32)),
            Self::F16(v) => out.extend(v[range].iter().map(|&v| v.to_f32())),
            Self::F32(v) => out.extend_from_slice(&v[range]),
            Self::F64(v) => out.extend(v[range].iter().map(|&v| v as f32)),
        }
    }
}
