//! Which conditions train and which are held out, by a rule and a seed, and checks that nothing of
//! a held-out condition is in training.
//!
//! A split is a pure function of the conditions (in any order), the rule and the seed. The draws
//! are ours: seed 1 of a rule is not seed 1 of another program's rule of that name.

mod check;
mod simulation;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::gears::Subgroup;
use crate::rng::Rng;
use crate::{Error, Result};

pub use simulation::genes_of;

/// Drugs that chemCPA's `split_ood_finetuning` of sciplex3 holds out.
pub const CHEMCPA_OOD: [&str; 9] = [
    "Dacinostat",
    "CUDC-907",
    "Givinostat",
    "CUDC-101",
    "Pirarubicin",
    "Hesperadin",
    "Tanespimycin",
    "Trametinib",
    "Raltitrexed",
];

/// What was done to which cells; control cells are no condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// Drug, gene, or genes joined by `+`.
    pub perturbation: String,
    /// Cell line, patient, or whatever else the cells are.
    pub context: String,
    /// Dose as the data name it; doses of one drug are never separated by a rule.
    pub dose: Option<String>,
}

/// How conditions are held out.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Drugs at random.
    UnseenDrug {
        /// Share of the drugs to hold out, above 0 and below 1.
        share: f64,
    },
    /// Groups of drugs at random, for instance all drugs of one scaffold: until at least `share`
    /// of the drugs is held out.
    UnseenGroup {
        /// Share of the drugs to hold out, above 0 and below 1.
        share: f64,
        /// The group of every drug.
        groups: HashMap<String, String>,
    },
    /// Exactly these drugs, for instance [`CHEMCPA_OOD`].
    ListedDrugs {
        /// The drugs.
        drugs: Vec<String>,
    },
    /// Pairs of drug and context at random, as long as training keeps the drug in another context
    /// and the context with another drug.
    UnseenPair {
        /// Share of the pairs to hold out, above 0 and below 1.
        share: f64,
    },
    /// A context of which training sees `drugs` drugs, chosen at random; 0 is zero-shot, where
    /// only its control cells are seen.
    UnseenContext {
        /// The context.
        context: String,
        /// Drugs of it that train.
        drugs: usize,
    },
    /// GEARS's simulation split: genes are held out, and combinations by how many of their genes
    /// are seen. Perturbations are genes joined by `+`.
    Simulation {
        /// Share of the genes that training may perturb (published 0.75).
        genes: f64,
        /// Share of the combinations of seen genes that train (published 0.75).
        combinations: f64,
    },
    /// Exactly these conditions: the split that a model was trained with.
    Given {
        /// The conditions that are held out.
        test: BTreeSet<Condition>,
    },
}

impl Rule {
    /// The name in reports and files.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::UnseenDrug { .. } => "unseen_drug",
            Self::UnseenGroup { .. } => "unseen_group",
            Self::ListedDrugs { .. } => "listed_drugs",
            Self::UnseenPair { .. } => "unseen_pair",
            Self::UnseenContext { drugs: 0, .. } => "unseen_context_zero_shot",
            Self::UnseenContext { .. } => "unseen_context_few_shot",
            Self::Simulation { .. } => "simulation",
            Self::Given { .. } => "as_trained",
        }
    }
}

/// The part of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Seen in training.
    Train,
    /// Held out.
    Test,
}

/// Every condition with its part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// Name of the rule.
    pub rule: String,
    /// The seed.
    pub seed: u64,
    /// Parts, in order of the conditions.
    pub parts: BTreeMap<Condition, Part>,
    /// Subgroups of held-out conditions, for the rules that have them.
    pub subgroups: BTreeMap<Condition, Subgroup>,
}

impl Split {
    /// Splits the conditions and checks the result with [`Split::check`].
    ///
    /// # Errors
    /// A share out of range, names that the conditions do not have, a part that would be empty, or
    /// a leak.
    pub fn new(conditions: &[Condition], rule: &Rule, seed: u64) -> Result<Self> {
        let sorted: BTreeSet<&Condition> = conditions.iter().collect();
        let sorted: Vec<&Condition> = sorted.into_iter().collect();
        let mut rng = Rng::new(seed, rule.name());
        let held_out = match rule {
            Rule::UnseenDrug { share } => {
                let own = |d: &String| (d.clone(), d.clone());
                let groups = names(&sorted, |c| &c.perturbation)
                    .iter()
                    .map(own)
                    .collect();
                by_groups(&sorted, &groups, *share, &mut rng)?
            }
            Rule::UnseenGroup { share, groups } => by_groups(&sorted, groups, *share, &mut rng)?,
            Rule::ListedDrugs { drugs } => listed(&sorted, drugs)?,
            Rule::UnseenPair { share } => by_pairs(&sorted, *share, &mut rng)?,
            Rule::UnseenContext { context, drugs } => {
                by_context(&sorted, context, *drugs, &mut rng)?
            }
            Rule::Simulation {
                genes,
                combinations,
            } => {
                let shares = [
                    fraction("genes", *genes)?,
                    fraction("combinations", *combinations)?,
                ];
                simulation::held_out(&sorted, shares, &mut rng)
            }
            Rule::Given { test } => {
                let known = sorted.iter().filter(|c| test.contains(**c));
                known.map(|&c| c.clone()).collect()
            }
        };
        let parts = sorted.iter().map(|&c| {
            let part = if held_out.contains(c) {
                Part::Test
            } else {
                Part::Train
            };
            (c.clone(), part)
        });
        let mut split = Self {
            rule: rule.name().into(),
            seed,
            parts: parts.collect(),
            subgroups: BTreeMap::new(),
        };
        if matches!(rule, Rule::Simulation { .. }) {
            split.subgroups = simulation::subgroups(&split);
        }
        for (part, what) in [
            (Part::Train, "training conditions"),
            (Part::Test, "held-out conditions"),
        ] {
            if split.of(part).next().is_none() {
                return Err(Error::Empty {
                    whom: format!("the split `{}`", split.rule),
                    what,
                });
            }
        }
        split.check(rule)?;
        Ok(split)
    }

    /// The conditions of one part.
    pub fn of(&self, part: Part) -> impl Iterator<Item = &Condition> {
        let own = self.parts.iter().filter(move |(_, p)| **p == part);
        own.map(|(condition, _)| condition)
    }
}

/// The different values of a field, in order.
fn names(conditions: &[&Condition], of: impl Fn(&Condition) -> &String) -> BTreeSet<String> {
    conditions.iter().map(|c| of(c).clone()).collect()
}

fn fraction(setting: &'static str, share: f64) -> Result<f64> {
    if share > 0.0 && share < 1.0 {
        return Ok(share);
    }
    Err(Error::Setting {
        setting,
        found: share.to_string(),
        expected: "above 0 and below 1",
    })
}

/// Conditions of random groups of drugs, until at least a share of the drugs is among them.
fn by_groups(
    conditions: &[&Condition],
    groups: &HashMap<String, String>,
    share: f64,
    rng: &mut Rng,
) -> Result<BTreeSet<Condition>> {
    let share = fraction("share", share)?;
    let drugs = names(conditions, |c| &c.perturbation);
    let mut members: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for drug in &drugs {
        let group = groups.get(drug).ok_or_else(|| Error::Empty {
            whom: format!("the drug `{drug}`"),
            what: "group",
        })?;
        members.entry(group).or_default().push(drug);
    }
    let mut order: Vec<&Vec<&String>> = members.values().collect();
    rng.shuffle(&mut order);
    let wanted = (drugs.len() as f64 * share).ceil() as usize;
    let mut chosen: BTreeSet<&String> = BTreeSet::new();
    for group in order {
        if chosen.len() >= wanted {
            break;
        }
        chosen.extend(group);
    }
    let held_out = conditions
        .iter()
        .filter(|c| chosen.contains(&c.perturbation));
    Ok(held_out.map(|&c| c.clone()).collect())
}

fn listed(conditions: &[&Condition], drugs: &[String]) -> Result<BTreeSet<Condition>> {
    let known = names(conditions, |c| &c.perturbation);
    let unknown: Vec<String> = drugs
        .iter()
        .filter(|d| !known.contains(*d))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        return Err(Error::Unknown {
            what: "drugs to hold out",
            names: unknown,
            known: known.into_iter().collect(),
        });
    }
    let held_out = conditions
        .iter()
        .filter(|c| drugs.contains(&c.perturbation));
    Ok(held_out.map(|&c| c.clone()).collect())
}

type Pair<'a> = (&'a str, &'a str);

fn pair(condition: &Condition) -> Pair<'_> {
    (&condition.perturbation, &condition.context)
}

fn by_pairs(conditions: &[&Condition], share: f64, rng: &mut Rng) -> Result<BTreeSet<Condition>> {
    let share = fraction("share", share)?;
    let pairs: BTreeSet<Pair<'_>> = conditions.iter().map(|c| pair(c)).collect();
    let mut order: Vec<Pair<'_>> = pairs.iter().copied().collect();
    rng.shuffle(&mut order);
    let mut left: HashMap<&str, usize> = HashMap::new();
    let mut kept: HashMap<&str, usize> = HashMap::new();
    for (drug, context) in &pairs {
        *left.entry(drug).or_default() += 1;
        *kept.entry(context).or_default() += 1;
    }
    let wanted = (pairs.len() as f64 * share).ceil() as usize;
    let mut chosen: BTreeSet<Pair<'_>> = BTreeSet::new();
    for (drug, context) in order {
        if chosen.len() == wanted {
            break;
        }
        if left[drug] > 1 && kept[context] > 1 {
            *left.entry(drug).or_default() -= 1;
            *kept.entry(context).or_default() -= 1;
            chosen.insert((drug, context));
        }
    }
    let held_out = conditions.iter().filter(|c| chosen.contains(&pair(c)));
    Ok(held_out.map(|&c| c.clone()).collect())
}

fn by_context(
    conditions: &[&Condition],
    context: &str,
    drugs: usize,
    rng: &mut Rng,
) -> Result<BTreeSet<Condition>> {
    let own: Vec<&Condition> = conditions
        .iter()
        .copied()
        .filter(|c| c.context == context)
        .collect();
    if own.is_empty() {
        return Err(Error::Unknown {
            what: "context",
            names: vec![context.to_owned()],
            known: names(conditions, |c| &c.context).into_iter().collect(),
        });
    }
    let mut order: Vec<String> = names(&own, |c| &c.perturbation).into_iter().collect();
    rng.shuffle(&mut order);
    let seen: BTreeSet<&String> = order.iter().take(drugs).collect();
    let held_out = own.iter().filter(|c| !seen.contains(&c.perturbation));
    Ok(held_out.map(|&c| c.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn condition(perturbation: &str, context: &str) -> Condition {
        Condition {
            perturbation: perturbation.into(),
            context: context.into(),
            dose: None,
        }
    }

    fn grid(drugs: usize, contexts: usize) -> Vec<Condition> {
        let pairs = (0..drugs).flat_map(|d| (0..contexts).map(move |c| (d, c)));
        let mut all: Vec<Condition> = Vec::new();
        for (d, c) in pairs {
            for dose in ["10 nM", "1 uM"] {
                all.push(Condition {
                    dose: Some(dose.into()),
                    ..condition(&format!("drug {d}"), &format!("line {c}"))
                });
            }
        }
        all
    }

    fn test_names(split: &Split, of: impl Fn(&Condition) -> String) -> BTreeSet<String> {
        split.of(Part::Test).map(of).collect()
    }

    #[test]
    fn a_split_depends_on_rule_and_seed_and_not_on_the_order() {
        let conditions = grid(20, 3);
        let rule = Rule::UnseenDrug { share: 0.1 };
        let split = Split::new(&conditions, &rule, 1).unwrap();
        let mut turned = conditions.clone();
        turned.reverse();
        assert_eq!(split, Split::new(&turned, &rule, 1).unwrap());
        assert_ne!(
            split.parts,
            Split::new(&conditions, &rule, 2).unwrap().parts
        );
        let drugs = test_names(&split, |c| c.perturbation.clone());
        assert_eq!(drugs.len(), 2);
        // All doses in all lines go with their drug.
        assert_eq!(split.of(Part::Test).count(), 2 * 3 * 2);
    }

    #[test]
    fn groups_are_never_divided() {
        let conditions = grid(12, 2);
        let group = |i: usize| (format!("drug {i}"), format!("scaffold {}", i / 4));
        let groups: HashMap<_, _> = (0..12).map(group).collect();
        let rule = Rule::UnseenGroup {
            share: 0.2,
            groups: groups.clone(),
        };
        let split = Split::new(&conditions, &rule, 3).unwrap();
        let scaffolds = test_names(&split, |c| groups[&c.perturbation].clone());
        assert_eq!(scaffolds.len(), 1);
        assert_eq!(test_names(&split, |c| c.perturbation.clone()).len(), 4);
        let missing = Rule::UnseenGroup {
            share: 0.2,
            groups: HashMap::new(),
        };
        let error = Split::new(&conditions, &missing, 3)
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no group"), "{error}");
    }

    #[test]
    fn held_out_pairs_leave_their_drug_and_line_in_training() {
        let conditions = grid(10, 3);
        for seed in 0..20 {
            let split = Split::new(&conditions, &Rule::UnseenPair { share: 0.5 }, seed).unwrap();
            let train = |of: fn(&Condition) -> &String| -> BTreeSet<&String> {
                split.of(Part::Train).map(of).collect()
            };
            let (drugs, lines) = (train(|c| &c.perturbation), train(|c| &c.context));
            assert_eq!((drugs.len(), lines.len()), (10, 3), "seed {seed}");
            assert_eq!(split.of(Part::Test).count(), 15 * 2);
        }
    }

    #[test]
    fn a_line_is_held_out_but_for_the_shots() {
        let conditions = grid(10, 3);
        for (drugs, left) in [(0, 0), (4, 4)] {
            let rule = Rule::UnseenContext {
                context: "line 1".into(),
                drugs,
            };
            let split = Split::new(&conditions, &rule, 1).unwrap();
            let own = split.of(Part::Train).filter(|c| c.context == "line 1");
            assert_eq!(own.count(), left * 2);
            assert_eq!(split.of(Part::Test).count(), (10 - left) * 2);
        }
        let all = Rule::UnseenContext {
            context: "line 1".into(),
            drugs: 10,
        };
        assert!(Split::new(&conditions, &all, 1).is_err());
        let unknown = Rule::UnseenContext {
            context: "line 9".into(),
            drugs: 0,
        };
        let error = Split::new(&conditions, &unknown, 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`line 9`\nhelp: known are `line 0`"),
            "{error}"
        );
    }

    #[test]
    fn a_list_of_drugs_must_be_known() {
        let conditions = grid(3, 1);
        let listed = |drugs: &[&str]| Rule::ListedDrugs {
            drugs: drugs.iter().map(|d| (*d).to_owned()).collect(),
        };
        let split = Split::new(&conditions, &listed(&["drug 2"]), 0).unwrap();
        assert_eq!(split.of(Part::Test).count(), 2);
        assert!(Split::new(&conditions, &listed(&["drug 2", "water"]), 0).is_err());
        assert!(Split::new(&conditions, &listed(&[]), 0).is_err());
        let all = listed(&["drug 0", "drug 1", "drug 2"]);
        assert!(Split::new(&conditions, &all, 0).is_err());
        assert!(Split::new(&conditions, &Rule::UnseenDrug { share: 1.0 }, 0).is_err());
    }
}
