//! Classification scores from a confusion matrix.

use serde::Serialize;

/// Counts of (true class, predicted class).
#[derive(Debug, Clone, PartialEq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<f64>,
}

/// Scores of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScores {
    /// Name of the cell type.
    pub cell_type: String,
    /// Cells of this type.
    pub cells: u64,
    /// Share of predictions of this type that are right; 0 when nothing was predicted so.
    pub precision: f64,
    /// Share of cells of this type that were found; 0 when there are none.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
}

/// Scores over all classes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// Cells counted.
    pub cells: u64,
    /// Share of cells predicted right.
    pub accuracy: f64,
    /// Mean recall over the types that occur among the true labels (as in scikit-learn).
    pub balanced_accuracy: f64,
    /// Mean precision over the types that occur among the true labels or the predictions.
    pub macro_precision: f64,
    /// Mean recall over the same types.
    pub macro_recall: f64,
    /// Mean F1 over the same types (as in scikit-learn).
    pub macro_f1: f64,
    /// Accuracy of always answering the most frequent true type.
    pub majority_accuracy: f64,
    /// Scores per type, in order of the classes.
    pub per_type: Vec<ClassScores>,
}

impl Confusion {
    /// No cells yet.
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: vec![0.0; classes * classes],
        }
    }

    /// From row-major counts, rows true, columns predicted.
    ///
    /// # Panics
    /// When the length is not `classes * classes`.
    pub fn from_counts(classes: usize, counts: &[f64]) -> Self {
        assert_eq!(
            counts.len(),
            classes * classes,
            "a confusion matrix is square"
        );
        Self {
            classes,
            counts: counts.to_vec(),
        }
    }

    /// Counts one cell.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        self.counts[truth * self.classes + predicted] += 1.0;
    }

    /// Row-major counts, rows true, columns predicted.
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }

    /// Cells of true class `truth` that were predicted `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> f64 {
        self.counts[truth * self.classes + predicted]
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    fn row_sum(&self, class: usize) -> f64 {
        (0..self.classes).map(|j| self.count(class, j)).sum()
    }

    fn column_sum(&self, class: usize) -> f64 {
        (0..self.classes).map(|i| self.count(i, class)).sum()
    }

    /// Scores, with the classes' names.
    ///
    /// # Panics
    /// When there are not as many names as classes.
    pub fn scores(&self, names: &[String]) -> Scores {
        assert_eq!(names.len(), self.classes, "one name a class");
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let total: f64 = self.counts.iter().sum();
        let hits: f64 = (0..self.classes).map(|i| self.count(i, i)).sum();
        let mut per_type = Vec::with_capacity(self.classes);
        let (mut labelled, mut seen) = (Vec::new(), Vec::new());
        for (class, name) in names.iter().enumerate() {
            let (truth, predicted) = (self.row_sum(class), self.column_sum(class));
            let hit = self.count(class, class);
            if truth > 0.0 {
                labelled.push(class);
            }
            if truth > 0.0 || predicted > 0.0 {
                seen.push(class);
            }
            per_type.push(ClassScores {
                cell_type: name.clone(),
                cells: truth as u64,
                precision: ratio(hit, predicted),
                recall: ratio(hit, truth),
                f1: ratio(2.0 * hit, truth + predicted),
            });
        }
        let mean = |classes: &[usize], value: &dyn Fn(&ClassScores) -> f64| {
            ratio(
                classes.iter().map(|&c| value(&per_type[c])).sum(),
                classes.len() as f64,
            )
        };
        let majority = (0..self.classes)
            .map(|c| self.row_sum(c))
            .fold(0.0, f64::max);
        Scores {
            cells: total as u64,
            accuracy: ratio(hits, total),
            balanced_accuracy: mean(&labelled, &|s| s.recall),
            macro_precision: mean(&seen, &|s| s.precision),
            macro_recall: mean(&seen, &|s| s.recall),
            macro_f1: mean(&seen, &|s| s.f1),
            majority_accuracy: ratio(majority, total),
            per_type,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} vs {b}");
    }

    /// Figures by hand; type `c` is predicted once but never true, type `d` never occurs.
    #[test]
    fn scores_follow_their_definitions() {
        let mut confusion = Confusion::new(4);
        for (truth, predicted) in [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 2)] {
            confusion.add(truth, predicted);
        }
        let names = ["a", "b", "c", "d"].map(String::from);
        let scores = confusion.scores(&names);
        assert_eq!(scores.cells, 6);
        close(scores.accuracy, 4.0 / 6.0);
        close(scores.balanced_accuracy, 0.625);
        close(scores.macro_recall, (0.75 + 0.5 + 0.0) / 3.0);
        close(scores.macro_precision, (1.0 + 0.5 + 0.0) / 3.0);
        close(scores.macro_f1, (6.0 / 7.0 + 0.5 + 0.0) / 3.0);
        close(scores.majority_accuracy, 4.0 / 6.0);
        assert_eq!(scores.per_type[3].cells, 0);
        close(scores.per_type[0].f1, 6.0 / 7.0);
    }
}
