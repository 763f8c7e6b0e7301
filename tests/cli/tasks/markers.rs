//! `scpeft-train markers`: scores beside a test that knows the answer, on any number of ranks.

use std::collections::BTreeMap;

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, assert_refused, on_ranks};
use serde_json::Value;

use crate::succeed;

/// Rows of a table of markers: by contrast and gene, its other fields.
fn rows(text: &str) -> BTreeMap<(String, String), BTreeMap<String, f64>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let numbers = names.iter().zip(&fields).skip(2);
        let numbers = numbers.map(|(name, f)| ((*name).to_owned(), f.parse().unwrap()));
        (
            (fields[0].to_owned(), fields[1].to_owned()),
            numbers.collect(),
        )
    };
    lines.map(row).collect()
}

#[test]
fn markers_of_every_group_on_any_number_of_ranks() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    let run = run.to_str().unwrap();
    let list = lab.path("list.txt");
    // A third of the genes marks each type: these are of B cells.
    std::fs::write(&list, "GENE0\nGENE1\nGENE9\nNOWHERE\n").unwrap();
    let mut found = Vec::new();
    for ranks in [1, 2] {
        let output = lab.path(&format!("markers-{ranks}"));
        let arguments = [
            "markers",
            "--run",
            run,
            "--groups",
            "cell_type",
            "--top",
            "10",
        ];
        let more = [
            "--gene-list",
            list.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
        ];
        let said = succeed(ranks, &[&arguments[..], &more].concat());
        assert!(
            said.contains("120 cells") && said.contains("B cell against the rest"),
            "{said}"
        );
        found.push(rows(
            &std::fs::read_to_string(output.join("markers.csv")).unwrap(),
        ));
        for file in [
            "markers.parquet",
            "top.parquet",
            "attention_heatmap.svg",
            "expression_heatmap.png",
        ] {
            assert!(output.join(file).is_file(), "{file}");
        }
        let record: Value =
            serde_json::from_slice(&std::fs::read(output.join("markers.json")).unwrap()).unwrap();
        assert_eq!(
            (&record["cells"], &record["genes"], &record["layer"]),
            (&120.into(), &30.into(), &1.into())
        );
        let first = &record["contrasts"][0];
        assert_eq!(
            (&first["target_cells"], &first["background_cells"]),
            (&40.into(), &80.into())
        );
        assert_eq!(
            (&first["list_by_wilcoxon"], &first["list_genes_ranked"]),
            (&3.into(), &3.into())
        );
        assert!(record["cells_per_second"].as_f64().unwrap() > 0.0);
    }
    let [one, two] = &found[..] else {
        unreachable!()
    };
    assert_eq!(one.len(), 3 * 30);
    for (key, row) in one {
        // Each rank adds up its own cells.
        for (name, value) in row {
            assert!((value - two[key][name]).abs() < 1e-6, "{key:?} {name}");
        }
        let gene: usize = key.1.strip_prefix("GENE").unwrap().parse().unwrap();
        let marked = ["B cell", "Monocyte", "T cell"][gene / 10];
        let marks = key.0.starts_with(marked);
        assert_eq!(row["wilcoxon_place"] <= 10.0, marks, "{key:?}");
        assert_eq!(
            row["target_mean"] > row["background_mean"],
            marks,
            "{key:?}"
        );
        let difference = row["target_rank"] - row["background_rank"];
        assert!((row["score"] - difference).abs() < 1e-9);
        assert!((0.0..1.0).contains(&row["target_rank"]) && row["target_share"] <= 1.0);
    }
    // The two sides of a contrast of two groups are those of the others' averages.
    let output = lab.path("pair");
    let pair = [
        "--target",
        "T cell",
        "--background",
        "B cell",
        "--output",
        output.to_str().unwrap(),
    ];
    succeed(
        1,
        &[
            &["markers", "--run", run, "--groups", "cell_type"][..],
            &pair,
        ]
        .concat(),
    );
    let pair = rows(&std::fs::read_to_string(output.join("markers.csv")).unwrap());
    assert_eq!(pair.len(), 30);
    for ((_, gene), row) in &pair {
        let of =
            |kind: &str| one[&(format!("{kind} against the rest"), gene.clone())]["target_rank"];
        assert!(
            (row["score"] - (of("T cell") - of("B cell"))).abs() < 1e-6,
            "{gene}"
        );
    }
    let refused = on_ranks(1)
        .args([
            "markers",
            "--run",
            run,
            "--groups",
            "cell_type",
            "--target",
            "Platelet",
        ])
        .args(["--output", lab.path("no").to_str().unwrap()])
        .output()
        .unwrap();
    assert_refused(&refused, 2, &["--target Platelet", "`Monocyte`"]);
}
