//! From labelled cells to a report: conditions, a split, baselines, ceilings, scores.

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexMap;
use serde::Serialize;

use crate::baselines::{Baseline, Singles, Training};
use crate::ceiling::{Halving, halves};
use crate::cells::{Cells, same_genes};
use crate::evaluate::{self, ModelScores, Options, Prediction, evaluate};
use crate::splits::{Condition, Part, Rule, Split, genes_of};
use crate::summary::Summary;
use crate::{Error, Result};

/// Fewest cells of a condition that is scored: chemCPA skips conditions of five cells and fewer.
pub const MIN_CELLS: usize = 5;
/// The model that is one half of the real cells against the other.
pub const CEILING: &str = "split_half_ceiling";
/// The baseline of combinations.
const ADDITIVE: &str = "additive_singles";

/// Cells with what was done to them, all over the same genes.
#[derive(Debug, Clone, Default)]
pub struct Labelled {
    /// Genes, in the order of the values.
    pub genes: Vec<String>,
    /// Control cells of each context, row by row.
    pub controls: BTreeMap<String, Vec<f32>>,
    /// Treated cells of each condition, row by row.
    pub treated: BTreeMap<Condition, Vec<f32>>,
    /// Features of perturbations: embeddings or fingerprints of molecules.
    pub features: Option<BTreeMap<String, Vec<f64>>>,
    /// What a molecule is known by under any name, for the check of leaks.
    pub molecules: BTreeMap<String, String>,
}

/// What a model predicts.
#[derive(Debug, Clone, Default)]
pub struct Predicted {
    /// Name of the model.
    pub model: String,
    /// Mean profiles.
    pub profiles: BTreeMap<Condition, Vec<f64>>,
}

/// How a study is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is held out.
    pub rule: Rule,
    /// Seed of the split and of the ceiling's halves.
    pub seed: u64,
    /// Baselines beside the models; those that need features are left out, and named, without any.
    pub baselines: Vec<Baseline>,
    /// Metrics.
    pub options: Options,
}

/// What is left out of a report, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// A condition or a baseline.
    pub what: String,
    /// The reason.
    pub reason: String,
}

/// Scores of one model in a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    /// Name.
    pub model: String,
    /// Whether it is a baseline, the ceiling, or one of the models under test.
    pub role: Role,
    /// Means over all held-out conditions.
    pub metrics: IndexMap<String, Summary>,
    /// Metrics that are one number for all conditions; `None` where not defined.
    pub overall: IndexMap<String, Option<f64>>,
    /// Means over the conditions of a stratum: a context, or a subgroup of the split.
    pub strata: IndexMap<String, IndexMap<String, Summary>>,
    /// Scores per condition; `None` where not defined.
    pub conditions: IndexMap<String, IndexMap<String, Option<f64>>>,
}

/// What a line of a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Under test.
    Model,
    /// To be beaten.
    Baseline,
    /// Not to be beaten.
    Ceiling,
}

/// A report, as `report.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub format_version: u32,
    /// Name of the rule.
    pub rule: String,
    /// Seed.
    pub seed: u64,
    /// Number of genes.
    pub genes: usize,
    /// How the genes of the scores on top genes are chosen.
    pub top_genes: String,
    /// Training conditions.
    pub train: usize,
    /// Held-out conditions that are scored.
    pub test: usize,
    /// What is not in the scores.
    pub left_out: Vec<LeftOut>,
    /// Models, baselines and the ceiling.
    pub models: Vec<ModelReport>,
}

/// The baselines of every report, with the penalties and numbers of neighbours of the literature.
pub fn default_baselines(fingerprints: bool) -> Vec<Baseline> {
    use crate::baselines::Similarity::{Cosine, Tanimoto};
    vec![
        Baseline::NoChange,
        Baseline::MeanDelta,
        Baseline::DrugMean,
        Baseline::ContextMean,
        Baseline::AdditiveTwoWay,
        Baseline::Ridge { lambda: 0.5 },
        Baseline::Knn {
            k: 5,
            similarity: if fingerprints { Tanimoto } else { Cosine },
        },
        Baseline::Bilinear {
            directions: 10,
            lambda: 0.1,
        },
    ]
}

/// The name of a condition in reports.
pub fn name_of(condition: &Condition) -> String {
    let Condition {
        perturbation,
        context,
        dose,
    } = condition;
    match dose {
        Some(dose) => format!("{perturbation} | {context} | {dose}"),
        None => format!("{perturbation} | {context}"),
    }
}

/// Changes of single genes that training has, and their mean.
struct SingleDeltas {
    known: Singles,
    mean: Option<Vec<f64>>,
}

/// What is there to be scored, once checked.
struct Usable<'a> {
    contexts: Vec<&'a str>,
    controls: Vec<Cells<'a>>,
    conditions: BTreeMap<&'a Condition, Cells<'a>>,
    left_out: Vec<LeftOut>,
}

impl<'a> Usable<'a> {
    fn of(cells: &'a Labelled) -> Result<Self> {
        let genes = cells.genes.len();
        let mut left_out = Vec::new();
        let (mut contexts, mut controls) = (Vec::new(), Vec::new());
        for (context, values) in &cells.controls {
            contexts.push(context.as_str());
            controls.push(Cells::new(
                &format!("control cells of {context}"),
                values,
                genes,
            )?);
        }
        let mut conditions = BTreeMap::new();
        for (condition, values) in &cells.treated {
            let name = name_of(condition);
            let own = Cells::new(&name, values, genes)?;
            let reason = if !contexts.contains(&condition.context.as_str()) {
                "its context has no control cells".to_owned()
            } else if own.len() <= MIN_CELLS {
                format!("{} cells, more than {MIN_CELLS} are needed", own.len())
            } else {
                conditions.insert(condition, own);
                continue;
            };
            left_out.push(LeftOut { what: name, reason });
        }
        Ok(Self {
            contexts,
            controls,
            conditions,
            left_out,
        })
    }

    fn context(&self, condition: &Condition) -> Result<usize> {
        let place = self.contexts.iter().position(|c| *c == condition.context);
        place.ok_or_else(|| Error::Empty {
            whom: format!("the context `{}`", condition.context),
            what: "control cells",
        })
    }

    fn delta(&self, condition: &Condition, means: &[Vec<f64>]) -> Result<Vec<f64>> {
        let context = self.context(condition)?;
        let own = self.conditions[condition].mean();
        Ok(own
            .iter()
            .zip(&means[context])
            .map(|(x, c)| x - c)
            .collect())
    }
}

/// What a study gives.
#[derive(Debug, Clone)]
pub struct Study {
    /// Which conditions trained.
    pub split: Split,
    /// The scores.
    pub report: Report,
    /// Predicted mean profiles of the held-out conditions, by models and baselines.
    pub profiles: Vec<Predicted>,
}

/// Splits, fits the baselines on the training conditions, and scores everything on the others.
///
/// # Errors
/// Cells that are not finite, names that do not fit the rule, a leak, or a model that lacks
/// predictions of held-out conditions: all of them are named.
pub fn run(cells: &Labelled, plan: &Plan, models: &[Predicted]) -> Result<Study> {
    let usable = Usable::of(cells)?;
    let all: Vec<Condition> = usable.conditions.keys().map(|&c| c.clone()).collect();
    let split = Split::new(&all, &plan.rule, plan.seed)?;
    split.check_molecules(&cells.molecules)?;
    let means: Vec<Vec<f64>> = usable.controls.iter().map(Cells::mean).collect();
    let mut left_out = usable.left_out.clone();
    let test: Vec<&Condition> = split.of(Part::Test).collect();
    let names: Vec<String> = test.iter().map(|c| name_of(c)).collect();
    let baselines = predictions(cells, &usable, &split, plan, &means, &mut left_out)?;
    let mut rows: Vec<(String, Role, Vec<Vec<f64>>)> = Vec::new();
    for model in models {
        let profiles = profiles_of(model, &test, cells.genes.len())?;
        rows.push((model.model.clone(), Role::Model, profiles));
    }
    for (name, profiles) in baselines {
        rows.push((name, Role::Baseline, profiles));
    }
    let mut deltas: Vec<Vec<Vec<f64>>> = Vec::new();
    for (_, _, profiles) in &rows {
        let mut of_model = Vec::new();
        for (condition, profile) in test.iter().zip(profiles) {
            let base = &means[usable.context(condition)?];
            of_model.push(profile.iter().zip(base).map(|(x, b)| x - b).collect());
        }
        deltas.push(of_model);
    }
    let mut scored = Vec::with_capacity(test.len());
    for (i, condition) in test.iter().enumerate() {
        scored.push(evaluate::Condition {
            name: names[i].clone(),
            control: usable.context(condition)?,
            real: usable.conditions[*condition],
            target: target(condition, &cells.genes),
            predictions: deltas.iter().map(|d| Prediction::Delta(&d[i])).collect(),
        });
    }
    let model_names: Vec<String> = rows.iter().map(|(name, ..)| name.clone()).collect();
    let scores = evaluate(&model_names, &usable.controls, &scored, &plan.options)?;
    let strata = strata(&test, &split);
    let mut reports: Vec<ModelReport> = (scores.iter().zip(&rows))
        .map(|(scores, (_, role, _))| report_of(scores, *role, &names, &strata))
        .collect();
    reports.push(ceiling(&usable, &test, &names, &strata, plan)?);
    let report = Report {
        format_version: 1,
        rule: split.rule.clone(),
        seed: plan.seed,
        genes: cells.genes.len(),
        top_genes: format!(
            "{} genes of largest absolute difference between the mean of the condition and of control",
            plan.options.top_genes
        ),
        train: split.of(Part::Train).count(),
        test: test.len(),
        left_out,
        models: reports,
    };
    let profiles = (rows.into_iter())
        .map(|(model, _, profiles)| Predicted {
            model,
            profiles: test.iter().map(|&c| c.clone()).zip(profiles).collect(),
        })
        .collect();
    Ok(Study {
        split: split.clone(),
        report,
        profiles,
    })
}

/// The perturbed gene, when a condition has exactly one and it is among the genes.
fn target(condition: &Condition, genes: &[String]) -> Option<usize> {
    match genes_of(&condition.perturbation)[..] {
        [gene] => genes.iter().position(|g| g == gene),
        _ => None,
    }
}

fn profiles_of(model: &Predicted, test: &[&Condition], genes: usize) -> Result<Vec<Vec<f64>>> {
    let missing: Vec<String> = (test.iter())
        .filter(|c| !model.profiles.contains_key(**c))
        .map(|c| name_of(c))
        .collect();
    if !missing.is_empty() {
        return Err(Error::Unknown {
            what: "held-out conditions of which the model predicts nothing,",
            names: missing,
            known: model.profiles.keys().map(name_of).collect(),
        });
    }
    let mut profiles = Vec::with_capacity(test.len());
    for condition in test {
        let profile = &model.profiles[*condition];
        same_genes(
            &format!(
                "the prediction of `{}` for {}",
                model.model,
                name_of(condition)
            ),
            profile.len(),
            genes,
        )?;
        profiles.push(profile.clone());
    }
    Ok(profiles)
}

/// Predicted profiles of the held-out conditions by every baseline that can be had.
fn predictions(
    cells: &Labelled,
    usable: &Usable<'_>,
    split: &Split,
    plan: &Plan,
    means: &[Vec<f64>],
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<(String, Vec<Vec<f64>>)>> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for condition in split.parts.keys() {
        let next = places.len();
        places.entry(&condition.perturbation).or_insert(next);
    }
    let features = match &cells.features {
        None => None,
        Some(known) => Some(features_of(&places, known)?),
    };
    let mut deltas: IndexMap<(usize, usize), Vec<Vec<f64>>> = IndexMap::new();
    let (mut known, mut alone) = (Singles::new(), Vec::new());
    for condition in split.of(Part::Train) {
        let (context, delta) = (usable.context(condition)?, usable.delta(condition, means)?);
        if let [gene] = genes_of(&condition.perturbation)[..] {
            known.insert(context, gene, delta.clone());
            alone.push(delta.clone());
        }
        let place = places[condition.perturbation.as_str()];
        deltas.entry((context, place)).or_default().push(delta);
    }
    let singles = SingleDeltas {
        known,
        mean: (!alone.is_empty()).then(|| mean_rows(&alone)),
    };
    // Doses of one drug in one context count as one.
    let training = Training {
        pairs: deltas.keys().copied().collect(),
        deltas: deltas.values().map(|rows| mean_rows(rows)).collect(),
        features,
    };
    let test: Vec<&Condition> = split.of(Part::Test).collect();
    let add = |context: usize, delta: &[f64]| -> Vec<f64> {
        means[context]
            .iter()
            .zip(delta)
            .map(|(c, d)| c + d)
            .collect()
    };
    let mut found = Vec::new();
    for baseline in &plan.baselines {
        if baseline.needs_features() && training.features.is_none() {
            left_out.push(LeftOut {
                what: baseline.name().into(),
                reason: "there are no features of perturbations".into(),
            });
            continue;
        }
        let fitted = fit(*baseline, &training)?;
        let mut profiles = Vec::with_capacity(test.len());
        for condition in &test {
            let context = usable.context(condition)?;
            let place = places[condition.perturbation.as_str()];
            profiles.push(add(context, &fitted.delta(context, place)));
        }
        found.push((baseline.name().to_owned(), profiles));
    }
    additive(usable, &test, &singles, &add, left_out, &mut found)?;
    Ok(found)
}

/// With fewer conditions than directions, as many directions as there are.
fn fit(baseline: Baseline, training: &Training) -> Result<crate::baselines::Fitted> {
    match baseline {
        Baseline::Bilinear { directions, lambda } => {
            // Centred deltas of n conditions span n - 1 directions at most.
            let most = training.deltas.len().saturating_sub(1).max(1);
            let directions = directions.min(most);
            Baseline::Bilinear { directions, lambda }.fit(training)
        }
        other => other.fit(training),
    }
}

/// The additive model of combinations of genes: the sum of the changes of the single genes. For a
/// gene that training never perturbs alone in the context it takes the mean change of single genes,
/// and says so; without combinations among the held-out conditions there is no such baseline.
fn additive(
    usable: &Usable<'_>,
    test: &[&Condition],
    singles: &SingleDeltas,
    add: &dyn Fn(usize, &[f64]) -> Vec<f64>,
    left_out: &mut Vec<LeftOut>,
    found: &mut Vec<(String, Vec<Vec<f64>>)>,
) -> Result<()> {
    if test.iter().all(|c| genes_of(&c.perturbation).len() < 2) {
        return Ok(());
    }
    let mut profiles = Vec::with_capacity(test.len());
    let mut replaced = Vec::new();
    for condition in test {
        let context = usable.context(condition)?;
        let mut sum = vec![0.0; usable.controls[context].genes()];
        for gene in genes_of(&condition.perturbation) {
            let delta = singles.known.sum(context, &[gene]).or_else(|reason| {
                replaced.push(name_of(condition));
                singles.mean.clone().ok_or(reason)
            });
            // Without any single in training there is nothing to add.
            let Ok(delta) = delta else {
                left_out.push(LeftOut {
                    what: ADDITIVE.into(),
                    reason: "training perturbs no gene alone".into(),
                });
                return Ok(());
            };
            sum.iter_mut().zip(&delta).for_each(|(s, d)| *s += d);
        }
        profiles.push(add(context, &sum));
    }
    replaced.dedup();
    if !replaced.is_empty() {
        left_out.push(LeftOut {
            what: format!("{ADDITIVE}, in part"),
            reason: format!(
                "the mean of single genes stands for genes that training never perturbs alone there, in {}",
                replaced.join(", ")
            ),
        });
    }
    found.push((ADDITIVE.into(), profiles));
    Ok(())
}

fn features_of(
    places: &BTreeMap<&str, usize>,
    known: &BTreeMap<String, Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let missing: Vec<String> = (places.keys())
        .filter(|name| !known.contains_key(**name))
        .map(|name| (*name).to_owned())
        .collect();
    if !missing.is_empty() {
        return Err(Error::Unknown {
            what: "perturbations without features,",
            names: missing,
            known: known.keys().cloned().collect(),
        });
    }
    let mut rows = vec![Vec::new(); places.len()];
    for (name, &place) in places {
        rows[place].clone_from(&known[*name]);
    }
    Ok(rows)
}

fn mean_rows(rows: &[Vec<f64>]) -> Vec<f64> {
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    crate::baselines::mean_of(&rows)
}

/// Places of the held-out conditions of each context and each subgroup.
fn strata(test: &[&Condition], split: &Split) -> IndexMap<String, Vec<usize>> {
    let mut strata: IndexMap<String, Vec<usize>> = IndexMap::new();
    for (i, condition) in test.iter().enumerate() {
        strata.entry(condition.context.clone()).or_default().push(i);
    }
    for (i, condition) in test.iter().enumerate() {
        if let Some(subgroup) = split.subgroups.get(*condition) {
            strata.entry(subgroup.name().into()).or_default().push(i);
        }
    }
    strata
}

fn report_of(
    scores: &ModelScores,
    role: Role,
    names: &[String],
    strata: &IndexMap<String, Vec<usize>>,
) -> ModelReport {
    let all: Vec<usize> = (0..names.len()).collect();
    let of_condition = |i: usize| {
        let metrics = scores.by_condition.iter();
        let values = metrics.map(|(metric, s)| (metric.clone(), s[i].as_ref().ok().copied()));
        (names[i].clone(), values.collect())
    };
    ModelReport {
        model: scores.model.clone(),
        role,
        metrics: scores.summaries(names, &all),
        overall: (scores.overall.iter())
            .map(|(metric, score)| (metric.clone(), score.as_ref().ok().copied()))
            .collect(),
        strata: (strata.iter())
            .map(|(stratum, places)| (stratum.clone(), scores.summaries(names, places)))
            .collect(),
        conditions: all.iter().map(|&i| of_condition(i)).collect(),
    }
}

/// One half of the cells of each held-out condition against the other half.
fn ceiling(
    usable: &Usable<'_>,
    test: &[&Condition],
    names: &[String],
    strata: &IndexMap<String, Vec<usize>>,
    plan: &Plan,
) -> Result<ModelReport> {
    let mut parts = Vec::with_capacity(test.len());
    for (condition, name) in test.iter().zip(names) {
        let cells = usable.conditions[*condition];
        parts.push(halves(name, cells, Halving::Split, plan.seed)?);
    }
    let mut scored = Vec::with_capacity(test.len());
    for ((condition, name), halves) in test.iter().zip(names).zip(&parts) {
        let genes = usable.controls[0].genes();
        scored.push(evaluate::Condition {
            name: name.clone(),
            control: usable.context(condition)?,
            real: Cells::new(name, &halves.real, genes)?,
            target: None,
            predictions: vec![Prediction::Cells(Cells::new(
                name,
                &halves.predicted,
                genes,
            )?)],
        });
    }
    let scores = evaluate(&[CEILING.into()], &usable.controls, &scored, &plan.options)?;
    Ok(report_of(&scores[0], Role::Ceiling, names, strata))
}

/// The same values under other names, drawn by seed: with molecules' features, what the shuffled-drug
/// ablation tells a model. Every name gets another one's where there are two.
pub fn shuffled<T: Clone>(of: &BTreeMap<String, T>, seed: u64) -> BTreeMap<String, T> {
    let names: Vec<&String> = of.keys().collect();
    let n = names.len();
    let order = crate::rng::Rng::new(seed, "shuffled drugs").permutation(n);
    // A cycle through a random order leaves nothing in its place.
    let next: HashMap<usize, usize> = (0..n).map(|i| (order[i], order[(i + 1) % n])).collect();
    let entry = |(i, name): (usize, &&String)| ((*name).clone(), of[names[next[&i]]].clone());
    names.iter().enumerate().map(entry).collect()
}
