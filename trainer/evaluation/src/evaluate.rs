//! All metrics of several models, baselines among them, on the same conditions.

use indexmap::IndexMap;

use crate::cells::{Cells, same_genes};
use crate::de::{DePair, DeTable, PDEX_EPSILON, SortedControl};
use crate::discrimination::{Norm, ranks};
use crate::distance::{
    Kernels, PairMeans, energy, energy_squared, energy_squared_unbiased, mmd, wasserstein_per_gene,
};
use crate::profile::{Profiles, TopGenes, welch_t, welch_weights};
use crate::stats::{pearson, spearman};
use crate::summary::Summary;
use crate::{Error, Result, Score, Undefined, gears, parallel};

/// Settings of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Genes of the scores on top genes: those of largest absolute difference of real and control
    /// mean. Published: 20.
    pub top_genes: usize,
    /// Added to pseudobulks before log2 fold changes; pdex's own default, cell-eval uses 0.
    pub epsilon: f64,
    /// `k` of `overlap_at_k` and `precision_at_k`, beside N. Published: 50, 100, 200, 500.
    pub overlap_at: Vec<usize>,
    /// `k` of `topK_de_recall_absdelta`.
    pub recall_at: Vec<usize>,
    /// Cells of a side beyond which distances between clouds use the first ones only.
    pub distance_cells: usize,
    /// Threads; 0 for one a core.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            top_genes: 20,
            epsilon: PDEX_EPSILON,
            overlap_at: vec![50, 100, 200, 500],
            recall_at: vec![20, 50, 100],
            distance_cells: 500,
            threads: 0,
        }
    }
}

/// What a model says of a condition.
#[derive(Debug, Clone, Copy)]
pub enum Prediction<'a> {
    /// Cells, one by one.
    Cells(Cells<'a>),
    /// The mean profile alone: scores of cells are not defined.
    Profile(&'a [f64]),
    /// The mean change: the cells are the control cells with it added, never below 0.
    Delta(&'a [f64]),
}

/// A condition with what every model says of it.
#[derive(Debug, Clone)]
pub struct Condition<'a> {
    /// Name in reports.
    pub name: String,
    /// Which control cells it is compared with.
    pub control: usize,
    /// The measured cells.
    pub real: Cells<'a>,
    /// The gene that is perturbed, left out of its discrimination score; drugs have none.
    pub target: Option<usize>,
    /// One prediction a model, in the order of the models.
    pub predictions: Vec<Prediction<'a>>,
}

/// Scores of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelScores {
    /// Name of the model.
    pub model: String,
    /// Per metric, a score for each condition, in order.
    pub by_condition: IndexMap<String, Vec<Score>>,
    /// Metrics that are one number for all conditions.
    pub overall: IndexMap<String, Score>,
}

impl ModelScores {
    /// Means over the conditions at `places`, named by `names`.
    #[must_use]
    pub fn summaries(&self, names: &[String], places: &[usize]) -> IndexMap<String, Summary> {
        let summary = |(metric, scores): (&String, &Vec<Score>)| {
            let chosen = places.iter().map(|&i| (names[i].as_str(), &scores[i]));
            (metric.clone(), Summary::of(chosen))
        };
        self.by_condition.iter().map(summary).collect()
    }
}

/// The real side of a condition, computed once for all models.
#[derive(Debug)]
struct Real {
    mean: Vec<f64>,
    variance: Vec<f64>,
    table: DeTable,
    within: PairMeans,
    to_control: PairMeans,
    weights: std::result::Result<Vec<f64>, Undefined>,
}

/// What one prediction gives for one condition.
#[derive(Debug)]
struct Scored {
    scores: IndexMap<String, Score>,
    mean: Vec<f64>,
    delta: Vec<f64>,
    significant: Option<usize>,
    energy: Option<f64>,
}

/// One condition's part of an evaluation.
#[derive(Debug)]
struct Row {
    real_delta: Vec<f64>,
    real_mean: Vec<f64>,
    real_significant: usize,
    real_energy: f64,
    models: Vec<Scored>,
}

#[derive(Debug)]
struct Control<'a> {
    cells: Cells<'a>,
    sorted: SortedControl,
    within: PairMeans,
}

/// Scores every model on every condition. Conditions of one control are compared with one another
/// in discrimination scores and deviations from the mean over conditions.
///
/// # Errors
/// Different numbers of genes, a control that does not exist, or a condition without exactly one
/// prediction a model.
pub fn evaluate(
    models: &[String],
    controls: &[Cells<'_>],
    conditions: &[Condition<'_>],
    options: &Options,
) -> Result<Vec<ModelScores>> {
    check(models, controls, conditions)?;
    let threads = match options.threads {
        0 => parallel::cores(),
        n => n,
    };
    let controls = parallel::map(controls.len(), threads, |i| Control {
        cells: controls[i],
        sorted: SortedControl::new(controls[i]),
        within: PairMeans::within(controls[i].first(options.distance_cells), Kernels::No),
    });
    let rows = parallel::map(conditions.len(), threads, |i| {
        let condition = &conditions[i];
        row(condition, &controls[condition.control], options)
    });
    let rows = rows.into_iter().collect::<Result<Vec<Row>>>()?;
    let mut all = Vec::with_capacity(models.len());
    for (m, model) in models.iter().enumerate() {
        let mut by_condition: IndexMap<String, Vec<Score>> = IndexMap::new();
        for row in &rows {
            for (metric, score) in &row.models[m].scores {
                by_condition
                    .entry(metric.clone())
                    .or_default()
                    .push(score.clone());
            }
        }
        among_conditions(&mut by_condition, conditions, &rows, m, threads)?;
        all.push(ModelScores {
            model: model.clone(),
            by_condition,
            overall: overall(&rows, m),
        });
    }
    Ok(all)
}

fn check(models: &[String], controls: &[Cells<'_>], conditions: &[Condition<'_>]) -> Result<()> {
    let Some(first) = controls.first() else {
        return Err(Error::Empty {
            whom: "the evaluation".into(),
            what: "control cells",
        });
    };
    if conditions.is_empty() {
        return Err(Error::Empty {
            whom: "the evaluation".into(),
            what: "conditions",
        });
    }
    let genes = first.genes();
    for control in controls {
        same_genes("control cells", control.genes(), genes)?;
    }
    for condition in conditions {
        let name = &condition.name;
        same_genes(name, condition.real.genes(), genes)?;
        for prediction in &condition.predictions {
            let found = match prediction {
                Prediction::Cells(cells) => cells.genes(),
                Prediction::Profile(values) | Prediction::Delta(values) => {
                    if values.iter().any(|v| !v.is_finite()) {
                        return Err(Error::Setting {
                            setting: "a predicted profile",
                            found: format!("not finite for `{name}`"),
                            expected: "finite numbers",
                        });
                    }
                    values.len()
                }
            };
            same_genes(&format!("a prediction for {name}"), found, genes)?;
        }
        for (what, found, expected) in [
            ("predictions", condition.predictions.len(), models.len()),
            (
                "controls up to that",
                controls.len(),
                condition.control.saturating_add(1).max(controls.len()),
            ),
        ] {
            if found != expected {
                return Err(Error::Length {
                    what: format!("{what} of `{name}`"),
                    found,
                    expected,
                });
            }
        }
    }
    Ok(())
}

fn row(condition: &Condition<'_>, control: &Control<'_>, options: &Options) -> Result<Row> {
    let few = |cells: Cells<'_>| cells.first(options.distance_cells).len();
    let cells = condition.real;
    let near = cells.first(few(cells));
    let control_near = control.cells.first(options.distance_cells);
    let real = Real {
        mean: cells.mean(),
        variance: cells.variance(1),
        table: control.sorted.test(cells, options.epsilon)?,
        within: PairMeans::within(near, Kernels::Yes),
        to_control: PairMeans::between(near, control_near, Kernels::No)?,
        weights: welch_weights(&welch_t(cells, control.cells)?),
    };
    let models = condition
        .predictions
        .iter()
        .map(|prediction| match prediction {
            Prediction::Cells(cells) => scored(
                &real,
                condition,
                control,
                Some(*cells),
                &cells.mean(),
                options,
            ),
            Prediction::Profile(mean) => scored(&real, condition, control, None, mean, options),
            Prediction::Delta(delta) => {
                let shifted = control.cells.shifted(delta)?;
                let cells = Cells::new("shifted control cells", &shifted, delta.len())?;
                // The mean is what was predicted, whatever the cut at zero takes away.
                let mean: Vec<f64> = control
                    .sorted
                    .mean()
                    .iter()
                    .zip(*delta)
                    .map(|(c, d)| c + d)
                    .collect();
                scored(&real, condition, control, Some(cells), &mean, options)
            }
        })
        .collect::<Result<Vec<Scored>>>()?;
    let minus = |x: &[f64]| {
        x.iter()
            .zip(control.sorted.mean())
            .map(|(x, c)| x - c)
            .collect()
    };
    Ok(Row {
        real_delta: minus(&real.mean),
        real_significant: real.table.n_significant(),
        real_energy: energy(real.to_control, real.within, control.within),
        real_mean: real.mean,
        models,
    })
}

fn scored(
    real: &Real,
    condition: &Condition<'_>,
    control: &Control<'_>,
    cells: Option<Cells<'_>>,
    mean: &[f64],
    options: &Options,
) -> Result<Scored> {
    let profiles = Profiles::new(control.sorted.mean(), &real.mean, mean)?;
    let mut scores = IndexMap::new();
    profile_scores(&mut scores, &profiles, real, control, options);
    let (mut significant, mut energy_found) = (None, None);
    match cells {
        Some(cells) => {
            let table = control.sorted.test(cells, options.epsilon)?;
            de_scores(&mut scores, &DePair::new(&real.table, &table), options);
            significant = Some(table.n_significant());
            energy_found = Some(cloud_scores(
                &mut scores,
                real,
                condition,
                control,
                cells,
                options,
            )?);
        }
        None => {
            for name in cell_metrics(options) {
                scores.insert(name, Err(Undefined::NoCells));
            }
        }
    }
    Ok(Scored {
        delta: profiles.predicted_delta().to_vec(),
        mean: mean.to_vec(),
        scores,
        significant,
        energy: energy_found,
    })
}

fn profile_scores(
    scores: &mut IndexMap<String, Score>,
    profiles: &Profiles<'_>,
    real: &Real,
    control: &Control<'_>,
    options: &Options,
) {
    let top = TopGenes::by_delta(profiles, options.top_genes);
    let size: Vec<f64> = profiles.real_delta().iter().map(|d| d.abs()).collect();
    let order = crate::stats::descending(&size);
    let kept = gears::non_dropout(&order, &real.mean, control.sorted.mean(), options.top_genes);
    let gears = gears::scores(profiles, &top, &kept);
    let clipped = |score: Score| score.map(|s| s.max(0.0));
    let mut put = |name: &str, score: Score| scores.insert(name.into(), score);
    put("r2_mean_all", profiles.r2_mean());
    put("r2_mean_all_clipped", clipped(profiles.r2_mean()));
    put("r2_mean_de", profiles.r2_mean_of(&top));
    put("r2_mean_de_clipped", clipped(profiles.r2_mean_of(&top)));
    put("r2_delta_all", profiles.r2_delta());
    put("logfold_r2_de_chemcpa", profiles.logfold_r2_of(&top));
    put("pearson_all", profiles.pearson());
    put("pearson_de", gears.pearson_de);
    put("pearson_delta_all", profiles.pearson_delta());
    put("pearson_delta_de", profiles.pearson_delta_of(&top));
    put("spearman_delta_all", profiles.spearman_delta());
    put("cosine_delta_all", profiles.cosine_delta());
    put("mse_all", Ok(profiles.mse()));
    put("mse_de", gears.mse_de);
    put("mae_all", Ok(profiles.mae()));
    put("l2_all", Ok(profiles.l2()));
    let weighted = real.weights.clone().map(|w| profiles.weighted_mse(&w));
    put("wmse", weighted);
    put("sign_agreement_de", profiles.sign_agreement(&top));
    put(
        "frac_opposite_direction_top20_non_dropout",
        gears.frac_opposite_direction_top20_non_dropout,
    );
    for &k in &options.recall_at {
        put(
            &format!("top{k}_de_recall_absdelta"),
            profiles.top_recall(k),
        );
    }
}

fn de_scores(scores: &mut IndexMap<String, Score>, pair: &DePair<'_>, options: &Options) {
    let mut put = |name: &str, score: Score| scores.insert(name.into(), score);
    put("overlap_at_N", Ok(pair.overlap_at(None)));
    put("precision_at_N", Ok(pair.precision_at(None)));
    for &k in &options.overlap_at {
        put(&format!("overlap_at_{k}"), Ok(pair.overlap_at(Some(k))));
        put(&format!("precision_at_{k}"), Ok(pair.precision_at(Some(k))));
    }
    put("de_sig_genes_recall", pair.recall());
    put("de_direction_match", pair.direction_match());
    put("de_spearman_lfc_sig", pair.spearman_lfc());
    put("roc_auc", pair.roc_auc());
    put("pr_auc", pair.pr_auc());
}

/// Scores of clouds of cells; returns the energy distance of prediction and control.
fn cloud_scores(
    scores: &mut IndexMap<String, Score>,
    real: &Real,
    condition: &Condition<'_>,
    control: &Control<'_>,
    cells: Cells<'_>,
    options: &Options,
) -> Result<f64> {
    let near = cells.first(options.distance_cells);
    let real_near = condition.real.first(options.distance_cells);
    let control_near = control.cells.first(options.distance_cells);
    let within = PairMeans::within(near, Kernels::Yes);
    let between = PairMeans::between(near, real_near, Kernels::Yes)?;
    let to_control = PairMeans::between(near, control_near, Kernels::No)?;
    let mut put = |name: &str, score: Score| scores.insert(name.into(), score);
    put(
        "r2_var_all",
        crate::stats::r2(&real.variance, &cells.variance(1)),
    );
    put(
        "edistance_euclid_pred_real",
        Ok(energy(between, within, real.within)),
    );
    put(
        "edistance_sqeuclid_pred_real",
        Ok(energy_squared(between, within, real.within)),
    );
    put(
        "edistance_sqeuclid_unbiased_pred_real",
        energy_squared_unbiased(
            between,
            (within, near.len()),
            (real.within, real_near.len()),
        ),
    );
    put("mmd_rbf_multigamma", Ok(mmd(between, within, real.within)));
    put(
        "wasserstein1_per_gene_mean",
        Ok(wasserstein_per_gene(cells, condition.real)?),
    );
    Ok(energy(to_control, within, control.within))
}

/// Metrics that a mean profile without cells does not have.
fn cell_metrics(options: &Options) -> Vec<String> {
    let mut names: Vec<String> = ["overlap_at_N", "precision_at_N"].map(String::from).into();
    for k in &options.overlap_at {
        names.extend([format!("overlap_at_{k}"), format!("precision_at_{k}")]);
    }
    let rest = [
        "de_sig_genes_recall",
        "de_direction_match",
        "de_spearman_lfc_sig",
        "roc_auc",
        "pr_auc",
        "r2_var_all",
        "edistance_euclid_pred_real",
        "edistance_sqeuclid_pred_real",
        "edistance_sqeuclid_unbiased_pred_real",
        "mmd_rbf_multigamma",
        "wasserstein1_per_gene_mean",
    ];
    names.extend(rest.map(String::from));
    names
}

/// Scores that compare conditions of one control with one another.
fn among_conditions(
    by_condition: &mut IndexMap<String, Vec<Score>>,
    conditions: &[Condition<'_>],
    rows: &[Row],
    model: usize,
    threads: usize,
) -> Result<()> {
    let mut groups: IndexMap<usize, Vec<usize>> = IndexMap::new();
    for (i, condition) in conditions.iter().enumerate() {
        groups.entry(condition.control).or_default().push(i);
    }
    let too_few = || {
        Err(Undefined::TooFew {
            what: "conditions of this control",
            found: 1,
            needed: 2,
        })
    };
    let mut put = |name: &str, place: usize, score: Score| {
        let scores = by_condition
            .entry(name.into())
            .or_insert_with(|| vec![too_few(); rows.len()]);
        scores[place] = score;
    };
    for members in groups.values() {
        let real: Vec<Vec<f64>> = members
            .iter()
            .map(|&i| rows[i].real_delta.clone())
            .collect();
        let predicted: Vec<Vec<f64>> = members
            .iter()
            .map(|&i| rows[i].models[model].delta.clone())
            .collect();
        let targets: Vec<Option<usize>> = members.iter().map(|&i| conditions[i].target).collect();
        for (norm, name) in [(Norm::L1, "l1"), (Norm::L2, "l2"), (Norm::Cosine, "cosine")] {
            let found = ranks(&predicted, &real, Some(&targets), norm, threads)?;
            for (&i, rank) in members.iter().zip(found) {
                let score = if members.len() > 1 {
                    rank.map(|r| r.score)
                } else {
                    too_few()
                };
                put(&format!("discrimination_score_{name}"), i, score);
            }
        }
        let means: Vec<&[f64]> = members
            .iter()
            .map(|&i| rows[i].real_mean.as_slice())
            .collect();
        let center = crate::baselines::mean_of(&means);
        for &i in members {
            let row = &rows[i];
            let profiles = Profiles::new(&center, &row.real_mean, &row.models[model].mean)?;
            let score = if members.len() > 1 {
                profiles.pearson_delta()
            } else {
                too_few()
            };
            put("pearson_delta_vs_pertmean", i, score);
        }
    }
    Ok(())
}

/// Metrics over conditions.
fn overall(rows: &[Row], model: usize) -> IndexMap<String, Score> {
    let all = |of: &dyn Fn(&Scored) -> Option<f64>| -> std::result::Result<Vec<f64>, Undefined> {
        let found: Option<Vec<f64>> = rows.iter().map(|r| of(&r.models[model])).collect();
        found.ok_or(Undefined::NoCells)
    };
    let real_energy: Vec<f64> = rows.iter().map(|r| r.real_energy).collect();
    let real_counts: Vec<f64> = rows.iter().map(|r| r.real_significant as f64).collect();
    let energy = all(&|s| s.energy).and_then(|x| pearson(&x, &real_energy));
    let counts = all(&|s| s.significant.map(|n| n as f64)).and_then(|x| spearman(&x, &real_counts));
    [("pearson_edistance", energy), ("de_spearman_sig", counts)]
        .map(|(name, score)| (name.to_owned(), score))
        .into()
}
