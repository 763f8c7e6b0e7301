//! `scpeft-data import --orthologues`: genes of another species, and counts that add up.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use scpeft_data::Corpus;

fn import(output: &Path, more: &[&str]) -> (bool, String) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/h5ad/csr.h5ad");
    let output = Command::new(scpeft_tests::binary("scpeft-data"))
        .arg("import")
        .arg("--input")
        .arg(source)
        .arg("--output")
        .arg(output)
        .args(more)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The values of each cell by gene.
fn cells(path: &Path) -> Vec<BTreeMap<String, f32>> {
    let corpus = Corpus::open(path).unwrap();
    let symbols = &corpus.genes().symbols;
    let mut cells = Vec::new();
    for group in 0..corpus.row_groups().len() {
        let block = corpus.read_block(group, None).unwrap();
        for row in 0..block.rows() {
            let (genes, values) = block.cell(row);
            let named = genes.iter().zip(values);
            cells.push(
                named
                    .map(|(&g, &v)| (symbols[g as usize].clone(), v))
                    .collect(),
            );
        }
    }
    cells
}

#[test]
fn counts_of_genes_with_one_orthologue_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    assert!(import(&plain, &[]).0);
    let symbols = Corpus::open(&plain).unwrap().genes().symbols.clone();
    // Two genes share an orthologue; the last gene has none.
    let orthologue = |gene: usize| format!("H{}", gene / 2);
    let lines: Vec<String> = (0..symbols.len() - 1)
        .map(|gene| format!("{}\t{}", symbols[gene], orthologue(gene)))
        .collect();
    let table = dir.path().join("table.tsv");
    std::fs::write(&table, format!("mouse\thuman\n{}\n", lines.join("\n"))).unwrap();
    let table = table.to_str().unwrap();
    let species = ["--orthologues", table, "--from", "mouse", "--to", "human"];
    let renamed = dir.path().join("renamed");
    let (done, said) = import(&renamed, &species);
    assert!(done, "{said}");
    assert!(
        said.contains(&format!("{} of {} genes", symbols.len() - 1, symbols.len())),
        "{said}"
    );
    let place: BTreeMap<&str, usize> = symbols.iter().map(String::as_str).zip(0..).collect();
    for (before, after) in cells(&plain).iter().zip(cells(&renamed)) {
        let mut expected: BTreeMap<String, f32> = BTreeMap::new();
        for (symbol, value) in before {
            let gene = place[symbol.as_str()];
            if gene + 1 < symbols.len() {
                *expected.entry(orthologue(gene)).or_default() += value;
            }
        }
        assert_eq!(after, expected);
    }
    let manifest = std::fs::read_to_string(renamed.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"one_to_many\"") && manifest.contains("\"with_orthologue\""));
    // Only the pair of the gene that stands alone is left, if there is one.
    let dropped = dir.path().join("dropped");
    let (done, said) = import(
        &dropped,
        &[&species[..], &["--one-to-many", "drop"]].concat(),
    );
    let alone = (symbols.len() - 1) % 2;
    assert_eq!(done, alone == 1, "{said}");
    let (done, said) = import(
        &dir.path().join("x"),
        &["--orthologues", table, "--from", "mouse"],
    );
    assert!(!done && said.contains("--to"), "{said}");
}
