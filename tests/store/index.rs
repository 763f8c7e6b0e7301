//! Foreign Parquet read where it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use scpeft_data::corpus::{Layout, Lookup, ObsColumn, ObsKind};
use scpeft_data::import::{SplitOptions, ValuesOption};
use scpeft_data::index::{Columns, IndexOptions, IndexReport, SideTable, index};
use scpeft_data::{Corpus, StoreOptions, ValueKind};
use serde_json::json;

use crate::proxy::{Faults, Proxy};
use crate::s3::url;
use crate::server::{Server, options as store_options};
use crate::tahoe;

pub fn options(source: &Path, output: PathBuf) -> IndexOptions {
    IndexOptions {
        source: source.to_owned(),
        output,
        overwrite: false,
        columns: Columns::tahoe(),
        gene_table: None,
        gene_id_column: None,
        obs: None,
        values: ValuesOption::Auto,
        label: Some("drug".into()),
        batch: None,
        split: None,
        side_tables: SideTable::tahoe(None, None, None),
        store: StoreOptions::default(),
    }
}

fn run(options: &IndexOptions) -> (Corpus, IndexReport) {
    let report = index(options, &|_, _| {}).unwrap();
    let corpus = Corpus::open_with(&options.output, &options.store).unwrap();
    (corpus, report)
}

fn refused(options: &IndexOptions) -> String {
    let error = index(options, &|_, _| {}).unwrap_err();
    assert!(!options.output.exists());
    error.to_string()
}

fn assert_cells(corpus: &Corpus) {
    assert_eq!(corpus.n_cells(), tahoe::CELLS as u64);
    for group in 0..corpus.row_groups().len() {
        let block = corpus.read_block(group, None).unwrap();
        for row in 0..block.rows() {
            let cell = corpus.row_groups()[group].first_cell as usize + row;
            let (genes, values) = tahoe::expected(cell);
            assert_eq!(
                block.cell(row),
                (genes.as_slice(), values.as_slice()),
                "cell {cell}"
            );
        }
    }
    assert_eq!(corpus.cell_ids(&[39, 3]).unwrap(), ["bc-039", "bc-003"]);
}

fn texts(corpus: &Corpus, column: &str) -> Vec<Option<String>> {
    let names = corpus.categories(column).unwrap();
    let codes = corpus.obs_codes(column).unwrap();
    let name = |code| {
        usize::try_from(code)
            .ok()
            .map(|code: usize| names[code].clone())
    };
    codes.into_iter().map(name).collect()
}

fn lookup<'a>(corpus: &'a Corpus, column: &str) -> (&'a ObsColumn, &'a Lookup) {
    let column = corpus.column(column).unwrap();
    (column, column.lookup.as_ref().unwrap())
}

#[test]
fn tahoe_files_are_a_corpus_cell_by_cell() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let (corpus, report) = run(&options(&root, dir.path().join("corpus")));
    assert_eq!((report.cells, report.shards, report.row_groups), (40, 2, 7));
    assert_eq!(report.value_kind, ValueKind::Counts);
    assert_cells(&corpus);
    assert_eq!(corpus.genes().symbols[..2], ["SYM0", "SYM1"]);
    assert_eq!(
        corpus.genes().ensembl[1].as_deref(),
        Some("ENSG00000000001")
    );
    let files: Vec<_> = std::fs::read_dir(corpus.path()).unwrap().collect();
    assert_eq!(files.len(), 2, "{files:?}");

    let drugs = |cell: usize| Some(tahoe::DRUGS[cell % 3].to_owned());
    assert_eq!(
        texts(&corpus, "drug"),
        (0..40).map(drugs).collect::<Vec<_>>()
    );
    let plate = |cell| {
        Some(
            if cell < tahoe::FIRST {
                "plate1"
            } else {
                "plate2"
            }
            .to_owned(),
        )
    };
    assert_eq!(
        texts(&corpus, "plate"),
        (0..40).map(plate).collect::<Vec<_>>()
    );
    let moa = |cell| (cell % 5 > 0).then(|| "inhibitor".to_owned());
    assert_eq!(
        texts(&corpus, "moa-fine"),
        (0..40).map(moa).collect::<Vec<_>>()
    );
    let smiles = texts(&corpus, "canonical_smiles");
    assert_eq!(smiles[0].as_deref(), Some("C1=CC2=C(C(=C1)O)N=CC=C2"));
    assert_eq!((&smiles[1], &smiles[2]), (&None, &None));
    let (cid, values) = lookup(&corpus, "pubchem_cid");
    assert_eq!(cid.kind, ObsKind::Number);
    assert_eq!(json!(values.values), json!({ "1923.0": 1923.0 }));
}

#[test]
fn side_tables_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let (corpus, report) = run(&options(&root, dir.path().join("corpus")));
    let (dose, values) = lookup(&corpus, "dose");
    assert_eq!(
        (dose.kind, values.column.as_str()),
        (ObsKind::Number, "sample")
    );
    let expected = json!({ "smp_0": 0.05, "smp_1": 5.0, "smp_2": 0.0 });
    assert_eq!(json!(values.values), expected);
    let doses = corpus.obs_numbers("dose").unwrap();
    for (cell, dose) in doses.iter().enumerate() {
        match cell % 4 {
            3 => assert!(dose.is_nan(), "cell {cell}: {dose}"),
            sample => assert_eq!(*dose, [0.05, 5.0, 0.0][sample], "cell {cell}"),
        }
    }
    let error = corpus.obs_numbers("drug").unwrap_err().to_string();
    assert!(
        error.contains("`drug` holds categories, but numbers"),
        "{error}"
    );
    assert_eq!(corpus.categories("dose_unit").unwrap(), ["uM"]);
    let (_, counts) = lookup(&corpus, "mean_gene_count");
    assert_eq!(counts.values["smp_2"], json!(20.5));
    let name = |cell: usize| Some(["A549", "HCT15"][cell % 2].to_owned());
    assert_eq!(
        texts(&corpus, "cell_name"),
        (0..40).map(name).collect::<Vec<_>>()
    );
    let approved = |cell: usize| [Some("yes"), None, Some("no")][cell % 3].map(str::to_owned);
    assert_eq!(
        texts(&corpus, "human-approved"),
        (0..40).map(approved).collect::<Vec<_>>()
    );
    let noted = |part: &str| {
        assert!(
            report.notes.iter().any(|note| note.contains(part)),
            "{part}: {:?}",
            report.notes
        );
    };
    noted("1 of the 4 values of `sample` are not in sample_metadata, the first is `smp_3`");
    noted("`Driver_Gene_Symbol` is left out: it has several values for `CVCL_0`");
    noted("sample_metadata: column `drug` is left out");
    assert!(corpus.column("Driver_Gene_Symbol").is_err());
    // Without the tables their columns are missing, and that is said.
    std::fs::remove_file(root.join("metadata/sample_metadata.parquet")).unwrap();
    let (corpus, report) = run(&options(&root, dir.path().join("other")));
    assert!(corpus.column("dose").is_err());
    assert!(
        report.notes[0].contains("no metadata/sample_metadata.parquet"),
        "{:?}",
        report.notes
    );
}

#[test]
fn groups_stay_whole_in_a_split() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let split = SplitOptions::parse("train=0.5,test=0.5", 3).unwrap();
    for by in ["sample", "cell_name"] {
        let options = IndexOptions {
            split: Some((split.clone(), by.into())),
            ..options(&root, dir.path().join(by))
        };
        let (corpus, _) = run(&options);
        let (groups, parts) = (texts(&corpus, by), texts(&corpus, "split"));
        let mut part_of = std::collections::BTreeMap::new();
        for (group, part) in groups.into_iter().zip(&parts) {
            let part = part.clone().unwrap();
            assert_eq!(*part_of.entry(group).or_insert_with(|| part.clone()), part);
        }
        let train = parts
            .iter()
            .filter(|part| part.as_deref() == Some("train"))
            .count();
        assert_eq!(train, 20, "{by}");
    }
}

#[test]
fn files_in_a_store_are_indexed_through_faults() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let server = Server::start();
    server.upload(&root, "public/tahoe");
    let faults = Faults {
        slow_down: 0.2,
        cut: 0.1,
        ..Faults::default()
    };
    let proxy = Proxy::start(&server.address, faults);
    let (local, _) = run(&options(&root, dir.path().join("local")));
    let options = IndexOptions {
        store: store_options(&proxy.address),
        ..options(&url("public/tahoe"), dir.path().join("corpus"))
    };
    let (corpus, _) = run(&options);
    assert!(proxy.spoiled() > 0);
    assert_cells(&corpus);
    assert_eq!(
        corpus.manifest().root.as_deref(),
        Some("s3://cells/public/tahoe")
    );
    assert_eq!(corpus.manifest().obs, local.manifest().obs);
    assert_eq!(corpus.manifest().shards, local.manifest().shards);
    // A file that was replaced since is refused by its footer.
    let plates = tahoe::cells(0..tahoe::FIRST, "plate9");
    let path = root.join("data/train-00000-of-00002.parquet");
    tahoe::write(&path, plates);
    assert_eq!(
        path.metadata().unwrap().len(),
        local.manifest().shards[0].bytes
    );
    let message = Corpus::open(local.path())
        .unwrap()
        .read_block(0, None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("train-00000-of-00002.parquet`, footer: its hash is"),
        "{message}"
    );
}

#[test]
fn mistakes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let output = dir.path().join("corpus");
    let base = options(&root, output);
    let mut wrong = base.clone();
    wrong.columns.values = "expression".into();
    let message = refused(&wrong);
    assert!(
        message.contains("no column `expression`, did you mean `expressions`?")
            && message.contains("`BARCODE_SUB_LIB_ID`"),
        "{message}"
    );
    let mut wrong = base.clone();
    wrong.columns.genes = "drug".into();
    assert!(refused(&wrong).contains("column `drug`: is Utf8, expected a list of integers"));
    let mut wrong = base.clone();
    wrong.label = Some("drugs".into());
    assert!(refused(&wrong).contains("did you mean `drug`?"));
    // Values with fractions are no counts.
    let wrong = IndexOptions {
        source: dir.path().join("nowhere"),
        ..base.clone()
    };
    assert!(refused(&wrong).contains("nowhere"));
    // Another schema in the second file.
    let second = root.join("data/train-00001-of-00002.parquet");
    let mut columns = tahoe::cells(tahoe::FIRST..tahoe::CELLS, "plate2");
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![2; tahoe::CELLS - tahoe::FIRST]));
    columns[9].1 = numbers;
    tahoe::write(&second, columns.clone());
    let message = refused(&base);
    assert!(
        message.contains("train-00001-of-00002.parquet")
            && message.contains("column `plate` is Int64, in the first file it is text"),
        "{message}"
    );
    columns.truncate(9);
    tahoe::write(&second, columns);
    assert!(refused(&base).contains("lacks column `plate`"));
}

#[test]
fn unknown_genes_are_refused_or_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let table = root.join("metadata/gene_metadata.parquet");
    // The table loses gene 4, and then the last one.
    for lost in [4, tahoe::GENES - 1] {
        let genes: Vec<u32> = (0..tahoe::GENES).filter(|&gene| gene != lost).collect();
        let symbols = genes.iter().map(|gene| format!("SYM{gene}"));
        let tokens: Int64Array = genes.iter().map(|&gene| tahoe::token(gene)).collect();
        let symbols: ArrayRef = Arc::new(StringArray::from_iter_values(symbols));
        tahoe::write(
            &table,
            vec![("gene_symbol", symbols), ("token_id", Arc::new(tokens))],
        );
        let mut options = options(&root, dir.path().join(format!("lost-{lost}")));
        let message = refused(&options);
        let expected = format!("gene id {} is not in the gene table", tahoe::token(lost));
        assert!(
            message.contains(&expected) && message.contains("--unknown-genes drop"),
            "{message}"
        );
        options.columns.drop_unknown = true;
        let (corpus, report) = run(&options);
        assert!(
            report
                .notes
                .iter()
                .any(|n| n.contains("entries of the first 7 cells")),
            "{:?}",
            report.notes
        );
        let Layout::Foreign(layout) = &corpus.manifest().layout else {
            panic!("not foreign");
        };
        assert!(layout.drop_unknown);
        let block = corpus.read_block(0, None).unwrap();
        for cell in 0..7 {
            let (wanted, values): (Vec<u32>, Vec<f32>) = {
                let (of, values) = tahoe::expected(cell);
                let kept = of.into_iter().zip(values).filter(|(gene, _)| *gene != lost);
                kept.map(|(gene, value)| (gene - u32::from(gene > lost), value))
                    .unzip()
            };
            assert_eq!(
                block.cell(cell),
                (wanted.as_slice(), values.as_slice()),
                "cell {cell}"
            );
        }
    }
}

#[test]
fn the_command_line_indexes_other_columns() {
    let dir = tempfile::tempdir().unwrap();
    let root = tahoe::folder(dir.path());
    let output = dir.path().join("corpus");
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scpeft-data"));
        command
            .arg("index")
            .arg(root.join("data"))
            .arg("--output")
            .arg(&output);
        command.args(more).output().unwrap()
    };
    let table = root.join("metadata/gene_metadata.parquet");
    let done = command(&[
        "--genes-column",
        "genes",
        "--values-column",
        "expressions",
        "--drop-negative-head",
        "--gene-table",
        table.to_str().unwrap(),
        "--obs",
        "treatment=drug,plate",
        "--label",
        "treatment",
    ]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}");
    let line: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&line["event"], &line["cells"]),
        (&json!("indexed"), &json!(40))
    );
    let corpus = Corpus::open(&output).unwrap();
    let names: Vec<&str> = corpus
        .manifest()
        .obs
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["treatment", "plate"]);
    assert_eq!(
        texts(&corpus, "treatment")[2].as_deref(),
        Some(tahoe::DRUGS[2])
    );
    let ids = corpus.cell_ids(&[26]).unwrap();
    assert_eq!(ids, ["train-00001-of-00002.parquet:1"]);
    let again = command(&["--preset", "tahoe"]);
    assert_eq!(again.status.code(), Some(2));
    let nothing = command(&["--overwrite"]);
    assert!(
        String::from_utf8(nothing.stderr)
            .unwrap()
            .contains("--preset")
    );
}
