//! Cells of a type that training did not know: a threshold on the confidence of a prediction, chosen
//! on validation cells of known types, and how well it tells unknown types.

use crate::stats::{ascending, average_ranks, enough};
use crate::{Error, Result, Score, Undefined};

/// True positives at which false ones are counted.
const TRUE_POSITIVES: f64 = 0.95;
/// Temperatures are looked for between these.
const TEMPERATURES: (f64, f64) = (0.01, 100.0);

/// Logits of some cells, `[cells, classes]`.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    values: &'a [f32],
    classes: usize,
}

/// A temperature and a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// What logits are divided by.
    pub temperature: f64,
    /// Cells whose largest probability is below are of no known type.
    pub threshold: f64,
}

/// How well confidence tells known from unknown types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection {
    /// Probability that a known cell is more confident than an unknown one.
    pub auroc: f64,
    /// Share of unknown cells that are accepted when 95% of the known ones are.
    pub fpr95: f64,
    /// Share of known cells that the threshold accepts.
    pub known_accepted: f64,
    /// Share of unknown cells that it rejects.
    pub unknown_rejected: f64,
}

impl<'a> Logits<'a> {
    /// Rows of `classes` logits, all finite.
    ///
    /// # Errors
    /// No class, a row cut short, or a logit that is not finite.
    pub fn new(values: &'a [f32], classes: usize) -> Result<Self> {
        if classes == 0 {
            return Err(Error::Empty {
                whom: "the prediction".to_owned(),
                what: "classes",
            });
        }
        if !values.len().is_multiple_of(classes) {
            return Err(Error::Length {
                what: "logits of the last cell".to_owned(),
                found: values.len() % classes,
                expected: classes,
            });
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                whom: "the logits".to_owned(),
                cell: at / classes,
                gene: at % classes,
                value: values[at],
            });
        }
        Ok(Self { values, classes })
    }

    fn rows(&self) -> impl Iterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.classes)
    }

    /// The largest probability of each cell.
    #[must_use]
    pub fn confidence(&self, temperature: f64) -> Vec<f64> {
        self.rows()
            .map(|row| 1.0 / partition(row, temperature))
            .collect()
    }

    /// Mean negative log-likelihood of the labels.
    fn loss(&self, labels: &[usize], temperature: f64) -> f64 {
        let of = |(row, &label): (&[f32], &usize)| {
            let beyond = (f64::from(row[label]) - largest(row)) / temperature;
            partition(row, temperature).ln() - beyond
        };
        self.rows().zip(labels).map(of).sum::<f64>() / labels.len() as f64
    }

    /// The temperature at which the labels are most likely (Guo and others 2017), by golden section
    /// over its logarithm, in which the loss has one valley.
    ///
    /// # Errors
    /// No cells, or not one known label for each.
    pub fn temperature(&self, labels: &[usize]) -> Result<f64> {
        /// Enough for twelve digits.
        const STEPS: usize = 80;
        self.check(labels)?;
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (TEMPERATURES.0.ln(), TEMPERATURES.1.ln());
        for _ in 0..STEPS {
            let (a, b) = (high - golden * (high - low), low + golden * (high - low));
            if self.loss(labels, a.exp()) < self.loss(labels, b.exp()) {
                high = b;
            } else {
                low = a;
            }
        }
        Ok(f64::midpoint(low, high).exp())
    }

    /// Temperature and threshold from validation cells of known types, such that `keep` of them are
    /// accepted.
    ///
    /// # Errors
    /// See [`Logits::temperature`]; `keep` not between 0 and 1.
    pub fn calibrate(&self, labels: &[usize], keep: f64) -> Result<Calibration> {
        if !(keep > 0.0 && keep < 1.0) {
            return Err(Error::Setting {
                setting: "the share of known cells to keep",
                found: keep.to_string(),
                expected: "above 0 and below 1",
            });
        }
        let temperature = self.temperature(labels)?;
        let confidence = self.confidence(temperature);
        let order = ascending(&confidence);
        let rejected = ((1.0 - keep) * order.len() as f64 + 1e-9).floor() as usize;
        Ok(Calibration {
            temperature,
            threshold: confidence[order[rejected]],
        })
    }

    fn check(&self, labels: &[usize]) -> Result<()> {
        let cells = self.values.len() / self.classes;
        if cells == 0 {
            return Err(Error::Empty {
                whom: "the validation".to_owned(),
                what: "cells",
            });
        }
        if labels.len() != cells {
            return Err(Error::Length {
                what: "labels of the validation cells".to_owned(),
                found: labels.len(),
                expected: cells,
            });
        }
        if let Some(&label) = labels.iter().find(|label| **label >= self.classes) {
            return Err(Error::Setting {
                setting: "a validation cell's label",
                found: label.to_string(),
                expected: "the number of a class",
            });
        }
        Ok(())
    }
}

fn largest(row: &[f32]) -> f64 {
    row.iter()
        .map(|&x| f64::from(x))
        .fold(f64::NEG_INFINITY, f64::max)
}

/// Sum of exponentials, relative to the largest.
fn partition(row: &[f32], temperature: f64) -> f64 {
    let most = largest(row);
    row.iter()
        .map(|&x| ((f64::from(x) - most) / temperature).exp())
        .sum()
}

/// Area under the ROC curve of `confidence` for known against unknown cells; ties count half.
///
/// # Errors
/// No known cell, or no unknown one.
pub fn auroc(known: &[f64], unknown: &[f64]) -> Score {
    both(known, unknown)?;
    let ranks = average_ranks(&[known, unknown].concat());
    let sum: f64 = ranks[..known.len()].iter().sum();
    let (n, m) = (known.len() as f64, unknown.len() as f64);
    Ok((sum - n * (n + 1.0) / 2.0) / (n * m))
}

/// Share of unknown cells that are at least as confident as the threshold at which 95% of the known
/// ones are accepted.
///
/// # Errors
/// See [`auroc`].
pub fn fpr95(known: &[f64], unknown: &[f64]) -> Score {
    both(known, unknown)?;
    let mut sorted = known.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let needed = (TRUE_POSITIVES * sorted.len() as f64 - 1e-9).ceil() as usize;
    let threshold = sorted[needed.max(1) - 1];
    Ok(share(unknown, |c| c >= threshold))
}

fn both(known: &[f64], unknown: &[f64]) -> std::result::Result<(), Undefined> {
    enough("cells of known types", known.len(), 1)?;
    enough("cells of unknown types", unknown.len(), 1)
}

fn share(values: &[f64], of: impl Fn(f64) -> bool) -> f64 {
    values.iter().filter(|v| of(**v)).count() as f64 / values.len() as f64
}

impl Calibration {
    /// Whether a cell of this confidence is taken to be of a known type.
    #[must_use]
    pub fn accepts(&self, confidence: f64) -> bool {
        confidence >= self.threshold
    }

    /// Scores on cells whose types training knew and on such that it did not.
    ///
    /// # Errors
    /// See [`auroc`].
    pub fn scores(
        &self,
        known: Logits<'_>,
        unknown: Logits<'_>,
    ) -> std::result::Result<Rejection, Undefined> {
        let (known, unknown) = (
            known.confidence(self.temperature),
            unknown.confidence(self.temperature),
        );
        Ok(Rejection {
            auroc: auroc(&known, &unknown)?,
            fpr95: fpr95(&known, &unknown)?,
            known_accepted: share(&known, |c| self.accepts(c)),
            unknown_rejected: share(&unknown, |c| !self.accepts(c)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_makes_confidence_the_share_that_is_right() {
        // Two classes, logits 4 apart, right in 3 of 4: probability 3/4 is at 4 / ln 3.
        let values = [4.0f32, 0.0, 4.0, 0.0, 4.0, 0.0, 4.0, 0.0];
        let logits = Logits::new(&values, 2).unwrap();
        let found = logits.temperature(&[0, 0, 0, 1]).unwrap();
        assert!((found - 4.0 / 3f64.ln()).abs() < 1e-5, "{found}");
        assert!((logits.confidence(found)[0] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn the_threshold_keeps_what_it_should() {
        let values: Vec<f32> = (0..100).flat_map(|i| [i as f32 / 10.0, 0.0]).collect();
        let logits = Logits::new(&values, 2).unwrap();
        let labels: Vec<usize> = (0..100).map(|i| usize::from(i % 4 == 0)).collect();
        let calibration = logits.calibrate(&labels, 0.9).unwrap();
        let kept = logits.confidence(calibration.temperature);
        assert_eq!(share(&kept, |c| calibration.accepts(c)), 0.9);
        let unsure = [0.1f32, 0.0, 0.2, 0.0];
        let unknown = Logits::new(&unsure, 2).unwrap();
        let scores = calibration.scores(logits, unknown).unwrap();
        assert_eq!((scores.known_accepted, scores.unknown_rejected), (0.9, 1.0));
        assert!(scores.auroc > 0.97 && scores.fpr95 == 0.0, "{scores:?}");
    }

    #[test]
    fn curves_need_both_sides_and_bad_input_is_named() {
        assert_eq!(auroc(&[0.9, 0.5], &[0.5, 0.1]), Ok(3.5 / 4.0));
        assert_eq!(fpr95(&[0.9, 0.5], &[0.5, 0.1]), Ok(0.5));
        assert_eq!(
            auroc(&[0.9], &[]).unwrap_err().to_string(),
            "0 cells of unknown types, at least 1 are needed"
        );
        let logits = Logits::new(&[1.0, 0.0], 2).unwrap();
        assert!(
            logits
                .temperature(&[2])
                .unwrap_err()
                .to_string()
                .contains("label is 2")
        );
        assert!(logits.calibrate(&[0], 1.0).is_err());
        assert!(Logits::new(&[f32::NAN, 0.0], 2).is_err());
    }
}
