//! The obs columns of foreign files, and their categories.
//!
//! Most text columns are stored with dictionaries: where a footer says that all pages use them, only the
//! dictionary is fetched, otherwise the column is read.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use indexmap::IndexMap;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use serde_json::{Value, json};

use super::shards::lock;
use super::table::is_text;
use super::{IndexOptions, no_column};
use crate::corpus::{Chunks, Lookup, ObsColumn, ObsKind, within};
use crate::storage::{Batches, Listed, Storage, guarded};
use crate::{Error, Result};

/// A text column with more distinct values is free text.
const MOST_CATEGORIES: usize = 10_000;
/// Bytes of column chunks that one thread holds at a time, unless a single one is larger.
const HELD: u64 = 16 << 20;
/// Rows decoded at a time.
const BATCH: usize = 8192;

/// An obs column that is kept.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    name: String,
    source: String,
    text: bool,
}

/// The distinct values of a column so far; `None` once they are too many.
#[derive(Debug)]
pub(super) struct Categories(Option<BTreeSet<String>>);

impl Default for Categories {
    fn default() -> Self {
        Self(Some(BTreeSet::new()))
    }
}

/// An obs column with what was found in it: its categories, or `None` for free text.
#[derive(Debug)]
pub(super) struct Found {
    chosen: Chosen,
    categories: Option<BTreeSet<String>>,
}

/// The obs columns to keep: those asked for, or all of text and numbers.
pub(super) fn choose(
    path: &Path,
    schema: &Schema,
    options: &IndexOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Chosen>> {
    let layout = &options.columns;
    let taken = |name: &str| {
        name == layout.genes || name == layout.values || layout.cell_id.as_deref() == Some(name)
    };
    let chosen = |name: &str, source: &str, data_type: &DataType| {
        (is_text(data_type) || data_type.is_numeric()).then(|| Chosen {
            name: name.to_owned(),
            source: source.to_owned(),
            text: is_text(data_type),
        })
    };
    let Some(wanted) = &options.obs else {
        let mut all = Vec::new();
        for field in schema.fields().iter().filter(|f| !taken(f.name())) {
            match chosen(field.name(), field.name(), field.data_type()) {
                Some(column) => all.push(column),
                None => notes.push(format!(
                    "column `{}` is left out: it is {}",
                    field.name(),
                    field.data_type()
                )),
            }
        }
        return Ok(all);
    };
    let mut all: Vec<Chosen> = Vec::new();
    for (name, source) in wanted {
        let field = schema.field_with_name(source).map_err(|_| {
            let present: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
            no_column(path, "--obs", source, &present)
        })?;
        if all.iter().any(|column| column.name == *name) {
            return Err(Error::options(format!("--obs names `{name}` twice"), ""));
        }
        let found = field.data_type();
        all.push(chosen(name, source, found).ok_or_else(|| {
            let place = format!("column `{source}`");
            Error::corpus(path, place, format!("is {found}, expected text or numbers"))
        })?);
    }
    Ok(all)
}

/// What to read of a text column in a row group.
struct Part<'a> {
    column: usize,
    group: usize,
    leaf: usize,
    chunk: &'a ColumnChunkMetaData,
    range: Range<u64>,
    dictionary: bool,
}

/// Adds the values of a file to the categories of the text columns.
pub(super) fn collect(
    storage: &Storage,
    file: &Listed,
    footer: &ArrowReaderMetadata,
    chosen: &[Chosen],
    sets: &[Mutex<Categories>],
) -> Result<()> {
    let mut found: Vec<BTreeSet<String>> = vec![BTreeSet::new(); chosen.len()];
    let mut parts = Vec::new();
    let mut held = 0;
    for group in 0..footer.metadata().num_row_groups() {
        for (column, of) in chosen.iter().enumerate().filter(|(_, c)| c.text) {
            if found[column].len() > MOST_CATEGORIES || lock(&sets[column]).0.is_none() {
                continue;
            }
            let part = part(storage, file, footer, column, &of.source, group, true)?;
            held += part.range.end - part.range.start;
            parts.push(part);
        }
        if held > HELD || group + 1 == footer.metadata().num_row_groups() {
            read(storage, file, footer, &parts, &mut |column, value| {
                // Nearly always the value is known.
                if !found[column].contains(value) && found[column].len() <= MOST_CATEGORIES {
                    found[column].insert(value.to_owned());
                }
            })?;
            parts.clear();
            held = 0;
        }
    }
    for (set, found) in sets.iter().zip(found) {
        let mut set = lock(set);
        if let Some(all) = &mut set.0 {
            all.extend(found);
            if all.len() > MOST_CATEGORIES {
                set.0 = None;
            }
        }
    }
    Ok(())
}

/// Runs over the values of one text column in all rows of a file.
pub(super) fn scan(
    storage: &Storage,
    file: &Listed,
    footer: &ArrowReaderMetadata,
    source: &str,
    visit: &mut dyn FnMut(&str),
) -> Result<()> {
    for group in 0..footer.metadata().num_row_groups() {
        let part = part(storage, file, footer, 0, source, group, false)?;
        read(storage, file, footer, &[part], &mut |_, value| visit(value))?;
    }
    Ok(())
}

fn part<'a>(
    storage: &Storage,
    file: &Listed,
    footer: &'a ArrowReaderMetadata,
    column: usize,
    source: &str,
    group: usize,
    may_skip: bool,
) -> Result<Part<'a>> {
    let fail = |problem: String| {
        let place = format!("row group {group}, column `{source}`");
        Error::corpus(&storage.path(&file.name), place, problem)
    };
    let leaves = footer.parquet_schema().columns().iter();
    let leaf = leaves
        .enumerate()
        .find(|(_, leaf)| leaf.path().parts()[0] == source)
        .map(|(leaf, _)| leaf)
        .ok_or_else(|| fail("is missing".into()))?;
    let chunk = footer.metadata().row_group(group).column(leaf);
    let data = chunk.data_page_offset();
    let dictionary = chunk.dictionary_page_offset().filter(|&d| d < data);
    let start = dictionary.unwrap_or(data);
    let only = may_skip && dictionary.is_some() && all_dictionary(chunk);
    let end = if only {
        Some(data)
    } else {
        start.checked_add(chunk.compressed_size())
    };
    let range =
        within(start, end, file.bytes).ok_or_else(|| fail("lies outside of the file".into()))?;
    Ok(Part {
        column,
        group,
        leaf,
        chunk,
        range,
        dictionary: only,
    })
}

/// Whether the footer says that all data pages refer to the dictionary.
fn all_dictionary(chunk: &ColumnChunkMetaData) -> bool {
    let dictionary = [Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY];
    if let Some(mask) = chunk.page_encoding_stats_mask() {
        let mut encodings = mask.encodings().peekable();
        return encodings.peek().is_some() && encodings.all(|e| dictionary.contains(&e));
    }
    chunk.page_encoding_stats().is_some_and(|stats| {
        let mut pages = stats
            .iter()
            .filter(|s| s.page_type != parquet::basic::PageType::DICTIONARY_PAGE)
            .peekable();
        pages.peek().is_some() && pages.all(|s| dictionary.contains(&s.encoding))
    })
}

fn read(
    storage: &Storage,
    file: &Listed,
    footer: &ArrowReaderMetadata,
    parts: &[Part<'_>],
    visit: &mut dyn FnMut(usize, &str),
) -> Result<()> {
    let ranges: Vec<Range<u64>> = parts.iter().map(|part| part.range.clone()).collect();
    let fetched = storage.fetch(&file.name, &ranges)?;
    for (part, bytes) in parts.iter().zip(fetched) {
        let chunks = Chunks::new(file.bytes, vec![(part.range.clone(), bytes)]);
        let rows = footer.metadata().row_group(part.group).num_rows() as usize;
        let done = if part.dictionary {
            dictionary(chunks, part.chunk, rows, &mut |value| {
                visit(part.column, value);
            })
        } else {
            rows_of(chunks, footer, part, &mut |value| visit(part.column, value))
        };
        done.map_err(|problem| {
            let place = format!(
                "row group {}, column `{}`",
                part.group,
                part.chunk.column_path()
            );
            Error::corpus(&storage.path(&file.name), place, problem)
        })?;
    }
    Ok(())
}

/// The values of a dictionary page: each is its length in four bytes, and its bytes.
fn dictionary(
    chunks: Chunks,
    chunk: &ColumnChunkMetaData,
    rows: usize,
    visit: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let page = guarded(|| {
        SerializedPageReader::new(Arc::new(chunks), chunk, rows, None)
            .and_then(|mut pages| pages.get_next_page())
    })?;
    let Some(Page::DictionaryPage {
        buf, num_values, ..
    }) = page
    else {
        return Err("does not begin with a dictionary".into());
    };
    let mut rest: Bytes = buf;
    for _ in 0..num_values {
        let cut = "the dictionary is cut off";
        let (length, _) = rest.split_first_chunk::<4>().ok_or(cut)?;
        let end = (u32::from_le_bytes(*length) as usize).saturating_add(4);
        let value = rest.get(4..end).ok_or(cut)?;
        visit(std::str::from_utf8(value).map_err(|e| format!("a value is not UTF-8: {e}"))?);
        rest = rest.slice(end..);
    }
    Ok(())
}

fn rows_of(
    chunks: Chunks,
    footer: &ArrowReaderMetadata,
    part: &Part<'_>,
    visit: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let mask = ProjectionMask::leaves(footer.parquet_schema(), [part.leaf]);
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer.clone())
        .with_row_groups(vec![part.group])
        .with_projection(mask)
        .with_batch_size(BATCH);
    for batch in Batches::new(builder)? {
        let batch = batch?;
        let texts = cast(batch.column(0), &DataType::Utf8).map_err(|e| e.to_string())?;
        let texts = texts.as_string_opt::<i32>().ok_or("is not text")?;
        texts.iter().flatten().for_each(&mut *visit);
    }
    Ok(())
}

/// Puts the categories to their columns.
pub(super) fn finish(
    chosen: Vec<Chosen>,
    sets: Vec<Mutex<Categories>>,
    notes: &mut Vec<String>,
) -> Vec<Found> {
    let sets = sets
        .into_iter()
        .map(|set| std::mem::take(&mut *lock(&set)).0);
    let found = chosen.into_iter().zip(sets).map(|(chosen, categories)| {
        if chosen.text && categories.is_none() {
            notes.push(format!(
                "column `{}` has more than {MOST_CATEGORIES} distinct values: it is kept as free text",
                chosen.source
            ));
        }
        Found { chosen, categories }
    });
    found.collect()
}

/// The obs columns as the manifest holds them.
pub(super) fn manifest_columns(
    found: Vec<Found>,
    options: &IndexOptions,
    notes: &mut Vec<String>,
) -> Vec<ObsColumn> {
    let layout = &options.columns;
    let column = |found: Found| {
        let Chosen { name, source, text } = found.chosen;
        let kind = match (&found.categories, text) {
            (_, false) => ObsKind::Number,
            (Some(_), true) => ObsKind::Category,
            (None, true) => ObsKind::String,
        };
        let categories: Vec<String> = match kind {
            ObsKind::Category => found.categories.unwrap_or_default().into_iter().collect(),
            _ => Vec::new(),
        };
        let mut column = ObsColumn::new(name, kind, categories);
        if kind == ObsKind::Category && layout.numbers_in_text.contains(&source) {
            match numbers(&column.categories) {
                Ok(values) => {
                    column.lookup = Some(Lookup {
                        column: source,
                        values,
                    });
                    column.kind = ObsKind::Number;
                    column.categories.clear();
                    return column;
                }
                Err(text) => notes.push(format!(
                    "column `{source}` is kept as categories: `{text}` is no number"
                )),
            }
        } else if kind == ObsKind::Category
            && layout.empty_is_missing.contains(&source)
            && column.categories.iter().any(|c| is_missing(c))
        {
            column.categories.retain(|category| !is_missing(category));
            let same = column.categories.iter().map(|c| (c.clone(), json!(c)));
            let values = same.collect();
            column.lookup = Some(Lookup {
                column: source,
                values,
            });
            return column;
        }
        column.source = (column.name != source).then_some(source);
        column
    };
    found.into_iter().map(column).collect()
}

/// Texts that stand for no value.
pub(super) fn is_missing(text: &str) -> bool {
    matches!(
        text.trim().to_ascii_lowercase().as_str(),
        "" | "nan" | "none"
    )
}

/// What each text is as a number; those that stand for no value are left out. An error is the first text
/// that is none.
fn numbers(texts: &[String]) -> Result<IndexMap<String, Value>, String> {
    let present = texts.iter().filter(|text| !is_missing(text));
    present
        .map(|text| match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok((text.clone(), json!(number))),
            _ => Err(text.clone()),
        })
        .collect()
}
