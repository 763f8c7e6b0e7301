//! What the tests of the importer share.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "each test uses its share"
)]

use std::path::{Path, PathBuf};

use hdf5_metno::types::VarLenUnicode;
use hdf5_metno::{File, Group, Location};
use scpeft_data::Corpus;
use scpeft_data::import::{ImportOptions, import};
use tempfile::TempDir;

/// A file among the fixtures of the tests.
pub fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name);
    assert!(path.exists(), "no fixture `{}`", path.display());
    path
}

/// Imports into `dir/corpus`.
pub fn corpus(dir: &TempDir, options: &ImportOptions) -> Corpus {
    let options = ImportOptions {
        output: dir.path().join("corpus"),
        ..options.clone()
    };
    import(&options, &mut |_, _| ()).unwrap();
    let corpus = Corpus::open(&options.output).unwrap();
    let options = scpeft_data::verify::VerifyOptions::default();
    let report = scpeft_data::verify::verify(&corpus, options, &|_, _| {}).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    corpus
}

/// Asserts that the import fails with this exit code and these words, and leaves nothing behind.
pub fn refused(options: &ImportOptions, code: i32, parts: &[&str]) {
    let dir = TempDir::new().unwrap();
    let options = ImportOptions {
        output: dir.path().join("corpus"),
        ..options.clone()
    };
    let error = import(&options, &mut |_, _| ()).unwrap_err();
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(text.contains("help:"), "{text}");
    assert_eq!(error.exit_code(), code, "{text}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "{text}");
}

/// All values, cells by genes.
pub fn dense(corpus: &Corpus) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for group in 0..corpus.row_groups().len() {
        let block = corpus.read_block(group, None).unwrap();
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            let mut line = vec![0.0; corpus.genes().len()];
            for (&gene, &value) in genes.iter().zip(values) {
                line[gene as usize] = value;
            }
            rows.push(line);
        }
    }
    rows
}

pub fn ids(corpus: &Corpus) -> Vec<String> {
    let all: Vec<u64> = (0..corpus.n_cells()).collect();
    corpus.cell_ids(&all).unwrap()
}

/// A categorical column as texts, `-` where missing.
pub fn texts(corpus: &Corpus, column: &str) -> Vec<String> {
    let names = corpus.categories(column).unwrap();
    let codes = corpus.obs_codes(column).unwrap();
    let text =
        |&code: &i32| usize::try_from(code).map_or_else(|_| "-".to_owned(), |c| names[c].clone());
    codes.iter().map(text).collect()
}

/// A small `.h5ad` file to be.
pub struct Cells<'a> {
    pub ids: Vec<String>,
    pub genes: &'a [(&'a str, &'a str)],
    /// Cells by genes.
    pub values: Vec<f32>,
    pub obs: Vec<(&'a str, Values)>,
}

/// A column of obs.
pub enum Values {
    Texts(Vec<String>),
    Numbers(Vec<f32>),
}

impl Values {
    pub fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Self {
        Self::Texts(values.into_iter().map(|v| v.to_string()).collect())
    }
}

/// Writes a file with a dense X; genes without an Ensembl id have an empty one.
pub fn write_h5ad(path: &Path, cells: &Cells<'_>) {
    let file = File::create(path).unwrap();
    let names: Vec<&str> = cells.obs.iter().map(|(name, _)| *name).collect();
    let obs = frame(&file, "obs", &cells.ids, &names);
    for (name, values) in &cells.obs {
        match values {
            Values::Texts(texts) => write_texts(&obs, name, texts),
            Values::Numbers(numbers) => {
                obs.new_dataset_builder()
                    .with_data(numbers)
                    .create(*name)
                    .unwrap();
            }
        }
    }
    let symbols: Vec<String> = cells.genes.iter().map(|(s, _)| (*s).to_owned()).collect();
    let var = frame(&file, "var", &symbols, &["gene_ids"]);
    let gene_ids: Vec<String> = cells.genes.iter().map(|(_, id)| (*id).to_owned()).collect();
    write_texts(&var, "gene_ids", &gene_ids);
    let shape = [cells.ids.len(), cells.genes.len()];
    let x = file.new_dataset::<f32>().shape(shape).create("X").unwrap();
    x.write_raw(&cells.values).unwrap();
}

fn frame(file: &File, name: &str, index: &[String], columns: &[&str]) -> Group {
    let group = file.create_group(name).unwrap();
    attribute(&group, "_index", "_index");
    let names: Vec<VarLenUnicode> = columns.iter().map(|c| c.parse().unwrap()).collect();
    let order = group.new_attr::<VarLenUnicode>().shape([names.len()]);
    order
        .create("column-order")
        .unwrap()
        .write_raw(&names)
        .unwrap();
    write_texts(&group, "_index", index);
    group
}

fn attribute(place: &Location, name: &str, text: &str) {
    let text: VarLenUnicode = text.parse().unwrap();
    let attribute = place.new_attr::<VarLenUnicode>().create(name).unwrap();
    attribute.write_scalar(&text).unwrap();
}

fn write_texts(group: &Group, name: &str, texts: &[String]) {
    let texts: Vec<VarLenUnicode> = texts.iter().map(|t| t.parse().unwrap()).collect();
    group
        .new_dataset_builder()
        .with_data(&texts)
        .create(name)
        .unwrap();
}
