//! What the values of a matrix are, and bringing them into the form of a corpus.

use std::ops::Range;

use super::Rows;
use crate::Error;
use crate::corpus::{CellValues, ValueKind};

/// What the caller says the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValuesOption {
    /// Found out from the first cells.
    #[default]
    Auto,
    /// Counts.
    Counts,
    /// Normalised and log-transformed.
    Lognorm,
}

impl ValuesOption {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Counts => "counts",
            Self::Lognorm => "lognorm",
        }
    }

    /// The kind of values, given some of them.
    pub(super) fn decide(self, some: &Numbers) -> ValueKind {
        // A value that is not finite is reported as such later, it decides nothing here.
        let counts = match self {
            Self::Counts => true,
            Self::Lognorm => false,
            Self::Auto => some.all(|v| v.fract() == 0.0 || !v.is_finite()),
        };
        if counts {
            ValueKind::Counts
        } else {
            ValueKind::Lognorm
        }
    }
}

/// Values as a source holds them, in the narrowest type that loses nothing.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    U32(Vec<u32>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::U32(Vec::new())
    }
}

impl Numbers {
    /// Integers, as floats when one of them is no count: it is reported when its cell is known.
    pub(super) fn integers(values: &[i64]) -> Self {
        if values.iter().all(|&v| u32::try_from(v).is_ok()) {
            Self::U32(values.iter().map(|&v| v as u32).collect())
        } else {
            Self::F64(values.iter().map(|&v| v as f64).collect())
        }
    }

    pub(super) fn all(&self, test: impl Fn(f64) -> bool) -> bool {
        match self {
            Self::U32(v) => v.iter().all(|&v| test(f64::from(v))),
            Self::F32(v) => v.iter().all(|&v| test(f64::from(v))),
            Self::F64(v) => v.iter().all(|&v| test(v)),
        }
    }

    pub(super) fn slice(&self, span: Range<usize>) -> Self {
        match self {
            Self::U32(v) => Self::U32(v[span].to_vec()),
            Self::F32(v) => Self::F32(v[span].to_vec()),
            Self::F64(v) => Self::F64(v[span].to_vec()),
        }
    }

    /// Keeps the values at these places, which ascend.
    pub(super) fn pick(&mut self, places: &[usize]) {
        fn some<T: Copy>(values: &mut Vec<T>, places: &[usize]) {
            for (to, &from) in places.iter().enumerate() {
                values[to] = values[from];
            }
            values.truncate(places.len());
        }
        match self {
            Self::U32(v) => some(v, places),
            Self::F32(v) => some(v, places),
            Self::F64(v) => some(v, places),
        }
    }
}

/// A value that cannot be stored: where it is, and what is wrong with it.
#[derive(Debug)]
pub(super) struct BadValue {
    /// Place in the block.
    pub(super) row: usize,
    /// The gene of the source.
    pub(super) gene: u32,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    NotFinite(f64),
    Negative(f64),
    Fractional(f64),
    TooLarge(f64),
}

/// A type of values in a corpus.
trait Kept: Copy + PartialEq + Default {
    const KIND: ValueKind;
    /// The value in this type, when it has a place there.
    fn keep(value: f64) -> Option<Self>;
    /// The value of two genes that become one: their counts are added.
    fn merge(self, other: Self) -> Self;
}

impl Kept for u32 {
    const KIND: ValueKind = ValueKind::Counts;

    fn keep(value: f64) -> Option<Self> {
        // The cast saturates, and makes 0 of NaN: what is no count differs from it.
        let count = value as Self;
        (f64::from(count) == value).then_some(count)
    }

    fn merge(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl Kept for f32 {
    const KIND: ValueKind = ValueKind::Lognorm;

    fn keep(value: f64) -> Option<Self> {
        // Not only NaN and infinity: a double that overflows a float would be written as infinity.
        let narrow = value as Self;
        (narrow.is_finite() && value >= 0.0).then_some(narrow)
    }

    fn merge(self, other: Self) -> Self {
        (self.exp_m1() + other.exp_m1()).ln_1p()
    }
}

/// Genes, values and ends of some cells, in the form of a corpus.
#[derive(Debug)]
struct Cells<K> {
    offsets: Vec<i32>,
    genes: Vec<u32>,
    values: Vec<K>,
}

/// Sorts the genes of each cell, sums duplicates, drops zeros, and refuses values that are not
/// finite, negative, or not integer when they must be counts.
pub(super) fn clean(
    rows: &Rows,
    cells: Range<usize>,
    kind: ValueKind,
    places: Option<&[Option<u32>]>,
) -> Result<(Vec<i32>, Vec<u32>, CellValues), BadValue> {
    match kind {
        ValueKind::Counts => {
            let cells = clean_as::<u32>(rows, cells, places)?;
            Ok((cells.offsets, cells.genes, CellValues::Counts(cells.values)))
        }
        ValueKind::Lognorm => {
            let cells = clean_as::<f32>(rows, cells, places)?;
            Ok((
                cells.offsets,
                cells.genes,
                CellValues::Lognorm(cells.values),
            ))
        }
    }
}

fn clean_as<K: Kept>(
    rows: &Rows,
    cells: Range<usize>,
    places: Option<&[Option<u32>]>,
) -> Result<Cells<K>, BadValue> {
    let mut out = match &rows.values {
        Numbers::U32(v) => fill(rows, cells, |i| f64::from(v[i])),
        Numbers::F32(v) => fill(rows, cells, |i| f64::from(v[i])),
        Numbers::F64(v) => fill(rows, cells, |i| v[i]),
    }?;
    if let Some(places) = places {
        out.relocate(places);
    }
    Ok(out)
}

fn fill<K: Kept>(
    rows: &Rows,
    cells: Range<usize>,
    value: impl Fn(usize) -> f64,
) -> Result<Cells<K>, BadValue> {
    let most = rows.offsets[cells.end] - rows.offsets[cells.start];
    let mut out = Cells {
        offsets: Vec::with_capacity(cells.len() + 1),
        genes: Vec::with_capacity(most),
        values: Vec::with_capacity(most),
    };
    out.offsets.push(0);
    let mut order: Vec<(u32, f64)> = Vec::new();
    for row in cells {
        let span = rows.offsets[row]..rows.offsets[row + 1];
        let genes = &rows.genes[span.clone()];
        let bad = |gene: u32, value: f64| BadValue {
            row,
            gene,
            problem: problem(value, K::KIND),
        };
        if genes.windows(2).all(|w| w[0] < w[1]) {
            for (&gene, at) in genes.iter().zip(span) {
                out.push(gene, value(at)).map_err(|v| bad(gene, v))?;
            }
        } else {
            order.clear();
            order.extend(genes.iter().copied().zip(span.map(&value)));
            order.sort_by_key(|&(gene, _)| gene);
            for same in order.chunk_by(|a, b| a.0 == b.0) {
                let sum: f64 = same.iter().map(|&(_, v)| v).sum();
                out.push(same[0].0, sum).map_err(|v| bad(same[0].0, v))?;
            }
        }
        out.offsets.push(out.genes.len() as i32);
    }
    Ok(out)
}

impl<K: Kept> Cells<K> {
    #[inline]
    fn push(&mut self, gene: u32, value: f64) -> Result<(), f64> {
        let kept = K::keep(value).ok_or(value)?;
        if kept != K::default() {
            self.genes.push(gene);
            self.values.push(kept);
        }
        Ok(())
    }

    /// Moves the values to other genes, each to at most one; those of genes without a place are dropped,
    /// those that meet in one gene are merged.
    fn relocate(&mut self, places: &[Option<u32>]) {
        let (mut from, mut kept) = (0, 0);
        let mut order: Vec<(u32, K)> = Vec::new();
        for row in 1..self.offsets.len() {
            let (begin, end) = (kept, self.offsets[row] as usize);
            let mut ascending = true;
            for at in from..end {
                if let Some(gene) = places[self.genes[at] as usize] {
                    ascending &= kept == begin || self.genes[kept - 1] < gene;
                    self.genes[kept] = gene;
                    self.values[kept] = self.values[at];
                    kept += 1;
                }
            }
            from = end;
            if !ascending {
                order.clear();
                let genes = self.genes[begin..kept].iter().copied();
                order.extend(genes.zip(self.values[begin..kept].iter().copied()));
                order.sort_by_key(|&(gene, _)| gene);
                kept = begin;
                for same in order.chunk_by(|a, b| a.0 == b.0) {
                    let values = same.iter().map(|&(_, value)| value);
                    self.genes[kept] = same[0].0;
                    self.values[kept] = values.reduce(K::merge).unwrap_or_default();
                    kept += 1;
                }
            }
            self.offsets[row] = kept as i32;
        }
        self.genes.truncate(kept);
        self.values.truncate(kept);
    }
}

fn problem(value: f64, kind: ValueKind) -> Problem {
    if !(value as f32).is_finite() {
        Problem::NotFinite(value)
    } else if value < 0.0 {
        Problem::Negative(value)
    } else if kind == ValueKind::Counts && value.fract() != 0.0 {
        Problem::Fractional(value)
    } else {
        Problem::TooLarge(value)
    }
}

impl BadValue {
    /// The error in words. `others` are the matrices that the file has besides this one, as options.
    pub(super) fn into_error(
        self,
        source: &std::path::Path,
        place: &str,
        cell: &str,
        gene: &str,
        option: ValuesOption,
        others: &str,
    ) -> Error {
        let (what, help) = match self.problem {
            Problem::NotFinite(v) => (
                format!("`{v}`, which is no finite number"),
                "repair or drop this cell or gene in the source file".to_owned(),
            ),
            Problem::Negative(v) => (
                format!("`{v}`, which is negative: scaled data cannot be used"),
                format!("take counts or log-normalised values: {others}"),
            ),
            Problem::Fractional(v) if option == ValuesOption::Auto => (
                format!("`{v}`, which is no integer, while the first cells hold counts"),
                format!(
                    "say what the values are with --values counts or --values lognorm, or take another matrix: {others}"
                ),
            ),
            Problem::Fractional(v) => (
                format!("`{v}`, which is no integer, but counts were asked for"),
                format!(
                    "pass --values lognorm when these are log-normalised values, or take another matrix: {others}"
                ),
            ),
            Problem::TooLarge(v) => (
                format!("`{v}`, which is too large for a count"),
                String::new(),
            ),
        };
        Error::Import {
            path: source.to_owned(),
            place: format!("`{}`", place.trim_start_matches('/')),
            problem: format!("cell `{cell}`, gene `{gene}` holds {what}"),
            help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: Numbers) -> Rows {
        Rows {
            first: 0,
            offsets: vec![0, 4, 6],
            genes: vec![3, 1, 3, 2, 0, 5],
            values,
        }
    }

    #[test]
    fn cells_are_sorted_summed_and_moved() {
        let rows = rows(Numbers::F64(vec![2.0, 7.0, 1.0, 0.0, 4.0, 0.0]));
        let (offsets, genes, values) = clean(&rows, 0..2, ValueKind::Counts, None).unwrap();
        assert_eq!(offsets, [0, 2, 3]);
        assert_eq!(genes, [1, 3, 0]);
        assert!(matches!(values, CellValues::Counts(v) if v == [7, 3, 4]));
        let places = [None, Some(4), None, Some(0), None, None];
        let (offsets, genes, values) =
            clean(&rows, 0..2, ValueKind::Lognorm, Some(&places)).unwrap();
        assert_eq!(offsets, [0, 2, 2]);
        assert_eq!(genes, [0, 4]);
        assert!(matches!(values, CellValues::Lognorm(v) if v == [3.0, 7.0]));
    }

    #[test]
    fn what_is_no_count_is_told_apart() {
        for (value, what) in [
            (f64::NAN, "finite"),
            (f64::INFINITY, "finite"),
            (-1.0, "negative"),
            (0.5, "integer"),
            (4_294_967_296.0, "too large"),
        ] {
            let rows = rows(Numbers::F64(vec![1.0, 1.0, 1.0, 1.0, 1.0, value]));
            let bad = clean(&rows, 0..2, ValueKind::Counts, None).unwrap_err();
            assert_eq!((bad.row, bad.gene), (1, 5));
            let path = std::path::Path::new("a.h5ad");
            let text = bad.into_error(path, "X", "c1", "g5", ValuesOption::Counts, "none");
            assert!(text.to_string().contains(what), "{text}");
        }
        assert_eq!(u32::keep(4_294_967_295.0), Some(u32::MAX));
        assert_eq!(f32::keep(1e300), None);
        assert_eq!(f32::keep(-1.0), None);
        assert_eq!(u32::keep(-0.0), Some(0));
    }

    #[test]
    fn integers_are_narrowed_when_nothing_is_lost() {
        assert!(
            matches!(Numbers::integers(&[0, 4_294_967_295]), Numbers::U32(v) if v == [0, u32::MAX])
        );
        assert!(matches!(Numbers::integers(&[-1, 2]), Numbers::F64(v) if v == [-1.0, 2.0]));
    }
}
