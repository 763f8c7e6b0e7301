//! 10x matrices: the same numbers from HDF5 and from a folder, and every fault with its line.

#![allow(clippy::unwrap_used)]

mod import_support;

use std::path::{Path, PathBuf};

use import_support::{corpus, dense, fixture, ids, refused};
use scpeft_data::ValueKind;
use scpeft_data::import::{ImportOptions, MatrixOption};
use tempfile::TempDir;

fn options(input: PathBuf) -> ImportOptions {
    ImportOptions {
        inputs: vec![input],
        ..ImportOptions::default()
    }
}

/// A folder with these three files.
fn folder(matrix: &str, features: &str, barcodes: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in [
        ("matrix.mtx", matrix),
        ("features.tsv", features),
        ("barcodes.tsv", barcodes),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

const FEATURES: &str = "ENSG00000000003\tTSPAN6\tGene Expression\n\
    AB1\tCD3\tAntibody Capture\n\
    ENSG00000000005\tTNMD\tGene Expression\n\
    ENSG00000000419\t\tGene Expression\n";
const BARCODES: &str = "AA-1\nCC-1\nGG-1\n";
const HEAD: &str = "%%MatrixMarket matrix coordinate integer general\n%\n4 3 5\n";

fn given(entries: &str) -> TempDir {
    folder(&format!("{HEAD}{entries}"), FEATURES, BARCODES)
}

#[test]
fn a_file_and_a_folder_give_the_same_corpus() {
    let dir = TempDir::new().unwrap();
    let from_file = corpus(&dir, &options(fixture("10x/v3.h5")));
    let other = TempDir::new().unwrap();
    let from_folder = corpus(&other, &options(fixture("10x/v3")));
    assert_eq!((from_file.n_cells(), from_file.genes().len()), (1107, 507));
    assert_eq!(from_file.value_kind(), ValueKind::Counts);
    assert_eq!(from_file.genes(), from_folder.genes());
    assert_eq!(ids(&from_file), ids(&from_folder));
    let values = dense(&from_file);
    assert_eq!(values, dense(&from_folder));
    // The first lines of the matrix: `458 1 3`, `456 1 1`, `409 1 1`.
    assert_eq!(
        [values[0][457], values[0][455], values[0][408]],
        [3.0, 1.0, 1.0]
    );
    let nonzeros = values.iter().flatten().filter(|v| **v > 0.0).count();
    assert_eq!(nonzeros, 23_866);
    assert_eq!(from_file.genes().symbols[0], "CH507-9B2.2");
    assert_eq!(
        from_file.genes().ensembl[0].as_deref(),
        Some("ENSG00000279493")
    );
    let sources = &from_folder.manifest().provenance.sources;
    let names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "v3/matrix.mtx.gz",
            "v3/features.tsv.gz",
            "v3/barcodes.tsv.gz"
        ]
    );
    let bytes = std::fs::read(fixture("10x/v3/matrix.mtx.gz")).unwrap();
    assert_eq!(sources[0].bytes, bytes.len() as u64);
    assert_eq!(sources[0].blake3, blake3::hash(&bytes).to_hex().to_string());
}

#[test]
fn old_folders_and_files_hold_a_genome_each() {
    let dir = TempDir::new().unwrap();
    // Symbols only; one genome in a folder of its own; entries `201 1 1` and `123 2 1`.
    let one = corpus(&dir, &options(fixture("10x/v2")));
    assert_eq!((one.n_cells(), one.genes().len()), (12, 343));
    let values = dense(&one);
    assert_eq!([values[0][200], values[1][122]], [1.0, 1.0]);
    assert_eq!(ids(&one)[0], "AACACGTGTACGCTGC-1");
    let genomes = options(fixture("10x/genomes.h5"));
    refused(
        &genomes,
        2,
        &["2 genomes", "--genome", "`hg19_chr21`", "`another_genome`"],
    );
    let chosen = |name: &str| ImportOptions {
        genome: Some(name.to_owned()),
        ..genomes.clone()
    };
    refused(
        &chosen("hg19"),
        2,
        &["no genome `hg19`", "did you mean `hg19_chr21`"],
    );
    let dir = TempDir::new().unwrap();
    let from_file = corpus(&dir, &chosen("hg19_chr21"));
    assert_eq!(from_file.genes(), one.genes());
    assert_eq!(dense(&from_file), values);
    let h5ad = ImportOptions {
        genome: Some("x".to_owned()),
        ..options(fixture("h5ad/csr.h5ad"))
    };
    refused(&h5ad, 2, &["--genome"]);
    let raw = ImportOptions {
        matrix: MatrixOption::Raw,
        ..options(fixture("10x/v3.h5"))
    };
    refused(&raw, 2, &["--raw"]);
}

#[test]
fn ids_may_be_anything() {
    let dir = TempDir::new().unwrap();
    let corpus = corpus(&dir, &options(fixture("10x/int-ids")));
    assert_eq!(corpus.genes().symbols[0], "Pwwp4b");
    assert_eq!(corpus.genes().ensembl[0], None);
    // `4 3 6` in a matrix of reals that are integers.
    assert_eq!(dense(&corpus)[2][3], 6.0);
    assert_eq!(corpus.value_kind(), ValueKind::Counts);
}

#[test]
fn genes_alone_are_kept_whatever_the_order_of_entries() {
    let wanted = [
        vec![0.0, 7.0, 0.0],
        vec![0.0, 0.0, 0.0],
        vec![2.0, 0.0, 9.0],
    ];
    // By cells; unsorted, an entry given twice; both with an antibody.
    for entries in [
        "3 1 7\n2 2 5\n4 3 9\n2 3 1\n1 3 2\n",
        "1 3 2\n3 1 3\n2 2 5\n3 1 4\n4 3 9\n",
    ] {
        let input = given(entries);
        let dir = TempDir::new().unwrap();
        let corpus = corpus(&dir, &options(input.path().to_owned()));
        assert_eq!(dense(&corpus), wanted, "{entries}");
        assert_eq!(
            corpus.genes().symbols,
            ["TSPAN6", "TNMD", "ENSG00000000419"]
        );
        assert_eq!(ids(&corpus), ["AA-1", "CC-1", "GG-1"]);
    }
}

#[test]
fn reals_are_taken_as_what_they_are() {
    let matrix = "%%MatrixMarket matrix coordinate real general\n4 3 2\n1 1 0.5\n3 2 1e-1\n";
    let input = folder(matrix, FEATURES, BARCODES);
    let dir = TempDir::new().unwrap();
    let corpus = corpus(&dir, &options(input.path().to_owned()));
    assert_eq!(corpus.value_kind(), ValueKind::Lognorm);
    assert_eq!(
        dense(&corpus)[..2],
        [vec![0.5, 0.0, 0.0], vec![0.0, 0.1, 0.0]]
    );
}

#[test]
fn faults_of_a_matrix_are_named_with_their_line() {
    let cases: &[(&str, &[&str])] = &[
        ("1 1 2\n1 2 2\n", &["line 6", "has 2 entries", "5"]),
        ("1 1 2\n5 1 2\n", &["line 5", "row 5", "1 to 4"]),
        ("1 1 2\n0 1 2\n", &["line 5", "row 0", "1 to 4"]),
        ("1 4 2\n", &["line 4", "column 4", "1 to 3"]),
        ("1 1 2.5\n", &["line 4", "an integer"]),
        ("1 1\n", &["line 4", "a row, a column"]),
        (
            "1 1 1\n1 2 1\n1 3 1\n2 1 1\n2 2 1\n\n%x\n2 3 1\n",
            &["line 11", "more than the 5"],
        ),
        (
            "1 1 1\n1 2 -1\n1 3 1\n2 1 1\n2 2 1\n",
            &["cell `CC-1`", "gene `TSPAN6`", "negative"],
        ),
    ];
    for (entries, parts) in cases {
        refused(&options(given(entries).path().to_owned()), 3, parts);
    }
}

#[test]
fn faults_of_the_files_beside_are_named() {
    let matrix = format!("{HEAD}1 1 1\n1 2 1\n1 3 1\n2 1 1\n2 2 1\n");
    let heads = [
        (
            "%%MatrixMarket matrix array integer general\n",
            &["line 1", "coordinate integer"][..],
        ),
        (
            "%%MatrixMarket matrix coordinate pattern general\n",
            &["line 1", "pattern"],
        ),
        (
            "%%MatrixMarket matrix coordinate real symmetric\n",
            &["line 1", "symmetric"],
        ),
        (
            "%%MatrixMarket matrix coordinate real general\n%\n",
            &["line 3", "before its sizes"],
        ),
        (
            "%%MatrixMarket matrix coordinate real general\n3 4\n",
            &["line 2", "three numbers"],
        ),
        (
            "%%MatrixMarket matrix coordinate real general\n3 4 0\n",
            &["3 rows", "4 lines", "transposed"],
        ),
        (
            "%%MatrixMarket matrix coordinate real general\n4 2 0\n",
            &["2 columns", "3 lines", "barcodes.tsv"],
        ),
    ];
    for (head, parts) in heads {
        let input = folder(head, FEATURES, BARCODES);
        refused(&options(input.path().to_owned()), 3, parts);
    }
    let twice = folder(&matrix, FEATURES, "AA-1\nCC-1\nAA-1\n");
    refused(
        &options(twice.path().to_owned()),
        3,
        &["barcodes.tsv", "line 3", "`AA-1`", "line 1"],
    );
    let columns = folder(&matrix, "A\nB\nC\nD\n", BARCODES);
    refused(
        &options(columns.path().to_owned()),
        3,
        &["features.tsv", "line 1", "1 columns"],
    );
    let none = FEATURES.replace("Gene Expression", "Peaks");
    let none = folder(&matrix, &none, BARCODES);
    refused(
        &options(none.path().to_owned()),
        3,
        &["none of its 4 features", "Gene Expression"],
    );
    let missing = folder(&matrix, FEATURES, BARCODES);
    std::fs::remove_file(missing.path().join("features.tsv")).unwrap();
    refused(
        &options(missing.path().to_owned()),
        3,
        &["`features.tsv[.gz]` or `genes.tsv[.gz]`"],
    );
    refused(
        &options(missing.path().join("matrix.mtx")),
        3,
        &["single file", "give the folder"],
    );
    let empty = TempDir::new().unwrap();
    refused(&options(empty.path().to_owned()), 3, &["no matrix.mtx"]);
    std::fs::write(empty.path().join(".zgroup"), "{}").unwrap();
    refused(
        &options(empty.path().to_owned()),
        3,
        &["zarr", "write_h5ad"],
    );
    let zip = empty.path().join("a.zarr.zip");
    std::fs::write(&zip, b"PK\x03\x04rest").unwrap();
    refused(&options(zip), 3, &["zarr", "write_h5ad"]);
}

#[test]
fn compressed_files_that_end_early_are_refused() {
    let input = TempDir::new().unwrap();
    for name in ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"] {
        copy_part(
            &fixture("10x/v3").join(name),
            &input.path().join(name),
            name == "matrix.mtx.gz",
        );
    }
    refused(
        &options(input.path().to_owned()),
        3,
        &[
            "matrix.mtx.gz",
            "line ",
            "cannot be read",
            "download it again",
        ],
    );
}

fn copy_part(from: &Path, to: &Path, half: bool) {
    let bytes = std::fs::read(from).unwrap();
    let end = if half { bytes.len() / 2 } else { bytes.len() };
    std::fs::write(to, &bytes[..end]).unwrap();
}
