//! The importer keeps the genes that the whole matrix in memory would give, whatever the size of its
//! row groups, and keeps values and tables with them.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use hdf5_metno::File;
use hdf5_metno::types::VarLenUnicode;
use scpeft_data::corpus::WriterOptions;
use scpeft_data::hvg::{Batches, DenseCells, Flavor, highly_variable};
use scpeft_data::import::{FilterOptions, HvgOptions, ImportOptions, import};
use scpeft_data::rng::{Purpose, Rng};
use scpeft_data::{Corpus, ValueKind};
use tempfile::TempDir;

const CELLS: usize = 157;
const GENES: usize = 90;

/// Counts whose genes differ in mean and in spread.
fn counts() -> Vec<f32> {
    let mut counts = Vec::with_capacity(CELLS * GENES);
    for cell in 0..CELLS {
        let mut rng = Rng::new(4, Purpose::Split, 0, cell as u64);
        for gene in 0..GENES {
            let mean = 0.2 + (gene * 37 % GENES) as f64 / 8.0;
            // Every third gene comes in bursts.
            let burst = if gene % 3 == 0 {
                -2.0 * rng.uniform().ln()
            } else {
                1.0
            };
            let shift = if batch(cell) == 1 && gene % 7 == 0 {
                2.5
            } else {
                1.0
            };
            let value = mean * burst * shift * (0.5 + rng.uniform());
            counts.push(value.round() as f32);
        }
    }
    counts
}

fn batch(cell: usize) -> u32 {
    u32::from(cell % 5 < 2)
}

fn texts(names: impl Iterator<Item = String>) -> Vec<VarLenUnicode> {
    names.map(|n| n.parse().unwrap()).collect()
}

fn write_h5ad(dir: &Path) -> PathBuf {
    let path = dir.join("cells.h5ad");
    let file = File::create(&path).unwrap();
    let attribute = |place: &hdf5_metno::Location, name: &str, text: &str| {
        let text: VarLenUnicode = text.parse().unwrap();
        let attribute = place.new_attr::<VarLenUnicode>().create(name).unwrap();
        attribute.write_scalar(&text).unwrap();
    };
    for (table, prefix, rows) in [("obs", "c", CELLS), ("var", "G", GENES)] {
        let group = file.create_group(table).unwrap();
        attribute(&group, "encoding-type", "dataframe");
        attribute(&group, "_index", "_index");
        let names = texts((0..rows).map(|row| format!("{prefix}{row}")));
        let index = group.new_dataset_builder().with_data(&names);
        index.create("_index").unwrap();
    }
    let obs = file.group("obs").unwrap();
    let order = texts(["sample.id".to_owned()].into_iter());
    let attr = obs.new_attr_builder().with_data(&order);
    attr.create("column-order").unwrap();
    let samples = texts((0..CELLS).map(|c| ["left", "right"][batch(c) as usize].to_owned()));
    obs.new_dataset_builder()
        .with_data(&samples)
        .create("sample.id")
        .unwrap();
    let matrix = file.new_dataset::<f32>().shape((CELLS, GENES));
    matrix.create("X").unwrap().write_raw(&counts()).unwrap();
    path
}

fn imported(dir: &TempDir, input: &Path, name: &str, filter: FilterOptions) -> Corpus {
    let options = ImportOptions {
        inputs: vec![input.to_owned()],
        output: dir.path().join(name),
        batch: Some("sample.id".to_owned()),
        filter,
        writer: WriterOptions {
            row_group_cells: 16,
            shard_cells: 48,
            ..WriterOptions::default()
        },
        ..ImportOptions::default()
    };
    import(&options, &mut |_, _| ()).unwrap();
    Corpus::open(&options.output).unwrap()
}

fn dense(corpus: &Corpus) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for group in 0..corpus.row_groups().len() {
        let block = corpus.read_block(group, None).unwrap();
        for row in 0..block.rows() {
            let mut line = vec![0.0; corpus.genes().len()];
            let (genes, values) = block.cell(row);
            for (&gene, &value) in genes.iter().zip(values) {
                line[gene as usize] = value;
            }
            rows.push(line);
        }
    }
    rows
}

#[test]
fn streaming_finds_the_genes_of_the_whole_matrix() {
    let dir = TempDir::new().unwrap();
    let input = write_h5ad(dir.path());
    let counts = counts();
    // Genes with few counts go first: what is variable is decided among the others.
    let total = |gene: &usize| -> f32 { counts.iter().skip(*gene).step_by(GENES).sum() };
    let frequent: Vec<usize> = (0..GENES).filter(|g| total(g) >= 200.0).collect();
    assert!(frequent.len() < GENES && frequent.len() > 40);
    let kept: Vec<f32> = counts
        .chunks(GENES)
        .flat_map(|cell| frequent.iter().map(|&gene| cell[gene]))
        .collect();
    let cells = DenseCells::new(&kept, frequent.len(), ValueKind::Counts);
    let codes: Vec<u32> = (0..CELLS).map(batch).collect();
    let names = ["left", "right"].map(String::from);
    let mut seen = Vec::new();
    for flavor in [Flavor::SeuratV3, Flavor::CellRanger] {
        for by_batch in [false, true] {
            let batches = if by_batch {
                Batches::new(&codes, &names)
            } else {
                Batches::whole()
            };
            let table = highly_variable(&cells, &batches, flavor, 20).unwrap();
            let wanted: Vec<usize> = (frequent.iter().zip(&table.selected))
                .filter(|(_, selected)| **selected)
                .map(|(gene, _)| *gene)
                .collect();
            let filter = FilterOptions {
                min_counts: Some(200),
                hvg: Some(HvgOptions {
                    n_top: 20,
                    flavor,
                    batch: by_batch.then(|| "sample.id".to_owned()),
                }),
                ..FilterOptions::default()
            };
            let name = format!("{}-{by_batch}", flavor.name());
            let corpus = imported(&dir, &input, &name, filter);
            let symbols: Vec<String> = wanted.iter().map(|g| format!("G{g}")).collect();
            assert_eq!(corpus.genes().symbols, symbols, "{name}");
            let rows: Vec<Vec<f32>> = counts
                .chunks(GENES)
                .map(|cell| wanted.iter().map(|&gene| cell[gene]).collect())
                .collect();
            assert_eq!(dense(&corpus), rows, "{name}");
            let codes = corpus.obs_codes("sample.id").unwrap();
            assert!((0..CELLS).all(|c| codes[c] == batch(c) as i32), "{name}");
            seen.push(wanted);
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 4, "the four ways choose different genes");
    // Nothing is left behind but the file and the four corpora.
    assert_eq!(dir.path().read_dir().unwrap().count(), 5);
}

#[test]
fn a_refusal_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let input = write_h5ad(dir.path());
    let options = ImportOptions {
        inputs: vec![input],
        output: dir.path().join("corpus"),
        filter: FilterOptions {
            hvg: Some(HvgOptions {
                n_top: GENES + 1,
                flavor: Flavor::SeuratV3,
                batch: None,
            }),
            ..FilterOptions::default()
        },
        ..ImportOptions::default()
    };
    let error = import(&options, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("expected 1 to 90"), "{error}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);
}
