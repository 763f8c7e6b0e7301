//! The gene table of a corpus: what its gene indices stand for.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use parquet::arrow::ArrowWriter;

use crate::storage::{Batches, Storage};
use crate::{Error, Result};

/// Symbol and Ensembl id of each gene, in the order of the corpus' gene indices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GeneTable {
    /// Gene symbols; the name the source file gives where it has no symbols.
    pub symbols: Vec<String>,
    /// Ensembl ids without version, where known.
    pub ensembl: Vec<Option<String>>,
}

impl GeneTable {
    /// Number of genes.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there is no gene.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Some of the genes, in the order given.
    pub fn subset(&self, genes: impl IntoIterator<Item = usize>) -> Self {
        let (symbols, ensembl) = genes
            .into_iter()
            .map(|gene| (self.symbols[gene].clone(), self.ensembl[gene].clone()))
            .unzip();
        Self { symbols, ensembl }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("index", DataType::UInt32, false),
            Field::new("symbol", DataType::Utf8, false),
            Field::new("ensembl_id", DataType::Utf8, true),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(0..self.len() as u32)),
            Arc::new(StringArray::from_iter_values(&self.symbols)),
            Arc::new(
                self.ensembl
                    .iter()
                    .map(Option::as_deref)
                    .collect::<StringArray>(),
            ),
        ];
        let fail = |e: String| Error::corpus(path, "gene table", e);
        let batch =
            RecordBatch::try_new(schema.clone(), columns).map_err(|e| fail(e.to_string()))?;
        let file = std::fs::File::create(path).map_err(Error::io("create", path))?;
        let mut writer =
            ArrowWriter::try_new(file, schema, None).map_err(|e| fail(e.to_string()))?;
        writer.write(&batch).map_err(|e| fail(e.to_string()))?;
        let file = writer.into_inner().map_err(|e| fail(e.to_string()))?;
        file.sync_all().map_err(Error::io("write", path))
    }

    pub(crate) fn read(storage: &Storage, name: &str) -> Result<Self> {
        let path = storage.path(name);
        let fail = |e: String| Error::corpus(&path, "gene table", e);
        let batches = Batches::of_file(storage.read(name)?).map_err(fail)?;
        let mut table = Self::default();
        for batch in batches {
            let batch = batch.map_err(fail)?;
            let column = |name: &str| {
                batch
                    .column_by_name(name)
                    .ok_or_else(|| fail(format!("has no column `{name}`")))
            };
            let index = column("index")?
                .as_primitive_opt::<UInt32Type>()
                .ok_or_else(|| fail("column `index` is not uint32".into()))?;
            let symbols = column("symbol")?
                .as_string_opt::<i32>()
                .ok_or_else(|| fail("column `symbol` is not a string".into()))?;
            let ensembl = column("ensembl_id")?
                .as_string_opt::<i32>()
                .ok_or_else(|| fail("column `ensembl_id` is not a string".into()))?;
            for row in 0..batch.num_rows() {
                if index.value(row) as usize != table.len() {
                    return Err(fail(format!(
                        "row {} has index {}",
                        table.len(),
                        index.value(row)
                    )));
                }
                table.symbols.push(symbols.value(row).to_owned());
                table
                    .ensembl
                    .push((!ensembl.is_null(row)).then(|| ensembl.value(row).to_owned()));
            }
        }
        Ok(table)
    }
}
