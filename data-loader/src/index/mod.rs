//! Making a corpus of Parquet files that somebody else wrote, without copying them.
//!
//! Footers, the obs columns and the first cells are read; what is written is a folder with a manifest of
//! [`Layout::Foreign`] and a gene table. `shards` lists the files and compares them, `columns` finds the
//! categories, `genes` reads the gene table, `side` joins tables about samples or drugs, `peek` looks at
//! the first cells, `split` deals whole groups out to parts.

mod columns;
mod genes;
mod peek;
mod shards;
mod side;
mod split;
mod table;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::json;

use crate::corpus::{
    FORMAT_VERSION, ForeignLayout, GENES, GeneFile, Layout, Manifest, ObsColumn, ObsKind,
    Provenance, SourceFile, WriterOptions, check_output, complete, temp_sibling,
};
use crate::error::{listed, nearest};
use crate::import::{SplitOptions, ValuesOption};
use crate::storage::{Storage, StoreOptions, hash_file};
use crate::{Error, Result, ValueKind};
pub use side::SideTable;

/// What to index, and how the files are to be understood.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// The folder or URL of the Parquet files.
    pub source: PathBuf,
    /// The corpus folder to make.
    pub output: PathBuf,
    /// Whether an existing output is replaced.
    pub overwrite: bool,
    /// Where genes, values and ids are.
    pub columns: Columns,
    /// The gene table, a Parquet file; `None` looks for `metadata/gene_metadata.parquet` beside the data.
    pub gene_table: Option<PathBuf>,
    /// The column of the gene table that holds the ids; `None` takes `token_id`, or else row numbers.
    pub gene_id_column: Option<String>,
    /// The obs columns to keep, as (name in the corpus, name in the files); `None` keeps all.
    pub obs: Option<Vec<(String, String)>>,
    /// What the values are.
    pub values: ValuesOption,
    /// The obs column that labels the cells.
    pub label: Option<String>,
    /// The obs column that names the batch.
    pub batch: Option<String>,
    /// Parts, and the obs column whose groups stay whole.
    pub split: Option<(SplitOptions, String)>,
    /// Tables that tell more of the values of an obs column.
    pub side_tables: Vec<SideTable>,
    /// Where remote files are read from, and how patiently.
    pub store: StoreOptions,
}

/// Where genes, values and ids are, and what has to be done to them.
#[derive(Debug, Clone)]
pub struct Columns {
    /// The column of lists of gene ids.
    pub genes: String,
    /// The column of lists of values.
    pub values: String,
    /// The column of cell ids.
    pub cell_id: Option<String>,
    /// Whether entries with negative values at the head of a cell are left out.
    pub drop_negative_head: bool,
    /// Whether values of repeated genes are summed.
    pub sum_duplicates: bool,
    /// Whether gene ids that the table lacks are left out.
    pub drop_unknown: bool,
    /// Text columns whose empty values and `nan` mean that there is none.
    pub empty_is_missing: Vec<String>,
    /// Text columns that hold numbers.
    pub numbers_in_text: Vec<String>,
}

impl Columns {
    /// The columns of Tahoe-100M.
    pub fn tahoe() -> Self {
        Self {
            genes: "genes".into(),
            values: "expressions".into(),
            cell_id: Some("BARCODE_SUB_LIB_ID".into()),
            drop_negative_head: true,
            sum_duplicates: true,
            drop_unknown: false,
            empty_is_missing: vec!["canonical_smiles".into()],
            numbers_in_text: vec!["pubchem_cid".into()],
        }
    }
}

/// What was indexed.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexReport {
    /// Number of cells.
    pub cells: u64,
    /// Number of genes.
    pub genes: u32,
    /// Number of files.
    pub shards: usize,
    /// Number of row groups in them.
    pub row_groups: usize,
    /// What the values are.
    pub value_kind: ValueKind,
    /// What the user should know: what was left out, and why.
    pub notes: Vec<String>,
}

/// Indexes. `progress` is told how many files are done, and of how many. On an error nothing is left
/// behind.
///
/// # Errors
/// When there are no files, they are not alike, a column or table is missing or of a wrong kind, a gene is
/// unknown, or the output exists or cannot be written.
pub fn index(options: &IndexOptions, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<IndexReport> {
    let writer = WriterOptions {
        overwrite: options.overwrite,
        ..WriterOptions::default()
    };
    check_output(&options.output, writer)?;
    let source = absolute(&options.source)?;
    let storage = Storage::open(&source, &options.store)?;
    let mut notes = Vec::new();
    let files = shards::list(&storage, options)?;
    let genes = genes::read(&source, options)?;
    let survey = shards::survey(&storage, &files, options, &genes, progress)?;
    notes.extend(survey.notes);
    let peek = peek::peek(&storage, &survey.shards, options, &genes)?;
    notes.extend(peek.notes);
    let mut obs = columns::manifest_columns(survey.columns, options, &mut notes);
    let mut sources = vec![genes.source.clone()];
    for table in &options.side_tables {
        if let Some(joined) = side::join(table, &source, options, &obs, &mut notes)? {
            sources.push(joined.source);
            obs.extend(joined.columns);
        }
    }
    if let Some((parts, by)) = &options.split {
        let column = split::column(&storage, &files, parts, by, &obs)?;
        obs.push(column);
    }
    for (flag, name) in [("--label", &options.label), ("--batch", &options.batch)] {
        check_category(flag, name.as_deref(), &obs)?;
    }
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        n_cells: survey.shards.iter().map(|s| s.rows).sum(),
        layout: Layout::Foreign(ForeignLayout {
            genes: options.columns.genes.clone(),
            values: options.columns.values.clone(),
            cell_id: options.columns.cell_id.clone(),
            gene_ids: genes.ids.clone(),
            drop_negative_head: options.columns.drop_negative_head,
            sum_duplicates: options.columns.sum_duplicates,
            drop_unknown: options.columns.drop_unknown,
        }),
        root: Some(source.to_string_lossy().trim_end_matches('/').to_owned()),
        value_kind: peek.value_kind,
        label: options.label.clone(),
        batch: options.batch.clone(),
        genes: GeneFile {
            path: GENES.to_owned(),
            n: genes.table.len() as u32,
            blake3: String::new(),
        },
        obs,
        shards: survey.shards,
        provenance: provenance(options, sources),
    };
    write(&options.output, manifest, &genes.table, notes)
}

/// Writes the folder beside its place and moves it there.
fn write(
    output: &Path,
    mut manifest: Manifest,
    genes: &crate::GeneTable,
    notes: Vec<String>,
) -> Result<IndexReport> {
    let temp = temp_sibling(output, "tmp")?;
    std::fs::create_dir_all(&temp).map_err(Error::io("create", &temp))?;
    let written = genes
        .write(&temp.join(GENES))
        .and_then(|()| hash_file(&temp.join(GENES)))
        .and_then(|hash| {
            manifest.genes.blake3 = hash;
            complete(&temp, output, &manifest)
        });
    if let Err(error) = written {
        // Nothing can be done about a failure here: an error is already on its way.
        let _ = std::fs::remove_dir_all(&temp);
        return Err(error);
    }
    Ok(IndexReport {
        cells: manifest.n_cells,
        genes: manifest.genes.n,
        shards: manifest.shards.len(),
        row_groups: manifest.shards.iter().map(|s| s.row_group_rows.len()).sum(),
        value_kind: manifest.value_kind,
        notes,
    })
}

fn absolute(source: &Path) -> Result<PathBuf> {
    let text = source.to_string_lossy();
    match text.strip_prefix("file://") {
        None if text.contains("://") => Ok(source.to_owned()),
        local => {
            let path = local.map_or(source, Path::new);
            path.canonicalize().map_err(Error::io("find", path))
        }
    }
}

fn check_category(flag: &str, name: Option<&str>, obs: &[ObsColumn]) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    match obs.iter().find(|column| column.name == name) {
        Some(column) if column.kind == ObsKind::Category => Ok(()),
        Some(column) => Err(Error::NotCategorical {
            column: name.to_owned(),
            kind: column.kind.plural(),
            present: obs
                .iter()
                .filter(|column| column.kind == ObsKind::Category)
                .map(|column| column.name.clone())
                .collect(),
        }),
        None => Err(Error::missing_column(
            format!("{flag}: the index"),
            name,
            obs.iter().map(|column| column.name.clone()).collect(),
        )),
    }
}

/// An error about a column that a file lacks, with those it has.
fn no_column(path: &Path, what: &str, name: &str, present: &[String]) -> Error {
    let meant = nearest(name, present).map_or_else(String::new, |nearest| {
        format!(", did you mean `{nearest}`?")
    });
    Error::corpus(
        path,
        what,
        format!(
            "there is no column `{name}`{meant}\nhelp: present are: {}",
            listed(present)
        ),
    )
}

fn provenance(options: &IndexOptions, sources: Vec<SourceFile>) -> Provenance {
    let split = options.split.as_ref().map(|(split, by)| {
        let parts: IndexMap<&str, f64> =
            split.parts.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        json!({ "parts": parts, "seed": split.seed, "by": by })
    });
    let entries = [
        ("source", json!(options.source.to_string_lossy())),
        ("values", json!(options.values.name())),
        ("obs", json!(options.obs)),
        ("split", json!(split)),
    ];
    Provenance {
        tool: "scpeft-data index".to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        sources,
        options: entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}
