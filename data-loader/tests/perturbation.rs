//! Splits of perturbations written into a corpus, and doses and drugs of real tables.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use scpeft_data::corpus::{
    CellBatch, CellValues, CorpusWriter, ObsColumn, ObsKind, Provenance, WriterOptions,
    obs_array_type,
};
use scpeft_data::doses::{self, Unit};
use scpeft_data::molecules::{DrugColumns, Drugs, Molecules};
use scpeft_data::perturbation::{Columns, Held, Preset, SplitRequest, split};
use scpeft_data::{Corpus, GeneTable, Selection, ValueKind};

/// Control first. `b1` is a salt of `b2`; `c`, `d` and `e` share a scaffold.
const DRUGS: [&str; 8] = ["control", "a", "b1", "b2", "c", "d", "e", "f"];
const LINES: [&str; 3] = ["A549", "K562", "MCF7"];
const DOSES: [&str; 3] = ["10 nM", "1 uM", "1000 nM"];
const TABLE: &str = "\
name,smiles
a,CCO
b1,C[C@H](N)C(=O)O.Cl
b2,CC(N)C(=O)O
c,Cc1ccccc1
d,Clc1ccccc1
e,Oc1ccccc1
f,C1CCNCC1
";

fn column(codes: Vec<Option<i32>>, names: &[&str]) -> ArrayRef {
    let names = Arc::new(StringArray::from(names.to_vec()));
    Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(codes), names).unwrap())
}

/// Three cells of each drug in each line, and one cell of which nothing is known.
fn write(dir: &Path, doses: &[&str]) -> PathBuf {
    let mut cells: Vec<Option<[i32; 3]>> = vec![None];
    for drug in 0..DRUGS.len() as i32 {
        for line in 0..LINES.len() as i32 {
            cells.extend((0..3).map(|dose| Some([drug, line, dose])));
        }
    }
    let genes = GeneTable {
        symbols: vec!["G0".into()],
        ensembl: vec![None],
    };
    let category = |name: &str, names: &[&str]| {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        let column = ObsColumn::new(name, ObsKind::Category, names);
        (column, obs_array_type(ObsKind::Category, false))
    };
    let number = ObsColumn::new("dose_number", ObsKind::Number, vec![]);
    let obs = vec![
        category("condition", &DRUGS),
        category("cell_type", &LINES),
        category("dose", doses),
        (number, obs_array_type(ObsKind::Number, true)),
    ];
    let output = dir.join("corpus");
    let options = WriterOptions {
        row_group_cells: 8,
        ..WriterOptions::default()
    };
    let mut writer =
        CorpusWriter::create(&output, options, ValueKind::Counts, &genes, obs).unwrap();
    let code = |place: usize| {
        cells
            .iter()
            .map(|c| c.map(|c| c[place]))
            .collect::<Vec<_>>()
    };
    let numbers = cells.iter().map(|c| c.map(|c| f64::from(c[2]) + 1.0));
    let columns = vec![
        column(code(0), &DRUGS),
        column(code(1), &LINES),
        column(code(2), doses),
        Arc::new(numbers.collect::<Float64Array>()) as ArrayRef,
    ];
    let ids: Vec<String> = (0..cells.len()).map(|i| format!("cell{i}")).collect();
    let offsets: Vec<i32> = (0..=cells.len() as i32).collect();
    let (indices, counts) = (vec![0u32; cells.len()], vec![1u32; cells.len()]);
    let batch = CellBatch {
        cell_ids: ids,
        offsets,
        genes: indices,
        values: CellValues::Counts(counts),
        obs: columns,
    };
    writer.write(&batch).unwrap();
    writer.finish(None, None, Provenance::default()).unwrap();
    output
}

fn request(held: Held, drugs: Option<&Drugs>) -> SplitRequest<'_> {
    SplitRequest {
        columns: Preset::Sciplex3.columns(),
        held,
        share: 0.3,
        valid_share: 0.0,
        names: Vec::new(),
        shots: 0,
        seed: 1,
        drugs,
        column: "split".into(),
        overwrite: false,
    }
}

fn drugs(dir: &Path) -> Drugs {
    let path = dir.join("drugs.csv");
    std::fs::write(&path, TABLE).unwrap();
    Drugs::read(&path, &DrugColumns::default()).unwrap()
}

/// Drugs of a part.
fn of(corpus: &Corpus, part: &str) -> BTreeSet<&'static str> {
    let chosen = Selection::where_equals(corpus, "split", &[part]).unwrap();
    let codes = corpus.obs_codes("condition").unwrap();
    let drugs = chosen.cell_indices().map(|cell| codes[cell as usize]);
    drugs.map(|code| DRUGS[code as usize]).collect()
}

#[test]
fn a_split_becomes_a_column_that_selections_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &DOSES);
    let table = drugs(dir.path());
    let before = Corpus::open(&path).unwrap();
    let mut asked = request(Held::Drugs, Some(&table));
    asked.valid_share = 0.3;
    let report = split(&before, &asked).unwrap();
    assert_eq!(report.aliases, ["b1 = b2"]);
    assert_eq!(report.controls, 9);
    assert_eq!(report.doses, ["10 nM", "1 uM"]);
    let corpus = Corpus::open(&path).unwrap();
    assert_ne!(corpus.fingerprint(), before.fingerprint());
    let parts = ["train", "valid", "test"].map(|part| of(&corpus, part));
    // Names of one molecule are together, control cells train, nothing is in two parts.
    for part in &parts {
        assert_eq!(part.contains("b1"), part.contains("b2"));
    }
    assert!(parts[0].contains("control"));
    assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), DRUGS.len());
    let cells: u64 = report.parts.iter().map(|p| p.cells).sum();
    assert_eq!(cells, 7 * 9);
    let codes = corpus.obs_codes("split").unwrap();
    assert_eq!(codes.iter().filter(|c| **c < 0).count(), 1);
    // The same again is refused, and replaced on demand with the same result.
    let taken = split(&corpus, &asked).unwrap_err().to_string();
    assert!(taken.contains("has an obs column `split`"), "{taken}");
    asked.overwrite = true;
    split(&corpus, &asked).unwrap();
    let again = Corpus::open(&path).unwrap();
    assert_eq!(again.fingerprint(), corpus.fingerprint());
    asked.column = "dose".into();
    let own = split(&corpus, &asked).unwrap_err().to_string();
    assert!(own.contains("was made with an obs column `dose`"), "{own}");
}

#[test]
fn each_rule_holds_out_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &DOSES);
    let table = drugs(dir.path());
    let run = |change: &dyn Fn(&mut SplitRequest<'_>)| {
        let corpus = Corpus::open(&path).unwrap();
        let mut asked = request(Held::Drugs, Some(&table));
        asked.overwrite = true;
        change(&mut asked);
        split(&corpus, &asked).map(|report| (report, Corpus::open(&path).unwrap()))
    };
    let (_, corpus) = run(&|r| r.held = Held::Scaffolds).unwrap();
    let test = of(&corpus, "test");
    let benzenes = ["c", "d", "e"].map(|d| test.contains(d));
    assert!(benzenes == [true; 3] || benzenes == [false; 3], "{test:?}");
    let (_, corpus) = run(&|r| {
        r.held = Held::Listed;
        r.names = vec!["a".into(), "f".into()];
    })
    .unwrap();
    assert_eq!(of(&corpus, "test"), ["a", "f"].into());
    // One molecule under two names, on both sides: named.
    let leak = run(&|r| {
        r.held = Held::Listed;
        r.names = vec!["b1".into()];
    });
    let leak = leak.unwrap_err().to_string();
    assert!(leak.contains("(b2 in training, b1 held out)"), "{leak}");
    let (report, corpus) = run(&|r| {
        r.held = Held::Context;
        r.names = vec!["MCF7".into()];
        r.shots = 2;
        r.valid_share = 0.2;
    })
    .unwrap();
    assert_eq!(report.rule, "unseen_context_few_shot");
    let parts: Vec<(&str, usize)> = (report.parts.iter())
        .map(|p| (p.name, p.conditions))
        .collect();
    assert_eq!(parts, [("train", 12), ("valid", 4), ("test", 5)]);
    // Its control cells are seen.
    let lines = corpus.obs_codes("cell_type").unwrap();
    let train = Selection::where_equals(&corpus, "split", &["train"]).unwrap();
    let names = corpus.obs_codes("condition").unwrap();
    let mut seen = train.cell_indices().map(|cell| cell as usize);
    assert!(seen.any(|cell| lines[cell] == 2 && names[cell] == 0));
    let (report, _) = run(&|r| r.held = Held::Pairs).unwrap();
    assert_eq!(report.parts[0].perturbations, 7);
    let unknown = run(&|r| r.held = Held::Chemcpa).unwrap_err();
    assert!(unknown.to_string().contains("`Dacinostat`"), "{unknown}");
}

#[test]
fn what_cannot_be_split_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::open(&write(dir.path(), &DOSES)).unwrap();
    let refused = |change: &dyn Fn(&mut SplitRequest<'_>)| {
        let mut asked = request(Held::Drugs, None);
        change(&mut asked);
        split(&corpus, &asked).unwrap_err().to_string()
    };
    let control = refused(&|r| r.columns.control = "DMSO".into());
    assert!(
        control.contains("`DMSO` is no category of obs column `condition`"),
        "{control}"
    );
    assert!(control.contains("present are: `control`, `a`"), "{control}");
    let dose = refused(&|r| {
        r.columns.dose = Some("dose_number".into());
        r.columns.dose_unit = None;
    });
    assert!(dose.contains("holds numbers without a unit"), "{dose}");
    assert!(refused(&|r| r.held = Held::Scaffolds).contains("--drugs"));
    assert!(refused(&|r| r.names = vec!["a".into()]).contains("holds out nothing by name"));
    assert!(refused(&|r| r.held = Held::Context).contains("got 0"));
    assert!(refused(&|r| r.share = 1.5).contains("1.5"));
    let missing = dir.path().join("few.csv");
    std::fs::write(&missing, "name,smiles\na,CCO\nb1,C\n").unwrap();
    let few = Drugs::read(&missing, &DrugColumns::default()).unwrap();
    let error = split(&corpus, &request(Held::Drugs, Some(&few))).unwrap_err();
    assert!(
        error.to_string().contains("no row of 5 drugs: `b2`"),
        "{error}"
    );
    assert!(!corpus.manifest().obs.iter().any(|c| c.name == "split"));
}

#[test]
fn doses_are_concentrations_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::open(&write(dir.path(), &DOSES)).unwrap();
    let molar = doses::of_cells(&corpus, "dose", None).unwrap();
    assert!(molar[0].is_nan());
    assert_eq!(molar[1..4], [1e-8, 1e-6, 1e-6]);
    let bare = doses::of_cells(&corpus, "dose_number", None)
        .unwrap_err()
        .to_string();
    assert!(
        bare.contains("`dose_number` holds numbers without a unit"),
        "{bare}"
    );
    let micro = doses::of_cells(&corpus, "dose_number", Some(Unit::Micromolar)).unwrap();
    assert!((micro[3] - 3e-6).abs() < 1e-18);
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::open(&write(dir.path(), &["10", "high", "1 uM"])).unwrap();
    let wrong = doses::of_cells(&corpus, "dose", None)
        .unwrap_err()
        .to_string();
    assert!(
        wrong.contains("2 categories of obs column `dose`"),
        "{wrong}"
    );
    assert!(
        wrong.contains("`10 has no unit`, `high does not begin"),
        "{wrong}"
    );
}

/// The tables of real drugs, where they lie; a small copy made here in their form everywhere.
#[test]
fn tables_in_the_forms_of_sciplex_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let bare = DrugColumns {
        name: Some("1".into()),
        smiles: Some("2".into()),
        no_header: true,
        ..DrugColumns::default()
    };
    let own = [
        (
            "drugs.csv",
            "A-1,COc1ccccc1,Pathway\ncontrol,CS(C)=O,NA\ncontrol,CS(C)=O,Vehicle\n",
        ),
        (
            "wells.txt",
            "name\tSMILES\nNA\tNA\nA-1\tCOC1=CC=CC=C1 |c:4,6,t:2|\n",
        ),
    ];
    for (name, text) in own {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let plain = Drugs::read(&dir.path().join("drugs.csv"), &bare).unwrap();
    let wells = Drugs::read(&dir.path().join("wells.txt"), &DrugColumns::default()).unwrap();
    assert_eq!(plain.iter().len(), 2);
    assert_eq!(wells.unnamed(), 1);
    assert_eq!(plain.get("A-1"), wells.get("A-1"));
    let Some(real) = std::env::var_os("SCPEFT_DATA").map(|data| Path::new(&data).join("drugs"))
    else {
        eprintln!("SCPEFT_DATA is not set: only the small copies were read");
        return;
    };
    let chemcpa = Drugs::read(&real.join("chemcpa_trapnell_drugs_smiles.csv"), &bare).unwrap();
    assert_eq!(chemcpa.iter().len(), 188);
    let scaffolds: BTreeSet<&str> = chemcpa
        .iter()
        .map(|d| d.structure.scaffold.as_str())
        .collect();
    assert_eq!(scaffolds.len(), 163);
    assert_eq!(chemcpa.aliases(), [["Ruxolitinib", "S-Ruxolitinib"]]);
    let sciplex = real.join("sciplex_Supplementary_Table_3.txt");
    let sciplex = Drugs::read(&sciplex, &DrugColumns::default()).unwrap();
    assert_eq!(sciplex.iter().len(), 188);
    assert_eq!(sciplex.unnamed(), 104);
    let several: Vec<Vec<&str>> = sciplex.aliases();
    let salt = ["ENMD-2076", "ENMD-2076 L-(+)-Tartaric acid"];
    assert!(several.iter().any(|names| *names == salt), "{several:?}");
    assert_eq!(several.len(), 2);
    // Both describe the same molecules.
    let skeletons = |drugs: &Drugs| -> BTreeSet<String> {
        drugs.iter().map(|d| d.structure.skeleton.clone()).collect()
    };
    let shared = skeletons(&chemcpa)
        .intersection(&skeletons(&sciplex))
        .count();
    assert!(shared > 170, "{shared}");
    let rows: Vec<_> = chemcpa
        .iter()
        .map(|d| (d, d.structure.fingerprint()))
        .collect();
    let path = dir.path().join("fingerprints.parquet");
    scpeft_data::molecules::write(&path, &rows, "test", false).unwrap();
    assert_eq!(Molecules::read(&path).unwrap().width(), 2048);
}

#[test]
fn presets_name_the_published_columns() {
    let Columns {
        perturbation,
        control,
        context,
        batch,
        ..
    } = Preset::Tahoe.columns();
    assert_eq!(
        (
            perturbation.as_str(),
            control.as_str(),
            context.as_deref(),
            batch.as_deref()
        ),
        ("drug", "DMSO_TF", Some("cell_line_id"), Some("plate"))
    );
    let sciplex = Preset::Sciplex3.columns();
    assert_eq!(sciplex.dose_unit, Some(Unit::Nanomolar));
}
