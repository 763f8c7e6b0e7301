//! Cells as bytes, each by itself, so that they can be put into another order on the disk.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Float32Array, Float64Array, Int32Array, StringArray,
};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type};

use crate::corpus::{CellBatch, CellValues, ValueKind};
use crate::{Error, Result};

/// Bytes before what a record holds: its length, its key, the number of its cell.
pub(super) const HEAD: usize = 20;
/// Stands for a missing text.
const MISSING: u32 = u32::MAX;

/// What is the same in all records.
pub(super) struct Shape {
    pub(super) kind: ValueKind,
    /// The type of each obs column; categories are stored as codes.
    pub(super) types: Vec<DataType>,
    /// The categories of each obs column, once a cell has been seen.
    dictionaries: Vec<Option<ArrayRef>>,
}

impl Shape {
    pub(super) fn new(kind: ValueKind, types: Vec<DataType>) -> Self {
        Self {
            dictionaries: vec![None; types.len()],
            kind,
            types,
        }
    }

    /// Remembers the categories.
    pub(super) fn learn(&mut self, batch: &CellBatch) {
        for (known, array) in self.dictionaries.iter_mut().zip(&batch.obs) {
            if known.is_none() {
                *known = array
                    .as_dictionary_opt::<Int32Type>()
                    .map(|d| d.values().clone());
            }
        }
    }

    /// Appends one cell.
    pub(super) fn write(
        &self,
        batch: &CellBatch,
        row: usize,
        (key, cell): (u64, u64),
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let begin = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&key.to_le_bytes());
        out.extend_from_slice(&cell.to_le_bytes());
        put_text(out, &batch.cell_ids[row]);
        let span = batch.offsets[row] as usize..batch.offsets[row + 1] as usize;
        put_u32(out, span.len() as u32);
        put_numbers(out, batch.genes[span.clone()].iter().copied());
        match &batch.values {
            CellValues::Counts(v) => put_numbers(out, v[span].iter().copied()),
            CellValues::Lognorm(v) => put_numbers(out, v[span].iter().map(|v| v.to_bits())),
        }
        for (array, data_type) in batch.obs.iter().zip(&self.types) {
            put_value(out, array, row, data_type)?;
        }
        let length = u32::try_from(out.len() - begin)
            .map_err(|_| Error::internal("a cell of more than 4 GB"))?;
        out[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Cells from records without their heads.
    pub(super) fn read<'a>(&self, records: impl Iterator<Item = &'a [u8]>) -> Option<CellBatch> {
        let mut ids = Vec::new();
        let (mut offsets, mut genes) = (vec![0], Vec::new());
        let mut values = Vec::new();
        let mut columns: Vec<Builder> = self.types.iter().map(Builder::new).collect();
        for record in records {
            let mut bytes = Bytes(record);
            ids.push(bytes.text()?.0?.to_owned());
            let n = bytes.u32()? as usize;
            bytes.numbers(n, &mut genes)?;
            bytes.numbers(n, &mut values)?;
            offsets.push(genes.len() as i32);
            for column in &mut columns {
                column.read(&mut bytes)?;
            }
        }
        let values = match self.kind {
            ValueKind::Counts => CellValues::Counts(values),
            ValueKind::Lognorm => {
                CellValues::Lognorm(values.into_iter().map(f32::from_bits).collect())
            }
        };
        let obs = columns.into_iter().zip(&self.dictionaries);
        let obs: Option<Vec<ArrayRef>> = obs.map(|(c, names)| c.finish(names.as_ref())).collect();
        Some(CellBatch {
            cell_ids: ids,
            offsets,
            genes,
            values,
            obs: obs?,
        })
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

/// Numbers in as many bytes as the largest needs: nearly all counts need one, nearly all genes two.
fn put_numbers(out: &mut Vec<u8>, values: impl Iterator<Item = u32> + Clone) {
    let all = values.clone().fold(0, |all, v| all | v);
    if all <= 0xff {
        out.push(1);
        out.extend(values.map(|v| v as u8));
    } else if all <= 0xffff {
        out.push(2);
        out.extend(values.flat_map(|v| (v as u16).to_le_bytes()));
    } else {
        out.push(4);
        out.extend(values.flat_map(u32::to_le_bytes));
    }
}

fn put_value(out: &mut Vec<u8>, array: &ArrayRef, row: usize, data_type: &DataType) -> Result<()> {
    let missing = array.is_null(row);
    let fail = || {
        Error::internal(format!(
            "an obs column is {}, not {data_type}",
            array.data_type()
        ))
    };
    match data_type {
        DataType::Utf8 => {
            let texts = array.as_string_opt::<i32>().ok_or_else(fail)?;
            if missing {
                put_u32(out, MISSING);
            } else {
                put_text(out, texts.value(row));
            }
        }
        // A missing number is NaN on disk: a number that is NaN counts as missing all over.
        DataType::Float32 => {
            let numbers = array.as_primitive_opt::<Float32Type>().ok_or_else(fail)?;
            let number = if missing {
                f32::NAN
            } else {
                numbers.value(row)
            };
            out.extend_from_slice(&number.to_le_bytes());
        }
        DataType::Float64 => {
            let numbers = array.as_primitive_opt::<Float64Type>().ok_or_else(fail)?;
            let number = if missing {
                f64::NAN
            } else {
                numbers.value(row)
            };
            out.extend_from_slice(&number.to_le_bytes());
        }
        _ => {
            let codes = array.as_dictionary_opt::<Int32Type>().ok_or_else(fail)?;
            let code = if missing { -1 } else { codes.keys().value(row) };
            out.extend_from_slice(&code.to_le_bytes());
        }
    }
    Ok(())
}

/// A text, which may be missing.
struct Text<'a>(Option<&'a str>);

/// The rest of a record.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(n)?;
        self.0 = later;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<Text<'a>> {
        match self.u32()? {
            MISSING => Some(Text(None)),
            length => {
                let text = std::str::from_utf8(self.take(length as usize)?).ok();
                text.map(|text| Text(Some(text)))
            }
        }
    }

    fn numbers(&mut self, n: usize, out: &mut Vec<u32>) -> Option<()> {
        let [width] = self.array()?;
        let bytes = self.take(n * usize::from(width))?;
        match width {
            1 => out.extend(bytes.iter().map(|&b| u32::from(b))),
            2 => out.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&b| u32::from(u16::from_le_bytes(b))),
            ),
            _ => out.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&b| u32::from_le_bytes(b)),
            ),
        }
        Some(())
    }
}

/// Values of one obs column.
enum Builder {
    Texts(Vec<Option<String>>),
    Singles(Vec<Option<f32>>),
    Doubles(Vec<Option<f64>>),
    Codes(Vec<Option<i32>>),
}

impl Builder {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Utf8 => Self::Texts(Vec::new()),
            DataType::Float32 => Self::Singles(Vec::new()),
            DataType::Float64 => Self::Doubles(Vec::new()),
            _ => Self::Codes(Vec::new()),
        }
    }

    fn read(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match self {
            Self::Texts(texts) => texts.push(bytes.text()?.0.map(str::to_owned)),
            Self::Singles(numbers) => {
                let number = f32::from_le_bytes(bytes.array()?);
                numbers.push((!number.is_nan()).then_some(number));
            }
            Self::Doubles(numbers) => {
                let number = f64::from_le_bytes(bytes.array()?);
                numbers.push((!number.is_nan()).then_some(number));
            }
            Self::Codes(codes) => {
                let code = i32::from_le_bytes(bytes.array()?);
                codes.push((code >= 0).then_some(code));
            }
        }
        Some(())
    }

    fn finish(self, names: Option<&ArrayRef>) -> Option<ArrayRef> {
        Some(match self {
            Self::Texts(texts) => Arc::new(StringArray::from(texts)),
            Self::Singles(numbers) => Arc::new(Float32Array::from(numbers)),
            Self::Doubles(numbers) => Arc::new(Float64Array::from(numbers)),
            Self::Codes(codes) => {
                let keys = Int32Array::from(codes);
                Arc::new(DictionaryArray::<Int32Type>::try_new(keys, names?.clone()).ok()?)
            }
        })
    }
}
