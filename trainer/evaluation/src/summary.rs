//! Scores of many conditions in few numbers.

use indexmap::IndexMap;
use serde::Serialize;

use crate::Score;
use crate::stats::{mean, standard_error};

/// A metric over conditions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Mean over the conditions that have the score; `None` when none has.
    pub mean: Option<f64>,
    /// Standard error of that mean; `None` below two conditions.
    pub standard_error: Option<f64>,
    /// Conditions that have the score.
    pub conditions: usize,
    /// Conditions that have none, by reason.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub undefined: IndexMap<String, Vec<String>>,
}

impl Summary {
    /// Sums up the scores of named conditions.
    pub fn of<'a>(scores: impl IntoIterator<Item = (&'a str, &'a Score)>) -> Self {
        let mut values = Vec::new();
        let mut undefined: IndexMap<String, Vec<String>> = IndexMap::new();
        for (name, score) in scores {
            match score {
                Ok(value) => values.push(*value),
                Err(reason) => {
                    let names = undefined.entry(reason.to_string()).or_default();
                    names.push(name.to_owned());
                }
            }
        }
        Self {
            mean: (!values.is_empty()).then(|| mean(&values)),
            standard_error: standard_error(&values),
            conditions: values.len(),
            undefined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Undefined;

    #[test]
    fn conditions_without_a_score_are_named_and_not_counted() {
        let scores = [Ok(1.0), Err(Undefined::NoCells), Ok(3.0)];
        let summary = Summary::of(["a", "b", "c"].into_iter().zip(&scores));
        assert_eq!(summary.mean, Some(2.0));
        assert_eq!(summary.standard_error, Some(1.0));
        assert_eq!(summary.conditions, 2);
        assert_eq!(summary.undefined[0], ["b"]);
        let none = Summary::of([("b", &scores[1])]);
        assert_eq!((none.mean, none.standard_error), (None, None));
    }
}
