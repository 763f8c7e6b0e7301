//! Whether a predicted response is nearer to the real response of its own condition than to those
//! of others (the perturbation discrimination score of cell-eval).

use crate::cells::same_genes;
use crate::parallel;
use crate::stats::cosine;
use crate::{Result, Undefined};

/// How responses are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Sum of absolute differences.
    L1,
    /// Euclidean.
    L2,
    /// One minus the cosine.
    Cosine,
}

/// A response without the target gene of the condition it is compared for.
fn without(x: &[f64], leave_out: Option<usize>) -> Vec<f64> {
    let kept = x.iter().enumerate().filter(|(g, _)| Some(*g) != leave_out);
    kept.map(|(_, x)| *x).collect()
}

impl Norm {
    fn distance(self, x: &[f64], y: &[f64]) -> std::result::Result<f64, Undefined> {
        let differences = x.iter().zip(y).map(|(x, y)| x - y);
        Ok(match self {
            Self::L1 => differences.map(f64::abs).sum(),
            Self::L2 => differences.map(|d| d * d).sum::<f64>().sqrt(),
            Self::Cosine => 1.0 - cosine(x, y)?,
        })
    }
}

/// Rank of the own condition among all real ones, by distance from the predicted delta, 0 for the
/// nearest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// The rank, from 0.
    pub rank0: usize,
    /// `1 - rank0 / conditions`.
    pub score: f64,
}

/// Ranks of all conditions. `targets` names, per condition, the gene that a perturbation acts on
/// directly: its column is left out, because to know it is no feat. Drugs have none. Equal
/// distances rank in the order of the conditions.
///
/// # Errors
/// Lists of different lengths.
pub fn ranks(
    predicted: &[Vec<f64>],
    real: &[Vec<f64>],
    targets: Option<&[Option<usize>]>,
    norm: Norm,
    threads: usize,
) -> Result<Vec<std::result::Result<Rank, Undefined>>> {
    let n = real.len();
    same_genes("the predicted conditions", predicted.len(), n)?;
    if let Some(targets) = targets {
        same_genes("the targets", targets.len(), n)?;
    }
    let rank = |p: usize| {
        let leave_out = targets.and_then(|t| t[p]);
        let own = without(&predicted[p], leave_out);
        let distance = |q: usize| match leave_out {
            None => norm.distance(&own, &real[q]),
            Some(_) => norm.distance(&own, &without(&real[q], leave_out)),
        };
        let nearest = distance(p)?;
        let mut rank0 = 0;
        for q in 0..n {
            let distance = distance(q)?;
            if distance < nearest || (distance == nearest && q < p) {
                rank0 += 1;
            }
        }
        Ok(Rank {
            rank0,
            score: 1.0 - rank0 as f64 / n as f64,
        })
    };
    Ok(parallel::map(n, threads, rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_gene_counts_for_nothing() {
        let real = [vec![9.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]];
        // Near its own condition only by gene 0, its target.
        let predicted = [vec![9.0, 0.0, 1.0], vec![0.0, 0.0, 1.0]];
        let score = |targets: Option<&[Option<usize>]>, norm| {
            ranks(&predicted, &real, targets, norm, 1).unwrap()[0]
                .clone()
                .unwrap()
                .score
        };
        let targets = [Some(0), None];
        for norm in [Norm::L1, Norm::L2, Norm::Cosine] {
            assert_eq!(score(None, norm), 1.0, "{norm:?}");
            assert_eq!(score(Some(&targets), norm), 0.5, "{norm:?}");
        }
        let zero = [vec![0.0; 3], vec![1.0; 3]];
        let found = ranks(&zero, &real, None, Norm::Cosine, 1).unwrap();
        assert!(found[0].is_err() && found[1].is_ok());
    }
}
