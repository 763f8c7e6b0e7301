//! GEARS's simulation split of genetic perturbations.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Condition, Part, Split};
use crate::gears::Subgroup;
use crate::rng::Rng;

/// Genes of a perturbation `A+B`; `ctrl`, GEARS's name of no perturbation, is no gene.
pub fn genes_of(perturbation: &str) -> Vec<&str> {
    let parts = perturbation.split('+').map(str::trim);
    parts.filter(|g| !g.is_empty() && *g != "ctrl").collect()
}

/// Conditions held out: every perturbation of a gene that training may not perturb, and a share of
/// the combinations of genes that it may.
pub(super) fn held_out(
    conditions: &[&Condition],
    [genes, combinations]: [f64; 2],
    rng: &mut Rng,
) -> BTreeSet<Condition> {
    let all: BTreeSet<&str> = conditions
        .iter()
        .flat_map(|c| genes_of(&c.perturbation))
        .collect();
    let all: Vec<&str> = all.into_iter().collect();
    let order = rng.permutation(all.len());
    let trained = (all.len() as f64 * genes) as usize;
    let seen: HashSet<&str> = order.iter().take(trained).map(|&i| all[i]).collect();
    let may = |c: &Condition| genes_of(&c.perturbation).iter().all(|g| seen.contains(g));
    let known: BTreeSet<String> = conditions
        .iter()
        .filter(|c| may(c) && genes_of(&c.perturbation).len() > 1)
        .map(|c| name(c))
        .collect();
    let known: Vec<String> = known.into_iter().collect();
    let train = (known.len() as f64 * combinations) as usize;
    let order = rng.permutation(known.len());
    let out: HashSet<&String> = order.iter().skip(train).map(|&i| &known[i]).collect();
    let held_out = conditions
        .iter()
        .filter(|c| !may(c) || out.contains(&name(c)));
    held_out.map(|&c| c.clone()).collect()
}

/// The name of a combination, whatever the order of its genes.
fn name(condition: &Condition) -> String {
    let genes: BTreeSet<&str> = genes_of(&condition.perturbation).into_iter().collect();
    genes.into_iter().collect::<Vec<_>>().join("+")
}

pub(super) fn subgroups(split: &Split) -> BTreeMap<Condition, Subgroup> {
    let trained: HashSet<String> = split
        .of(Part::Train)
        .flat_map(|c| genes_of(&c.perturbation))
        .map(str::to_owned)
        .collect();
    let of = |c: &Condition| {
        Subgroup::of(&genes_of(&c.perturbation), &trained).map(|subgroup| (c.clone(), subgroup))
    };
    split.of(Part::Test).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::condition;
    use super::super::{Rule, Split};
    use super::*;

    #[test]
    fn genes_and_combinations_are_held_out_in_their_subgroups() {
        let mut conditions = Vec::new();
        for a in 0..20 {
            conditions.push(condition(&format!("G{a}+ctrl"), "K562"));
            for b in a + 1..20 {
                conditions.push(condition(&format!("G{a}+G{b}"), "K562"));
            }
        }
        let rule = Rule::Simulation {
            genes: 0.75,
            combinations: 0.75,
        };
        let split = Split::new(&conditions, &rule, 1).unwrap();
        let count = |s: Subgroup| split.subgroups.values().filter(|v| **v == s).count();
        assert_eq!(count(Subgroup::UnseenSingle), 5);
        assert_eq!(count(Subgroup::ComboSeen0), 10);
        assert_eq!(count(Subgroup::ComboSeen1), 75);
        // 105 combinations of 15 genes, of which 78 train.
        assert_eq!(count(Subgroup::ComboSeen2), 27);
        assert_eq!(split.of(Part::Test).count(), 5 + 10 + 75 + 27);
        assert_eq!(split.subgroups.len(), split.of(Part::Test).count());
    }
}
