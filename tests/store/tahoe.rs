//! Files laid out as those of Tahoe-100M, with cells that the test knows.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Float64Array, Int64Array, Int64Builder, ListBuilder, RecordBatch,
    StringArray,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

pub const CELLS: usize = 40;
pub const GENES: u32 = 12;
/// Cells of the first of the two files.
pub const FIRST: usize = 25;
pub const DRUGS: [&str; 3] = ["8-Hydroxyquinoline", "DMSO_TF", "Drug, (B)'s"];
const SMILES: [&str; 3] = ["C1=CC2=C(C(=C1)O)N=CC=C2", "", "nan"];
const CIDS: [&str; 3] = ["1923.0", "", "nan"];

/// The token of a gene.
pub fn token(gene: u32) -> i64 {
    i64::from(3 + 2 * gene)
}

/// The genes of a cell, ascending, with their counts.
pub fn expected(cell: usize) -> (Vec<u32>, Vec<f32>) {
    let expressed = (0..GENES).filter(|gene| (cell * 7 + *gene as usize * 5).is_multiple_of(3));
    expressed
        .map(|gene| (gene, (1 + (cell + gene as usize) % 4) as f32))
        .unzip()
}

/// What the file lists: the special entry, the genes in an order of their own, and one of them in two parts.
fn listed(cell: usize) -> (Vec<i64>, Vec<f32>) {
    let (genes, counts) = expected(cell);
    let mut entries: Vec<(i64, f32)> = genes.iter().map(|&g| token(g)).zip(counts).collect();
    if let Some(large) = entries.iter_mut().find(|entry| entry.1 >= 2.0) {
        large.1 -= 1.0;
        let again = (large.0, 1.0);
        entries.push(again);
    }
    if cell % 2 == 1 {
        entries.reverse();
    }
    std::iter::once((1, -2.0)).chain(entries).unzip()
}

pub fn sample(cell: usize) -> String {
    format!("smp_{}", cell % 4)
}

fn text(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

/// The columns of some cells.
pub fn cells(cells: std::ops::Range<usize>, plate: &str) -> Vec<(&'static str, ArrayRef)> {
    let mut genes = ListBuilder::new(Int64Builder::new());
    let mut values = ListBuilder::new(Float32Builder::new());
    for cell in cells.clone() {
        let (ids, counts) = listed(cell);
        genes.append_value(ids.into_iter().map(Some));
        values.append_value(counts.into_iter().map(Some));
    }
    let by_drug = |names: [&str; 3]| text(cells.clone().map(|c| names[c % 3].to_owned()));
    let moa: StringArray = cells
        .clone()
        .map(|c| (c % 5 > 0).then_some("inhibitor"))
        .collect();
    vec![
        ("genes", Arc::new(genes.finish())),
        ("expressions", Arc::new(values.finish())),
        ("drug", by_drug(DRUGS)),
        ("sample", text(cells.clone().map(sample))),
        (
            "BARCODE_SUB_LIB_ID",
            text(cells.clone().map(|c| format!("bc-{c:03}"))),
        ),
        (
            "cell_line_id",
            text(cells.clone().map(|c| format!("CVCL_{}", c % 2))),
        ),
        ("moa-fine", Arc::new(moa)),
        ("canonical_smiles", by_drug(SMILES)),
        ("pubchem_cid", by_drug(CIDS)),
        ("plate", text(cells.clone().map(|_| plate.to_owned()))),
    ]
}

/// Writes a Parquet file as the `datasets` library does: snappy, small row groups, dictionaries.
pub fn write(path: &Path, columns: Vec<(&'static str, ArrayRef)>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(7))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn words(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// Writes `dir/tahoe`: two files of cells and four tables.
pub fn folder(dir: &Path) -> PathBuf {
    let root = dir.join("tahoe");
    let data = root.join("data");
    write(
        &data.join("train-00000-of-00002.parquet"),
        cells(0..FIRST, "plate1"),
    );
    write(
        &data.join("train-00001-of-00002.parquet"),
        cells(FIRST..CELLS, "plate2"),
    );
    let metadata = root.join("metadata");
    // The order of the table is not that of the ids.
    let genes = || (0..GENES).rev();
    write(
        &metadata.join("gene_metadata.parquet"),
        vec![
            ("gene_symbol", text(genes().map(|g| format!("SYM{g}")))),
            (
                "ensembl_id",
                text(genes().map(|g| format!("ENSG{g:011}.4"))),
            ),
            (
                "token_id",
                Arc::new(genes().map(token).collect::<Int64Array>()),
            ),
        ],
    );
    write(
        &metadata.join("sample_metadata.parquet"),
        vec![
            ("sample", words(&["smp_2", "smp_0", "smp_1"])),
            ("drug", words(&["x", "y", "z"])),
            (
                "drugname_drugconc",
                words(&[
                    "[('DMSO_TF', 0.0, 'uM')]",
                    "[('8-Hydroxyquinoline',0.05,'uM')]",
                    "[(\"Drug, (B)'s\",5.0,'uM')]",
                ]),
            ),
            (
                "mean_gene_count",
                Arc::new(Float64Array::from(vec![20.5, 10.0, 11.0])),
            ),
        ],
    );
    write(
        &metadata.join("drug_metadata.parquet"),
        vec![
            ("drug", words(&DRUGS)),
            ("human-approved", words(&["yes", "", "no"])),
        ],
    );
    write(
        &metadata.join("cell_line_metadata.parquet"),
        vec![
            ("cell_name", words(&["A549", "A549", "HCT15"])),
            ("Cell_ID_Cellosaur", words(&["CVCL_0", "CVCL_0", "CVCL_1"])),
            ("Driver_Gene_Symbol", words(&["KRAS", "STK11", "APC"])),
        ],
    );
    root
}
