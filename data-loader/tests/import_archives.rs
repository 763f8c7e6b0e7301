//! Files that old versions of anndata wrote, against what anndata reads from them.

#![allow(clippy::unwrap_used)]

mod import_support;

use import_support::{corpus, dense, fixture, ids, refused, texts};
use scpeft_data::corpus::ObsKind;
use scpeft_data::import::{ImportOptions, MatrixOption, ValuesOption};
use serde_json::Value;
use tempfile::TempDir;

fn expected(name: &str) -> Value {
    let text = std::fs::read(fixture("anndata/expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    all[name].clone()
}

fn options(name: &str, matrix: MatrixOption) -> ImportOptions {
    ImportOptions {
        inputs: vec![fixture(&format!("anndata/{name}.h5ad"))],
        matrix,
        ..ImportOptions::default()
    }
}

fn names(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap().iter();
    list.map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn assert_near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (f, w) in found.iter().zip(wanted) {
        assert!((f - w).abs() <= 1e-5 * w.abs().max(1.0), "{f} {w}");
    }
}

#[test]
fn tables_and_values_are_those_that_anndata_reads() {
    for (name, matrix) in [
        ("v0.7.0", MatrixOption::X),
        ("v0.7.0", MatrixOption::Layer("sparse".to_owned())),
        ("v0.7.0", MatrixOption::Layer("array".to_owned())),
        ("v0.7.0", MatrixOption::Raw),
        ("v0.5.0", MatrixOption::Raw),
    ] {
        let wanted = expected(name);
        let dir = TempDir::new().unwrap();
        let corpus = corpus(&dir, &options(name, matrix.clone()));
        assert_eq!(ids(&corpus), names(&wanted["cells"]), "{name}");
        let values = dense(&corpus);
        let sums: Vec<f64> = values
            .iter()
            .map(|c| c.iter().map(|&v| f64::from(v)).sum())
            .collect();
        let genes = match &matrix {
            MatrixOption::X => {
                let rows = wanted["X"].as_array().unwrap().iter();
                for (found, row) in values.iter().zip(rows) {
                    let found: Vec<f64> = found.iter().map(|&v| f64::from(v)).collect();
                    assert_near(&found, &numbers(row));
                }
                "genes"
            }
            MatrixOption::Layer(layer) => {
                assert_near(&sums, &numbers(&wanted["layer_sums"][layer]));
                "genes"
            }
            MatrixOption::Raw => {
                assert_near(&sums, &numbers(&wanted["raw_sums"]));
                "raw_genes"
            }
        };
        assert_eq!(corpus.genes().symbols, names(&wanted[genes]), "{name}");
        for (column, wanted) in wanted["obs"].as_object().unwrap() {
            let kept = corpus
                .manifest()
                .obs
                .iter()
                .find(|c| c.name == *column)
                .unwrap();
            if wanted["numbers"].is_array() {
                assert_eq!(kept.kind, ObsKind::Number, "{name} {column}");
                continue;
            }
            let categories = names(&wanted["categories"]);
            assert_eq!(kept.categories, categories, "{name} {column}");
            let codes = wanted["codes"].as_array().unwrap().iter();
            let wanted: Vec<String> = codes
                .map(|c| {
                    usize::try_from(c.as_i64().unwrap())
                        .map_or("-".to_owned(), |c| categories[c].clone())
                })
                .collect();
            assert_eq!(texts(&corpus, column), wanted, "{name} {column}");
        }
    }
}

#[test]
fn what_holds_no_values_or_scaled_ones_is_refused() {
    let empty = options("v0.11.4", MatrixOption::X);
    refused(
        &empty,
        3,
        &["`X`", "missing or empty", "neither raw nor layers"],
    );
    let scaled = ImportOptions {
        values: ValuesOption::Lognorm,
        ..options("v0.5.0", MatrixOption::X)
    };
    refused(&scaled, 3, &["negative", "--raw"]);
}
