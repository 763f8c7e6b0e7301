//! Columns of lists of numbers, taken out of Parquet pages without a detour.
//!
//! A cell is two lists of about the same length, and reading is most of what a loader does. A reader for
//! any schema makes arrays of levels, of places and of numbers, and copies them into arrays of lists. Here
//! rows come from the runs of levels, which are few, and numbers from the page to the buffer that cells
//! are cut from, in the type that a cell wants. Pages are still found, checked and decompressed by the
//! `parquet` crate.
//!
//! Only what files of cells usually hold is read here: lists of integers or floats that are not missing,
//! plain, by dictionary, or as differences. [`ListColumn::open`] says so beforehand. Whoever meets an error
//! reads the row group again with the general reader, whose word counts.

mod hybrid;
mod levels;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::chunks::Chunks;
use crate::storage::guarded;
use hybrid::{breaks_off, take};
use levels::{Levels, Shape};
use values::{Converted, Items};

/// More entries than any writer puts into a page: a damaged one may announce billions.
const MOST_ENTRIES: u32 = 1 << 26;

/// A row group whose columns are in memory.
pub(super) struct Group<'a> {
    pub(super) chunks: Arc<Chunks>,
    pub(super) footer: &'a ArrowReaderMetadata,
    /// Its number in the file.
    pub(super) index: usize,
    pub(super) rows: usize,
}

/// One column of a row group.
pub(super) struct ListColumn<O> {
    pages: SerializedPageReader<Chunks>,
    items: Box<dyn Items<O>>,
    shape: Shape,
    /// Where each row begins in `buffer`. The last one goes on until the next one begins.
    starts: Vec<usize>,
    buffer: Vec<O>,
    /// The first so many rows are done with.
    consumed: usize,
    /// Rows that are still to begin.
    to_come: usize,
    ended: bool,
}

/// Makes the reader of a column, or none when its numbers are of another kind.
pub(super) type Choice<O> = fn(Type, &DataType) -> Option<Box<dyn Items<O>>>;

/// Gene indices without a sign.
pub(super) fn unsigned(physical: Type, logical: &DataType) -> Option<Box<dyn Items<u32>>> {
    match (physical, logical) {
        (Type::INT32, DataType::UInt16 | DataType::UInt32) => {
            Some(Box::new(Converted::new(|id: i32| id as u32)))
        }
        _ => None,
    }
}

/// Gene ids that may be anything.
pub(super) fn signed(physical: Type, logical: &DataType) -> Option<Box<dyn Items<i64>>> {
    match (physical, logical) {
        (Type::INT32, DataType::Int32) => Some(Box::new(Converted::new(|id: i32| i64::from(id)))),
        (Type::INT64, DataType::Int64) => Some(Box::new(Converted::new(|id: i64| id))),
        _ => None,
    }
}

/// Values of genes.
pub(super) fn numbers(physical: Type, logical: &DataType) -> Option<Box<dyn Items<f32>>> {
    match (physical, logical) {
        (Type::INT32, DataType::UInt16 | DataType::UInt32) => {
            Some(Box::new(Converted::new(|v: i32| v as u32 as f32)))
        }
        (Type::INT32, DataType::Int32) => Some(Box::new(Converted::new(|v: i32| v as f32))),
        (Type::INT64, DataType::Int64) => Some(Box::new(Converted::new(|v: i64| v as f32))),
        (Type::FLOAT, DataType::Float32) => Some(Box::new(Converted::new(|v: f32| v))),
        _ => None,
    }
}

impl<O: Copy> ListColumn<O> {
    /// A column of a row group of `rows` rows, when this is the reader for it.
    pub(super) fn open(group: &Group<'_>, name: &str, choice: Choice<O>) -> Option<Self> {
        let Group {
            chunks,
            footer,
            index,
            rows,
        } = group;
        let root = footer.schema().index_of(name).ok()?;
        let (DataType::List(item) | DataType::LargeList(item)) =
            footer.schema().field(root).data_type()
        else {
            return None;
        };
        let (leaf, shape) = list_leaf(footer, root)?;
        let column = footer.metadata().row_group(*index).column(leaf);
        let items = choice(column.column_type(), item.data_type())?;
        if !encodings_are_known(column) {
            return None;
        }
        let pages = guarded(|| SerializedPageReader::new(chunks.clone(), column, *rows, None));
        Some(Self {
            pages: pages.ok()?,
            items,
            shape,
            starts: Vec::new(),
            buffer: Vec::new(),
            consumed: 0,
            to_come: *rows,
            ended: false,
        })
    }

    /// Reads pages until there is a whole row, or no page is left. Returns the number of whole rows.
    ///
    /// # Errors
    /// What is wrong with a page.
    pub(super) fn fill(&mut self) -> Result<usize, String> {
        while !self.ended && self.starts.len() - self.consumed < 2 {
            match guarded(|| self.pages.get_next_page())? {
                Some(page) => self.page(&page)?,
                None => self.ended = true,
            }
        }
        let begun = self.starts.len() - self.consumed;
        Ok(begun - usize::from(!self.ended && begun > 0))
    }

    fn page(&mut self, page: &Page) -> Result<(), String> {
        let (repetition, definition, values, encoding, entries) = match page {
            Page::DictionaryPage {
                buf, num_values, ..
            } => return self.items.keep_dictionary(buf, *num_values as usize),
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                ..
            } => {
                let mut rest = &buf[..];
                let mut levels = || {
                    let size = u32::from_le_bytes(
                        *take(&mut rest, 4)?.first_chunk().ok_or_else(breaks_off)?,
                    );
                    take(&mut rest, size as usize)
                };
                let (repetition, definition) = (levels()?, levels()?);
                (repetition, definition, rest, *encoding, *num_values)
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let mut rest = &buf[..];
                let repetition = take(&mut rest, *rep_levels_byte_len as usize)?;
                let definition = take(&mut rest, *def_levels_byte_len as usize)?;
                (repetition, definition, rest, *encoding, *num_values)
            }
            Page::DataPage { .. } => return Err("has levels that are packed bit by bit".into()),
        };
        if entries > MOST_ENTRIES {
            return Err(format!("has a page of {entries} entries"));
        }
        let levels = Levels {
            repetition,
            definition,
            entries: entries as usize,
        };
        self.compact();
        let (begun, first) = (self.starts.len(), self.buffer.len());
        let most = begun + self.to_come;
        let items = levels::rows(levels, self.shape, first, most, &mut self.starts)?;
        self.to_come -= self.starts.len() - begun;
        self.items.read(encoding, values, items, &mut self.buffer)?;
        if self.buffer.len() == first + items {
            Ok(())
        } else {
            Err(breaks_off())
        }
    }

    /// The rows that were read and are not consumed: where they begin among the items, and where the last
    /// one ends.
    pub(super) fn rows(&self) -> (&[usize], usize) {
        (&self.starts[self.consumed..], self.buffer.len())
    }

    /// The items that [`Self::rows`] points into.
    pub(super) fn items(&self) -> &[O] {
        &self.buffer
    }

    /// Is done with the next `rows` rows.
    pub(super) fn consume(&mut self, rows: usize) {
        self.consumed = (self.consumed + rows).min(self.starts.len());
    }

    /// Forgets consumed rows, when moving the others costs less than was read since.
    fn compact(&mut self) {
        let used = self.starts.get(self.consumed).copied();
        let used = used.unwrap_or(self.buffer.len());
        if used * 2 < self.buffer.len() || self.consumed == 0 {
            return;
        }
        self.buffer.drain(..used);
        self.starts.drain(..self.consumed);
        self.consumed = 0;
        for start in &mut self.starts {
            *start -= used;
        }
    }
}

/// The only leaf below a root column that is a list of numbers, and what its levels mean.
fn list_leaf(footer: &ArrowReaderMetadata, root: usize) -> Option<(usize, Shape)> {
    let schema = footer.parquet_schema();
    let mut leaves = (0..schema.num_columns()).filter(|&l| schema.get_column_root_idx(l) == root);
    let (leaf, None) = (leaves.next()?, leaves.next()) else {
        return None;
    };
    let list = schema.get_column_root(leaf);
    let column = schema.column(leaf);
    // An outer group, a repeated one and the item; what older writers left out has other levels.
    if !list.is_group() || column.path().parts().len() != 3 || column.max_rep_level() != 1 {
        return None;
    }
    let item = column.self_type();
    let empty = u32::from(list.is_optional());
    let shape = Shape {
        item: empty + 1 + u32::from(item.is_optional()),
        empty,
    };
    (u32::try_from(column.max_def_level()) == Ok(shape.item)).then_some((leaf, shape))
}

fn encodings_are_known(column: &ColumnChunkMetaData) -> bool {
    column.encodings().all(|encoding| {
        matches!(
            encoding,
            Encoding::PLAIN
                | Encoding::RLE
                | Encoding::RLE_DICTIONARY
                | Encoding::PLAIN_DICTIONARY
                | Encoding::DELTA_BINARY_PACKED
        )
    })
}
