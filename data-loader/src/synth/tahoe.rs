//! Synthetic cells in the layout of the published files of Tahoe-100M.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::cells::{DRUGS, LINES, PLATES, WELLS};
use super::names::{self, Column};
use super::{Cells, Plan, SynthReport, corrupt};
use crate::corpus::temp_sibling;
use crate::parallel::in_order;
use crate::{Error, Result};

/// Cells in a row group, as the `datasets` library writes them.
const ROW_GROUP: usize = 1000;
/// Ids below this one are special tokens; the class token heads every cell.
const FIRST_GENE_ID: i64 = 3;
const CLS_ID: i64 = 1;
const CLS_VALUE: f32 = -2.0;

pub(super) fn write(plan: &Plan<'_>) -> Result<SynthReport> {
    let options = plan.options;
    let output = Output::create(&options.output, options.overwrite)?;
    let columns = names::columns();
    let shards = plan.shards();
    let mut report = SynthReport {
        cells: 0,
        nonzeros: 0,
        shards,
        bytes: 0,
    };
    in_order(
        options.threads,
        shards,
        |shard| {
            let name = format!("data/train-{shard:05}-of-{shards:05}.parquet");
            write_shard(plan, shard, &columns, &output.temp.join(name))
        },
        |_, (cells, nonzeros, bytes)| {
            report.cells += cells;
            report.nonzeros += nonzeros;
            report.bytes += bytes;
            Ok(())
        },
    )?;
    side_tables(&output.temp.join("metadata"), options.genes)?;
    output.finish()?;
    Ok(report)
}

/// A folder that is complete under its name, or not there.
struct Output {
    path: std::path::PathBuf,
    temp: std::path::PathBuf,
}

impl Output {
    fn create(path: &Path, overwrite: bool) -> Result<Self> {
        if path.exists() {
            if !overwrite {
                return Err(Error::OutputExists {
                    path: path.to_owned(),
                });
            }
            let ours = path.join("metadata/gene_metadata.parquet").exists();
            let empty = path.read_dir().is_ok_and(|mut d| d.next().is_none());
            if !ours && !empty {
                return Err(Error::options(
                    format!(
                        "`{}` holds something else, it is not overwritten",
                        path.display()
                    ),
                    "choose another output, or remove it by hand",
                ));
            }
        }
        let temp = temp_sibling(path, "tmp")?;
        let output = Self {
            path: path.to_owned(),
            temp,
        };
        for folder in ["data", "metadata"] {
            let folder = output.temp.join(folder);
            std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        }
        Ok(output)
    }

    fn finish(self) -> Result<()> {
        if self.path.exists() {
            std::fs::remove_dir_all(&self.path).map_err(Error::io("replace", &self.path))?;
        }
        std::fs::rename(&self.temp, &self.path).map_err(Error::io("rename into", &self.path))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After a success there is nothing; after a failure an error is already on its way.
        let _ = std::fs::remove_dir_all(&self.temp);
    }
}

fn write_shard(
    plan: &Plan<'_>,
    shard: usize,
    columns: &[Column],
    path: &Path,
) -> Result<(u64, u64, u64)> {
    let fail = corrupt(path);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(plan.options.row_group_cells.unwrap_or(ROW_GROUP)))
        .build();
    let file = File::create(path).map_err(Error::io("create", path))?;
    let schema = schema();
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))
        .map_err(|e| fail(e.to_string()))?;
    let (mut rows, mut nonzeros) = (0, 0);
    for cells in plan.chunks(shard) {
        let batch = record_batch(&cells, columns, &schema)?;
        writer.write(&batch).map_err(|e| fail(e.to_string()))?;
        rows += cells.rows() as u64;
        nonzeros += cells.genes.len() as u64;
        plan.advance(cells.rows());
    }
    let file = writer.into_inner().map_err(|e| fail(e.to_string()))?;
    file.sync_all().map_err(Error::io("write", path))?;
    let bytes = file.metadata().map_err(Error::io("read", path))?.len();
    Ok((rows, nonzeros, bytes))
}

const TEXTS: [&str; 8] = [
    "drug",
    "sample",
    "BARCODE_SUB_LIB_ID",
    "cell_line_id",
    "moa-fine",
    "canonical_smiles",
    "pubchem_cid",
    "plate",
];

fn element(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", data_type, true))
}

fn schema() -> SchemaRef {
    let list = |name: &str, data_type| Field::new(name, DataType::List(element(data_type)), true);
    let mut fields = vec![
        list("genes", DataType::Int64),
        list("expressions", DataType::Float32),
    ];
    fields.extend(TEXTS.map(|name| Field::new(name, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

fn record_batch(cells: &Cells, columns: &[Column], schema: &SchemaRef) -> Result<RecordBatch> {
    let entries = cells.genes.len() + cells.rows();
    let (mut ids, mut values) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    let mut offsets = vec![0];
    for cell in cells.offsets.windows(2) {
        let cell = cell[0] as usize..cell[1] as usize;
        ids.push(CLS_ID);
        values.push(CLS_VALUE);
        let genes = cells.genes[cell.clone()].iter();
        ids.extend(genes.map(|&g| i64::from(g) + FIRST_GENE_ID));
        values.extend(cells.counts[cell].iter().map(|&c| c as f32));
        offsets.push(ids.len() as i32);
    }
    let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
    let offsets = OffsetBuffer::new(offsets.into());
    let list = |items: ArrayRef| {
        let field = element(items.data_type().clone());
        ListArray::try_new(field, offsets.clone(), items, None).map_err(internal)
    };
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(list(Arc::new(Int64Array::from(ids)))?),
        Arc::new(list(Arc::new(Float32Array::from(values)))?),
    ];
    for name in TEXTS {
        arrays.push(Arc::new(text(cells, columns, name)));
    }
    RecordBatch::try_new(schema.clone(), arrays).map_err(internal)
}

fn text(cells: &Cells, columns: &[Column], name: &str) -> StringArray {
    if let Some(column) = columns.iter().find(|c| c.name == name) {
        let code = |meta| (column.code)(meta);
        return cells
            .meta
            .iter()
            .map(|meta| Some(column.categories[code(meta)].as_str()))
            .collect();
    }
    let of_drug = |name: fn(usize) -> String| {
        StringArray::from_iter_values(cells.meta.iter().map(|meta| name(meta.drug)))
    };
    match name {
        "canonical_smiles" => of_drug(names::smiles),
        "pubchem_cid" => of_drug(names::pubchem),
        _ => StringArray::from_iter_values(cells.names()),
    }
}

/// The tables that say what ids and samples stand for.
fn side_tables(folder: &Path, genes: usize) -> Result<()> {
    let table = names::gene_table(genes);
    let texts = |items: Vec<String>| Arc::new(StringArray::from(items)) as ArrayRef;
    let tokens = FIRST_GENE_ID..FIRST_GENE_ID + genes as i64;
    write_table(
        &folder.join("gene_metadata.parquet"),
        vec![
            ("gene_symbol", texts(table.symbols)),
            (
                "ensembl_id",
                Arc::new(table.ensembl.into_iter().collect::<StringArray>()),
            ),
            ("token_id", Arc::new(Int64Array::from_iter_values(tokens))),
        ],
    )?;
    let samples = 0..PLATES * WELLS;
    let dose = |sample: usize| {
        let (drug, dose) = names::treatment(sample);
        format!("[('{}', {dose:?}, 'uM')]", names::drug(drug))
    };
    let drug_of = |sample: usize| names::drug(names::treatment(sample).0);
    let plate_of = |sample: usize| names::plate(sample / WELLS);
    write_table(
        &folder.join("sample_metadata.parquet"),
        vec![
            (
                "sample",
                texts(samples.clone().map(names::sample).collect()),
            ),
            ("plate", texts(samples.clone().map(plate_of).collect())),
            ("drug", texts(samples.clone().map(drug_of).collect())),
            ("drugname_drugconc", texts(samples.map(dose).collect())),
        ],
    )?;
    let drugs = 0..DRUGS;
    let mechanism = |drug| names::mechanism(names::mechanism_of(drug));
    write_table(
        &folder.join("drug_metadata.parquet"),
        vec![
            ("drug", texts(drugs.clone().map(names::drug).collect())),
            ("moa-fine", texts(drugs.clone().map(mechanism).collect())),
            (
                "canonical_smiles",
                texts(drugs.clone().map(names::smiles).collect()),
            ),
            ("pubchem_cid", texts(drugs.map(names::pubchem).collect())),
        ],
    )?;
    let lines = 0..LINES;
    let organ = |line| names::organ(line).to_owned();
    let name = |line: usize| format!("LINE-{}", line + 1);
    write_table(
        &folder.join("cell_line_metadata.parquet"),
        vec![
            ("cell_name", texts(lines.clone().map(name).collect())),
            (
                "Cell_ID_Cellosaur",
                texts(lines.clone().map(names::line).collect()),
            ),
            ("Organ", texts(lines.map(organ).collect())),
        ],
    )
}

fn write_table(path: &Path, columns: Vec<(&str, ArrayRef)>) -> Result<()> {
    let fail = corrupt(path);
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| fail(e.to_string()))?;
    let file = File::create(path).map_err(Error::io("create", path))?;
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| fail(e.to_string()))?;
    writer.write(&batch).map_err(|e| fail(e.to_string()))?;
    let file = writer.into_inner().map_err(|e| fail(e.to_string()))?;
    file.sync_all().map_err(Error::io("write", path))
}
