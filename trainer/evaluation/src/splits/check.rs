//! What a split must not share between its parts.

use std::collections::{BTreeMap, BTreeSet};

use super::{Condition, Part, Rule, Split};
use crate::{Error, Result};

impl Split {
    /// Checks that training holds nothing that the rule promises to hold out.
    ///
    /// # Errors
    /// The shared drugs, groups, pairs or contexts, all of them.
    pub fn check(&self, rule: &Rule) -> Result<()> {
        match rule {
            Rule::UnseenDrug { .. } | Rule::ListedDrugs { .. } => {
                self.apart("drugs", |c| Some(c.perturbation.clone()))
            }
            Rule::UnseenGroup { groups, .. } => {
                self.apart("drugs", |c| Some(c.perturbation.clone()))?;
                self.apart("groups of drugs", |c| groups.get(&c.perturbation).cloned())
            }
            Rule::UnseenPair { .. } => self.apart("pairs of drug and context", |c| Some(pair(c))),
            Rule::UnseenContext { context, drugs } => {
                self.apart("pairs of drug and context", |c| Some(pair(c)))?;
                if *drugs == 0 {
                    self.apart("contexts", |c| {
                        (c.context == *context).then(|| context.clone())
                    })?;
                }
                Ok(())
            }
            // What whoever trained promised is theirs to check.
            Rule::Given { .. } => Ok(()),
            // Combinations are the same in any order of their genes.
            Rule::Simulation { .. } => self.apart("perturbations", |c| {
                let genes: BTreeSet<&str> = super::genes_of(&c.perturbation).into_iter().collect();
                Some(genes.into_iter().collect::<Vec<_>>().join("+"))
            }),
        }
    }

    /// Checks that no molecule is in both parts under two names. `molecule_of` gives what a
    /// molecule is known by whatever its name, such as its `InChIKey` or canonical SMILES.
    ///
    /// # Errors
    /// The molecules in both parts that the rule holds out by name, with their names.
    pub fn check_molecules(&self, molecule_of: &BTreeMap<String, String>) -> Result<()> {
        let mut names: BTreeMap<&String, BTreeMap<Part, BTreeSet<&str>>> = BTreeMap::new();
        for (condition, part) in &self.parts {
            if let Some(molecule) = molecule_of.get(&condition.perturbation) {
                let by_part = names.entry(molecule).or_default().entry(*part).or_default();
                by_part.insert(&condition.perturbation);
            }
        }
        let mut shared = Vec::new();
        for (molecule, parts) in names {
            let of = |part| parts.get(&part).into_iter().flatten().copied();
            let train: BTreeSet<&str> = of(Part::Train).collect();
            // The same name on both sides is for the rule to allow or not.
            let other: Vec<&str> = of(Part::Test).filter(|n| !train.contains(n)).collect();
            if !train.is_empty() && !other.is_empty() {
                let train: Vec<&str> = train.into_iter().collect();
                shared.push(format!(
                    "{molecule} ({} in training, {} held out)",
                    train.join(", "),
                    other.join(", ")
                ));
            }
        }
        self.none("molecules", shared)
    }

    fn apart(&self, what: &'static str, key: impl Fn(&Condition) -> Option<String>) -> Result<()> {
        let keys = |part| -> BTreeSet<String> { self.of(part).filter_map(&key).collect() };
        let (train, test) = (keys(Part::Train), keys(Part::Test));
        self.none(what, train.intersection(&test).cloned().collect())
    }

    fn none(&self, what: &'static str, shared: Vec<String>) -> Result<()> {
        if shared.is_empty() {
            return Ok(());
        }
        Err(Error::Leak {
            rule: self.rule.clone(),
            what,
            shared,
        })
    }
}

fn pair(condition: &Condition) -> String {
    format!("{} in {}", condition.perturbation, condition.context)
}

#[cfg(test)]
mod tests {
    use super::super::tests::condition;
    use super::*;

    fn split(parts: &[(&str, &str, Part)]) -> Split {
        Split {
            rule: "by hand".into(),
            seed: 0,
            parts: parts
                .iter()
                .map(|(drug, line, part)| (condition(drug, line), *part))
                .collect(),
            subgroups: BTreeMap::new(),
        }
    }

    #[test]
    fn every_rule_finds_its_leak() {
        use Part::{Test, Train};
        let shared_drug = split(&[("a", "x", Train), ("a", "y", Test), ("b", "x", Train)]);
        let drug = Rule::UnseenDrug { share: 0.5 };
        let error = shared_drug.check(&drug).unwrap_err().to_string();
        assert_eq!(
            error,
            "the split `by hand` leaks: drugs in training and held out: `a`"
        );
        let zero_shot = |drugs| Rule::UnseenContext {
            context: "x".into(),
            drugs,
        };
        let shared_line = split(&[("a", "x", Train), ("b", "x", Test), ("b", "y", Train)]);
        assert!(shared_line.check(&zero_shot(0)).is_err());
        assert!(shared_line.check(&zero_shot(1)).is_ok());
        assert!(shared_line.check(&Rule::UnseenPair { share: 0.5 }).is_ok());
        let groups = [("a", "s"), ("b", "s")].map(|(d, g)| (d.to_owned(), g.to_owned()));
        let grouped = Rule::UnseenGroup {
            share: 0.5,
            groups: groups.into(),
        };
        let scaffold = split(&[("a", "x", Train), ("b", "x", Test)]);
        assert!(scaffold.check(&grouped).is_err());
        let mut doses = split(&[("a", "x", Train)]);
        let mut other = condition("a", "x");
        other.dose = Some("1 uM".into());
        doses.parts.insert(other, Test);
        assert!(doses.check(&Rule::UnseenPair { share: 0.5 }).is_err());
        let turned = split(&[("A+B", "x", Train), ("B+A", "x", Test)]);
        let simulation = Rule::Simulation {
            genes: 0.5,
            combinations: 0.5,
        };
        assert!(turned.check(&simulation).is_err());
    }

    #[test]
    fn one_molecule_under_two_names_is_a_leak() {
        let split = split(&[
            ("JQ1", "x", Part::Train),
            ("(+)-JQ1", "x", Part::Test),
            ("water", "x", Part::Train),
        ]);
        let key = |name: &str, key: &str| (name.to_owned(), key.to_owned());
        let known: BTreeMap<_, _> =
            [key("JQ1", "K1"), key("(+)-JQ1", "K1"), key("water", "K2")].into();
        let error = split.check_molecules(&known).unwrap_err().to_string();
        assert!(
            error.contains("K1 (JQ1 in training, (+)-JQ1 held out)"),
            "{error}"
        );
        let apart: BTreeMap<_, _> = [key("JQ1", "K1"), key("(+)-JQ1", "K3")].into();
        assert!(split.check_molecules(&apart).is_ok());
    }
}
