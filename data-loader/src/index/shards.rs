//! The files: which they are, whether they are alike, and what their obs columns hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrow::datatypes::{DataType, Schema};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::file::statistics::Statistics;

use super::columns::{self, Found};
use super::genes::Genes;
use super::{IndexOptions, no_column};
use crate::corpus::Shard;
use crate::storage::{Footer, Listed, Storage};
use crate::{Error, Result};

/// Files that are looked at together: mostly they wait for a store.
const PARALLEL: usize = 8;

/// What all files have together.
pub(super) struct Survey {
    pub(super) shards: Vec<Shard>,
    pub(super) columns: Vec<Found>,
    pub(super) notes: Vec<String>,
}

/// The Parquet files of cells below the source, without the tables in its folder `metadata`.
pub(super) fn list(storage: &Storage, options: &IndexOptions) -> Result<Vec<Listed>> {
    let table = options.gene_table.as_deref().and_then(Path::file_name);
    let mut files = storage.list(".parquet")?;
    files.retain(|file| {
        let mut folders = file.name.split('/');
        let name = folders.next_back().unwrap_or_default();
        table.is_none_or(|table| table != name) && !folders.any(|folder| folder == "metadata")
    });
    if files.is_empty() {
        return Err(Error::corpus(
            storage.root(),
            "source",
            "there are no .parquet files of cells\nhelp: name the folder that holds them",
        ));
    }
    Ok(files)
}

/// Reads all footers and the categories of the obs columns.
pub(super) fn survey(
    storage: &Storage,
    files: &[Listed],
    options: &IndexOptions,
    genes: &Genes,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Survey> {
    let first = Footer::read(storage, &files[0].name, files[0].bytes)?;
    let schema = first.metadata.schema();
    let path = storage.path(&files[0].name);
    check_lists(&path, schema, options)?;
    let mut notes = Vec::new();
    let chosen = columns::choose(&path, schema, options, &mut notes)?;
    let sets: Vec<Mutex<columns::Categories>> = chosen.iter().map(|_| Mutex::default()).collect();
    let done = AtomicUsize::new(0);
    let shards = in_parallel(files.len(), |number| {
        let file = &files[number];
        let path = storage.path(&file.name);
        let footer = Footer::read(storage, &file.name, file.bytes)?;
        same_schema(&path, schema, footer.metadata.schema(), options)?;
        known_genes(&path, &footer.metadata, options, genes)?;
        columns::collect(storage, file, &footer.metadata, &chosen, &sets)?;
        progress(done.fetch_add(1, Relaxed) as u64 + 1, files.len() as u64);
        shard(&path, file, &footer)
    })?;
    let columns = columns::finish(chosen, sets, &mut notes);
    Ok(Survey {
        shards,
        columns,
        notes,
    })
}

/// Does the work of each of `n` files on some threads. Of several failures the first file's is told.
pub(super) fn in_parallel<T: Send>(
    n: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<T>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(n) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= n {
                        return;
                    }
                    let result = work(number);
                    if result.is_err() {
                        // No more files are begun.
                        next.store(n, Relaxed);
                    }
                    lock(&results).insert(number, result);
                }
            });
        }
    });
    std::mem::take(&mut *lock(&results)).into_values().collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn shard(path: &Path, file: &Listed, footer: &Footer) -> Result<Shard> {
    let groups = footer.metadata.metadata().row_groups().iter();
    let rows: Vec<u32> = groups
        .enumerate()
        .map(|(index, group)| {
            u32::try_from(group.num_rows()).map_err(|_| {
                let place = format!("row group {index}");
                Error::corpus(path, place, format!("has {} rows", group.num_rows()))
            })
        })
        .collect::<Result<_>>()?;
    Ok(Shard {
        path: file.name.clone(),
        rows: rows.iter().map(|&n| u64::from(n)).sum(),
        row_group_rows: rows,
        bytes: file.bytes,
        blake3: None,
        footer_blake3: Some(footer.blake3.clone()),
        chunk_crc32: Vec::new(),
    })
}

/// Genes and values must be lists of numbers, ids must be text.
fn check_lists(path: &Path, schema: &Schema, options: &IndexOptions) -> Result<()> {
    let columns = &options.columns;
    let present: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let find = |what: &str, name: &str| {
        schema
            .field_with_name(name)
            .map_err(|_| no_column(path, what, name, &present))
    };
    let wrong = |name: &str, found: &DataType, expected: &str| {
        let place = format!("column `{name}`");
        Error::corpus(path, place, format!("is {found}, expected {expected}"))
    };
    let genes = find("genes column", &columns.genes)?.data_type();
    if !item(genes).is_some_and(DataType::is_integer) {
        return Err(wrong(&columns.genes, genes, "a list of integers"));
    }
    let values = find("values column", &columns.values)?.data_type();
    if !item(values).is_some_and(DataType::is_numeric) {
        return Err(wrong(&columns.values, values, "a list of numbers"));
    }
    if let Some(name) = &columns.cell_id {
        let found = find("cell id column", name)?.data_type();
        if !super::table::is_text(found) {
            return Err(wrong(name, found, "text"));
        }
    }
    Ok(())
}

/// The type of the items of a list.
fn item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) => Some(field.data_type()),
        _ => None,
    }
}

/// Types that are read alike have the same name.
fn type_name(data_type: &DataType) -> String {
    match item(data_type) {
        Some(item) => format!("list of {}", type_name(item)),
        None if super::table::is_text(data_type) => "text".to_owned(),
        None => data_type.to_string(),
    }
}

/// Compares the columns of a file with those of the first; when obs columns were chosen, only these.
fn same_schema(path: &Path, first: &Schema, other: &Schema, options: &IndexOptions) -> Result<()> {
    let layout = &options.columns;
    let mut wanted: Option<BTreeSet<&str>> = None;
    if let Some(obs) = &options.obs {
        let names = obs.iter().map(|(_, source)| source.as_str());
        let lists = [layout.genes.as_str(), layout.values.as_str()];
        wanted = Some(
            names
                .chain(lists)
                .chain(layout.cell_id.as_deref())
                .collect(),
        );
    }
    let types = |schema: &Schema| -> BTreeMap<String, String> {
        let fields = schema.fields().iter();
        fields
            .filter(|f| {
                wanted
                    .as_ref()
                    .is_none_or(|w| w.contains(f.name().as_str()))
            })
            .map(|f| (f.name().clone(), type_name(f.data_type())))
            .collect()
    };
    let (expected, found) = (types(first), types(other));
    let fail = |problem: String| {
        Err(Error::corpus(
            path,
            "schema",
            format!(
                "{problem}\nhelp: index files of one kind; --obs chooses the columns that must be the same"
            ),
        ))
    };
    for (name, expected) in &expected {
        match found.get(name) {
            None => return fail(format!("lacks column `{name}`, which the first file has")),
            Some(found) if found != expected => {
                return fail(format!(
                    "column `{name}` is {found}, in the first file it is {expected}"
                ));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => fail(format!("has column `{name}`, which the first file lacks")),
        None => Ok(()),
    }
}

/// Refuses a file whose statistics tell of a gene id beyond the table.
fn known_genes(
    path: &Path,
    footer: &ArrowReaderMetadata,
    options: &IndexOptions,
    genes: &Genes,
) -> Result<()> {
    if options.columns.drop_unknown {
        return Ok(());
    }
    for (index, group) in footer.metadata().row_groups().iter().enumerate() {
        let mut columns = group.columns().iter();
        let column = columns.find(|c| c.column_path().parts()[0] == options.columns.genes);
        let largest = match column.and_then(|c| c.statistics()) {
            Some(Statistics::Int32(s)) => s.max_opt().map(|&id| i64::from(id)),
            Some(Statistics::Int64(s)) => s.max_opt().copied(),
            _ => None,
        };
        if let Some(id) = largest.filter(|&id| id > genes.last()) {
            let place = format!("row group {index}, column `{}`", options.columns.genes);
            return Err(Error::corpus(path, place, unknown(id, genes, "")));
        }
    }
    Ok(())
}

/// What to say of an id that the table lacks.
pub(super) fn unknown(id: i64, genes: &Genes, how_many: &str) -> String {
    format!(
        "gene id {id} is not in the gene table, which has {} genes with ids up to {}{how_many}\nhelp: pass the gene table of these files with --gene-table, or leave such entries out with --unknown-genes drop",
        genes.table.len(),
        genes.last()
    )
}
