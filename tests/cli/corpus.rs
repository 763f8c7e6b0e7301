//! Synthetic corpora in every layout hold the same cells, and what `stats`, `verify` and `quality` say
//! about a corpus is what its cells say.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_data::corpus::{CellBatch, CellValues, CorpusWriter, Provenance, WriterOptions};
use scpeft_data::{Corpus, GeneTable, ValueKind};
use serde_json::Value;
use tempfile::TempDir;

const CELLS: usize = 700;
const GENES: usize = 900;

fn run(args: &[&str]) -> Output {
    Command::new(scpeft_tests::binary("scpeft-data"))
        .args(args)
        .output()
        .unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(args)).unwrap()
}

fn fail(args: &[&str], code: i32, parts: &[&str]) {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a small corpus of 700 cells in shards of 300, in row groups of 50.
fn synth(output: &Path, more: &[&str]) -> Value {
    let sizes = ["--cells", "700", "--genes", "900", "--nonzeros", "70"];
    let cuts = ["--shard-cells", "300", "--row-group-cells", "50"];
    let named = ["synth", "--seed", "5", "--output", show(output)];
    json(&[&named[..], &sizes, &cuts, more].concat())
}

type Cell = (Vec<u32>, Vec<f32>);

fn cells(corpus: &Corpus) -> Vec<Cell> {
    let groups = 0..corpus.row_groups().len();
    let blocks = groups.map(|group| corpus.read_block(group, None).unwrap());
    let cell = |(genes, values): (&[u32], &[f32])| (genes.to_vec(), values.to_vec());
    let rows = blocks.map(|b| {
        (0..b.rows())
            .map(|row| cell(b.cell(row)))
            .collect::<Vec<_>>()
    });
    rows.flatten().collect()
}

fn hashes(corpus: &Corpus) -> Vec<Option<String>> {
    let shards = corpus.manifest().shards.iter();
    shards.map(|s| s.blake3.clone()).collect()
}

#[test]
fn a_seed_gives_the_same_cells_in_every_layout_with_any_threads() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = synth(&path("one"), &["--threads", "1"]);
    assert_eq!(
        (&made["cells"], &made["shards"]),
        (&CELLS.into(), &3.into())
    );
    synth(&path("three"), &["--threads", "3"]);
    synth(&path("packed"), &["--layout", "packed", "--threads", "2"]);
    let open = |name: &str| Corpus::open(&path(name)).unwrap();
    let one = open("one");
    assert_eq!(hashes(&one), hashes(&open("three")));
    let all = cells(&one);
    assert_eq!(all.len(), CELLS);
    assert_eq!(all, cells(&open("packed")));
    let stored: usize = all.iter().map(|c| c.0.len()).sum();
    assert_eq!(made["nonzeros"], stored);
    let mean = stored as f64 / CELLS as f64;
    assert!((60.0..80.0).contains(&mean), "{mean}");
    for name in ["one", "packed"] {
        let corpus = open(name);
        assert_eq!(corpus.row_groups().len(), 14);
        for column in ["drug", "sample", "cell_line_id", "moa-fine", "plate"] {
            assert_eq!(
                corpus.obs_codes(column).unwrap(),
                one.obs_codes(column).unwrap()
            );
        }
        let ids = corpus.cell_ids(&[0, 699]).unwrap();
        assert_eq!(ids, one.cell_ids(&[0, 699]).unwrap());
        assert!(succeed(&["verify", show(&path(name))]).contains("sound (700 cells"));
    }
    let left: Vec<_> = dir.path().read_dir().unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn the_published_layout_holds_the_same_cells() {
    let dir = TempDir::new().unwrap();
    let (corpus, tahoe) = (dir.path().join("corpus"), dir.path().join("tahoe"));
    synth(&corpus, &[]);
    synth(&tahoe, &["--layout", "tahoe"]);
    let corpus = Corpus::open(&corpus).unwrap();
    let plates = corpus.categories("plate").unwrap().to_vec();
    let codes = corpus.obs_codes("plate").unwrap();
    let mut found = Vec::new();
    for shard in 0..3 {
        let file = tahoe.join(format!("data/train-{shard:05}-of-00003.parquet"));
        let file = std::fs::File::open(file).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let names: Vec<String> = builder
            .schema()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect();
        assert_eq!(names.len(), 10);
        assert_eq!(names[..2], ["genes", "expressions"]);
        for batch in builder.build().unwrap() {
            let batch = batch.unwrap();
            let plate = batch.column_by_name("plate").unwrap().as_string::<i32>();
            for row in 0..batch.num_rows() {
                assert_eq!(plate.value(row), plates[codes[found.len()] as usize]);
                let ids = batch.column(0).as_list::<i32>().value(row);
                let values = batch.column(1).as_list::<i32>().value(row);
                let (ids, values) = (
                    ids.as_primitive::<Int64Type>(),
                    values.as_primitive::<Float32Type>(),
                );
                assert_eq!((ids.value(0), values.value(0)), (1, -2.0));
                let genes = ids.values()[1..].iter().map(|id| (id - 3) as u32).collect();
                found.push((genes, values.values()[1..].to_vec()));
            }
        }
    }
    assert_eq!(found, cells(&corpus));
    for (table, rows) in [
        ("gene", 900),
        ("sample", 14 * 96),
        ("drug", 95),
        ("cell_line", 50),
    ] {
        let file = tahoe.join(format!("metadata/{table}_metadata.parquet"));
        let file = std::fs::File::open(file).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(
            builder.metadata().file_metadata().num_rows(),
            rows,
            "{table}"
        );
    }
}

#[test]
fn the_h5ad_holds_the_same_cells() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    synth(&path("corpus"), &["--h5ad", show(&path("cells.h5ad"))]);
    let output = path("imported");
    let input = path("cells.h5ad");
    succeed(&[
        "import",
        "--input",
        show(&input),
        "--output",
        show(&output),
        "--label",
        "cell_line_id",
    ]);
    let (made, imported) = (
        Corpus::open(&path("corpus")).unwrap(),
        Corpus::open(&output).unwrap(),
    );
    assert_eq!(cells(&made), cells(&imported));
    assert_eq!(made.genes().ensembl, imported.genes().ensembl);
    assert_eq!(
        made.cell_ids(&[3, 650]).unwrap(),
        imported.cell_ids(&[3, 650]).unwrap()
    );
    let names = |corpus: &Corpus| {
        let names = corpus.categories("drug").unwrap().to_vec();
        let codes = corpus.obs_codes("drug").unwrap();
        codes
            .iter()
            .map(|&c| names[c as usize].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&made), names(&imported));
}

#[test]
fn synth_refuses_what_cannot_be() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("corpus");
    let begin = ["synth", "--output", show(&output)];
    let synth = |more: &[&'static str]| [&begin[..], more].concat();
    fail(&synth(&["--cells", "0"]), 2, &["--cells"]);
    fail(
        &synth(&["--cells", "9", "--genes", "70000"]),
        2,
        &["--genes", "65535", "70000"],
    );
    fail(
        &synth(&["--cells", "9", "--genes", "50", "--nonzeros", "50"]),
        2,
        &["--nonzeros", "help:"],
    );
    assert!(dir.path().read_dir().unwrap().next().is_none());
    let small = ["--cells", "20", "--genes", "100", "--nonzeros", "10"];
    for layout in ["list", "tahoe"] {
        succeed(&synth(
            &[&small[..], &["--layout", layout, "--overwrite"]].concat(),
        ));
        fail(
            &synth(&[&small[..], &["--layout", layout]].concat()),
            2,
            &["--overwrite"],
        );
        std::fs::remove_dir_all(&output).unwrap();
    }
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("mine"), "").unwrap();
    fail(
        &synth(&[&small[..], &["--layout", "tahoe", "--overwrite"]].concat()),
        2,
        &["not overwritten"],
    );
}

#[test]
fn stats_are_those_of_the_cells() {
    let dir = TempDir::new().unwrap();
    let (path, picture) = (dir.path().join("corpus"), dir.path().join("stats.svg"));
    synth(&path, &["--layout", "packed"]);
    let options = [
        "--json",
        "--by",
        "drug",
        "--max-len",
        "40,2000",
        "--batch-cells",
        "10",
        "--top-genes",
        "3",
    ];
    let drawn = ["--picture", show(&picture)];
    let stats = |threads| {
        json(
            &[
                &["stats", show(&path), "--threads", threads][..],
                &options,
                &drawn,
            ]
            .concat(),
        )
    };
    let found = stats("1");
    assert_eq!(found, stats("3"));
    let corpus = Corpus::open(&path).unwrap();
    let all = cells(&corpus);
    let close = |value: &Value, expected: f64| {
        let value = value.as_f64().unwrap();
        assert!((value / expected - 1.0).abs() < 1e-9, "{value} {expected}");
    };
    let mut lengths: Vec<usize> = all.iter().map(|c| c.0.len()).collect();
    let stored: usize = lengths.iter().sum();
    close(
        &found["zeros"],
        1.0 - stored as f64 / (CELLS * GENES) as f64,
    );
    close(
        &found["genes_per_cell"]["mean"],
        stored as f64 / CELLS as f64,
    );
    let values = || all.iter().flat_map(|c| &c.1);
    close(
        &found["ones"],
        values().filter(|&&v| v == 1.0).count() as f64 / stored as f64,
    );
    let total: f64 = values().map(|&v| f64::from(v)).sum();
    close(&found["sum_per_cell"]["mean"], total / CELLS as f64);
    let largest = values().copied().fold(0.0, f32::max);
    close(&found["largest_value"], f64::from(largest));
    let cut = lengths.iter().filter(|&&n| n > 39);
    close(
        &found["padding"][0]["cut_cells"],
        cut.count() as f64 / CELLS as f64,
    );
    assert_eq!(found["padding"][1]["cut_cells"], 0.0);
    let waste = |key: &str| found["padding"][1][key].as_f64().unwrap();
    assert!(
        waste("bucketed_waste") < 0.2 * waste("waste"),
        "{}",
        found["padding"]
    );
    lengths.sort_unstable();
    assert_eq!(
        found["genes_per_cell"]["quantiles"]["50"],
        lengths[350] as f64
    );
    let mut sums = vec![0.0; GENES];
    for (genes, values) in &all {
        for (&gene, &value) in genes.iter().zip(values) {
            sums[gene as usize] += f64::from(value);
        }
    }
    let top = (0..GENES)
        .max_by(|&a, &b| sums[a].total_cmp(&sums[b]))
        .unwrap();
    assert_eq!(found["top_genes"][0]["symbol"], corpus.genes().symbols[top]);
    close(&found["top_genes"][0]["share"], sums[top] / total);
    let codes = corpus.obs_codes("drug").unwrap();
    let control = codes.iter().filter(|&&c| c == 0).count();
    assert_eq!(found["by"]["drug"]["counts"]["DMSO_TF"], control);
    assert_eq!(found["by"]["cell_line_id"]["role"], "label");
    assert_eq!(found["by"]["plate"]["role"], "batch");
    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("cells by drug"),
        "{svg}"
    );
    assert!(succeed(&["stats", show(&path)]).contains("most expressed genes"));
    fail(
        &["stats", show(&path), "--by", "drugs"],
        3,
        &["did you mean `drug`"],
    );
    fail(
        &["stats", show(&path), "--max-len", "1"],
        2,
        &["at least 2"],
    );
}

/// Seven cells in row groups of 3, of which two are damaged and one is empty.
fn damaged(output: &Path) {
    let genes = GeneTable {
        symbols: (0..6).map(|g| format!("G{g}")).collect(),
        ensembl: vec![None; 6],
    };
    let options = WriterOptions {
        row_group_cells: 3,
        shard_cells: 5,
        ..WriterOptions::default()
    };
    let mut writer =
        CorpusWriter::create(output, options, ValueKind::Counts, &genes, Vec::new()).unwrap();
    let cells: [(&[u32], &[u32]); 7] = [
        (&[0, 1], &[1, 2]),
        (&[3, 2], &[1, 1]),
        (&[], &[]),
        (&[4], &[9]),
        (&[1, 5], &[3, 0]),
        (&[0], &[1]),
        (&[2, 9], &[1, 1]),
    ];
    let mut batch = CellBatch {
        cell_ids: (0..7).map(|c| format!("cell-{c}")).collect(),
        offsets: vec![0],
        genes: Vec::new(),
        values: CellValues::Counts(cells.iter().flat_map(|c| c.1).copied().collect()),
        obs: Vec::new(),
    };
    for (genes, _) in cells {
        batch.genes.extend(genes);
        batch.offsets.push(batch.genes.len() as i32);
    }
    writer.write(&batch).unwrap();
    writer.finish(None, None, Provenance::default()).unwrap();
}

#[test]
fn verify_lists_every_fault_with_its_place() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("corpus");
    damaged(&path);
    let verify = |more: &[&str]| {
        let output = run(&[&["verify", show(&path), "--json"][..], more].concat());
        assert_eq!(output.status.code(), Some(3));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    for threads in ["1", "3"] {
        let found = verify(&["--threads", threads]);
        let faults = found["faults"].as_array().unwrap();
        let place = |f: &Value| {
            let number = |key: &str| f[key].as_u64().unwrap();
            let file = f["file"].as_str().unwrap().ends_with("part-00000.parquet");
            (
                file,
                number("row_group"),
                number("row"),
                f["cell"].as_str().unwrap().to_owned(),
            )
        };
        let places: Vec<_> = faults.iter().map(place).collect();
        let expected = [
            (true, 0, 1, "cell-1"),
            (true, 1, 1, "cell-4"),
            (false, 0, 1, "cell-6"),
        ];
        assert_eq!(places, expected.map(|(a, b, c, d)| (a, b, c, d.to_owned())));
        for (fault, part) in faults
            .iter()
            .zip(["strictly ascending", "`0`", "gene index 9"])
        {
            assert!(fault["problem"].as_str().unwrap().contains(part), "{fault}");
        }
        assert_eq!(
            (
                &found["cells"],
                &found["empty_cells"],
                &found["ended_early"]
            ),
            (&7.into(), &1.into(), &false.into())
        );
    }
    let found = verify(&["--max-faults", "2"]);
    assert_eq!(found["faults"].as_array().unwrap().len(), 2);
    assert_eq!(found["ended_early"], true);
    fail(
        &["verify", show(&path)],
        3,
        &["cell-1", "cell-4", "cell-6", "3 faults found"],
    );
}

#[test]
fn verify_names_every_damaged_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("corpus");
    synth(&path, &[]);
    for shard in [0, 2] {
        let file = path.join(format!("shards/part-{shard:05}.parquet"));
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
    fail(
        &["verify", show(&path)],
        3,
        &[
            "part-00000.parquet`, whole file",
            "part-00002.parquet`, whole file",
            "help:",
        ],
    );
}

#[test]
fn quality_shows_what_a_shuffle_is_worth() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("corpus");
    synth(&path, &[]);
    let quality = |window: &str| {
        let batches = [
            "--batch-cells",
            "25",
            "--window-row-groups",
            window,
            "--json",
        ];
        let found = json(&[&["quality", show(&path), "--column", "plate"][..], &batches].concat());
        let orders = found["orders"].as_array().unwrap().clone();
        let ratio = |name: &str| {
            let order = orders.iter().find(|o| o["order"] == name).unwrap();
            order["ratio"].as_f64().unwrap()
        };
        ["corpus order", "uniform", "stratified"].map(ratio)
    };
    // Plates follow each other: a row group is one plate, besides a few strays.
    let [corpus_order, narrow, _] = quality("1");
    assert!(
        corpus_order < 0.2 && narrow < 0.2,
        "{corpus_order} {narrow}"
    );
    let [_, wide, stratified] = quality("14");
    assert!(
        (wide - 1.0).abs() < 0.03 && stratified > wide,
        "{wide} {stratified}"
    );
    fail(
        &["quality", show(&path), "--column", "plat"],
        3,
        &["did you mean `plate`"],
    );
    fail(
        &[
            "quality",
            show(&path),
            "--column",
            "plate",
            "--batch-cells",
            "0",
        ],
        2,
        &["--batch-cells"],
    );
}
