//! Writing tables of embeddings, as [`super::Molecules`] reads them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Float32Type;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::EMBEDDING;
use super::drugs::Drug;
use crate::corpus::temp_sibling;
use crate::{Error, Result};

/// Key of the file's metadata that says what made the embeddings.
const MADE_BY: &str = "scpeft.embedding";

/// Writes drugs with their embeddings, in this order: columns `name`, `smiles` (canonical), `inchikey`,
/// `skeleton`, `scaffold` and `embedding`. `made_by` is kept in the file's metadata. The file appears
/// complete or not at all.
///
/// # Errors
/// The file exists and may not be replaced, or cannot be written.
pub fn write(
    path: &Path,
    drugs: &[(&Drug, Vec<f32>)],
    made_by: &str,
    overwrite: bool,
) -> Result<()> {
    if path.exists() && !overwrite {
        return Err(Error::OutputExists {
            path: path.to_owned(),
        });
    }
    if path.extension().is_none_or(|e| e != "parquet") {
        let problem = format!("`{}` does not end in `.parquet`", path.display());
        return Err(Error::options(problem, "name the output so"));
    }
    let text = |of: fn(&Drug) -> Option<&str>| -> ArrayRef {
        Arc::new(drugs.iter().map(|(d, _)| of(d)).collect::<StringArray>())
    };
    let embeddings = drugs
        .iter()
        .map(|(_, row)| Some(row.iter().map(|x| Some(*x))));
    let embeddings = ListArray::from_iter_primitive::<Float32Type, _, _>(embeddings);
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("name", text(|d| Some(&d.name)), false),
        ("smiles", text(|d| Some(&d.structure.smiles)), false),
        ("inchikey", text(|d| d.inchikey.as_deref()), true),
        ("skeleton", text(|d| Some(&d.structure.skeleton)), false),
        ("scaffold", text(|d| Some(&d.structure.scaffold)), false),
        (EMBEDDING, Arc::new(embeddings), false),
    ])
    .map_err(|e| Error::internal(format!("a table of molecules: {e}")))?;
    let made_by = KeyValue::new(MADE_BY.to_owned(), made_by.to_owned());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(vec![made_by]))
        .build();
    let temp = temp_sibling(path, "new")?;
    let written = put(&temp, path, &batch, properties);
    if written.is_err() {
        // An error is already on its way; what is left of the file has a hidden name.
        let _ = std::fs::remove_file(&temp);
    }
    written
}

fn put(temp: &Path, path: &Path, batch: &RecordBatch, properties: WriterProperties) -> Result<()> {
    let wrong = |e: &dyn std::fmt::Display| Error::corpus(path, "Parquet", e.to_string());
    let file = File::create(temp).map_err(Error::io("create", temp))?;
    let kept = file.try_clone().map_err(Error::io("create", temp))?;
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), Some(properties)).map_err(|e| wrong(&e))?;
    writer.write(batch).map_err(|e| wrong(&e))?;
    writer.close().map_err(|e| wrong(&e))?;
    kept.sync_all().map_err(Error::io("write", temp))?;
    std::fs::rename(temp, path).map_err(Error::io("rename into", path))
}

#[cfg(test)]
mod tests {
    use super::super::{DrugColumns, Drugs, Molecules};
    use super::*;

    #[test]
    fn what_is_written_is_read_back_by_name_and_smiles() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("drugs.csv");
        std::fs::write(&table, "name,smiles\nethanol,OCC\nDMSO,CS(=O)C\n").unwrap();
        let drugs = Drugs::read(&table, &DrugColumns::default()).unwrap();
        let rows: Vec<(&Drug, Vec<f32>)> = drugs
            .iter()
            .map(|drug| (drug, drug.structure.fingerprint()))
            .collect();
        let path = dir.path().join("out.parquet");
        write(&path, &rows, "test", false).unwrap();
        let found = Molecules::read(&path).unwrap();
        assert_eq!((found.len(), found.width()), (2, 2048));
        assert_eq!(found.get("ethanol"), found.get("CCO"));
        let bits: f32 = found.get("DMSO").unwrap().iter().sum();
        assert_eq!(bits, 6.0);
        let again = write(&path, &rows, "test", false).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        write(&path, &rows[..1], "test", true).unwrap();
        assert_eq!(Molecules::read(&path).unwrap().len(), 1);
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
    }
}
