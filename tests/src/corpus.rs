//! A small corpus with three cell types that differ in their marker genes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use scpeft_data::corpus::{
    CellBatch, CellValues, CorpusWriter, ObsColumn, ObsKind, Provenance, WriterOptions,
    obs_array_type,
};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{GeneTable, ValueKind};

/// Names of the types, in code order.
pub const TYPES: [&str; 3] = ["B cell", "Monocyte", "T cell"];
/// Names of the donors, in code order.
pub const DONORS: [&str; 2] = ["donor-1", "donor-2"];
/// Genes of the corpus.
pub const GENES: usize = 30;

/// What to write.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Number of cells.
    pub cells: usize,
    /// Cells in a row group.
    pub row_group_cells: usize,
    /// Prefix of the gene names.
    pub gene_prefix: &'static str,
    /// The split of each cell, given its index and type.
    pub split: fn(usize, usize) -> &'static str,
    /// The donor of each cell, given its index: a place in [`DONORS`].
    pub donor: fn(usize) -> usize,
    /// The only cell that expresses the last gene.
    pub last_gene_in: Option<usize>,
    /// A cell one of whose values is NaN; all values are then log-normalised ones.
    pub not_a_number: Option<usize>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            cells: 120,
            row_group_cells: 16,
            gene_prefix: "GENE",
            split: every_fifth,
            donor: two_of_five,
            last_gene_in: None,
            not_a_number: None,
        }
    }
}

/// Of every five cells of a type, one validates and one tests.
fn every_fifth(cell: usize, _kind: usize) -> &'static str {
    match cell / TYPES.len() % 5 {
        0 => "valid",
        1 => "test",
        _ => "train",
    }
}

/// Donors differ in size and are mixed over types and splits.
fn two_of_five(cell: usize) -> usize {
    usize::from(cell % 7 >= 5)
}

/// Writes the corpus `dir/corpus` with obs columns `cell_type`, `split` and `donor`, and returns
/// its path.
///
/// # Panics
/// When it cannot be written.
pub fn write(dir: &Path, plan: &Plan) -> PathBuf {
    let path = dir.join("corpus");
    let genes = GeneTable {
        symbols: (0..GENES)
            .map(|g| format!("{}{g}", plan.gene_prefix))
            .collect(),
        ensembl: vec![None; GENES],
    };
    let splits = ["train", "valid", "test"];
    let column = |name: &str, categories: &[&str]| {
        let column = ObsColumn::new(
            name,
            ObsKind::Category,
            categories.iter().map(|c| (*c).to_owned()).collect(),
        );
        (column, obs_array_type(ObsKind::Category, false))
    };
    let options = WriterOptions {
        row_group_cells: plan.row_group_cells,
        ..WriterOptions::default()
    };
    let obs = vec![
        column("cell_type", &TYPES),
        column("split", &splits),
        column("donor", &DONORS),
    ];
    let kind = match plan.not_a_number {
        Some(_) => ValueKind::Lognorm,
        None => ValueKind::Counts,
    };
    let mut writer =
        CorpusWriter::create(&path, options, kind, &genes, obs).expect("a fresh corpus");

    let mut batch = CellBatch {
        cell_ids: (0..plan.cells).map(|c| format!("cell-{c}")).collect(),
        offsets: vec![0],
        genes: Vec::new(),
        values: CellValues::Counts(Vec::new()),
        obs: Vec::new(),
    };
    let mut counts = Vec::new();
    for cell in 0..plan.cells {
        let mut rng = Rng::new(9, Purpose::Split, 0, cell as u64);
        for gene in 0..GENES {
            // A third of the genes marks each type.
            let marks = gene * TYPES.len() / GENES == cell % TYPES.len();
            let drawn = rng.uniform() < if marks { 0.9 } else { 0.35 };
            let expressed = match plan.last_gene_in {
                Some(only) if gene == GENES - 1 => cell == only,
                _ => drawn,
            };
            if expressed {
                batch.genes.push(gene as u32);
                counts.push(1 + rng.below(if marks { 30 } else { 4 }));
            }
        }
        batch.offsets.push(counts.len() as i32);
    }
    batch.values = match plan.not_a_number {
        Some(cell) => {
            let mut values: Vec<f32> = counts.iter().map(|&n| n as f32).collect();
            values[batch.offsets[cell] as usize] = f32::NAN;
            CellValues::Lognorm(values)
        }
        None => CellValues::Counts(counts),
    };
    let kinds = (0..plan.cells).map(|c| (c % TYPES.len()) as i32).collect();
    let split_codes = (0..plan.cells)
        .map(|c| {
            let name = (plan.split)(c, c % TYPES.len());
            splits
                .iter()
                .position(|s| *s == name)
                .expect("a known split") as i32
        })
        .collect();
    let donors = (0..plan.cells).map(|c| (plan.donor)(c) as i32).collect();
    batch.obs = vec![
        category(kinds, &TYPES),
        category(split_codes, &splits),
        category(donors, &DONORS),
    ];
    writer.write(&batch).expect("cells of the corpus");
    let provenance = Provenance {
        tool: "scpeft-tests".to_owned(),
        tool_version: String::new(),
        sources: Vec::new(),
        options: indexmap::IndexMap::default(),
    };
    writer
        .finish(Some("cell_type".to_owned()), None, provenance)
        .expect("a complete corpus");
    path
}

fn category(codes: Vec<i32>, names: &[&str]) -> ArrayRef {
    let names = Arc::new(StringArray::from(names.to_vec()));
    Arc::new(
        DictionaryArray::<Int32Type>::try_new(Int32Array::from(codes), names).expect("valid codes"),
    )
}
