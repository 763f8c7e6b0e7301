//! How metrics of responses are compared with a case of expected scores.

#![allow(clippy::unwrap_used)]

mod golden;

use scpeft_evaluation::cells::Cells;
use scpeft_evaluation::de::{DePair, DeTable, PDEX_EPSILON, SortedControl, ratios};
use scpeft_evaluation::discrimination::{Norm, ranks};
use scpeft_evaluation::distance::{Kernels, PairMeans, energy, energy_squared};
use scpeft_evaluation::evaluate::{Condition, ModelScores, Options, Prediction, evaluate};
use scpeft_evaluation::profile::{Profiles, TopGenes, welch_t, welch_weights};
use scpeft_evaluation::stats::mean;
use scpeft_evaluation::vcc::Challenge;

pub(crate) use golden::{Golden, Tensors};

impl Tensors {
    pub(crate) fn rows(&self, name: &str) -> Vec<Vec<f64>> {
        let width = *self.shape(name).last().unwrap();
        self.get(name).chunks(width).map(<[f64]>::to_vec).collect()
    }
}

/// The cells that the only model predicts.
fn predicted<'a>(condition: &Condition<'a>) -> Cells<'a> {
    match condition.predictions[0] {
        Prediction::Cells(cells) => cells,
        Prediction::Profile(_) | Prediction::Delta(_) => panic!("predicted without cells"),
    }
}

pub(crate) const TOLERANCE: f64 = 1e-9;

/// What the evaluation as a whole reports, and its parts.
pub(crate) fn check_metrics(mut golden: Golden) {
    let (control, real, predicted) = (
        golden.inputs.f32("control"),
        golden.inputs.f32("real"),
        golden.inputs.f32("pred"),
    );
    let [conditions, cells, genes] = *golden.inputs.shape("real") else {
        panic!("real is [conditions, cells, genes]");
    };
    let size = cells * genes;
    let cells_of = |values| Cells::new("a condition", values, genes).unwrap();
    let named: Vec<Condition<'_>> = (0..conditions)
        .map(|i| Condition {
            name: format!("drug {i}"),
            control: 0,
            real: cells_of(&real[i * size..(i + 1) * size]),
            target: None,
            predictions: vec![Prediction::Cells(cells_of(
                &predicted[i * size..(i + 1) * size],
            ))],
        })
        .collect();
    let options = Options {
        overlap_at: vec![5, 10],
        recall_at: vec![5, 10, 20],
        top_genes: 20,
        epsilon: PDEX_EPSILON,
        ..Options::default()
    };
    let controls = [cells_of(&control)];
    let found = evaluate(&["model".into()], &controls, &named, &options).unwrap();
    let model = &found[0];
    compare_report(&mut golden, model);
    compare_tables(&mut golden, &controls[0], &named);
    compare_parts(&mut golden, &controls[0], &named);
    compare_challenge(&mut golden, model);
    golden.all_compared();
}

fn compare_report(golden: &mut Golden, model: &ModelScores) {
    let mut extra = Vec::new();
    for (metric, scores) in &model.by_condition {
        let values: Vec<f64> = scores.iter().map(|s| s.clone().unwrap()).collect();
        if golden.expected.0.contains_key(metric) {
            golden.close(metric, &values, TOLERANCE);
        } else {
            extra.push(metric.as_str());
        }
    }
    // Reported beside the fixture's: checked below or by unit tests.
    assert_eq!(
        extra,
        [
            "r2_mean_all_clipped",
            "r2_mean_de_clipped",
            "pearson_de",
            "frac_opposite_direction_top20_non_dropout",
        ]
    );
    for (metric, score) in &model.overall {
        golden.close(metric, &[score.clone().unwrap()], TOLERANCE);
    }
    let clipped = &model.by_condition["r2_mean_all_clipped"];
    for (clipped, whole) in clipped.iter().zip(&model.by_condition["r2_mean_all"]) {
        assert_eq!(clipped.clone().unwrap(), whole.clone().unwrap().max(0.0));
    }
    let squared: Vec<f64> = (model.by_condition["pearson_all"].iter())
        .map(|r| r.clone().unwrap().powi(2))
        .collect();
    golden.close("squared_pearson_all", &squared, TOLERANCE);
}

/// One side of all conditions, gene by gene.
type Side<'a> = &'a dyn Fn(&Condition<'_>) -> Vec<f64>;
/// A column of a table.
type Column = fn(DeTable) -> Vec<f64>;

/// Test results gene by gene.
fn compare_tables(golden: &mut Golden, control: &Cells<'_>, conditions: &[Condition<'_>]) {
    let sorted = SortedControl::new(*control);
    let base = control.mean_of_expm1();
    let of = |cells: Cells<'_>| sorted.test(cells, PDEX_EPSILON).unwrap();
    let arithmetic = |cells: Cells<'_>| ratios(&cells.mean_of_expm1(), &base, PDEX_EPSILON);
    let sides: [(&str, Column); 3] = [
        ("de_pvalue", |t| t.p_value),
        ("de_fdr", |t| t.fdr),
        ("de_log2fc", |t| t.log2fc),
    ];
    for (name, part) in sides {
        let of_real: Side<'_> = &|c| part(of(c.real));
        let of_predicted: Side<'_> = &|c| part(of(predicted(c)));
        for (suffix, side) in [("real", of_real), ("pred", of_predicted)] {
            let values: Vec<f64> = conditions.iter().flat_map(side).collect();
            // Far tails: relative errors of erfc grow with its argument.
            golden.close(&format!("{name}_{suffix}"), &values, 1e-8);
        }
    }
    let of_real: Side<'_> = &|c| arithmetic(c.real);
    let of_predicted: Side<'_> = &|c| arithmetic(predicted(c));
    for (suffix, side) in [("real", of_real), ("pred", of_predicted)] {
        let values: Vec<f64> = conditions.iter().flat_map(side).collect();
        golden.close(&format!("de_log2fc_arith_{suffix}"), &values, TOLERANCE);
    }
    let count = |tables: &dyn Fn(&Condition<'_>) -> DeTable| -> Vec<f64> {
        let of = |c: &Condition<'_>| tables(c).n_significant() as f64;
        conditions.iter().map(of).collect()
    };
    let (of_real, of_predicted) = (count(&|c| of(c.real)), count(&|c| of(predicted(c))));
    golden.close("de_nsig_real", &of_real, 0.0);
    golden.close("de_nsig_pred", &of_predicted, 0.0);
    // The real side against itself is perfect wherever that is possible.
    let table = of(conditions[0].real);
    let pair = DePair::new(&table, &table);
    assert_eq!((pair.overlap_at(None), pair.roc_auc().unwrap()), (1.0, 1.0));
}

/// What the report holds only in combination.
fn compare_parts(golden: &mut Golden, control: &Cells<'_>, conditions: &[Condition<'_>]) {
    let base = control.mean();
    let cells = |c: &Condition<'_>| (c.real.mean(), predicted(c).mean());
    let within = PairMeans::within(*control, Kernels::No);
    let to_control = |x: Cells<'_>| {
        let between = PairMeans::between(x, *control, Kernels::No).unwrap();
        energy(between, PairMeans::within(x, Kernels::No), within)
    };
    let side = |of: &dyn Fn(Cells<'_>, Cells<'_>) -> f64| -> Vec<f64> {
        conditions
            .iter()
            .map(|c| of(c.real, predicted(c)))
            .collect()
    };
    let (of_real, of_predicted) = (side(&|r, _| to_control(r)), side(&|_, p| to_control(p)));
    golden.close("edistance_euclid_real_ctrl", &of_real, TOLERANCE);
    golden.close("edistance_euclid_pred_ctrl", &of_predicted, TOLERANCE);
    let squared = side(&|r, p| {
        let between = PairMeans::between(p, r, Kernels::No).unwrap();
        let (x, y) = (
            PairMeans::within(p, Kernels::No),
            PairMeans::within(r, Kernels::No),
        );
        energy_squared(between, x, y)
    });
    golden.close("edistance_sqeuclid_pred_real", &squared, TOLERANCE);
    let weights: Vec<f64> = conditions
        .iter()
        .flat_map(|c| welch_weights(&welch_t(c.real, *control).unwrap()).unwrap())
        .collect();
    golden.close("wmse_weights", &weights, TOLERANCE);

    let delta =
        |x: Cells<'_>| -> Vec<f64> { x.mean().iter().zip(&base).map(|(x, b)| x - b).collect() };
    let real: Vec<Vec<f64>> = conditions.iter().map(|c| delta(c.real)).collect();
    let guessed: Vec<Vec<f64>> = conditions.iter().map(|c| delta(predicted(c))).collect();
    for (norm, name) in [(Norm::L1, "l1"), (Norm::L2, "l2"), (Norm::Cosine, "cosine")] {
        let found = ranks(&guessed, &real, None, norm, 1).unwrap();
        let rank0: Vec<f64> = found
            .iter()
            .map(|r| r.clone().unwrap().rank0 as f64)
            .collect();
        golden.close(&format!("discrimination_rank0_{name}"), &rank0, 0.0);
    }
    // Top genes are those of the fixture, in its order.
    let order = golden.inputs.rows("de_index");
    for (c, order) in conditions.iter().zip(order) {
        let (real, predicted) = cells(c);
        let profiles = Profiles::new(&base, &real, &predicted).unwrap();
        let found: Vec<f64> = TopGenes::by_delta(&profiles, 20)
            .genes()
            .iter()
            .map(|&g| g as f64)
            .collect();
        assert_eq!(found, order, "{}", c.name);
    }
}

fn compare_challenge(golden: &mut Golden, model: &ModelScores) {
    let of = |metric: &str| {
        let scores = &model.by_condition[metric];
        mean(
            &scores
                .iter()
                .map(|s| s.clone().unwrap())
                .collect::<Vec<_>>(),
        )
    };
    let user = [
        of("overlap_at_N"),
        of("discrimination_score_l1"),
        of("mae_all"),
    ];
    golden.close("vcc_inputs_user", &user, TOLERANCE);
    let base = golden.expected.get("vcc_inputs_base").to_vec();
    golden.compared.insert("vcc_inputs_base".into());
    let challenge = |x: &[f64]| Challenge {
        differential_expression: x[0],
        discrimination: x[1],
        mae: x[2],
    };
    let (scaled, all) = challenge(&user).against(&challenge(&base)).unwrap();
    golden.close("vcc_scaled", &scaled, TOLERANCE);
    golden.close("vcc_overall", &[all], TOLERANCE);
}
