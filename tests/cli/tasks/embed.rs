//! `scpeft-train embed`: runs of every task, backbones as they are, any number of ranks.

use scpeft_tests::corpus::Plan;
use scpeft_tests::train::{Lab, assert_refused, on_ranks, set};

use crate::{distance, pretrain, succeed, vectors};

#[test]
fn a_classifier_embeds_as_it_predicts_on_any_number_of_ranks() {
    let lab = Lab::new(&Plan::default());
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    let run = run.to_str().unwrap();
    let at = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    succeed(
        1,
        &[
            "predict",
            "--run",
            run,
            "--split",
            "all",
            "--output",
            &at("predicted"),
        ],
    );
    let predicted = vectors(&lab.path("predicted/predictions.parquet"), "embedding");
    assert_eq!(predicted.len(), 120);
    for ranks in [1, 3] {
        let to = at(&format!("embedded-{ranks}"));
        let said = succeed(ranks, &["embed", "--run", run, "--output", &to]);
        assert!(
            said.contains("120 cells embedded in 16 dimensions; 30 of 30 genes"),
            "{said}"
        );
        let found = vectors(
            &lab.path(&format!("embedded-{ranks}/embeddings.parquet")),
            "embedding",
        );
        assert!(distance(&found, &predicted) < 1e-6);
    }
    let length = at("length");
    succeed(
        1,
        &[
            "embed",
            "--run",
            run,
            "--split",
            "test",
            "--unit-length",
            "--output",
            &length,
        ],
    );
    let unit = vectors(&lab.path("length/embeddings.parquet"), "embedding");
    assert_eq!(unit.len(), 24);
    for (cell, vector) in &unit {
        let own = &predicted[cell];
        let norm = own.iter().map(|x| x * x).sum::<f32>().sqrt();
        for (x, y) in vector.iter().zip(own) {
            assert!((x - y / norm).abs() < 1e-5, "cell {cell}");
        }
    }
    // Nothing is replaced unasked.
    let again = on_ranks(1)
        .args(["embed", "--run", run, "--output", &length])
        .output()
        .unwrap();
    assert_refused(&again, 2, &["exists", "--overwrite"]);
}

#[test]
fn a_backbone_embeds_alone_and_an_adapter_changes_that() {
    let lab = Lab::new(&Plan::default());
    let backbone = pretrain(&lab);
    lab.use_backbone(&backbone);
    let at = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let corpus = lab.corpus.to_str().unwrap();
    let path = format!("backbone.path={}", backbone.display());
    succeed(
        1,
        &[
            "embed",
            "--set",
            &path,
            // Ties between bins are drawn by the seed.
            "--set",
            "run.seed=3",
            "--corpus",
            corpus,
            "--output",
            &at("alone"),
        ],
    );
    let alone = vectors(&lab.path("alone/embeddings.parquet"), "embedding");
    // A configuration of a run says the same of the backbone, whatever it trains.
    let config = lab.config.to_str().unwrap();
    succeed(
        2,
        &["embed", "--config", config, "--output", &at("configured")],
    );
    let configured = vectors(&lab.path("configured/embeddings.parquet"), "embedding");
    // Micro-batches of another size are padded otherwise.
    assert!(distance(&alone, &configured) < 1e-4);
    let run = lab.train(1, "run", &["--set", "train.epochs=2"]);
    succeed(
        1,
        &[
            "embed",
            "--run",
            run.to_str().unwrap(),
            "--output",
            &at("adapted"),
        ],
    );
    let adapted = vectors(&lab.path("adapted/embeddings.parquet"), "embedding");
    assert!(distance(&alone, &adapted) > 0.01);

    let random = on_ranks(1)
        .args(["embed", "--set", "backbone.init=random", "--corpus", corpus])
        .args(["--output", &at("random")])
        .output()
        .unwrap();
    assert_refused(&random, 2, &["has no weights", "backbone.path"]);
}

/// Cells of several batches, whose statistics differ: each goes through those of its own batch,
/// whichever cells stand beside it, and nothing is masked.
#[test]
fn batch_correction_embeds_through_the_norm_of_each_batch() {
    let lab = Lab::new(&Plan::default());
    // The label is no part of this task.
    let text = std::fs::read_to_string(&lab.config).unwrap();
    std::fs::write(&lab.config, text.replace("label = \"cell_type\"\n", "")).unwrap();
    let settings = [
        "task.kind=batch-correction",
        "data.batch=donor",
        "backbone.norm=domain",
        "data.mask_ratio=0.4",
        "train.epochs=2",
    ];
    let run = lab.train(1, "run", &set(&settings));
    let run = run.to_str().unwrap();
    let at = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let embed = |name: &str, ranks: usize, more: &[&str]| {
        let output = at(name);
        succeed(
            ranks,
            &[&["embed", "--run", run, "--output", &output], more].concat(),
        );
        vectors(
            &lab.path(&format!("{name}/embeddings.parquet")),
            "embedding",
        )
    };
    let three = embed("three", 1, &[]);
    assert_eq!(three.len(), 120);
    let eight = embed(
        "eight",
        2,
        &[
            "--set",
            "train.micro_batch_cells=8",
            "--set",
            "train.batch_cells=16",
        ],
    );
    assert!(distance(&three, &eight) < 1e-5);
    // Swapped batches swap the norms.
    let other = Lab::new(&Plan {
        donor: |cell| usize::from(cell % 7 < 5),
        ..Plan::default()
    });
    let corpus = other.corpus.to_str().unwrap();
    let swapped = embed("swapped", 1, &["--corpus", corpus]);
    assert!(distance(&three, &swapped) > 0.01);
}
