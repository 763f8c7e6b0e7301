//! Several inputs in one corpus, splits by groups, and the random order.

#![allow(clippy::unwrap_used)]

mod import_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use import_support::{Cells, Values, corpus, dense, fixture, ids, refused, texts, write_h5ad};
use proptest::prelude::*;
use scpeft_data::corpus::WriterOptions;
use scpeft_data::import::{FilterOptions, ImportOptions, Join, JoinKey, SplitOptions};
use tempfile::TempDir;

fn two(dir: &TempDir) -> ImportOptions {
    let (a, b) = (dir.path().join("a.h5ad"), dir.path().join("b.h5ad"));
    write_h5ad(
        &a,
        &Cells {
            ids: vec!["c1".to_owned(), "c2".to_owned()],
            genes: &[
                ("A", "ENSG00000000001"),
                ("B", "ENSG00000000002"),
                ("C", "ENSG00000000003"),
            ],
            values: vec![1.0, 0.0, 3.0, 0.0, 5.0, 0.0],
            obs: vec![
                ("type", Values::texts(["T", "T"])),
                ("depth", Values::Numbers(vec![1.5, 2.5])),
                ("mixed", Values::Numbers(vec![1.0, 2.0])),
                ("only_a", Values::texts(["x", "x"])),
            ],
        },
    );
    write_h5ad(
        &b,
        &Cells {
            ids: vec!["c2".to_owned(), "c3".to_owned()],
            genes: &[
                ("C", "ENSG00000000003"),
                ("D", "ENSG00000000004"),
                ("A", "ENSG00000000001"),
            ],
            values: vec![7.0, 0.0, 9.0, 0.0, 11.0, 0.0],
            obs: vec![
                ("type", Values::texts(["B", "B"])),
                ("depth", Values::Numbers(vec![3.5, 4.5])),
                ("mixed", Values::texts(["one", "one"])),
            ],
        },
    );
    ImportOptions {
        inputs: vec![a, b],
        label: Some("type".to_owned()),
        ..ImportOptions::default()
    }
}

#[test]
fn genes_and_columns_are_united() {
    let dir = TempDir::new().unwrap();
    let options = two(&dir);
    let union = corpus(&dir, &options);
    assert_eq!(union.genes().symbols, ["A", "B", "C", "D"]);
    assert_eq!(
        dense(&union),
        [
            [1.0, 0.0, 3.0, 0.0],
            [0.0, 5.0, 0.0, 0.0],
            [9.0, 0.0, 7.0, 0.0],
            [0.0, 0.0, 0.0, 11.0]
        ]
    );
    // `c2` is in both.
    assert_eq!(ids(&union), ["c1-a", "c2-a", "c2-b", "c3-b"]);
    assert_eq!(texts(&union, "source"), ["a", "a", "b", "b"]);
    assert_eq!(union.categories("type").unwrap(), ["B", "T"]);
    assert_eq!(texts(&union, "type"), ["T", "T", "B", "B"]);
    assert_eq!(texts(&union, "only_a"), ["x", "x", "-", "-"]);
    assert_eq!(texts(&union, "mixed"), ["1.0", "2.0", "one", "one"]);
    let names: Vec<&str> = union
        .manifest()
        .obs
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["type", "depth", "mixed", "only_a", "source"]);
    let provenance = &union.manifest().provenance;
    assert_eq!(provenance.sources.len(), 2);
    assert_eq!(provenance.options["join"]["intersection"], 2);
    assert_eq!(provenance.options["inputs"][1]["cells"], 2);
}

#[test]
fn an_intersection_keeps_what_all_have() {
    let dir = TempDir::new().unwrap();
    let options = ImportOptions {
        join: Join::Intersection,
        source_column: Some("sample".to_owned()),
        obs: Some(vec![]),
        ..two(&dir)
    };
    let both = corpus(&dir, &options);
    assert_eq!(both.genes().symbols, ["A", "C"]);
    assert_eq!(
        dense(&both),
        [[1.0, 3.0], [0.0, 0.0], [9.0, 7.0], [0.0, 0.0]]
    );
    assert_eq!(texts(&both, "sample"), ["a", "a", "b", "b"]);
    let refusals = [
        (
            ImportOptions {
                source_column: Some("type".to_owned()),
                ..options.clone()
            },
            &["`type`", "--source-column"][..],
        ),
        (
            ImportOptions {
                inputs: vec![options.inputs[0].clone(), fixture("10x/v2")],
                gene_key: JoinKey::Ensembl,
                ..options.clone()
            },
            &["`v2`", "343 of the 343", "--gene-key symbol"],
        ),
        (
            ImportOptions {
                inputs: vec![options.inputs[0].clone(), fixture("10x/v2")],
                ..options.clone()
            },
            &["no gene is in all 2 inputs", "`DSCAM`"],
        ),
    ];
    for (options, parts) in refusals {
        refused(&options, 2, parts);
    }
}

#[test]
fn counts_and_other_values_are_not_mixed() {
    let options = ImportOptions {
        inputs: vec![fixture("h5ad/csr.h5ad"), fixture("h5ad/layers.h5ad")],
        ..ImportOptions::default()
    };
    refused(
        &options,
        3,
        &["layers.h5ad", "lognorm", "csr.h5ad", "counts"],
    );
}

#[test]
fn formats_and_filters_work_together() {
    let dir = TempDir::new().unwrap();
    let options = ImportOptions {
        inputs: vec![fixture("10x/v3"), fixture("10x/v3.h5")],
        filter: FilterOptions {
            min_genes: Some(30),
            ..FilterOptions::default()
        },
        shuffle: Some(1),
        ..ImportOptions::default()
    };
    let both = corpus(&dir, &options);
    let all: BTreeSet<String> = ids(&both).into_iter().collect();
    assert_eq!(all.len() as u64, both.n_cells());
    // A folder and a file of the same name are told apart.
    let counts = |name: &str| texts(&both, "source").iter().filter(|s| *s == name).count();
    assert_eq!(both.categories("source").unwrap(), ["10x-v3", "10x-v3-2"]);
    assert_eq!(counts("10x-v3"), counts("10x-v3-2"));
    assert!(
        dense(&both)
            .iter()
            .all(|c| c.iter().filter(|v| **v > 0.0).count() >= 30)
    );
}

/// Cells with a donor and a number of their own: cell i expresses gene 0 i + 1 times.
fn donors(dir: &TempDir, of_cells: &[usize]) -> PathBuf {
    let path = dir.path().join("donors.h5ad");
    write_h5ad(
        &path,
        &Cells {
            ids: (0..of_cells.len()).map(|c| format!("cell-{c}")).collect(),
            genes: &[("A", ""), ("B", "")],
            values: (0..of_cells.len())
                .flat_map(|c| [c as f32 + 1.0, 1.0])
                .collect(),
            obs: vec![
                (
                    "donor",
                    Values::texts(of_cells.iter().map(|d| format!("d{d}"))),
                ),
                (
                    "fold",
                    Values::texts(of_cells.iter().map(|d| format!("f{}", d % 3))),
                ),
                (
                    "weight",
                    Values::Numbers((0..of_cells.len()).map(|c| c as f32).collect()),
                ),
                (
                    "note",
                    Values::texts((0..of_cells.len()).map(|c| format!("note {c}"))),
                ),
            ],
        },
    );
    path
}

fn split_by(input: PathBuf, text: &str, seed: u64) -> ImportOptions {
    ImportOptions {
        inputs: vec![input],
        split: Some(SplitOptions {
            by: Some("donor".to_owned()),
            ..SplitOptions::parse(text, seed).unwrap()
        }),
        ..ImportOptions::default()
    }
}

#[test]
fn whole_groups_go_to_parts() {
    let dir = TempDir::new().unwrap();
    let of_cells: Vec<usize> = (0..200).map(|c| c * 7 % 20).collect();
    let input = donors(&dir, &of_cells);
    let corpus = corpus(&dir, &split_by(input.clone(), "train=.8,val=.1,test=.1", 3));
    let parts = texts(&corpus, "split");
    for (part, cells) in [("train", 160), ("val", 20), ("test", 20)] {
        assert_eq!(parts.iter().filter(|p| *p == part).count(), cells);
    }
    let split = &corpus.manifest().provenance.options["split"];
    assert_eq!(split["by"], "donor");
    assert_eq!(split["cells"]["train"], 160);
    assert_eq!(split["groups"]["train"].as_array().unwrap().len(), 16);
    for (cell, donor) in of_cells.iter().enumerate() {
        let list = split["groups"][parts[cell].as_str()].as_array().unwrap();
        assert!(list.contains(&format!("d{donor}").into()));
    }
    let few = split_by(donors(&dir, &[0, 0, 1, 1]), "train=.8,val=.1,test=.1", 0);
    refused(&few, 2, &["2 groups", "`val`"]);
    let column = ImportOptions {
        label: None,
        split: Some(SplitOptions {
            by: Some("batch".to_owned()),
            ..SplitOptions::parse("a=.5,b=.5", 0).unwrap()
        }),
        ..split_by(input, "a=1", 0)
    };
    refused(&column, 3, &["no obs column `batch`", "`donor`"]);
    let missing = ImportOptions {
        inputs: vec![fixture("h5ad/csr.h5ad")],
        split: Some(SplitOptions {
            by: Some("cell_type".to_owned()),
            ..SplitOptions::parse("a=.5,b=.5", 0).unwrap()
        }),
        ..ImportOptions::default()
    };
    refused(
        &missing,
        3,
        &["1 cells have no value", "`c4`", "--split-by cell_type"],
    );
}

#[test]
fn a_column_names_the_parts() {
    let dir = TempDir::new().unwrap();
    let input = donors(&dir, &[0, 1, 2, 0]);
    let options = ImportOptions {
        inputs: vec![input],
        split_column: Some("fold".to_owned()),
        ..ImportOptions::default()
    };
    let corpus = corpus(&dir, &options);
    assert_eq!(texts(&corpus, "split"), ["f0", "f1", "f2", "f0"]);
    assert_eq!(texts(&corpus, "fold"), texts(&corpus, "split"));
    let split = &corpus.manifest().provenance.options["split"];
    assert_eq!(
        (&split["column"], &split["cells"]["f0"]),
        (&"fold".into(), &2.into())
    );
    let missing = ImportOptions {
        inputs: vec![fixture("h5ad/csr.h5ad")],
        split_column: Some("cell_type".to_owned()),
        ..ImportOptions::default()
    };
    refused(&missing, 3, &["--split-column cell_type", "`c4`"]);
}

#[test]
fn a_shuffle_keeps_every_cell_with_what_belongs_to_it() {
    let dir = TempDir::new().unwrap();
    let of_cells: Vec<usize> = (0..3000).map(|c| c / 300).collect();
    let input = donors(&dir, &of_cells);
    let shuffled = |seed: Option<u64>, row_group_cells: usize| {
        let dir = TempDir::new().unwrap();
        let options = ImportOptions {
            inputs: vec![input.clone()],
            shuffle: seed,
            obs: Some(vec![
                "donor".to_owned(),
                "note".to_owned(),
                "weight".to_owned(),
            ]),
            writer: WriterOptions {
                row_group_cells,
                shard_cells: 1000,
                ..WriterOptions::default()
            },
            ..ImportOptions::default()
        };
        let corpus = corpus(&dir, &options);
        let ids = ids(&corpus);
        let donors = texts(&corpus, "donor");
        for ((id, donor), values) in ids.iter().zip(&donors).zip(dense(&corpus)) {
            let cell: usize = id.strip_prefix("cell-").unwrap().parse().unwrap();
            assert_eq!(*donor, format!("d{}", of_cells[cell]));
            assert_eq!(values, [cell as f32 + 1.0, 1.0]);
        }
        let seed = corpus.manifest().provenance.options["shuffle"]["seed"].clone();
        (ids, donors, seed)
    };
    let (plain, _, none) = shuffled(None, 100);
    assert_eq!(
        (&plain[0], &plain[2999]),
        (&"cell-0".to_owned(), &"cell-2999".to_owned())
    );
    assert!(none.is_null());
    let (one, donors, seed) = shuffled(Some(5), 100);
    assert_eq!(seed, 5);
    let all = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(all(&one), all(&plain));
    assert_eq!(one.len(), 3000);
    assert_eq!(shuffled(Some(5), 64).0, one);
    assert_ne!(shuffled(Some(6), 100).0, one);
    // Each row group has cells of all donors: 10 of each are expected.
    for group in donors.chunks(100) {
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        for donor in group {
            *counts.entry(donor).or_default() += 1;
        }
        assert!(
            counts.len() >= 8 && counts.values().all(|&n| n < 27),
            "{counts:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_group_is_in_two_parts(
        of_cells in prop::collection::vec(0_usize..12, 30..120),
        share in 0.2_f64..0.8,
        seed: u64,
        shuffle in prop::option::of(any::<u64>()),
    ) {
        let present: BTreeSet<_> = of_cells.iter().collect();
        prop_assume!(present.len() >= 2);
        let dir = TempDir::new().unwrap();
        let text = format!("train={share},test={}", 1.0 - share);
        let options = ImportOptions { shuffle, ..split_by(donors(&dir, &of_cells), &text, seed) };
        let corpus = corpus(&dir, &options);
        let mut part_of: BTreeMap<String, String> = BTreeMap::new();
        for (donor, part) in texts(&corpus, "donor").into_iter().zip(texts(&corpus, "split")) {
            let first = part_of.entry(donor).or_insert_with(|| part.clone());
            prop_assert_eq!(&*first, &part);
        }
        let used: BTreeSet<&String> = part_of.values().collect();
        prop_assert_eq!(used.len(), 2);
        prop_assert_eq!(corpus.n_cells(), of_cells.len() as u64);
    }

    #[test]
    fn a_join_keeps_every_value(
        genes in prop::collection::vec((0_usize..20, 0_usize..20), 1..8),
        union: bool,
    ) {
        // Input i has the genes of a range, each expressed by i * 100 + its number + 1.
        let names: Vec<String> = (0..20).map(|g| format!("G{g}")).collect();
        let dir = TempDir::new().unwrap();
        let ranges: Vec<_> = genes.iter().map(|&(a, b)| (a.min(b), a.max(b) + 1)).collect();
        let mut inputs = Vec::new();
        for (number, &(first, last)) in ranges.iter().enumerate() {
            let path = dir.path().join(format!("i{number}.h5ad"));
            let table: Vec<(&str, &str)> = names[first..last].iter().map(|n| (n.as_str(), "")).collect();
            write_h5ad(&path, &Cells {
                ids: vec!["cell".to_owned()],
                genes: &table,
                values: (first..last).map(|g| (number * 100 + g + 1) as f32).collect(),
                obs: vec![],
            });
            inputs.push(path);
        }
        let has_all = |gene: usize| ranges.iter().all(|r| (r.0..r.1).contains(&gene));
        let has_any = |gene: usize| ranges.iter().any(|r| (r.0..r.1).contains(&gene));
        prop_assume!((0..20).any(has_all));
        let join = if union { Join::Union } else { Join::Intersection };
        let options = ImportOptions { inputs, join, ..ImportOptions::default() };
        let corpus = corpus(&dir, &options);
        let found: BTreeSet<&String> = corpus.genes().symbols.iter().collect();
        let wanted: BTreeSet<&String> = (0..20)
            .filter(|&g| if union { has_any(g) } else { has_all(g) })
            .map(|g| &names[g])
            .collect();
        prop_assert_eq!(&found, &wanted);
        for (number, (cell, range)) in dense(&corpus).iter().zip(&ranges).enumerate() {
            for (value, name) in cell.iter().zip(&corpus.genes().symbols) {
                let gene: usize = name[1..].parse().unwrap();
                let inside = (range.0..range.1).contains(&gene);
                let expected = if inside { number * 100 + gene + 1 } else { 0 };
                prop_assert_eq!(*value, expected as f32);
            }
        }
    }
}
