//! A small corpus of drugs whose responses are linear in their molecules' embeddings, so that the
//! answer is known.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int32Type};
use parquet::arrow::ArrowWriter;
use scpeft_data::corpus::{
    CellBatch, CellValues, CorpusWriter, ObsColumn, ObsKind, Provenance, WriterOptions,
    obs_array_type,
};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{GeneTable, ValueKind};

/// Cell lines.
pub const LINES: [&str; 2] = ["A549", "K562"];
/// Numbers of an embedding.
pub const FEATURES: usize = 3;
/// Plates, in the column `plate`.
pub const PLATES: [&str; 2] = ["plate-1", "plate-2"];

/// What to write.
#[derive(Debug, Clone)]
pub struct Planted {
    /// Number of drugs, the vehicle included.
    pub drugs: usize,
    /// Cells of a drug, or of the vehicle, in a line.
    pub cells: usize,
    /// Number of genes.
    pub genes: usize,
    /// A drug that the table of molecules lacks.
    pub forgotten: Option<usize>,
    /// The value of `split` of a cell, given drug, line and place among the cells of its condition.
    pub split: fn(usize, usize, usize) -> &'static str,
    /// The line whose vehicle cells are left out.
    pub without_vehicle: Option<usize>,
    /// The dose of a drug.
    pub dose: fn(usize) -> &'static str,
}

impl Default for Planted {
    fn default() -> Self {
        Self {
            drugs: 20,
            cells: 12,
            genes: 40,
            forgotten: None,
            split: |_, _, _| "train",
            without_vehicle: None,
            dose: |drug| if drug % 2 == 0 { "10 nM" } else { "1 uM" },
        }
    }
}

/// Uniform in -1 to 1.
fn noise(item: usize) -> f64 {
    2.0 * Rng::new(3, Purpose::Synthesis, 0, item as u64).uniform() - 1.0
}

/// A drug's embedding.
pub fn features(drug: usize) -> Vec<f64> {
    (0..FEATURES).map(|f| noise(drug * FEATURES + f)).collect()
}

/// Its name; drug 0 is the vehicle.
pub fn name(drug: usize) -> String {
    match drug {
        0 => "DMSO".into(),
        drug => format!("drug {drug:02}"),
    }
}

/// A category column of a batch.
fn category(codes: Vec<i32>, names: &[String]) -> ArrayRef {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let names = Arc::new(StringArray::from(names));
    let column = DictionaryArray::<Int32Type>::try_new(Int32Array::from(codes), names);
    Arc::new(column.expect("valid codes"))
}

/// Writes one record batch as a Parquet file.
///
/// # Panics
/// When it cannot be written.
pub fn write_parquet(path: &Path, batch: &RecordBatch) {
    let file = File::create(path).expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(batch).expect("a batch");
    writer.close().expect("a complete file");
}

impl Planted {
    /// Change of a gene under a drug.
    pub fn change(&self, drug: usize, gene: usize) -> f64 {
        let weights = (0..FEATURES).map(|f| noise(2_000 + gene * FEATURES + f));
        match drug {
            0 => 0.0,
            _ => {
                0.5 * features(drug)
                    .iter()
                    .zip(weights)
                    .map(|(x, w)| x * w)
                    .sum::<f64>()
            }
        }
    }

    fn expression(&self, drug: usize, line: usize, gene: usize, cell: usize) -> f64 {
        let base = 3.0 + noise(1_000 + line * self.genes + gene);
        base + self.change(drug, gene) + 0.1 * noise(10_000 + cell * self.genes + gene)
    }

    /// Writes `dir/corpus`, with obs columns `product_name`, `cell_type`, `split`, `dose` and
    /// `plate`, and `dir/molecules.parquet`; returns both paths.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let path = dir.join("corpus");
        let names: Vec<String> = (0..self.drugs).map(name).collect();
        let lines = LINES.map(String::from);
        let plates = PLATES.map(String::from);
        let splits = ["train", "valid", "test"].map(String::from);
        let mut doses: Vec<String> = (0..self.drugs).map(|d| (self.dose)(d).into()).collect();
        doses.sort_unstable();
        doses.dedup();
        let column = |name: &str, categories: &[String]| {
            let column = ObsColumn::new(name, ObsKind::Category, categories.to_vec());
            (column, obs_array_type(ObsKind::Category, false))
        };
        let genes = GeneTable {
            symbols: (0..self.genes).map(|g| format!("GENE{g}")).collect(),
            ensembl: vec![None; self.genes],
        };
        let obs = vec![
            column("product_name", &names),
            column("cell_type", &lines),
            column("split", &splits),
            column("dose", &doses),
            column("plate", &plates),
        ];
        let options = WriterOptions {
            row_group_cells: 100,
            ..WriterOptions::default()
        };
        let writer = CorpusWriter::create(&path, options, ValueKind::Lognorm, &genes, obs);
        let mut writer = writer.expect("a fresh corpus");
        // Cells of a condition lie apart, as they do in a corpus that was shuffled.
        let label = |cell: usize| (cell % self.drugs, cell / self.drugs % LINES.len());
        let cells: Vec<usize> = (0..self.drugs * LINES.len() * self.cells)
            .filter(|&cell| label(cell).0 > 0 || Some(label(cell).1) != self.without_vehicle)
            .collect();
        let codes = |of: &dyn Fn(usize) -> usize| cells.iter().map(|&c| of(c) as i32).collect();
        let place = |list: &[String], wanted: &str| -> usize {
            list.iter().position(|n| n == wanted).expect("a known name")
        };
        let in_condition = |cell: usize| cell / self.drugs / LINES.len();
        let values = cells.iter().flat_map(|&cell| {
            let (drug, line) = label(cell);
            (0..self.genes).map(move |gene| self.expression(drug, line, gene, cell) as f32)
        });
        let batch = CellBatch {
            cell_ids: cells.iter().map(|c| format!("cell-{c}")).collect(),
            offsets: (0..=cells.len()).map(|c| (c * self.genes) as i32).collect(),
            genes: cells.iter().flat_map(|_| 0..self.genes as u32).collect(),
            values: CellValues::Lognorm(values.collect()),
            obs: vec![
                category(codes(&|c| label(c).0), &names),
                category(codes(&|c| label(c).1), &lines),
                category(
                    codes(&|c| {
                        let (drug, line) = label(c);
                        place(&splits, (self.split)(drug, line, in_condition(c)))
                    }),
                    &splits,
                ),
                category(codes(&|c| place(&doses, (self.dose)(label(c).0))), &doses),
                category(codes(&|c| in_condition(c) % 2), &plates),
            ],
        };
        writer.write(&batch).expect("cells of the corpus");
        let provenance = Provenance {
            tool: "scpeft-tests".to_owned(),
            tool_version: String::new(),
            sources: Vec::new(),
            options: indexmap::IndexMap::default(),
        };
        writer
            .finish(None, None, provenance)
            .expect("a complete corpus");
        let molecules = dir.join("molecules.parquet");
        let known: Vec<usize> = (0..self.drugs)
            .filter(|d| Some(*d) != self.forgotten)
            .collect();
        write_molecules(&molecules, &known);
        (path, molecules)
    }
}

/// Writes a table with the embeddings of drugs.
///
/// # Panics
/// When it cannot be written.
pub fn write_molecules(path: &Path, drugs: &[usize]) {
    let lists = drugs
        .iter()
        .map(|&d| Some(features(d).into_iter().map(Some).collect::<Vec<_>>()));
    let embedding: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists));
    let keys = drugs.iter().map(|&d| Some(name(d)));
    let keys: ArrayRef = Arc::new(keys.collect::<StringArray>());
    let batch = RecordBatch::try_from_iter([("name", keys), ("embedding", embedding)]);
    write_parquet(path, &batch.expect("columns of one length"));
}
