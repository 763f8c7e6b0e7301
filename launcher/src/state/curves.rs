//! Curves of a run in bounded memory: a long run keeps its shape, not its every step.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Points of a curve; more are merged in pairs.
const POINTS_MAX: usize = 512;
/// Different curves; a file with more names than this is not ours.
const CURVES_MAX: usize = 64;

/// One curve over optimizer steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Name in `metrics.jsonl`.
    pub name: String,
    /// `train` or the split of an evaluation.
    pub source: String,
    /// Step of each point, ascending: the last one that it stands for.
    pub steps: Vec<u64>,
    /// Mean of the values that a point stands for.
    pub values: Vec<f64>,
    /// Smallest and largest of them; empty while every point is one value.
    pub low: Vec<f64>,
    /// See `low`.
    pub high: Vec<f64>,
    /// The last value, unmerged.
    pub last: f64,
    /// Records whose value was no finite number.
    pub missing: u64,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    step: u64,
    sum: f64,
    count: u32,
    low: f64,
    high: f64,
}

#[derive(Debug)]
struct Points {
    kept: Vec<Point>,
    /// Values that make up a point.
    stride: u32,
    last: f64,
    missing: u64,
}

/// The curves of a `metrics.jsonl`.
#[derive(Debug, Default)]
pub struct Curves {
    by_name: BTreeMap<(String, String), Points>,
    last_step: u64,
    last_epoch: u64,
}

impl Curves {
    /// Takes in one record; whatever is not a record is left out.
    pub fn add(&mut self, line: &str) {
        let Ok(Value::Object(record)) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let Some(step) = record.get("step").and_then(Value::as_u64) else {
            return;
        };
        let source = match record.get("kind").and_then(Value::as_str) {
            Some("eval") => record
                .get("split")
                .and_then(Value::as_str)
                .unwrap_or("valid"),
            _ => "train",
        };
        self.last_step = self.last_step.max(step);
        let epoch = record.get("epoch").and_then(Value::as_u64).unwrap_or(0);
        self.last_epoch = self.last_epoch.max(epoch);
        for (name, value) in &record {
            let is_value = value.is_number() || value.is_null();
            if !is_value || ["step", "epoch"].contains(&name.as_str()) {
                continue;
            }
            let key = (source.to_owned(), name.clone());
            if self.by_name.len() >= CURVES_MAX && !self.by_name.contains_key(&key) {
                continue;
            }
            let points = self.by_name.entry(key).or_default();
            match value.as_f64().filter(|value| value.is_finite()) {
                Some(value) => points.push(step, value),
                None => points.missing += 1,
            }
        }
    }

    /// The last step that was recorded.
    pub fn last_step(&self) -> u64 {
        self.last_step
    }

    /// The epoch of the last record.
    pub fn last_epoch(&self) -> u64 {
        self.last_epoch
    }

    /// The last value of a curve of training.
    pub fn last(&self, name: &str) -> Option<f64> {
        let key = ("train".to_owned(), name.to_owned());
        let points = self.by_name.get(&key)?;
        (!points.kept.is_empty()).then_some(points.last)
    }

    /// Mean over all recorded steps of a curve of training.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let key = ("train".to_owned(), name.to_owned());
        let points = &self.by_name.get(&key)?.kept;
        let count: u32 = points.iter().map(|p| p.count).sum();
        let sum: f64 = points.iter().map(|p| p.sum).sum();
        (count > 0).then(|| sum / f64::from(count))
    }

    /// The curves as they are shown.
    pub fn shown(&self) -> Vec<Curve> {
        let shown = |((source, name), points): (&(String, String), &Points)| {
            let of = |value: &dyn Fn(&Point) -> f64| -> Vec<f64> {
                points.kept.iter().map(|p| short(value(p))).collect()
            };
            let merged = points.kept.iter().any(|p| p.count > 1);
            let range = |value: &dyn Fn(&Point) -> f64| {
                if merged { of(value) } else { Vec::new() }
            };
            Curve {
                name: name.clone(),
                source: source.clone(),
                steps: points.kept.iter().map(|p| p.step).collect(),
                values: of(&|p| p.sum / f64::from(p.count)),
                low: range(&|p| p.low),
                high: range(&|p| p.high),
                last: short(points.last),
                missing: points.missing,
            }
        };
        self.by_name.iter().map(shown).collect()
    }
}

impl Default for Points {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            stride: 1,
            last: 0.0,
            missing: 0,
        }
    }
}

impl Points {
    fn push(&mut self, step: u64, value: f64) {
        self.last = value;
        let new = Point {
            step,
            sum: value,
            count: 1,
            low: value,
            high: value,
        };
        match self.kept.last_mut() {
            Some(last) if last.count < self.stride => *last = merged(*last, new),
            _ => self.kept.push(new),
        }
        if self.kept.len() > POINTS_MAX {
            let pairs = self.kept.chunks(2);
            self.kept = pairs
                .filter_map(|pair| pair.iter().copied().reduce(merged))
                .collect();
            self.stride *= 2;
        }
    }
}

fn merged(first: Point, second: Point) -> Point {
    Point {
        step: second.step,
        sum: first.sum + second.sum,
        count: first.count + second.count,
        low: first.low.min(second.low),
        high: first.high.max(second.high),
    }
}

/// Six significant digits: more than a curve can show, and half the bytes.
fn short(value: f64) -> f64 {
    if value == 0.0 {
        return value;
    }
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(curves: &Curves, source: &str, name: &str) -> Curve {
        let found = curves.shown().into_iter();
        let mut found = found.filter(|c| c.name == name && c.source == source);
        found.next().unwrap()
    }

    #[test]
    fn training_and_evaluation_are_curves_apart() {
        let mut curves = Curves::default();
        curves.add(r#"{"kind":"train","step":1,"epoch":0,"loss":1.5,"lr":0.1}"#);
        curves.add(r#"{"kind":"train","step":2,"epoch":0,"loss":null,"lr":0.1}"#);
        curves.add(r#"{"kind":"eval","step":2,"epoch":1,"loss":1.25,"split":"valid"}"#);
        curves.add("{\"kind\":\"tr");
        curves.add("[1]");
        let train = curve(&curves, "train", "loss");
        assert_eq!((train.steps, train.values), (vec![1], vec![1.5]));
        assert_eq!((train.missing, train.low.len()), (1, 0));
        assert_eq!(curve(&curves, "valid", "loss").values, [1.25]);
        assert_eq!((curves.last_step(), curves.last_epoch()), (2, 1));
        assert_eq!(curves.shown().len(), 3);
    }

    #[test]
    fn a_long_run_keeps_its_shape_in_bounded_memory() {
        let mut curves = Curves::default();
        for step in 1..=100_000_u64 {
            let spike = match step {
                77_777 => 1e3,
                55_555 => -1e3,
                _ => 0.0,
            };
            let value = 1.0 / step as f64 + spike;
            curves.add(&format!("{{\"step\":{step},\"loss\":{value}}}"));
        }
        let loss = curve(&curves, "train", "loss");
        assert!((POINTS_MAX / 2..=POINTS_MAX).contains(&loss.steps.len()));
        assert_eq!(*loss.steps.last().unwrap(), 100_000);
        assert!(loss.steps.is_sorted());
        assert_eq!(loss.high.iter().filter(|high| **high > 999.0).count(), 1);
        assert_eq!(loss.low.iter().filter(|low| **low < -999.0).count(), 1);
        let all: f64 = (1..=100_000_u64).map(|step| 1.0 / step as f64).sum();
        let mean = curves.mean("loss").unwrap();
        assert!((mean - all / 1e5).abs() < 1e-9, "{mean}");
    }

    #[test]
    fn a_file_of_endless_names_is_not_taken_in() {
        let mut curves = Curves::default();
        for name in 0..1000 {
            curves.add(&format!("{{\"step\":1,\"m{name}\":1}}"));
        }
        assert_eq!(curves.shown().len(), CURVES_MAX);
    }

    #[test]
    fn numbers_are_shown_with_six_digits() {
        assert_eq!(short(0.123_456_789), 0.123_457);
        assert_eq!(short(-1.0 / 3.0), -0.333_333);
        assert_eq!((short(0.0), short(1e-30), short(12.0)), (0.0, 1e-30, 12.0));
    }
}
