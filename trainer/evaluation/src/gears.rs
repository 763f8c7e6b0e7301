//! What GEARS reports of genetic perturbations: errors and correlations on the top genes that are
//! no dropouts, directions, and subgroups by how much of a combination was seen.

use std::collections::HashSet;

use serde::Serialize;

use crate::Score;
use crate::profile::{Profiles, TopGenes};
use crate::stats::enough;

/// Scores of one condition under GEARS's names.
#[derive(Debug, Clone, PartialEq)]
pub struct GearsScores {
    /// Mean squared error over all genes.
    pub mse: f64,
    /// Pearson correlation over all genes.
    pub pearson: Score,
    /// Mean squared error over the top 20 genes.
    pub mse_de: Score,
    /// Pearson correlation over the top 20 genes.
    pub pearson_de: Score,
    /// Pearson correlation of the changes.
    pub pearson_delta: Score,
    /// Share of the top 20 non-dropout genes that are predicted to change the other way.
    pub frac_opposite_direction_top20_non_dropout: Score,
}

/// Genes that a condition expresses, or that neither it nor control does; the others' zeros may be
/// dropouts. In the order of `order`, at most `n`.
#[must_use]
pub fn non_dropout(order: &[usize], real: &[f64], control: &[f64], n: usize) -> TopGenes {
    let kept: Vec<usize> = order
        .iter()
        .filter(|&&g| real[g] != 0.0 || control[g] == 0.0)
        .copied()
        .collect();
    TopGenes::of_order(&kept, n)
}

/// Scores of one condition. `top` are its 20 most differentially expressed genes, `non_dropout` the
/// first 20 of [`non_dropout`].
#[must_use]
pub fn scores(profiles: &Profiles<'_>, top: &TopGenes, non_dropout: &TopGenes) -> GearsScores {
    GearsScores {
        mse: profiles.mse(),
        pearson: profiles.pearson(),
        mse_de: profiles.mse_of(top),
        pearson_de: profiles.pearson_of(top),
        pearson_delta: profiles.pearson_delta(),
        frac_opposite_direction_top20_non_dropout: opposite(profiles, non_dropout),
    }
}

/// Share of `genes` whose predicted change has the opposite sign; no change is not opposite.
fn opposite(profiles: &Profiles<'_>, genes: &TopGenes) -> Score {
    enough("genes", genes.genes().len(), 1)?;
    let against = |&&g: &&usize| profiles.real_delta()[g] * profiles.predicted_delta()[g] < 0.0;
    let count = genes.genes().iter().filter(against).count();
    Ok(count as f64 / genes.genes().len() as f64)
}

/// How much of a perturbation training has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subgroup {
    /// One gene, never perturbed in training.
    UnseenSingle,
    /// One gene that training has in combinations or other contexts.
    SeenSingle,
    /// A combination of genes none of which training perturbs.
    ComboSeen0,
    /// A combination with one gene that training perturbs.
    ComboSeen1,
    /// A combination of genes that training perturbs, but not together.
    ComboSeen2,
}

impl Subgroup {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnseenSingle => "unseen_single",
            Self::SeenSingle => "seen_single",
            Self::ComboSeen0 => "combo_seen0",
            Self::ComboSeen1 => "combo_seen1",
            Self::ComboSeen2 => "combo_seen2",
        }
    }

    /// The subgroup of a perturbation of `genes`, given those that training perturbs; `None` for
    /// other than one or two genes, for which GEARS has none.
    pub fn of<S: AsRef<str>>(genes: &[S], trained: &HashSet<String>) -> Option<Self> {
        let seen = genes.iter().filter(|g| trained.contains(g.as_ref()));
        match (genes.len(), seen.count()) {
            (1, 0) => Some(Self::UnseenSingle),
            (1, _) => Some(Self::SeenSingle),
            (2, 0) => Some(Self::ComboSeen0),
            (2, 1) => Some(Self::ComboSeen1),
            (2, _) => Some(Self::ComboSeen2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_that_control_has_too_is_no_dropout() {
        let genes = non_dropout(
            &[3, 2, 1, 0],
            &[0.0, 0.0, 1.0, 0.0],
            &[0.0, 2.0, 0.0, 0.0],
            3,
        );
        assert_eq!(genes.genes(), [3, 2, 0]);
    }

    #[test]
    fn subgroups_count_seen_genes() {
        let trained: HashSet<String> = ["A", "B"].map(String::from).into();
        for (genes, expected) in [
            (vec!["C"], Subgroup::UnseenSingle),
            (vec!["A"], Subgroup::SeenSingle),
            (vec!["C", "D"], Subgroup::ComboSeen0),
            (vec!["C", "A"], Subgroup::ComboSeen1),
            (vec!["B", "A"], Subgroup::ComboSeen2),
        ] {
            assert_eq!(Subgroup::of(&genes, &trained), Some(expected));
        }
        assert_eq!(Subgroup::of(&["A", "B", "C"], &trained), None);
    }

    #[test]
    fn no_change_is_not_the_opposite() {
        let (control, real) = ([1.0, 1.0, 1.0], [2.0, 0.0, 2.0]);
        let profiles = Profiles::new(&control, &real, &[0.5, 1.0, 3.0]).unwrap();
        let all = TopGenes::of_order(&[0, 1, 2], 3);
        let found = scores(&profiles, &all, &all);
        assert_eq!(
            found.frac_opposite_direction_top20_non_dropout,
            Ok(1.0 / 3.0)
        );
    }
}
