//! Tables of molecules' embeddings, made once by whatever encoder: `.parquet` or `.safetensors`.
//!
//! A Parquet table has a column `embedding` (a list of numbers) and at least one of `name`, `smiles` and
//! `inchikey`; a safetensors file has one tensor a molecule, named by any of the three. A molecule is
//! found by each of its keys. SMILES are compared as text: write them the same way everywhere, for
//! instance as RDKit's canonical ones.

mod drugs;
mod structure;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use safetensors::{Dtype, SafeTensors};

use crate::error::listed;
use crate::{Error, Result};

pub use drugs::{Drug, DrugColumns, Drugs};
pub use structure::{ACYCLIC, BITS, Structure};
pub use write::write;

/// Columns of a Parquet table that name a molecule, in the order of precedence.
const KEYS: [&str; 3] = ["name", "smiles", "inchikey"];
/// The column of numbers.
const EMBEDDING: &str = "embedding";

/// Embeddings of molecules, all of one width, found by name, SMILES or InChIKey.
#[derive(Debug, Clone)]
pub struct Molecules {
    path: PathBuf,
    width: usize,
    values: Vec<f32>,
    rows: HashMap<String, usize>,
}

impl Molecules {
    /// Reads a table; its form is that of the file's ending.
    ///
    /// # Errors
    /// Another ending, a file that cannot be read, columns that are missing or of another kind, no
    /// molecules, widths that differ, numbers that are not finite, or a key with two embeddings.
    pub fn read(path: &Path) -> Result<Self> {
        let mut table = Self {
            path: path.to_owned(),
            width: 0,
            values: Vec::new(),
            rows: HashMap::new(),
        };
        match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => table.read_parquet()?,
            Some("safetensors") => table.read_safetensors()?,
            _ => {
                return Err(table.bad(
                    "file name",
                    "must end in `.parquet` or `.safetensors`, which says its form".into(),
                ));
            }
        }
        if table.rows.is_empty() {
            return Err(table.bad("table", "has no molecules".into()));
        }
        Ok(table)
    }

    /// Numbers of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows that were kept.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Whether there are none; never of a table that was read.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The embedding of the molecule with this name, SMILES or InChIKey.
    pub fn get(&self, key: &str) -> Option<&[f32]> {
        let row = *self.rows.get(key)?;
        Some(&self.values[row * self.width..(row + 1) * self.width])
    }

    /// The embeddings of molecules, in their order: each given by the keys it goes by, of which the
    /// first that the table knows counts.
    ///
    /// # Errors
    /// Molecules without an embedding, all of them.
    pub fn embeddings<K: AsRef<str>>(&self, molecules: &[Vec<K>]) -> Result<Vec<&[f32]>> {
        let find = |keys: &Vec<K>| keys.iter().find_map(|key| self.get(key.as_ref()));
        let missing: Vec<String> = (molecules.iter())
            .filter(|keys| find(keys).is_none())
            .map(|keys| {
                let names: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
                names.join("` or `")
            })
            .collect();
        if !missing.is_empty() {
            let problem = format!(
                "has no embedding of {} molecules: {}\nhelp: add them to the table; a molecule is never replaced by zeros",
                missing.len(),
                listed(&missing)
            );
            return Err(self.bad("table", problem));
        }
        Ok(molecules.iter().filter_map(find).collect())
    }

    fn bad(&self, place: &str, problem: String) -> Error {
        Error::corpus(&self.path, place, problem)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(Error::io("open", &self.path))
    }

    /// Adds a molecule with its keys; the same embedding again is no conflict.
    fn add(&mut self, place: &str, keys: &[String], embedding: &[f32]) -> Result<()> {
        if self.rows.is_empty() {
            self.width = embedding.len();
        }
        if embedding.is_empty() || embedding.len() != self.width {
            let expected = self.width.max(1);
            let problem = format!(
                "the embedding has {} numbers, expected {expected} as in the first",
                embedding.len()
            );
            return Err(self.bad(place, problem));
        }
        if let Some(bad) = embedding.iter().find(|x| !x.is_finite()) {
            return Err(self.bad(place, format!("the embedding holds {bad}")));
        }
        let row = self.values.len() / self.width;
        let mut new = false;
        for key in keys {
            match self.get(key) {
                None => {
                    self.rows.insert(key.clone(), row);
                    new = true;
                }
                Some(known) if known == embedding => {}
                Some(_) => {
                    let problem = format!(
                        "`{key}` has another embedding in an earlier row\nhelp: keep one row for each molecule"
                    );
                    return Err(self.bad(place, problem));
                }
            }
            if new && self.values.len() / self.width == row {
                self.values.extend_from_slice(embedding);
            }
        }
        Ok(())
    }

    fn read_parquet(&mut self) -> Result<()> {
        let file = self.open()?;
        let wrong = |e: &dyn std::fmt::Display| Error::corpus(&self.path, "Parquet", e.to_string());
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
        let reader = reader.build().map_err(|e| wrong(&e))?;
        let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
        let mut first_row = 0;
        for batch in batches {
            self.read_batch(&batch, first_row)?;
            first_row += batch.num_rows();
        }
        Ok(())
    }

    fn read_batch(&mut self, batch: &RecordBatch, first_row: usize) -> Result<()> {
        let mut keys: Vec<(&str, ArrayRef)> = Vec::new();
        for name in KEYS {
            if let Some(column) = batch.column_by_name(name) {
                let text = cast(column, &DataType::Utf8).map_err(|e| {
                    self.bad(&format!("column `{name}`"), format!("holds no text: {e}"))
                })?;
                keys.push((name, text));
            }
        }
        let present = || {
            let schema = batch.schema();
            let names: Vec<String> = schema
                .fields()
                .iter()
                .map(|f| format!("`{}`", f.name()))
                .collect();
            names.join(", ")
        };
        let embedding = batch.column_by_name(EMBEDDING).ok_or_else(|| {
            self.bad(
                "table",
                format!("has no column `{EMBEDDING}`, it has {}", present()),
            )
        })?;
        if keys.is_empty() {
            let problem = format!(
                "has none of the columns `name`, `smiles` and `inchikey`, it has {}",
                present()
            );
            return Err(self.bad("table", problem));
        }
        let list = DataType::List(Field::new_list_field(DataType::Float32, true).into());
        let lists = cast(embedding, &list).map_err(|e| {
            self.bad(
                &format!("column `{EMBEDDING}`"),
                format!("holds no lists of numbers: {e}"),
            )
        })?;
        for row in 0..batch.num_rows() {
            let place = format!("row {}", first_row + row);
            let own: Vec<String> = (keys.iter())
                .filter(|(_, column)| column.is_valid(row))
                .map(|(_, column)| column.as_string::<i32>().value(row).to_owned())
                .filter(|key| !key.is_empty())
                .collect();
            if own.is_empty() {
                return Err(self.bad(
                    &place,
                    "the molecule has no name, SMILES or InChIKey".into(),
                ));
            }
            let values = lists.as_list::<i32>();
            if values.is_null(row) || values.value(row).null_count() > 0 {
                return Err(self.bad(&place, "the embedding is missing or holds nulls".into()));
            }
            let values = values.value(row);
            self.add(&place, &own, values.as_primitive::<Float32Type>().values())?;
        }
        Ok(())
    }

    fn read_safetensors(&mut self) -> Result<()> {
        let bytes = std::fs::read(&self.path).map_err(Error::io("read", &self.path))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.bad("header", format!("is no safetensors file: {e}")))?;
        let mut names = file.names();
        names.sort_unstable();
        for name in names {
            let place = format!("tensor `{name}`");
            let tensor = (file.tensor(name)).map_err(|e| self.bad(&place, e.to_string()))?;
            let data = tensor.data();
            let values: Vec<f32> = match tensor.dtype() {
                Dtype::F32 => numbers(data, f32::from_le_bytes),
                Dtype::F64 => numbers(data, |b| f64::from_le_bytes(b) as f32),
                other => {
                    let problem = format!("holds {other:?}, expected F32 or F64");
                    return Err(self.bad(&place, problem));
                }
            };
            let long: Vec<usize> = (tensor.shape().iter())
                .filter(|n| **n != 1)
                .copied()
                .collect();
            if long.len() > 1 {
                let problem = format!("has shape {:?}, expected one row", tensor.shape());
                return Err(self.bad(&place, problem));
            }
            self.add(&place, &[name.to_owned()], &values)?;
        }
        Ok(())
    }
}

fn numbers<const N: usize>(data: &[u8], of: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks.iter().map(|bytes| of(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListArray, StringArray};
    use arrow::datatypes::Float64Type;
    use parquet::arrow::ArrowWriter;
    use safetensors::tensor::TensorView;

    use super::*;

    type Row<'a> = (Option<&'a str>, Option<&'a str>, Vec<f64>);

    fn table(dir: &Path, rows: &[Row<'_>]) -> PathBuf {
        let path = dir.join("molecules.parquet");
        let column = |of: fn(&Row<'_>) -> Option<String>| -> ArrayRef {
            Arc::new(rows.iter().map(of).collect::<StringArray>())
        };
        let lists = rows.iter().map(|r| Some(r.2.iter().map(|x| Some(*x))));
        let embedding: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists));
        let batch = RecordBatch::try_from_iter([
            ("name", column(|r| r.0.map(str::to_owned))),
            ("smiles", column(|r| r.1.map(str::to_owned))),
            ("embedding", embedding),
        ])
        .unwrap();
        let file = File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    fn refused(rows: &[Row<'_>]) -> String {
        let dir = tempfile::tempdir().unwrap();
        Molecules::read(&table(dir.path(), rows))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_molecule_is_found_by_each_of_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = table(
            dir.path(),
            &[
                (Some("DMSO"), Some("CS(C)=O"), vec![1.0, 2.0]),
                (None, Some("CCO"), vec![3.0, 4.0]),
                // The same again, under another name.
                (Some("dimethyl sulfoxide"), Some("CS(C)=O"), vec![1.0, 2.0]),
            ],
        );
        let molecules = Molecules::read(&path).unwrap();
        assert_eq!(molecules.width(), 2);
        for key in ["DMSO", "CS(C)=O", "dimethyl sulfoxide"] {
            assert_eq!(molecules.get(key), Some(&[1.0, 2.0][..]), "{key}");
        }
        let found = molecules
            .embeddings(&[vec!["ethanol", "CCO"], vec!["DMSO"]])
            .unwrap();
        assert_eq!(found, [&[3.0, 4.0], &[1.0, 2.0]]);
        let wanted = [vec!["water", "O"], vec!["DMSO"], vec!["JQ1"]];
        let error = molecules.embeddings(&wanted).unwrap_err().to_string();
        assert!(
            error.contains("has no embedding of 2 molecules: `water` or `O`, `JQ1`\nhelp:"),
            "{error}"
        );
    }

    #[test]
    fn conflicts_and_gaps_are_refused_with_their_row() {
        let twice = refused(&[
            (Some("a"), Some("C"), vec![1.0]),
            (Some("b"), Some("C"), vec![2.0]),
        ]);
        assert!(
            twice.contains("row 1: `C` has another embedding"),
            "{twice}"
        );
        let width = refused(&[
            (Some("a"), None, vec![1.0]),
            (Some("b"), None, vec![1.0, 2.0]),
        ]);
        assert!(
            width.contains("row 1: the embedding has 2 numbers, expected 1"),
            "{width}"
        );
        let nameless = refused(&[(None, None, vec![1.0])]);
        assert!(
            nameless.contains("row 0: the molecule has no name"),
            "{nameless}"
        );
        let nan = refused(&[(Some("a"), None, vec![f64::NAN])]);
        assert!(nan.contains("row 0: the embedding holds NaN"), "{nan}");
        assert!(refused(&[(Some("a"), None, vec![])]).contains("has 0 numbers"));
        assert!(refused(&[]).contains("has no molecules"));
        let other = Molecules::read(Path::new("molecules.csv"))
            .unwrap_err()
            .to_string();
        assert!(
            other.contains("must end in `.parquet` or `.safetensors`"),
            "{other}"
        );
    }

    #[test]
    fn safetensors_hold_a_tensor_a_molecule() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("molecules.safetensors");
        let write = |shape: Vec<usize>| {
            let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0]
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            let view = TensorView::new(Dtype::F32, shape, &bytes).unwrap();
            safetensors::serialize_to_file([("CCO", view)], None, &path).unwrap();
        };
        write(vec![1, 4]);
        let molecules = Molecules::read(&path).unwrap();
        assert_eq!(molecules.get("CCO"), Some(&[1.0, 2.0, 3.0, 4.0][..]));
        write(vec![2, 2]);
        let error = Molecules::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("tensor `CCO`: has shape [2, 2], expected one row"),
            "{error}"
        );
        std::fs::write(&path, b"no").unwrap();
        assert!(Molecules::read(&path).is_err());
    }
}
