use super::*;

fn list(dir: &Path, text: &str) -> Result<GeneList> {
    let path = dir.join("genes.tsv");
    std::fs::write(&path, text).unwrap();
    GeneList::read(&path)
}

#[test]
fn a_list_of_genes_is_in_order_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let text = "gene_name\tindex\nA1BG\t0\nA1CF\t1\n";
    let genes = list(dir.path(), text).unwrap();
    assert_eq!(genes.names(), ["A1BG", "A1CF"]);
    assert_eq!(genes.to_tsv(), text);
}

#[test]
fn a_list_that_would_mix_genes_up_is_refused_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let message = |text: &str| list(dir.path(), text).unwrap_err().to_string();
    let head = "gene_name\tindex\n";
    for (text, words) in [
        (
            "symbol,id\n",
            "line 1: expected `gene_name<TAB>index`, found `symbol,id`",
        ),
        (
            "gene_name\tindex\nB\t1\nA\t0\n",
            "line 2: `B` has index 1, expected 0",
        ),
        (
            "gene_name\tindex\nB\t0\nA\tx\n",
            "line 3: expected a name, a tab and an index",
        ),
        (
            "gene_name\tindex\nB\t0\nB\t1\n",
            "`B` has the indices 0 and 1",
        ),
    ] {
        let found = message(text);
        assert!(found.contains(words) && found.contains("help:"), "{found}");
    }
    // As many genes as the published list, in an order of their own.
    let rows: Vec<String> = (0..19_264).map(|g| format!("GENE{g}\t{g}\n")).collect();
    let found = message(&format!("{head}{}", rows.concat()));
    assert!(
        found.contains("19264 genes as the published list"),
        "{found}"
    );
}
