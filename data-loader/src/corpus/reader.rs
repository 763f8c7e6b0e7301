//! Reading a corpus.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use super::checksums::crc32;
use super::chunks::{Chunks, chunk_range};
use super::decode::Decoder;
use super::writer::N_STORED;
use super::{FORMAT_VERSION, Layout, MANIFEST, Manifest, Shard, ValueKind};
use crate::genes::GeneTable;
use crate::storage::{Batches, Footer, Storage, StoreOptions, Traffic};
use crate::{Error, Result};

/// Lengths decoded at a time.
const LENGTH_CELLS: usize = 8192;

/// Where a row group lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGroup {
    /// Number of the shard in the manifest.
    pub shard: usize,
    /// Number of the row group in its shard.
    pub index: usize,
    /// The corpus index of its first cell.
    pub first_cell: u64,
    /// Cells in it.
    pub rows: u32,
}

/// A corpus opened for reading. Cheap to share between threads.
#[derive(Debug)]
pub struct Corpus {
    storage: Storage,
    manifest: Manifest,
    fingerprint: String,
    genes: GeneTable,
    pub(super) decoder: Decoder,
    row_groups: Vec<RowGroup>,
    footers: Vec<OnceLock<ArrowReaderMetadata>>,
}

impl Corpus {
    /// Opens the corpus in a folder or below a URL, with the [`StoreOptions`] of the environment: see
    /// [`Corpus::open_with`].
    ///
    /// # Errors
    /// As [`Corpus::open_with`], and when a variable cannot be understood.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, &StoreOptions::from_env()?)
    }

    /// Opens the corpus in a folder, or below the URL that `dir` is the text of (`s3://`, `gs://`, `az://`,
    /// `https://`): reads manifest and gene table. Local shards must be there in their full size; the size
    /// of remote ones is checked when they are first read. Hashes are left to `scpeft-data verify`.
    ///
    /// # Errors
    /// When there is no corpus, it has a newer format, lacks a file, or the store is out of reach.
    pub fn open_with(dir: &Path, options: &StoreOptions) -> Result<Self> {
        let mut storage = Storage::open(dir, options)?;
        let path = storage.path(MANIFEST);
        let Some(bytes) = storage.read_if_there(MANIFEST)? else {
            let problem = if storage.is_remote() || storage.root().exists() {
                "has no manifest.json"
            } else {
                "does not exist"
            };
            return Err(Error::corpus(
                dir,
                "corpus folder",
                format!(
                    "{problem}\nhelp: make a corpus with `scpeft-data import` or `scpeft-data index`"
                ),
            ));
        };
        let manifest = parse_manifest(&path, &bytes)?;
        if let Some(root) = &manifest.root {
            storage.shards_below(root)?;
        }
        for shard in &manifest.shards {
            storage.check_name(&shard.path)?;
            let identity = shard.blake3.as_ref().or(shard.footer_blake3.as_ref());
            let identity = identity.map_or("", String::as_str);
            storage.expect(&shard.path, shard.bytes, identity)?;
        }
        storage.check_name(&manifest.genes.path)?;
        let genes = GeneTable::read(&storage, &manifest.genes.path)?;
        if genes.len() != manifest.genes.n as usize {
            return Err(Error::corpus(
                &storage.path(&manifest.genes.path),
                "gene table",
                format!(
                    "has {} genes, the manifest says {}",
                    genes.len(),
                    manifest.genes.n
                ),
            ));
        }
        let row_groups = lay_out(&path, &manifest)?;
        Ok(Self {
            footers: manifest.shards.iter().map(|_| OnceLock::new()).collect(),
            decoder: Decoder::new(&manifest.layout, manifest.value_kind, manifest.genes.n),
            fingerprint: blake3::hash(&bytes).to_hex().to_string(),
            storage,
            manifest,
            genes,
            row_groups,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.storage.root()
    }

    /// Whether whoever reads cells waits for a network.
    pub(crate) fn is_remote(&self) -> bool {
        self.storage.has_remote_shards()
    }

    /// What reading the corpus asked of its store so far.
    pub fn traffic(&self) -> &Traffic {
        self.storage.traffic()
    }

    /// The full name of one file of the corpus, for messages.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.storage.path(name)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The gene table.
    pub fn genes(&self) -> &GeneTable {
        &self.genes
    }

    /// Number of cells.
    pub fn n_cells(&self) -> u64 {
        self.manifest.n_cells
    }

    /// What the values are.
    pub fn value_kind(&self) -> ValueKind {
        self.manifest.value_kind
    }

    /// Hash of the manifest, which holds the hashes of all files: names the content of the corpus.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// All row groups, in corpus order.
    pub fn row_groups(&self) -> &[RowGroup] {
        &self.row_groups
    }

    /// How many values each cell of a row group has, when the shards have a column for it.
    ///
    /// # Errors
    /// When the shard cannot be read.
    pub fn stored(&self, row_group: usize) -> Result<Option<Vec<u32>>> {
        let foreign = matches!(self.manifest.layout, Layout::Foreign(_));
        if foreign || self.footer(row_group)?.schema().index_of(N_STORED).is_err() {
            return Ok(None);
        }
        let mut stored = Vec::with_capacity(self.row_groups[row_group].rows as usize);
        self.scan(row_group, &[N_STORED], LENGTH_CELLS, |batch| {
            let column = batch.column(0).as_primitive_opt::<UInt32Type>();
            let column = column.ok_or_else(|| format!("column `{N_STORED}` is not uint32"))?;
            stored.extend_from_slice(column.values());
            Ok(())
        })?;
        Ok(Some(stored))
    }

    /// Runs over the record batches of some columns of a row group, in the order of `columns`.
    pub(crate) fn scan(
        &self,
        row_group: usize,
        columns: &[&str],
        batch_cells: usize,
        mut visit: impl FnMut(&RecordBatch) -> Result<(), String>,
    ) -> Result<()> {
        let group = self.row_groups[row_group];
        let footer = self.footer(row_group)?;
        // By place: a name with a dot would be taken for a path. Names that are missing are reported below.
        let roots = columns
            .iter()
            .filter_map(|c| footer.schema().index_of(c).ok());
        let mask = ProjectionMask::roots(footer.parquet_schema(), roots);
        let chunks = self.column_chunks(row_group, footer, &mask)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer.clone())
            .with_row_groups(vec![group.index])
            .with_projection(mask)
            .with_batch_size(batch_cells);
        let batches = Batches::new(builder).map_err(|e| self.shard_error(row_group, e))?;
        let mut rows = 0;
        for batch in batches {
            let batch = batch.map_err(|e| self.shard_error(row_group, e))?;
            rows += batch.num_rows();
            let batch = in_order(&batch, columns).map_err(|e| self.shard_error(row_group, e))?;
            visit(&batch).map_err(|e| self.shard_error(row_group, e))?;
        }
        if rows != group.rows as usize {
            let problem = format!("has {rows} cells, the manifest says {}", group.rows);
            return Err(self.shard_error(row_group, problem));
        }
        Ok(())
    }

    /// Fetches what a row group has of the columns in `mask`.
    pub(super) fn column_chunks(
        &self,
        row_group: usize,
        footer: &ArrowReaderMetadata,
        mask: &ProjectionMask,
    ) -> Result<Chunks> {
        let RowGroup { shard, index, .. } = self.row_groups[row_group];
        let shard = &self.manifest.shards[shard];
        let columns = footer.metadata().row_group(index).columns().iter();
        let chosen = columns
            .enumerate()
            .filter(|(leaf, _)| mask.leaf_included(*leaf));
        let mut ranges = Vec::new();
        for (leaf, column) in chosen {
            let range = chunk_range(column, shard.bytes).ok_or_else(|| {
                let place = format!("row group {index}, column `{}`", column.column_path());
                let problem = format!("lies outside of the {} bytes of the shard", shard.bytes);
                Error::corpus(&self.storage.path(&shard.path), place, problem)
            })?;
            ranges.push((leaf, range));
        }
        ranges.sort_unstable_by_key(|(_, range)| range.start);
        let (leaves, ranges): (Vec<_>, Vec<_>) = ranges.into_iter().unzip();
        let parts = self.storage.fetch(&shard.path, &ranges)?;
        for (&leaf, bytes) in leaves.iter().zip(&parts) {
            self.check_chunk(shard, footer, index, leaf, bytes)?;
        }
        Ok(Chunks::new(
            shard.bytes,
            ranges.into_iter().zip(parts).collect(),
        ))
    }

    /// Compares a column chunk with its checksum, where the manifest has one.
    fn check_chunk(
        &self,
        shard: &Shard,
        footer: &ArrowReaderMetadata,
        row_group: usize,
        leaf: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let group = shard.chunk_crc32.get(row_group);
        let Some(&expected) = group.and_then(|chunks| chunks.get(leaf)) else {
            return Ok(());
        };
        let found = crc32(bytes);
        if found == expected {
            return Ok(());
        }
        let column = footer.metadata().row_group(row_group).column(leaf);
        let place = format!("row group {row_group}, column `{}`", column.column_path());
        let problem = format!(
            "has the CRC-32 {found:08x}, the manifest says {expected:08x}\nhelp: the file is damaged: copy it again, or import the source again"
        );
        Err(Error::corpus(
            &self.storage.path(&shard.path),
            place,
            problem,
        ))
    }

    /// Hash of one file of the corpus.
    pub(crate) fn hash(&self, name: &str) -> Result<String> {
        self.storage.hash(name)
    }

    /// An error about one cell of a row group.
    pub(crate) fn cell_error(&self, row_group: usize, row: u32, problem: &str) -> Error {
        let cell = self.row_groups[row_group].first_cell + u64::from(row);
        // The ids may be damaged too: the row says enough.
        let id = self.cell_ids(&[cell]).ok().and_then(|mut ids| ids.pop());
        let id = id.map_or_else(String::new, |id| format!(" (cell `{id}`)"));
        self.shard_error(row_group, format!("row {row}{id} {problem}"))
    }

    pub(crate) fn shard_error(&self, row_group: usize, problem: String) -> Error {
        let group = self.row_groups[row_group];
        let path = self.storage.path(&self.manifest.shards[group.shard].path);
        Error::corpus(&path, format!("row group {}", group.index), problem)
    }

    pub(super) fn footer(&self, row_group: usize) -> Result<&ArrowReaderMetadata> {
        let shard = self.row_groups[row_group].shard;
        if let Some(footer) = self.footers[shard].get() {
            return Ok(footer);
        }
        let entry = &self.manifest.shards[shard];
        let path = self.storage.path(&entry.path);
        let Footer {
            metadata: footer,
            blake3,
        } = Footer::read(&self.storage, &entry.path, entry.bytes)?;
        if let Some(expected) = entry.footer_blake3.as_ref().filter(|e| **e != blake3) {
            let found = format!("its hash is {blake3}, the manifest says {expected}");
            return Err(if entry.blake3.is_some() {
                let help = "help: the file is damaged: copy it again, or import the source again";
                Error::corpus(&path, "footer", format!("{found}\n{help}"))
            } else {
                let help = "help: the file was changed since it was indexed; run `scpeft-data index` again";
                Error::store(&path, "footer", format!("{found}\n{help}"))
            });
        }
        let found: Vec<i64> = footer
            .metadata()
            .row_groups()
            .iter()
            .map(parquet::file::metadata::RowGroupMetaData::num_rows)
            .collect();
        if found.iter().ne(entry
            .row_group_rows
            .iter()
            .map(|&n| i64::from(n))
            .collect::<Vec<_>>()
            .iter())
        {
            let problem = format!(
                "row groups of {found:?} cells, the manifest says {:?}",
                entry.row_group_rows
            );
            return Err(Error::corpus(&path, "footer", problem));
        }
        Ok(self.footers[shard].get_or_init(|| footer))
    }
}

fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        format_version: u32,
    }
    let malformed =
        |e: serde_json::Error| Error::corpus(path, format!("line {}", e.line()), e.to_string());
    let version = serde_json::from_slice::<Versioned>(bytes)
        .map_err(malformed)?
        .format_version;
    if version == 0 || version > FORMAT_VERSION {
        return Err(Error::corpus(
            path,
            "format_version",
            format!(
                "is {version}, this program reads 1 to {FORMAT_VERSION}\nhelp: import the source again, or use the version of scpeft that wrote it"
            ),
        ));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// Numbers the row groups through all shards.
fn lay_out(path: &Path, manifest: &Manifest) -> Result<Vec<RowGroup>> {
    let mut groups = Vec::new();
    let mut first_cell = 0;
    for (shard, entry) in manifest.shards.iter().enumerate() {
        let shard_first = first_cell;
        for (index, &rows) in entry.row_group_rows.iter().enumerate() {
            groups.push(RowGroup {
                shard,
                index,
                first_cell,
                rows,
            });
            first_cell += u64::from(rows);
        }
        if first_cell - shard_first != entry.rows {
            let problem = format!(
                "row groups sum to {} cells, not {}",
                first_cell - shard_first,
                entry.rows
            );
            return Err(Error::corpus(
                path,
                format!("shard `{}`", entry.path),
                problem,
            ));
        }
    }
    if first_cell != manifest.n_cells {
        let problem = format!(
            "is {}, but the shards hold {first_cell} cells",
            manifest.n_cells
        );
        return Err(Error::corpus(path, "n_cells", problem));
    }
    Ok(groups)
}

fn in_order(batch: &RecordBatch, columns: &[&str]) -> Result<RecordBatch, String> {
    let places: Result<Vec<usize>, String> = columns
        .iter()
        .map(|c| {
            batch
                .schema()
                .index_of(c)
                .map_err(|_| format!("has no column `{c}`"))
        })
        .collect();
    batch.project(&places?).map_err(|e| e.to_string())
}
