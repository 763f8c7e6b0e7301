//! Which perturbations train: a split by rule and seed, checked for leaks and written into the corpus as an
//! obs column, so that every task finds it with `data.split_column`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scpeft_evaluation::splits::{CHEMCPA_OOD, Condition, Part as Side, Rule, Split};
use serde_json::json;

use super::{Columns, Conditions, Labels};
use crate::corpus::{Derived, ObsColumn, ObsKind, add_column};
use crate::doses::{self, Dose, Unit};
use crate::molecules::Drugs;
use crate::{Corpus, Error, Result};

/// What is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Held {
    /// A share of the perturbations, at random; a molecule with several names as one.
    Drugs,
    /// A share of the drugs, in whole scaffolds (needs the table of drugs).
    Scaffolds,
    /// The perturbations that are named.
    Listed,
    /// The nine drugs that chemCPA holds out of sciplex3.
    Chemcpa,
    /// A share of the pairs of perturbation and context.
    Pairs,
    /// One context, but for some of its perturbations.
    Context,
    /// Genes and combinations of genes, as GEARS simulates unseen ones.
    Simulation,
}

/// How a corpus is split.
#[derive(Debug, Clone)]
pub struct SplitRequest<'a> {
    /// Columns of the corpus.
    pub columns: Columns,
    /// What is held out for the test.
    pub held: Held,
    /// Share that is held out at random.
    pub share: f64,
    /// Share of what is left that is held out for validation, by the same rule; 0 for none.
    pub valid_share: f64,
    /// Perturbations or the context to hold out.
    pub names: Vec<String>,
    /// Perturbations of the held-out context that train.
    pub shots: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// The molecules of the drugs.
    pub drugs: Option<&'a Drugs>,
    /// Name of the obs column.
    pub column: String,
    /// Whether an earlier split of this name is replaced.
    pub overwrite: bool,
}

/// One part of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in the column.
    pub name: &'static str,
    /// Pairs of perturbation and context.
    pub conditions: usize,
    /// Perturbations.
    pub perturbations: usize,
    /// Treated cells.
    pub cells: u64,
}

/// What was split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitReport {
    /// Name of the rule.
    pub rule: String,
    /// The parts.
    pub parts: Vec<Part>,
    /// Control cells, which are in `train`.
    pub controls: u64,
    /// Molecules with several names, which the rule kept together.
    pub aliases: Vec<String>,
    /// The different doses of treated cells, ascending; none without a column of doses.
    pub doses: Vec<String>,
}

const TRAIN: &str = "train";
const VALID: &str = "valid";
const TEST: &str = "test";

/// Splits a corpus and adds the column. Control cells train: the rules allow to see those of every context.
///
/// # Errors
/// Columns, labels or names that the corpus does not have, doses without a unit, drugs that the table does not
/// have, a split that leaks or leaves a part empty, or a column that cannot be added.
pub fn split(corpus: &Corpus, request: &SplitRequest<'_>) -> Result<SplitReport> {
    let found = Conditions::of(corpus, &request.columns)?;
    let doses = doses(corpus, &request.columns)?;
    let conditions: Vec<Condition> = found.treated.keys().cloned().collect();
    let molecules = Molecules::of(&conditions, request.drugs)?;
    let test = divide(
        &conditions,
        &rule(request, &molecules)?,
        request.seed,
        &molecules,
    )?;
    let mut parts: BTreeMap<&Condition, &'static str> = BTreeMap::new();
    parts.extend(test.of(Side::Test).map(|c| (c, TEST)));
    let rest: Vec<Condition> = test.of(Side::Train).cloned().collect();
    let valid = if request.valid_share > 0.0 {
        let rule = validation(request, &molecules, &rest);
        Some(divide(&rest, &rule, request.seed, &molecules)?)
    } else {
        None
    };
    if let Some(split) = &valid {
        parts.extend(split.of(Side::Test).map(|c| (c, VALID)));
    }
    for condition in &conditions {
        parts.entry(condition).or_insert(TRAIN);
    }
    add_column(
        corpus,
        &column(request, &found, &parts, &test.rule),
        request.overwrite,
    )?;
    let part = |name: &'static str| {
        let own = || {
            parts
                .iter()
                .filter(move |(_, p)| **p == name)
                .map(|(c, _)| *c)
        };
        let drugs: BTreeSet<&String> = own().map(|c| &c.perturbation).collect();
        Part {
            name,
            conditions: own().count(),
            perturbations: drugs.len(),
            cells: own().map(|c| found.treated[c]).sum(),
        }
    };
    let names = [TRAIN, VALID, TEST];
    let there = |name: &&&str| **name != VALID || valid.is_some();
    Ok(SplitReport {
        rule: test.rule.clone(),
        parts: names.iter().filter(there).map(|name| part(name)).collect(),
        controls: found.controls.values().sum(),
        aliases: molecules.aliases(),
        doses,
    })
}

/// The doses of treated cells as texts. They do not decide on the split: all doses of a drug go with it.
fn doses(corpus: &Corpus, columns: &Columns) -> Result<Vec<String>> {
    let Some(column) = &columns.dose else {
        return Ok(Vec::new());
    };
    let molar = doses::of_cells(corpus, column, columns.dose_unit)?;
    let treated = Labels::read(corpus, columns)?;
    let mut found: Vec<Dose> = Vec::new();
    for (cell, &molar) in molar.iter().enumerate() {
        if treated.is_treated(cell)
            && let Ok(dose) = Dose::new(molar, Unit::Molar)
            && !found.contains(&dose)
        {
            found.push(dose);
        }
    }
    found.sort_by(|a, b| a.molar().total_cmp(&b.molar()));
    let mut texts: Vec<String> = found.iter().map(Dose::to_string).collect();
    texts.dedup();
    Ok(texts)
}

/// A split in two, of which no molecule is in both parts under two names.
fn divide(
    conditions: &[Condition],
    rule: &Rule,
    seed: u64,
    molecules: &Molecules,
) -> Result<Split> {
    let split = Split::new(conditions, rule, seed).map_err(Error::Split)?;
    (split.check_molecules(&molecules.identity)).map_err(Error::Split)?;
    Ok(split)
}

/// What is known of the molecules of a corpus.
struct Molecules {
    /// What each drug is known by whatever its name.
    identity: BTreeMap<String, String>,
    /// The scaffold of each drug.
    scaffolds: HashMap<String, String>,
    names: BTreeSet<String>,
}

impl Molecules {
    fn of(conditions: &[Condition], drugs: Option<&Drugs>) -> Result<Self> {
        let names: BTreeSet<String> = conditions.iter().map(|c| c.perturbation.clone()).collect();
        let mut molecules = Self {
            identity: BTreeMap::new(),
            scaffolds: HashMap::new(),
            names,
        };
        let Some(drugs) = drugs else {
            return Ok(molecules);
        };
        let rows = drugs.all(molecules.names.iter().map(String::as_str))?;
        // Names of one molecule have one scaffold, whatever their SMILES say: that of the first.
        let mut scaffolds: HashMap<String, String> = HashMap::new();
        for drug in rows {
            let identity = drug.identity();
            let scaffold = scaffolds.entry(identity.clone());
            let scaffold = scaffold.or_insert_with(|| drug.structure.scaffold.clone());
            let scaffold = scaffold.clone();
            molecules.scaffolds.insert(drug.name.clone(), scaffold);
            molecules.identity.insert(drug.name.clone(), identity);
        }
        Ok(molecules)
    }

    /// Groups of names of one molecule; without a table each name is one.
    fn groups(&self) -> HashMap<String, String> {
        let group = |name: &String| {
            let identity = self.identity.get(name).unwrap_or(name);
            (name.clone(), identity.clone())
        };
        self.names.iter().map(group).collect()
    }

    fn aliases(&self) -> Vec<String> {
        let mut names: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
        for (name, identity) in &self.identity {
            names.entry(identity).or_default().push(name);
        }
        let several = names.into_values().filter(|names| names.len() > 1);
        several.map(|names| names.join(" = ")).collect()
    }
}

fn rule(request: &SplitRequest<'_>, molecules: &Molecules) -> Result<Rule> {
    let share = request.share;
    let names = &request.names;
    let takes_names = matches!(request.held, Held::Listed | Held::Context);
    if !takes_names && !names.is_empty() {
        return Err(Error::options(
            "this rule holds out nothing by name",
            "leave --name out, or choose `listed` or `context`",
        ));
    }
    Ok(match request.held {
        Held::Drugs => Rule::UnseenGroup {
            share,
            groups: molecules.groups(),
        },
        Held::Scaffolds if request.drugs.is_none() => {
            return Err(Error::options(
                "scaffolds need the molecules of the drugs",
                "name a table of drugs with --drugs",
            ));
        }
        Held::Scaffolds => Rule::UnseenGroup {
            share,
            groups: molecules.scaffolds.clone(),
        },
        Held::Listed => Rule::ListedDrugs {
            drugs: names.clone(),
        },
        Held::Chemcpa => Rule::ListedDrugs {
            drugs: CHEMCPA_OOD.map(String::from).into(),
        },
        Held::Pairs => Rule::UnseenPair { share },
        Held::Context => match &names[..] {
            [context] => Rule::UnseenContext {
                context: context.clone(),
                drugs: request.shots,
            },
            names => {
                return Err(Error::options(
                    format!("one context is held out, got {}", names.len()),
                    "name it with --name",
                ));
            }
        },
        Held::Simulation => Rule::Simulation {
            genes: 0.75,
            combinations: 0.75,
        },
    })
}

/// How validation is held out of what is left: like the test where that can be, else by perturbations.
fn validation(request: &SplitRequest<'_>, molecules: &Molecules, rest: &[Condition]) -> Rule {
    let share = request.valid_share;
    let contexts: BTreeSet<&String> = rest.iter().map(|c| &c.context).collect();
    match request.held {
        Held::Scaffolds => Rule::UnseenGroup {
            share,
            groups: molecules.scaffolds.clone(),
        },
        Held::Pairs | Held::Context if contexts.len() > 1 => Rule::UnseenPair { share },
        _ => Rule::UnseenGroup {
            share,
            groups: molecules.groups(),
        },
    }
}

fn column(
    request: &SplitRequest<'_>,
    found: &Conditions,
    parts: &BTreeMap<&Condition, &'static str>,
    rule: &str,
) -> ObsColumn {
    let mut by = vec![request.columns.perturbation.clone()];
    by.extend(request.columns.context.clone());
    let keys = |perturbation: &str, context: &str| {
        let mut keys = vec![perturbation.to_owned()];
        if request.columns.context.is_some() {
            keys.push(context.to_owned());
        }
        keys
    };
    let mut values: Vec<(Vec<String>, String)> = Vec::new();
    for context in found.controls.keys() {
        values.push((keys(&request.columns.control, context), TRAIN.to_owned()));
    }
    for (condition, part) in parts {
        let keys = keys(&condition.perturbation, &condition.context);
        values.push((keys, (*part).to_owned()));
    }
    let used: BTreeSet<&str> = parts.values().copied().collect();
    let categories = [TRAIN, VALID, TEST].into_iter();
    let categories = categories.filter(|name| used.contains(name));
    let mut column = ObsColumn::new(
        request.column.clone(),
        ObsKind::Category,
        categories.map(str::to_owned).collect(),
    );
    column.derived = Some(Derived {
        by,
        values,
        origin: json!({
            "tool": "scpeft-data split",
            "tool_version": env!("CARGO_PKG_VERSION"),
            "rule": rule,
            "seed": request.seed,
            "share": request.share,
            "valid_share": request.valid_share,
            "names": request.names,
            "shots": request.shots,
        }),
    });
    column
}
