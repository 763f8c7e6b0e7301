//! Scores of embeddings, neighbour graphs, clusters, components, markers and rejection against scib,
//! scanpy, scikit-learn, leidenalg and igraph; `tests/fixtures/embedding/make.py` made the numbers.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};

use golden::Golden;
use scpeft_evaluation::Score;
use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::embedding::Labelled;
use scpeft_evaluation::embedding::community::{Method, modularity, over_resolutions};
use scpeft_evaluation::embedding::graph::Graph;
use scpeft_evaluation::embedding::integration::{Integration, Settings, integration};
use scpeft_evaluation::embedding::neighbors::exact;
use scpeft_evaluation::embedding::regression::principal_component_regression;
use scpeft_evaluation::markers::{MarkerTable, between, one_against_rest};
use scpeft_evaluation::pca::pca;
use scpeft_evaluation::rejection::Logits;
use scpeft_evaluation::umap::{self, trustworthiness, umap};

/// A case with its tolerances.
struct Case {
    golden: Golden,
    /// Of what is determined by the cells.
    exact: f64,
    /// Of what depends on a search for clusters or on single precision in the reference: absolute.
    graph: f64,
}

impl Case {
    /// The case `<folder>/<case>` below `SCPEFT_FIXTURES`, or below `tests/fixtures`.
    fn read(folder: &str, case: &str) -> Self {
        let root = std::env::var_os("SCPEFT_FIXTURES").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"),
            PathBuf::from,
        );
        let dir = root.join(folder).join(case);
        let text = std::fs::read_to_string(dir.join("case.json")).unwrap();
        let case: serde_json::Value = serde_json::from_str(&text).unwrap();
        let tolerance = |name: &str| case["tolerances"][name].as_f64().unwrap();
        Self {
            golden: Golden::read(&dir),
            exact: tolerance("exact"),
            graph: tolerance("graph"),
        }
    }

    fn codes(&self, name: &str) -> Vec<usize> {
        let codes = self.golden.inputs.get(name).iter();
        codes.map(|&x| x as usize).collect()
    }

    fn width(&self, name: &str) -> usize {
        self.golden.inputs.shape(name)[1]
    }

    /// A score that is determined; one that the reference lacks must say why.
    fn exact(&mut self, name: &str, found: &Score) {
        if !self.golden.expected.0.contains_key(name) {
            assert!(found.is_err(), "{name}: {found:?}, and none is expected");
            return;
        }
        let found = found.clone().unwrap_or_else(|why| panic!("{name}: {why}"));
        self.golden.close(name, &[found], self.exact);
    }

    fn graph(&mut self, name: &str, found: &Score) {
        if !self.golden.expected.0.contains_key(name) {
            assert!(found.is_err(), "{name}: {found:?}, and none is expected");
            return;
        }
        let found = found.clone().unwrap_or_else(|why| panic!("{name}: {why}"));
        let expected = self.golden.expected.get(name)[0];
        let off = (found - expected).abs();
        assert!(off <= self.graph, "{name}: {found}, expected {expected}");
        self.golden.compared.insert(name.to_owned());
    }
}

/// What the reference says of one embedding.
fn check_embedding(name: &str) {
    let mut case = Case::read("embedding", name);
    let (labels, batches) = (case.codes("labels"), case.codes("batches"));
    let values = case.golden.inputs.f32("embedding");
    let before = case.golden.inputs.f32("before");
    let cells = Cells::new("embedding", &values, case.width("embedding")).unwrap();
    let before = Cells::new("before", &before, case.width("before")).unwrap();
    let labelled = Labelled::new(cells, &labels, &batches).unwrap();
    let found = integration(&labelled, Some(before), &Settings::default());
    let scores = &found.scores;
    case.exact("silhouette", &scores.silhouette);
    case.exact("calinski_harabasz", &scores.calinski_harabasz);
    case.exact("asw_label", &scores.asw_label);
    case.exact("asw_batch", &scores.asw_batch);
    case.exact("isolated_asw", &scores.isolated_asw);
    case.exact("pcr", &scores.pcr);
    case.exact(
        "pcr_before",
        &principal_component_regression(before, &batches),
    );
    case.exact(
        "pcr_after",
        &principal_component_regression(cells, &batches),
    );
    case.exact("graph_connectivity", &scores.graph_connectivity);
    case.graph("isolated_f1", &scores.isolated_f1);
    case.graph("ilisi", &scores.ilisi);
    case.graph("clisi", &scores.clisi);
    case.graph("nmi", &scores.nmi);
    case.graph("ari", &scores.ari);
    check_kbet(&mut case, &found);
    check_graph(&mut case, cells);
    check_components(&mut case, before);
    check_picture(&mut case, cells);
    case.golden.all_compared();
}

/// Labels without a score are NaN in the reference and say why here.
fn check_kbet(case: &mut Case, found: &Integration) {
    let expected = case.golden.expected.get("kbet");
    assert_eq!(found.kbet.len(), expected.len());
    for (label, (found, expected)) in found.kbet.iter().zip(expected).enumerate() {
        match found {
            Ok(found) => assert!(
                (found - expected).abs() <= case.exact,
                "{label}: {found} {expected}"
            ),
            Err(why) => assert!(expected.is_nan(), "{label}: {why}, expected {expected}"),
        }
    }
    case.golden.compared.insert("kbet".into());
}

/// Neighbours, their weights, and how much modularity is found in them.
fn check_graph(case: &mut Case, cells: Cells<'_>) {
    let near = exact(cells, 14).unwrap();
    let golden = &mut case.golden;
    let distances: Vec<f64> = (0..near.len())
        .flat_map(|cell| near.distances(cell).iter().map(|&d| f64::from(d)))
        .collect();
    golden.close("distances", &distances, case.exact);
    // Equal distances come in any order: a neighbour may differ where its distance is another's.
    let expected = golden.expected.get("neighbors");
    let differ = (0..near.len())
        .flat_map(|cell| {
            near.of(cell)
                .iter()
                .enumerate()
                .map(move |(at, &n)| (cell, at, n))
        })
        .filter(|&(cell, at, n)| expected[cell * 14 + at] as u32 != n)
        .filter(|&(cell, at, _)| {
            let own = near.distances(cell);
            let other = own
                .iter()
                .enumerate()
                .filter(|&(i, d)| i != at && *d == own[at]);
            other.count() == 0 && at + 1 < own.len()
        });
    assert_eq!(differ.collect::<Vec<_>>(), []);
    golden.compared.insert("neighbors".into());
    let graph = Graph::of_neighbors(&near);
    let degrees: Vec<f64> = (0..graph.len())
        .map(|cell| graph.of(cell).map(|(_, w)| f64::from(w)).sum())
        .collect();
    // Which of equal cells another one is linked to is left to chance: they are taken together.
    let together = |degrees: &[f64]| -> Vec<f64> {
        let mean = |cell: usize| {
            let equal = (0..degrees.len()).filter(|&o| cells.row(o) == cells.row(cell));
            let equal: Vec<f64> = equal.map(|o| degrees[o]).collect();
            equal.iter().sum::<f64>() / equal.len() as f64
        };
        (0..degrees.len()).map(mean).collect()
    };
    let expected = together(golden.expected.get("degrees"));
    for (found, expected) in together(&degrees).iter().zip(expected) {
        // The reference bisects in single precision.
        let off = (found - expected).abs();
        assert!(off < 1e-4 * expected, "degree {found}, expected {expected}");
    }
    golden.compared.insert("degrees".into());
    let resolutions: Vec<f64> = (1..=10).map(|step| f64::from(step) / 5.0).collect();
    // Louvain does not come back to what it merged, and says more by chance.
    for (name, method, least) in [
        ("modularity_leiden", Method::Leiden, case.graph / 2.0),
        ("modularity_louvain", Method::Louvain, case.graph),
    ] {
        let found = over_resolutions(&graph, method, &resolutions, 0);
        let expected = golden.expected.get(name).to_vec();
        for ((groups, &resolution), expected) in found.iter().zip(&resolutions).zip(expected) {
            let reached = modularity(&graph, groups, resolution).unwrap();
            assert!(
                reached > expected - least,
                "{name} {resolution}: {reached} {expected}"
            );
        }
        golden.compared.insert(name.into());
    }
}

fn check_components(case: &mut Case, before: Cells<'_>) {
    let count = case.golden.expected.shape("pca_variance")[0];
    let found = pca(before, count, 0).unwrap();
    case.golden
        .close("pca_variance", &found.variance, case.exact);
    let expected = case.golden.expected.get("pca_directions").to_vec();
    let rows = found
        .directions
        .chunks(before.genes())
        .zip(expected.chunks(before.genes()));
    for (row, expected) in rows {
        let dot: f64 = row.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!((dot.abs() - 1.0).abs() < case.exact, "{dot}");
    }
    case.golden.compared.insert("pca_directions".into());
}

/// Our picture keeps neighbours as well as scanpy's does, by scikit-learn's measure.
fn check_picture(case: &mut Case, cells: Cells<'_>) {
    let golden = &mut case.golden;
    let theirs: Vec<f32> = golden
        .expected
        .get("picture")
        .iter()
        .map(|&x| x as f32)
        .collect();
    let trust = |picture: &[f32]| {
        let picture = Cells::new("picture", picture, 2).unwrap();
        trustworthiness(cells, picture, 15).unwrap()
    };
    // The reference ranks equal distances by chance.
    golden.close("trustworthiness", &[trust(&theirs)], 1e-5);
    let graph = Graph::of_neighbors(&exact(cells, 14).unwrap());
    let start = pca(cells, 2, 0).unwrap();
    let ours = umap(&graph, &start.scores, 2, &umap::Settings::default()).unwrap();
    let (ours, theirs) = (trust(&ours), trust(&theirs));
    assert!(ours > theirs - 0.01, "{ours}, scanpy's {theirs}");
    golden.compared.insert("picture".into());
}

#[test]
fn golden_embedding_with_edge_cases() {
    check_embedding("edges");
}

#[test]
fn golden_embedding_of_cell_lines_in_five_batches() {
    check_embedding("mixology");
}

#[test]
fn golden_embedding_of_sorted_cells() {
    check_embedding("pbmc");
}

#[test]
fn golden_markers() {
    let mut case = Case::read("embedding", "markers");
    let groups = case.codes("groups");
    let values = case.golden.inputs.f32("cells");
    let cells = Cells::new("cells", &values, case.width("cells")).unwrap();
    let named: Vec<Option<usize>> = groups.iter().copied().map(Some).collect();
    let rest = one_against_rest(cells, &named).unwrap();
    for (group, table) in rest.iter().enumerate() {
        close_table(&mut case, &format!("rest_{group}"), table.as_ref().unwrap());
    }
    let is = |group: usize| groups.iter().map(|&g| g == group).collect::<Vec<bool>>();
    for group in 0..2 {
        let table = between(cells, &is(group), &is(2)).unwrap().unwrap();
        close_table(&mut case, &format!("pair_{group}"), &table);
    }
    case.golden.all_compared();
}

fn close_table(case: &mut Case, name: &str, table: &MarkerTable) {
    for (column, found) in [
        ("score", &table.score),
        ("p_value", &table.p_value),
        ("fdr", &table.fdr),
        ("log2fc", &table.log2fc),
    ] {
        // scanpy keeps scores and fold changes in f32.
        case.golden
            .close(&format!("{name}_{column}"), found, case.exact);
    }
}

#[test]
fn golden_rejection() {
    let mut case = Case::read("embedding", "rejection");
    let labels = case.codes("labels");
    let (known, unknown) = (
        case.golden.inputs.f32("known"),
        case.golden.inputs.f32("unknown"),
    );
    let classes = case.width("known");
    let known = Logits::new(&known, classes).unwrap();
    let unknown = Logits::new(&unknown, classes).unwrap();
    let calibration = known.calibrate(&labels, 0.95).unwrap();
    let temperature = calibration.temperature;
    let scores = calibration.scores(known, unknown).unwrap();
    let golden = &mut case.golden;
    golden.close("temperature", &[temperature], case.exact);
    golden.close("known", &known.confidence(temperature), case.exact);
    golden.close("unknown", &unknown.confidence(temperature), case.exact);
    golden.close("auroc", &[scores.auroc], case.exact);
    golden.close("fpr95", &[scores.fpr95], case.exact);
    golden.all_compared();
}
