//! A whole study on cells made up so that the answer is known: the response is linear in the
//! molecule's features.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use scpeft_evaluation::evaluate::Options;
use scpeft_evaluation::page::html;
use scpeft_evaluation::splits::{Condition, Rule};
use scpeft_evaluation::study::{
    CEILING, Labelled, Plan, Predicted, Report, Study, default_baselines, run, shuffled,
};

const GENES: usize = 60;
const FEATURES: usize = 4;
const DRUGS: usize = 40;
const CELLS: usize = 30;

/// Uniform in -1 to 1, a function of the place alone.
fn noise(place: u64) -> f64 {
    let mut z = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn condition(drug: usize, line: usize) -> Condition {
    Condition {
        perturbation: format!("drug {drug:02}"),
        context: format!("line {line}"),
        dose: None,
    }
}

/// Delta of gene g: 0.5 times the features' product with weights of the gene.
fn delta(features: &[f64]) -> Vec<f64> {
    let weight = |g: usize, f: usize| noise(1_000_000 + (g * FEATURES + f) as u64);
    (0..GENES)
        .map(|g| {
            0.5 * features
                .iter()
                .enumerate()
                .map(|(f, x)| x * weight(g, f))
                .sum::<f64>()
        })
        .collect()
}

fn cells(base: &[f64], seed: u64) -> Vec<f32> {
    (0..CELLS * GENES)
        .map(|i| (base[i % GENES] + 0.2 * noise(seed * 100_000 + i as u64)) as f32)
        .collect()
}

fn labelled() -> Labelled {
    let mut all = Labelled {
        genes: (0..GENES).map(|g| format!("G{g}")).collect(),
        ..Labelled::default()
    };
    let mut features = BTreeMap::new();
    for line in 0..2 {
        let base: Vec<f64> = (0..GENES)
            .map(|g| 3.0 + noise((line * GENES + g) as u64))
            .collect();
        all.controls
            .insert(format!("line {line}"), cells(&base, 7 + line as u64));
        for drug in 0..DRUGS {
            let own: Vec<f64> = (0..FEATURES)
                .map(|f| noise(50_000 + (drug * FEATURES + f) as u64))
                .collect();
            let mean: Vec<f64> = base.iter().zip(delta(&own)).map(|(b, d)| b + d).collect();
            all.treated.insert(
                condition(drug, line),
                cells(&mean, 100 + (line * DRUGS + drug) as u64),
            );
            features.insert(format!("drug {drug:02}"), own);
        }
    }
    all.features = Some(features);
    all
}

fn plan() -> Plan {
    Plan {
        rule: Rule::UnseenDrug { share: 0.2 },
        seed: 1,
        baselines: default_baselines(false),
        options: Options::default(),
    }
}

fn score(report: &Report, model: &str, metric: &str) -> f64 {
    let found = report.models.iter().find(|m| m.model == model);
    let found = found.unwrap_or_else(|| panic!("no `{model}` in the report"));
    found.metrics[metric].mean.unwrap()
}

#[test]
fn a_linear_response_is_found_by_ridge_and_lost_when_drugs_are_shuffled() {
    let all = labelled();
    let Study {
        split,
        report,
        profiles,
    } = run(&all, &plan(), &[]).unwrap();
    assert_eq!(profiles.len(), default_baselines(false).len());
    assert!(profiles.iter().all(|p| p.profiles.len() == 16));
    assert_eq!((report.train, report.test), (64, 16));
    assert_eq!(split.parts.len(), 80);
    let r2 = |model: &str| score(&report, model, "r2_delta_all");
    assert!(
        r2("ridge_molecule_to_delta") > 0.9,
        "{}",
        r2("ridge_molecule_to_delta")
    );
    assert!(r2("mean_delta") < 0.2 && r2("no_change") < 0.1);
    // Nothing beats the noise of the cells themselves, but for what two halves share.
    assert!(r2(CEILING) > r2("mean_delta"));
    // R2 of raw means flatters: no change at all already looks good.
    assert!(score(&report, "no_change", "r2_mean_all") > 0.5);
    let mut wrong = all.clone();
    wrong.features = all.features.as_ref().map(|f| shuffled(f, 3));
    let moved = wrong.features.as_ref().unwrap();
    assert!(
        moved
            .iter()
            .all(|(name, f)| *f != all.features.as_ref().unwrap()[name])
    );
    let report = run(&wrong, &plan(), &[]).unwrap().report;
    let lost = score(&report, "ridge_molecule_to_delta", "r2_delta_all");
    assert!(lost < 0.1, "{lost}");
}

#[test]
fn a_model_is_scored_beside_the_baselines_and_by_context() {
    let all = labelled();
    let perfect = Predicted {
        model: "oracle".into(),
        profiles: (all.treated.iter())
            .map(|(c, v)| {
                let mean = |g: usize| {
                    v.iter()
                        .skip(g)
                        .step_by(GENES)
                        .map(|&x| f64::from(x))
                        .sum::<f64>()
                        / CELLS as f64
                };
                (c.clone(), (0..GENES).map(mean).collect())
            })
            .collect(),
    };
    let report = run(&all, &plan(), std::slice::from_ref(&perfect))
        .unwrap()
        .report;
    assert_eq!(score(&report, "oracle", "discrimination_score_l1"), 1.0);
    assert!(score(&report, "oracle", "r2_delta_all") > 1.0 - 1e-9);
    let oracle = &report.models[0];
    assert_eq!(
        oracle.strata.keys().collect::<Vec<_>>(),
        ["line 0", "line 1"]
    );
    assert_eq!(oracle.conditions.len(), 16);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["models"][0]["role"], "model");

    let page = html(&report);
    assert!(
        page.contains(
            "R2 of changes: 1.000, better than the best baseline (ridge_molecule_to_delta"
        )
    );
    assert!(page.contains("<td>split_half_ceiling</td>"));
    for outside in ["http", "src=", "<script"] {
        assert!(
            !page.contains(outside),
            "`{outside}`: the page needs nothing else"
        );
    }

    let mut partial = perfect;
    partial.profiles.clear();
    let error = run(&all, &plan(), &[partial]).unwrap_err().to_string();
    assert!(
        error.contains("of which the model predicts nothing"),
        "{error}"
    );
}

/// Changes of two genes add up: the additive baseline knows, where it knows both.
#[test]
fn combinations_are_the_sum_of_their_genes() {
    let mut all = labelled();
    let treated = std::mem::take(&mut all.treated);
    let base: Vec<f64> = (0..GENES).map(|g| 3.0 + noise(g as u64)).collect();
    let gene = |drug: usize| -> Vec<f64> {
        let name = format!("drug {drug:02}");
        delta(&all.features.as_ref().unwrap()[&name])
    };
    let mut put = |name: &str, change: &[f64], seed: u64| {
        let mean: Vec<f64> = base.iter().zip(change).map(|(b, d)| b + d).collect();
        let mut own = condition(0, 0);
        own.perturbation = name.into();
        all.treated.insert(own, cells(&mean, seed));
    };
    for a in 0..8 {
        put(&format!("G{a}+ctrl"), &gene(a), 500 + a as u64);
        let both: Vec<f64> = gene(a).iter().zip(gene(8)).map(|(x, y)| x + y).collect();
        put(&format!("G{a}+G8"), &both, 600 + a as u64);
    }
    put("G8", &gene(8), 700);
    assert!(!treated.is_empty());
    all.features = None;
    all.controls.remove("line 1");
    let held: Vec<String> = (0..4).map(|a| format!("G{a}+G8")).collect();
    let mut plan = plan();
    plan.rule = Rule::ListedDrugs { drugs: held };
    let report = run(&all, &plan, &[]).unwrap().report;
    let r2 = |model: &str| score(&report, model, "r2_delta_all");
    assert!(r2("additive_singles") > 0.95, "{}", r2("additive_singles"));
    assert!(r2("additive_singles") > r2("mean_delta") + 0.3);
    plan.rule = Rule::ListedDrugs {
        drugs: vec!["G0+G8".into(), "G0+ctrl".into()],
    };
    let report = run(&all, &plan, &[]).unwrap().report;
    let partly = report
        .left_out
        .iter()
        .find(|l| l.what == "additive_singles, in part");
    assert!(
        partly
            .unwrap()
            .reason
            .ends_with("in G0+G8 | line 0, G0+ctrl | line 0")
    );
}

#[test]
fn what_cannot_be_scored_is_named() {
    let mut all = labelled();
    all.features = None;
    let few = all.treated.get_mut(&condition(0, 0)).unwrap();
    few.truncate(5 * GENES);
    all.controls.remove("line 1");
    let mut plan = plan();
    plan.rule = Rule::UnseenDrug { share: 0.3 };
    let report = run(&all, &plan, &[]).unwrap().report;
    let reason = |what: &str| {
        let found = report.left_out.iter().find(|l| l.what == what);
        found
            .unwrap_or_else(|| panic!("`{what}` is not named"))
            .reason
            .clone()
    };
    assert_eq!(
        reason("drug 00 | line 0"),
        "5 cells, more than 5 are needed"
    );
    assert_eq!(
        reason("drug 07 | line 1"),
        "its context has no control cells"
    );
    assert_eq!(reason("bilinear"), "there are no features of perturbations");
    assert_eq!(report.train + report.test, 39);

    let mut named_twice = labelled();
    for drug in ["drug 00", "drug 01", "drug 02", "drug 03"] {
        named_twice
            .molecules
            .insert(drug.into(), "one InChIKey".into());
    }
    let listed = Rule::ListedDrugs {
        drugs: vec!["drug 00".into()],
    };
    plan.rule = listed;
    let error = run(&named_twice, &plan, &[]).unwrap_err().to_string();
    assert!(error.contains("leaks: molecules"), "{error}");
}
