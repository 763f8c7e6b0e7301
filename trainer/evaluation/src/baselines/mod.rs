//! Simple predictions that a model must be seen beside: most published models do not beat them
//! (Ahlmann-Eltze, Huber and Anders 2025).
//!
//! A baseline predicts the *delta* of a perturbation in a context; the profile is that plus the
//! mean of the context's control cells. It sees the deltas of training pairs, and molecules'
//! features where it uses them.

mod doubles;
mod means;
mod molecules;

use std::collections::HashMap;

use crate::cells::same_genes;
use crate::{Error, Result};

pub use doubles::Singles;
pub use molecules::Similarity;

/// What the baselines may see. Contexts and perturbations are numbered from 0.
#[derive(Debug, Clone)]
pub struct Training {
    /// (context, perturbation) of each training condition, each once.
    pub pairs: Vec<(usize, usize)>,
    /// Delta of each training condition.
    pub deltas: Vec<Vec<f64>>,
    /// Features of every perturbation, those held out included; `None` when there are none.
    pub features: Option<Vec<Vec<f64>>>,
}

/// The baselines, by the names in reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Baseline {
    /// The control mean: nothing happens.
    NoChange,
    /// Mean delta over training conditions.
    MeanDelta,
    /// Mean delta of the perturbation over training contexts: the strong one for unseen lines.
    /// A perturbation never seen: [`Baseline::MeanDelta`].
    DrugMean,
    /// Mean delta of the context over training perturbations: the strong one for unseen drugs.
    /// A context never seen: [`Baseline::MeanDelta`].
    ContextMean,
    /// Drug mean plus context mean minus the mean of all.
    AdditiveTwoWay,
    /// Centred ridge regression from features to delta.
    Ridge {
        /// Penalty, above 0.
        lambda: f64,
    },
    /// Drug means of the most similar training perturbations, weighted by similarity.
    Knn {
        /// How many.
        k: usize,
        /// Similar how.
        similarity: Similarity,
    },
    /// `G W p + b` with G the leading directions of the training deltas, p the features and b the
    /// mean delta (Ahlmann-Eltze and others 2025).
    Bilinear {
        /// Directions.
        directions: usize,
        /// Penalty on both sides, above 0.
        lambda: f64,
    },
}

/// A baseline that has seen its training conditions.
#[derive(Debug)]
pub struct Fitted(Box<dyn Predict>);

/// The delta of a perturbation in a context.
trait Predict: std::fmt::Debug + Send + Sync {
    fn delta(&self, context: usize, perturbation: usize) -> Vec<f64>;
}

impl Baseline {
    /// The name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoChange => "no_change",
            Self::MeanDelta => "mean_delta",
            Self::DrugMean => "drug_mean_delta",
            Self::ContextMean => "context_mean_delta",
            Self::AdditiveTwoWay => "additive_two_way",
            Self::Ridge { .. } => "ridge_molecule_to_delta",
            Self::Knn {
                similarity: Similarity::Tanimoto,
                ..
            } => "knn_tanimoto_molecule",
            Self::Knn {
                similarity: Similarity::Cosine,
                ..
            } => "knn_cosine_molecule",
            Self::Bilinear { .. } => "bilinear",
        }
    }

    /// Whether it needs [`Training::features`].
    #[must_use]
    pub fn needs_features(&self) -> bool {
        matches!(
            self,
            Self::Ridge { .. } | Self::Knn { .. } | Self::Bilinear { .. }
        )
    }

    /// Learns from the training conditions.
    ///
    /// # Errors
    /// No training conditions, lists that do not fit one another, features that are missing, or
    /// settings out of range.
    pub fn fit(&self, training: &Training) -> Result<Fitted> {
        let genes = training.check()?;
        Ok(Fitted(match *self {
            Self::NoChange => Box::new(means::Fixed::zero(genes)),
            Self::MeanDelta => Box::new(means::Fixed::mean(training)),
            Self::DrugMean => Box::new(means::ByKey::drugs(training)),
            Self::ContextMean => Box::new(means::ByKey::contexts(training)),
            Self::AdditiveTwoWay => Box::new(means::TwoWay::new(training)),
            Self::Ridge { lambda } => {
                Box::new(molecules::Linear::ridge(training, positive(lambda)?)?)
            }
            Self::Knn { k, similarity } => Box::new(molecules::Knn::new(training, k, similarity)?),
            Self::Bilinear { directions, lambda } => Box::new(molecules::Linear::bilinear(
                training,
                directions,
                positive(lambda)?,
            )?),
        }))
    }
}

impl Fitted {
    /// The predicted delta.
    #[must_use]
    pub fn delta(&self, context: usize, perturbation: usize) -> Vec<f64> {
        self.0.delta(context, perturbation)
    }
}

fn positive(lambda: f64) -> Result<f64> {
    if lambda.is_finite() && lambda > 0.0 {
        return Ok(lambda);
    }
    Err(Error::Setting {
        setting: "lambda",
        found: lambda.to_string(),
        expected: "a number above 0",
    })
}

impl Training {
    /// Number of genes, when everything fits together.
    fn check(&self) -> Result<usize> {
        let Some(first) = self.deltas.first() else {
            return Err(Error::Empty {
                whom: "the training set".into(),
                what: "conditions",
            });
        };
        same_genes("the training pairs", self.pairs.len(), self.deltas.len())?;
        for delta in &self.deltas {
            same_genes("a training delta", delta.len(), first.len())?;
        }
        if let Some(features) = &self.features {
            let width = features.first().map_or(0, Vec::len);
            for row in features {
                if row.len() != width || width == 0 {
                    return Err(Error::Length {
                        what: "features of a perturbation".into(),
                        found: row.len(),
                        expected: width.max(1),
                    });
                }
            }
            let known = features.len();
            if let Some((_, p)) = self.pairs.iter().find(|(_, p)| *p >= known) {
                return Err(Error::Length {
                    what: format!("perturbations with features, and number {p} trains"),
                    found: known,
                    expected: p + 1,
                });
            }
        }
        Ok(first.len())
    }

    fn features(&self) -> Result<&[Vec<f64>]> {
        self.features.as_deref().ok_or(Error::Empty {
            whom: "the training set".into(),
            what: "features of perturbations",
        })
    }

    /// Mean delta of the training conditions of each value of `key`.
    fn means_by(&self, key: impl Fn((usize, usize)) -> usize) -> HashMap<usize, Vec<f64>> {
        let mut members: HashMap<usize, Vec<&[f64]>> = HashMap::new();
        for (pair, delta) in self.pairs.iter().zip(&self.deltas) {
            members.entry(key(*pair)).or_default().push(delta);
        }
        let mean = |(key, rows): (usize, Vec<&[f64]>)| (key, mean_of(&rows));
        members.into_iter().map(mean).collect()
    }

    fn grand_mean(&self) -> Vec<f64> {
        let rows: Vec<&[f64]> = self.deltas.iter().map(Vec::as_slice).collect();
        mean_of(&rows)
    }
}

pub(crate) fn mean_of(rows: &[&[f64]]) -> Vec<f64> {
    let mut mean = vec![0.0; rows.first().map_or(0, |r| r.len())];
    for row in rows {
        mean.iter_mut().zip(*row).for_each(|(m, x)| *m += x);
    }
    for m in &mut mean {
        *m /= rows.len() as f64;
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> Training {
        Training {
            pairs: vec![(0, 0), (0, 1), (1, 0)],
            deltas: vec![vec![1.0, 0.0], vec![3.0, 2.0], vec![2.0, 4.0]],
            features: Some(vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 1.0]]),
        }
    }

    #[test]
    fn means_fall_back_on_the_mean_of_all() {
        let training = training();
        let delta = |baseline: Baseline, c, p| baseline.fit(&training).unwrap().delta(c, p);
        assert_eq!(delta(Baseline::NoChange, 0, 0), [0.0, 0.0]);
        assert_eq!(delta(Baseline::MeanDelta, 5, 5), [2.0, 2.0]);
        assert_eq!(delta(Baseline::DrugMean, 1, 0), [1.5, 2.0]);
        assert_eq!(delta(Baseline::DrugMean, 1, 2), [2.0, 2.0]);
        assert_eq!(delta(Baseline::ContextMean, 0, 2), [2.0, 1.0]);
        assert_eq!(delta(Baseline::ContextMean, 2, 0), [2.0, 2.0]);
        assert_eq!(delta(Baseline::AdditiveTwoWay, 1, 1), [3.0, 4.0]);
    }

    #[test]
    fn without_a_similar_molecule_the_mean_of_all_is_predicted() {
        let mut training = training();
        training.features.as_mut().unwrap()[2] = vec![-1.0, -1.0];
        let knn = Baseline::Knn {
            k: 1,
            similarity: Similarity::Cosine,
        };
        assert_eq!(knn.fit(&training).unwrap().delta(0, 2), [2.0, 2.0]);
        assert_eq!(knn.fit(&training).unwrap().delta(0, 1), [3.0, 2.0]);
        // Tanimoto is defined for what is never negative.
        let knn = Baseline::Knn {
            k: 1,
            similarity: Similarity::Tanimoto,
        };
        assert!(knn.fit(&training).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut bad = training();
        bad.deltas[1].pop();
        assert!(Baseline::NoChange.fit(&bad).is_err());
        let mut bare = training();
        bare.features = None;
        let error = Baseline::Ridge { lambda: 1.0 }.fit(&bare).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the training set has no features of perturbations"
        );
        assert!(Baseline::Ridge { lambda: 0.0 }.fit(&training()).is_err());
        let many = Baseline::Bilinear {
            directions: 3,
            lambda: 0.1,
        };
        assert!(many.fit(&training()).is_err());
        let none = Training {
            pairs: vec![],
            deltas: vec![],
            features: None,
        };
        assert!(Baseline::MeanDelta.fit(&none).is_err());
    }
}
