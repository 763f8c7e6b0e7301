//! Writing a corpus: into a temporary sibling folder, renamed when all is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Float32Array, ListArray, RecordBatch, StringArray, UInt16Array,
    UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::checksums::Checksums;
use super::packed::{pack_genes, pack_values};
use super::{
    FORMAT_VERSION, GENES, GeneFile, Layout, MANIFEST, Manifest, ObsColumn, ObsKind, Provenance,
    Shard, ValueKind,
};
use crate::genes::GeneTable;
use crate::storage::hash_file;
use crate::{Error, Result};

/// Which layout a corpus is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// Lists, which any Parquet reader understands.
    #[default]
    List,
    /// Packed bytes, which are read several times as fast.
    Packed,
}

/// How a corpus is cut.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// How cells lie in the shards.
    pub profile: Profile,
    /// Cells in a row group, the unit of reading.
    pub row_group_cells: usize,
    /// Cells in a shard.
    pub shard_cells: usize,
    /// Whether an existing output is replaced.
    pub overwrite: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            profile: Profile::List,
            row_group_cells: 4096,
            shard_cells: 65_536,
            overwrite: false,
        }
    }
}

/// The column with the number of values of each cell: lengths are known without reading genes.
pub(super) const N_STORED: &str = "n_stored";

/// The values of some cells.
#[derive(Debug, Clone)]
pub enum CellValues {
    /// Counts.
    Counts(Vec<u32>),
    /// Log-normalised expression.
    Lognorm(Vec<f32>),
}

/// Some cells to write.
#[derive(Debug)]
pub struct CellBatch {
    /// Their ids.
    pub cell_ids: Vec<String>,
    /// Where each cell's genes begin, and the end of the last.
    pub offsets: Vec<i32>,
    /// Gene indices, strictly ascending in each cell.
    pub genes: Vec<u32>,
    /// Values, as many as genes.
    pub values: CellValues,
    /// The obs columns, in the order and of the types that the writer was made with.
    pub obs: Vec<ArrayRef>,
}

/// Writes a corpus. Dropped before [`CorpusWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct CorpusWriter {
    output: PathBuf,
    temp: PathBuf,
    options: WriterOptions,
    value_kind: ValueKind,
    n_genes: usize,
    obs: Vec<ObsColumn>,
    schema: SchemaRef,
    properties: WriterProperties,
    shards: Vec<Shard>,
    open: Option<OpenShard>,
    finished: bool,
}

#[derive(Debug)]
struct OpenShard {
    name: String,
    rows: usize,
    writer: ArrowWriter<File>,
}

/// The Arrow type of an obs column on disk. `double` chooses between the two widths of numbers.
pub fn obs_array_type(kind: ObsKind, double: bool) -> DataType {
    match kind {
        ObsKind::Category => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
        }
        ObsKind::Number if double => DataType::Float64,
        ObsKind::Number => DataType::Float32,
        ObsKind::String => DataType::Utf8,
    }
}

impl CorpusWriter {
    /// Begins a corpus. `obs` comes with the Arrow type of each column.
    ///
    /// # Errors
    /// When the output exists and may not be replaced, or the folder cannot be made.
    pub fn create(
        output: &Path,
        options: WriterOptions,
        value_kind: ValueKind,
        genes: &GeneTable,
        obs: Vec<(ObsColumn, DataType)>,
    ) -> Result<Self> {
        check_output(output, options)?;
        let schema = shard_schema(options.profile, value_kind, genes.len(), &obs);
        let temp = temp_sibling(output, "tmp")?;
        let writer = Self {
            output: output.to_owned(),
            temp,
            options,
            value_kind,
            n_genes: genes.len(),
            properties: properties(options),
            schema,
            obs: obs.into_iter().map(|(column, _)| column).collect(),
            shards: Vec::new(),
            open: None,
            finished: false,
        };
        let shards = writer.temp.join("shards");
        std::fs::create_dir_all(&shards).map_err(Error::io("create", &shards))?;
        genes.write(&writer.temp.join(GENES))?;
        Ok(writer)
    }

    /// Adds cells.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, cells: &CellBatch) -> Result<()> {
        let batch = self.record_batch(cells)?;
        let mut done = 0;
        while done < batch.num_rows() {
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => self.open_shard()?,
            };
            let rows = (batch.num_rows() - done).min(self.options.shard_cells - shard.rows);
            let path = self.temp.join(&shard.name);
            shard
                .writer
                .write(&batch.slice(done, rows))
                .map_err(|e| Error::corpus(&path, "writing cells", e.to_string()))?;
            shard.rows += rows;
            done += rows;
            if shard.rows == self.options.shard_cells {
                self.close_shard(shard)?;
            } else {
                self.open = Some(shard);
            }
        }
        Ok(())
    }

    /// Completes the corpus: closes the last shard, writes the manifest, moves the folder into place.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(
        mut self,
        label: Option<String>,
        batch: Option<String>,
        provenance: Provenance,
    ) -> Result<Manifest> {
        if let Some(shard) = self.open.take() {
            self.close_shard(shard)?;
        }
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            n_cells: self.shards.iter().map(|s| s.rows).sum(),
            layout: match self.options.profile {
                Profile::List => Layout::List,
                Profile::Packed => Layout::Packed,
            },
            root: None,
            value_kind: self.value_kind,
            label,
            batch,
            genes: GeneFile {
                path: GENES.to_owned(),
                n: self.n_genes as u32,
                blake3: hash_file(&self.temp.join(GENES))?,
            },
            obs: std::mem::take(&mut self.obs),
            shards: std::mem::take(&mut self.shards),
            provenance,
        };
        sync(&self.temp.join("shards"))?;
        complete(&self.temp, &self.output, &manifest)?;
        self.finished = true;
        Ok(manifest)
    }

    /// A folder of this writer's own, where another writer may put a part of the corpus for
    /// [`CorpusWriter::adopt`].
    pub(crate) fn part(&self, number: usize) -> PathBuf {
        self.temp.join(format!("part-{number:05}"))
    }

    /// Takes over the shards of a part: a corpus of the same genes and columns. They follow those that
    /// are here.
    pub(crate) fn adopt(&mut self, part: &Path, manifest: &Manifest) -> Result<()> {
        if let Some(shard) = self.open.take() {
            self.close_shard(shard)?;
        }
        for shard in &manifest.shards {
            let name = format!("shards/part-{:05}.parquet", self.shards.len());
            let (from, to) = (part.join(&shard.path), self.temp.join(&name));
            std::fs::rename(&from, &to).map_err(Error::io("move", &from))?;
            self.shards.push(Shard {
                path: name,
                ..shard.clone()
            });
        }
        std::fs::remove_dir_all(part).map_err(Error::io("remove", part))
    }

    fn open_shard(&self) -> Result<OpenShard> {
        let name = format!("shards/part-{:05}.parquet", self.shards.len());
        let path = self.temp.join(&name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(self.properties.clone()))
            .map_err(|e| Error::corpus(&path, "shard", e.to_string()))?;
        Ok(OpenShard {
            name,
            rows: 0,
            writer,
        })
    }

    fn close_shard(&mut self, mut shard: OpenShard) -> Result<()> {
        let path = self.temp.join(&shard.name);
        let fail = |e: parquet::errors::ParquetError| Error::corpus(&path, "shard", e.to_string());
        shard.writer.flush().map_err(fail)?;
        let row_group_rows = shard
            .writer
            .flushed_row_groups()
            .iter()
            .map(|group| group.num_rows() as u32)
            .collect();
        let file = shard.writer.into_inner().map_err(fail)?;
        file.sync_all().map_err(Error::io("write", &path))?;
        let bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        let Checksums {
            footer_blake3,
            chunk_crc32,
        } = Checksums::of_file(&path)?;
        self.shards.push(Shard {
            blake3: Some(hash_file(&path)?),
            footer_blake3: Some(footer_blake3),
            chunk_crc32,
            path: shard.name,
            rows: shard.rows as u64,
            row_group_rows,
            bytes,
        });
        Ok(())
    }

    fn record_batch(&self, cells: &CellBatch) -> Result<RecordBatch> {
        let (genes, values) = match self.options.profile {
            Profile::List => self.lists(cells)?,
            Profile::Packed => packed_columns(cells),
        };
        let lengths = cells.offsets.windows(2).map(|w| (w[1] - w[0]) as u32);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(&cells.cell_ids)),
            Arc::new(UInt32Array::from_iter_values(lengths)),
            genes,
            values,
        ];
        columns.extend(cells.obs.iter().cloned());
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| misfit(&e))
    }

    /// Genes and values as lists.
    fn lists(&self, cells: &CellBatch) -> Result<(ArrayRef, ArrayRef)> {
        let genes: ArrayRef = if narrow_genes(self.n_genes) {
            Arc::new(UInt16Array::from_iter_values(
                cells.genes.iter().map(|&g| g as u16),
            ))
        } else {
            Arc::new(UInt32Array::from_iter_values(cells.genes.iter().copied()))
        };
        let values: ArrayRef = match &cells.values {
            CellValues::Counts(v) => Arc::new(UInt32Array::from_iter_values(v.iter().copied())),
            CellValues::Lognorm(v) => Arc::new(Float32Array::from_iter_values(v.iter().copied())),
        };
        let list = |array: ArrayRef| -> Result<ArrayRef> {
            let offsets = OffsetBuffer::new(cells.offsets.clone().into());
            let item = Arc::new(item(array.data_type().clone()));
            let list = ListArray::try_new(item, offsets, array, None).map_err(|e| misfit(&e))?;
            Ok(Arc::new(list))
        };
        Ok((list(genes)?, list(values)?))
    }
}

fn misfit(error: &arrow::error::ArrowError) -> Error {
    Error::internal(format!("cells do not fit the schema: {error}"))
}

/// Genes and values as packed bytes.
fn packed_columns(cells: &CellBatch) -> (ArrayRef, ArrayRef) {
    let rows = cells.offsets.len() - 1;
    let mut genes = BinaryBuilder::with_capacity(rows, cells.genes.len() * 9 / 8);
    let mut values = BinaryBuilder::with_capacity(rows, cells.genes.len() * 9 / 8);
    let (mut packed, mut floats) = (Vec::new(), Vec::new());
    for ends in cells.offsets.windows(2) {
        let span = ends[0] as usize..ends[1] as usize;
        packed.clear();
        pack_genes(&cells.genes[span.clone()], &mut packed);
        genes.append_value(&packed);
        packed.clear();
        match &cells.values {
            CellValues::Counts(counts) => {
                floats.clear();
                floats.extend(counts[span].iter().map(|&count| count as f32));
                pack_values(&floats, ValueKind::Counts, &mut packed);
            }
            CellValues::Lognorm(values) => {
                pack_values(&values[span], ValueKind::Lognorm, &mut packed);
            }
        }
        values.append_value(&packed);
    }
    (Arc::new(genes.finish()), Arc::new(values.finish()))
}

impl Drop for CorpusWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.open = None;
            // Nothing can be done about a failure here: an error is already on its way.
            let _ = std::fs::remove_dir_all(&self.temp);
        }
    }
}

/// Writes the manifest into the folder of a corpus that is complete otherwise, and moves the folder into its
/// place.
pub(crate) fn complete(temp: &Path, output: &Path, manifest: &Manifest) -> Result<()> {
    let path = temp.join(MANIFEST);
    let mut text = serde_json::to_string_pretty(manifest)
        .map_err(|e| Error::internal(format!("manifest cannot be written as JSON: {e}")))?;
    text.push('\n');
    std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    sync(&path)?;
    sync(temp)?;
    let old = temp_sibling(output, "old")?;
    let replaces = output.exists();
    if replaces {
        std::fs::rename(output, &old).map_err(Error::io("move away", output))?;
    }
    std::fs::rename(temp, output).map_err(Error::io("rename into", output))?;
    if let Some(parent) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        sync(parent)?;
    }
    if replaces {
        std::fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    }
    Ok(())
}

/// Refuses an output that exists, unless it may be replaced and is a corpus or an empty folder.
pub(crate) fn check_output(output: &Path, options: WriterOptions) -> Result<()> {
    if !output.exists() {
        return Ok(());
    }
    if !options.overwrite {
        return Err(Error::OutputExists {
            path: output.to_owned(),
        });
    }
    let empty = output
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_none());
    if empty || output.join(MANIFEST).exists() {
        return Ok(());
    }
    Err(Error::options(
        format!(
            "`{}` is not a corpus, it is not overwritten",
            output.display()
        ),
        "choose another output, or remove it by hand",
    ))
}

fn narrow_genes(n_genes: usize) -> bool {
    n_genes <= usize::from(u16::MAX) + 1
}

fn item(data_type: DataType) -> Field {
    Field::new("item", data_type, false)
}

fn shard_schema(
    profile: Profile,
    value_kind: ValueKind,
    n_genes: usize,
    obs: &[(ObsColumn, DataType)],
) -> SchemaRef {
    let gene = if narrow_genes(n_genes) {
        DataType::UInt16
    } else {
        DataType::UInt32
    };
    let value = match value_kind {
        ValueKind::Counts => DataType::UInt32,
        ValueKind::Lognorm => DataType::Float32,
    };
    let [genes, values] = match profile {
        Profile::List => [gene, value].map(|of| DataType::List(Arc::new(item(of)))),
        Profile::Packed => [DataType::Binary, DataType::Binary],
    };
    let mut fields = vec![
        Field::new("cell_id", DataType::Utf8, false),
        Field::new(N_STORED, DataType::UInt32, false),
        Field::new("genes", genes, false),
        Field::new("values", values, false),
    ];
    fields.extend(
        obs.iter()
            .map(|(column, data_type)| Field::new(&column.name, data_type.clone(), true)),
    );
    Arc::new(Schema::new(fields))
}

/// Gene indices ascend, so their differences are small: delta packing halves the file against a
/// dictionary. Values repeat, so they get a dictionary. Statistics of lists are of no use.
fn properties(options: WriterOptions) -> WriterProperties {
    let path = |name: &str| match options.profile {
        Profile::List => ColumnPath::new(vec![name.into(), "list".into(), "item".into()]),
        Profile::Packed => ColumnPath::from(name),
    };
    let builder = WriterProperties::builder()
        .set_created_by(format!("scpeft-data {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(
            ZstdLevel::try_new(1).expect("1 is a zstd level"),
        ))
        .set_max_row_group_row_count(Some(options.row_group_cells))
        .set_column_statistics_enabled(path("genes"), EnabledStatistics::None)
        .set_column_statistics_enabled(path("values"), EnabledStatistics::None)
        .set_column_dictionary_enabled(path("genes"), false)
        .set_column_dictionary_enabled(ColumnPath::from("cell_id"), false);
    match options.profile {
        Profile::List => builder.set_column_encoding(path("genes"), Encoding::DELTA_BINARY_PACKED),
        Profile::Packed => builder.set_column_dictionary_enabled(path("values"), false),
    }
    .build()
}

/// A hidden name next to the output, on the same file system.
pub(crate) fn temp_sibling(output: &Path, what: &str) -> Result<PathBuf> {
    let name = output.file_name().ok_or_else(|| {
        Error::options(
            format!("`{}` is no name for a folder", output.display()),
            "",
        )
    })?;
    Ok(output.with_file_name(format!(
        ".{}.{what}-{}",
        name.to_string_lossy(),
        std::process::id()
    )))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("write", path))
}
