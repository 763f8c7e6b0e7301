//! Options that choose genes and cells.

use tempfile::TempDir;

use crate::{COUNTS, GENES, IDS, Imported, assert_fails, dense, import, run, texts};

fn symbols(imported: &Imported) -> Vec<String> {
    imported.corpus().genes().symbols.clone()
}

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_vocabulary_chooses_genes_before_anything_is_counted() {
    let dir = TempDir::new().unwrap();
    let vocab = file(
        &dir,
        "vocab.json",
        r#"{"LYZ": 3, "<pad>": 0, "NKG7": 2, "CD3E": 1, "OTHER": 9}"#,
    );
    let imported = import("csr", &["--vocab", &vocab]);
    assert_eq!(symbols(&imported), ["CD3E", "NKG7", "LYZ"]);
    let wanted: Vec<Vec<f32>> = COUNTS.map(|r| vec![r[0], r[2], r[3]]).to_vec();
    assert_eq!(dense(&imported.corpus()), wanted);

    // c1 expresses two genes, but only one of the vocabulary.
    let few = import("csr", &["--vocab", &vocab, "--min-genes", "2"]);
    let corpus = few.corpus();
    assert_eq!(corpus.cell_ids(&[0, 1, 2]).unwrap(), ["c0", "c3", "c5"]);
    assert_eq!(
        dense(&corpus),
        [wanted[0].clone(), wanted[3].clone(), wanted[5].clone()]
    );
    assert_eq!(texts(&corpus, "cell_type"), ["T", "NK", "B"]);
    assert_eq!(texts(&corpus, "batch"), ["b1", "b2", "b2"]);

    let ids = file(&dir, "ids.json", &format!(r#"{{"{}": 0}}"#, IDS[1]));
    assert_eq!(symbols(&import("csr", &["--vocab", &ids])), ["MS4A1"]);
    for (text, parts) in [
        (
            r#"{"TP53": 0}"#,
            &["none of its 4 genes", "`CD3E`", "help:"][..],
        ),
        (r#"{"CD3E": 0, "LYZ": 0}"#, &["both have id 0"]),
        ("[1]", &["other.json", "must map tokens to ids"]),
    ] {
        let other = file(&dir, "other.json", text);
        assert_fails(&import("csr", &["--vocab", &other]), 3, parts);
    }
}

#[test]
fn genes_and_cells_are_filtered_in_this_order() {
    // Sums are 11, 7, 13 and 70006. Without MS4A1, c1 has one gene left.
    let imported = import("csc", &["--min-counts", "8", "--min-genes", "2"]);
    let corpus = imported.corpus();
    assert_eq!(corpus.genes().symbols, ["CD3E", "NKG7", "LYZ"]);
    assert_eq!(corpus.cell_ids(&[0, 1, 2]).unwrap(), ["c0", "c3", "c5"]);
    assert_eq!(corpus.n_cells(), 3);
    assert_eq!(dense(&corpus)[1], [0.0, 9.0, 70_000.0]);
    assert_eq!(imported.stdout()["nonzeros"], 7);
    let options = &corpus.manifest().provenance.options;
    assert_eq!(options["min_counts"], 8);
    assert_eq!(
        options["genes"],
        serde_json::json!({"source": 4, "min_counts": 3, "kept": 3})
    );
    assert_eq!(
        options["cells"],
        serde_json::json!({"source": 6, "min_genes": 3, "kept": 3})
    );
    let shown = run(&["inspect", imported.path().to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("min_counts: 8") && shown.contains("min_genes: 2"),
        "{shown}"
    );

    assert_fails(
        &import("csr", &["--min-counts", "80000"]),
        3,
        &["no gene has a sum of 80000"],
    );
    assert_fails(
        &import("csr", &["--min-genes", "5"]),
        3,
        &["no cell expresses 5"],
    );
}

#[test]
fn variable_and_named_genes_are_kept() {
    let dir = TempDir::new().unwrap();
    let named = file(&dir, "named.txt", "NKG7\n\nTP53\n");
    let hvg = [
        "--hvg",
        "1",
        "--hvg-flavor",
        "cell_ranger",
        "--hvg-batch",
        "batch",
    ];
    let alone = symbols(&import("csr", &hvg));
    assert_eq!(alone.len(), 1);
    assert_ne!(alone, ["NKG7"]);
    let both = import("csr", &[&hvg[..], &["--keep-genes", &named]].concat());
    let found = symbols(&both);
    let wanted: Vec<&str> = GENES
        .into_iter()
        .filter(|g| *g == "NKG7" || alone.iter().any(|a| a == g))
        .collect();
    assert_eq!(found, wanted);
    let options = &both.corpus().manifest().provenance.options.clone();
    assert_eq!(
        options["hvg"],
        serde_json::json!({"n": 1, "flavor": "cell_ranger", "batch": "batch"})
    );
    assert_eq!(options["keep_genes"]["file"], "named.txt");
    assert_eq!(options["genes"]["named"], 1);

    let unknown = file(&dir, "unknown.txt", "TP53\n");
    let args = [&hvg[..], &["--keep-genes", &unknown]].concat();
    assert_fails(
        &import("csr", &args),
        3,
        &["unknown.txt", "none of its 1 names"],
    );
}

#[test]
fn variable_genes_that_cannot_be_found_are_explained() {
    let cases: &[(&str, &[&str], i32, &[&str])] = &[
        (
            "layers",
            &["--hvg", "2", "--values", "lognorm"],
            3,
            &["needs counts", "help:", "--layer"],
        ),
        (
            "csr",
            &["--hvg", "5"],
            3,
            &["5 variable genes", "1 to 4", "help:"],
        ),
        (
            "csr",
            &["--hvg", "2"],
            3,
            &["4 genes vary", "at least 14", "help:"],
        ),
        (
            "csr",
            &["--hvg", "2", "--hvg-batch", "bach"],
            3,
            &["no obs column `bach`", "did you mean `batch`"],
        ),
        (
            "csr",
            &["--hvg", "2", "--hvg-batch", "cell_type"],
            3,
            &["1 cells have no value", "`cell_type`", "`c4`", "help:"],
        ),
        (
            "csr",
            &["--hvg", "2", "--hvg-batch", "batch", "--min-genes", "2"],
            3,
            &["batch `b1` has 2 cells", "at least 3", "help:"],
        ),
        (
            "csr",
            &["--hvg", "2", "--hvg-flavor", "cell_ranger"],
            3,
            &["no gene stands out", "help:"],
        ),
        ("csr", &["--hvg-batch", "batch"], 2, &["--hvg"]),
        ("csr", &["--keep-genes", "x"], 2, &["--hvg"]),
        ("csr", &["--allow-missing-genes"], 2, &["--genes-like"]),
        ("csr", &["--genes-like", "x", "--hvg", "2"], 2, &["--hvg"]),
        (
            "csr",
            &["--hvg", "2", "--keep-genes", "/nowhere"],
            3,
            &["cannot open `/nowhere`"],
        ),
    ];
    for (name, args, code, parts) in cases {
        assert_fails(&import(name, args), *code, parts);
    }
}

#[test]
fn other_cells_are_imported_with_the_same_genes() {
    let dir = TempDir::new().unwrap();
    // The genes of `raw` without CD3E and MS4A1, in another order than the target asks for.
    let vocab = file(&dir, "vocab.json", r#"{"XIST": 0, "NKG7": 1, "LYZ": 2}"#);
    let target = import("raw", &["--raw", "--vocab", &vocab]);
    assert_eq!(symbols(&target), ["NKG7", "LYZ", "XIST"]);
    let target_path = target.path();
    let like = ["--genes-like", target_path.to_str().unwrap()];

    let same = import("raw", &[&["--raw"][..], &like].concat());
    assert_eq!(same.corpus().genes(), target.corpus().genes());
    assert_eq!(dense(&same.corpus()), dense(&target.corpus()));

    let missing = import("csr", &like);
    assert_fails(
        &missing,
        3,
        &["1 of the 3 genes", "`XIST`", "--allow-missing-genes"],
    );
    let allowed = import("csr", &[&like[..], &["--allow-missing-genes"]].concat());
    let corpus = allowed.corpus();
    assert_eq!(corpus.genes(), target.corpus().genes());
    let wanted: Vec<Vec<f32>> = COUNTS.map(|r| vec![r[2], r[3], 0.0]).to_vec();
    assert_eq!(dense(&corpus), wanted);
    let options = &corpus.manifest().provenance.options;
    assert_eq!(options["genes_like"]["missing"], 1);
    assert_eq!(
        options["genes_like"]["fingerprint"],
        target.corpus().fingerprint()
    );
    assert_fails(
        &import("csr", &["--genes-like", "/nowhere"]),
        3,
        &["does not exist", "help:"],
    );
}
