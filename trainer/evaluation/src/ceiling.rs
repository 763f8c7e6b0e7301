//! How well a perfect prediction could score: one half of the real cells against the other.

use crate::Result;
use crate::cells::Cells;
use crate::rng::Rng;

/// Two halves of a condition's cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Halves {
    /// Takes the place of the real cells.
    pub real: Vec<f32>,
    /// Takes the place of the predicted cells.
    pub predicted: Vec<f32>,
}

/// How the halves are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halving {
    /// The cells are dealt out: each half has half the cells and the noise of so few.
    Split,
    /// Twice as many cells are drawn with replacement and dealt out: each half has as many cells
    /// as the condition (`--ceiling` of cell-eval). Halves share cells, so this ceiling is high.
    Bootstrap,
}

/// Two halves of `cells`, by seed and the condition's name.
///
/// # Errors
/// Fewer than two cells.
pub fn halves(name: &str, cells: Cells<'_>, halving: Halving, seed: u64) -> Result<Halves> {
    let n = cells.len();
    if n < 2 {
        return Err(crate::Error::Length {
            what: format!("cells of `{name}` to halve"),
            found: n,
            expected: 2,
        });
    }
    let mut rng = Rng::new(seed, name);
    let drawn: Vec<usize> = match halving {
        Halving::Split => rng.permutation(n),
        Halving::Bootstrap => (0..2 * n).map(|_| rng.below(n)).collect(),
    };
    let (real, predicted) = drawn.split_at(drawn.len() / 2);
    Ok(Halves {
        real: cells.select(real),
        predicted: cells.select(predicted),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_disjoint_or_drawn_and_depend_on_the_seed() {
        let values: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let cells = Cells::new("a", &values, 1).unwrap();
        let split = |seed| halves("a", cells, Halving::Split, seed).unwrap();
        let mut all = [split(1).real, split(1).predicted].concat();
        assert_eq!(split(1).real.len(), 4);
        all.sort_by(f32::total_cmp);
        assert_eq!(all, values);
        assert_ne!(split(1), split(2));
        let drawn = halves("a", cells, Halving::Bootstrap, 1).unwrap();
        assert_eq!((drawn.real.len(), drawn.predicted.len()), (9, 9));
        assert!(halves("a", cells.first(1), Halving::Split, 1).is_err());
    }
}
