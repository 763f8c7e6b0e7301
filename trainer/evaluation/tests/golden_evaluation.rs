//! Metrics and baselines against numbers of independent implementations in numpy, scipy and
//! scikit-learn.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use scpeft_evaluation::baselines::{Baseline, Similarity, Training};
use scpeft_evaluation::stats::r2;
use support::{Golden, TOLERANCE, check_metrics};

/// The case `scdca/<case>` below `SCPEFT_FIXTURES`, or below `tests/fixtures`.
fn golden(case: &str) -> Golden {
    let root = std::env::var_os("SCPEFT_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"),
        PathBuf::from,
    );
    Golden::read(&root.join("scdca").join(case))
}

#[test]
fn golden_metrics() {
    check_metrics(golden("metrics"));
}

#[test]
fn golden_baselines() {
    let mut golden = golden("baselines");
    let control = golden.inputs.rows("control");
    let profiles = golden.inputs.rows("profiles");
    let drugs = golden.inputs.shape("molecule")[0];
    let pairs = |name: &str| -> Vec<(usize, usize)> {
        let rows = golden.inputs.rows(name);
        rows.iter()
            .map(|p| (p[0] as usize, p[1] as usize))
            .collect()
    };
    let (train, test) = (pairs("train_pairs"), pairs("test_pairs"));
    let truth = |(c, d): (usize, usize)| &profiles[c * drugs + d];
    let delta = |&(c, d): &(usize, usize)| -> Vec<f64> {
        truth((c, d))
            .iter()
            .zip(&control[c])
            .map(|(x, b)| x - b)
            .collect()
    };
    // Beyond the molecules of the case: none, and one of each feature alone. What a linear baseline
    // says of these are its coefficients.
    let mut features = golden.inputs.rows("molecule");
    let width = features[0].len();
    let unit = |i: usize| (0..width).map(|j| f64::from(u8::from(i == j))).collect();
    features.extend((0..=width).map(|i| unit(width - i)));
    let training = Training {
        deltas: train.iter().map(delta).collect(),
        pairs: train,
        features: Some(features),
    };
    let coefficients = |baseline: Baseline| -> Vec<f64> {
        let fitted = baseline.fit(&training).unwrap();
        let zero = fitted.delta(0, drugs);
        let row = |i: usize| fitted.delta(0, drugs + width - i);
        let rows = (0..width).flat_map(|i| {
            let differences: Vec<f64> = row(i).iter().zip(&zero).map(|(x, z)| x - z).collect();
            differences
        });
        rows.collect()
    };
    golden.close(
        "ridge_coef",
        &coefficients(Baseline::Ridge { lambda: 0.5 }),
        TOLERANCE,
    );
    let (g, w) = (
        golden.expected.rows("bilinear_G"),
        golden.expected.rows("bilinear_W"),
    );
    let expected = (0..width).flat_map(|i| {
        let of_gene = |g: &Vec<f64>| g.iter().zip(&w).map(|(g, w)| g * w[i]).sum::<f64>();
        g.iter().map(of_gene).collect::<Vec<f64>>()
    });
    golden
        .expected
        .0
        .insert("G W".into(), (vec![], expected.collect()));
    let bilinear = Baseline::Bilinear {
        directions: 3,
        lambda: 0.1,
    };
    golden.close("G W", &coefficients(bilinear), TOLERANCE);
    for product in ["bilinear_G", "bilinear_W"] {
        golden.compared.insert(product.into());
    }
    for (name, baseline) in [
        ("no_change", Baseline::NoChange),
        ("mean_delta", Baseline::MeanDelta),
        ("drug_mean_delta", Baseline::DrugMean),
        ("context_mean_delta", Baseline::ContextMean),
        ("additive_two_way", Baseline::AdditiveTwoWay),
        ("ridge_molecule_to_delta", Baseline::Ridge { lambda: 0.5 }),
        (
            "knn2_cosine_molecule",
            Baseline::Knn {
                k: 2,
                similarity: Similarity::Cosine,
            },
        ),
        (
            "bilinear",
            Baseline::Bilinear {
                directions: 3,
                lambda: 0.1,
            },
        ),
    ] {
        let fitted = baseline.fit(&training).unwrap();
        let predicted: Vec<Vec<f64>> = test
            .iter()
            .map(|&(c, d)| {
                let delta = fitted.delta(c, d);
                control[c].iter().zip(&delta).map(|(b, d)| b + d).collect()
            })
            .collect();
        golden.close(name, &predicted.concat(), TOLERANCE);
        let scores: Vec<f64> = (test.iter().zip(&predicted))
            .map(|(&pair, p)| r2(truth(pair), p).unwrap())
            .collect();
        golden.close(&format!("r2.{name}"), &scores, TOLERANCE);
    }
    golden.all_compared();
}
