//! Doses as concentrations. A number without a unit is no dose: 10 may be ten micromolar or ten nanomolar.

use std::fmt;

use crate::corpus::ObsKind;
use crate::error::listed;
use crate::{Corpus, Error, Result};

/// A unit of concentration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// mol/l.
    Molar,
    /// 10^-3 mol/l.
    Millimolar,
    /// 10^-6 mol/l.
    Micromolar,
    /// 10^-9 mol/l.
    Nanomolar,
    /// 10^-12 mol/l.
    Picomolar,
}

impl Unit {
    const ALL: [Self; 5] = [
        Self::Molar,
        Self::Millimolar,
        Self::Micromolar,
        Self::Nanomolar,
        Self::Picomolar,
    ];

    /// How many of it are one mol/l.
    fn per_molar(self) -> f64 {
        match self {
            Self::Molar => 1.0,
            Self::Millimolar => 1e3,
            Self::Micromolar => 1e6,
            Self::Nanomolar => 1e9,
            Self::Picomolar => 1e12,
        }
    }

    /// As it is written here.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Molar => "M",
            Self::Millimolar => "mM",
            Self::Micromolar => "uM",
            Self::Nanomolar => "nM",
            Self::Picomolar => "pM",
        }
    }

    /// Reads a unit; micro may be `u`, the micro sign or the Greek letter. Upper and lower case matter.
    ///
    /// # Errors
    /// Whatever is no unit of concentration, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = text.trim().replace(['\u{b5}', '\u{3bc}'], "u");
        let found = Self::ALL.into_iter().find(|unit| unit.symbol() == plain);
        found.ok_or_else(|| {
            format!(
                "`{}` is no unit of concentration, expected `M`, `mM`, `uM`, `nM` or `pM`",
                text.trim()
            )
        })
    }
}

/// A concentration above or equal to 0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Dose {
    molar: f64,
}

impl Dose {
    /// So many of a unit.
    ///
    /// # Errors
    /// A number that is negative or not finite, in words.
    pub fn new(number: f64, unit: Unit) -> Result<Self, String> {
        if !number.is_finite() || number < 0.0 {
            return Err(format!("a dose of {number} is not possible"));
        }
        Ok(Self {
            molar: number / unit.per_molar(),
        })
    }

    /// Reads a number with its unit, such as `10 uM` or `0.5nM`. A number alone has the unit `default`.
    ///
    /// # Errors
    /// What is wrong, in words: no number, no unit where there is no default, or another unit.
    pub fn parse(text: &str, default: Option<Unit>) -> Result<Self, String> {
        let text = text.trim();
        let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E');
        let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: f64 = number
            .parse()
            .map_err(|_| format!("`{text}` does not begin with a number"))?;
        let unit = match (unit.trim(), default) {
            ("", Some(unit)) => unit,
            ("", None) => return Err(format!("`{text}` has no unit")),
            (unit, _) => Unit::parse(unit)?,
        };
        Self::new(number, unit)
    }

    /// mol/l.
    pub fn molar(self) -> f64 {
        self.molar
    }
}

/// The number in the unit in which it is at least 1 and below 1,000, with six digits: one concentration
/// has one text, whatever unit it was given in.
impl fmt::Display for Dose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |unit: Unit| {
            let number = self.molar * unit.per_molar();
            // Six digits: 10 nM / 1e9 * 1e9 is 10 again.
            let digits = 10f64.powi(5 - number.abs().max(1e-300).log10().floor() as i32);
            (number * digits).round() / digits
        };
        let fits = Unit::ALL.into_iter().find(|unit| number(*unit) >= 1.0);
        match fits {
            Some(unit) => write!(f, "{} {}", number(unit), unit.symbol()),
            None if self.molar == 0.0 => write!(f, "0 M"),
            None => write!(f, "{} pM", number(Unit::Picomolar)),
        }
    }
}

/// The dose of every cell in mol/l, NaN where it is missing. The column holds texts with units, or
/// numbers whose unit is `unit` or in the column `COLUMN_unit`.
///
/// # Errors
/// No such column, doses without a unit, units or numbers that are none: all of them are listed.
pub fn of_cells(corpus: &Corpus, column: &str, unit: Option<Unit>) -> Result<Vec<f64>> {
    if corpus.column(column)?.kind != ObsKind::Number {
        let read = |text: &String| Dose::parse(text, unit);
        let (doses, wrong) = each(corpus.categories(column)?, read);
        refuse(column, &wrong)?;
        let codes = corpus.obs_codes(column)?;
        let of = |code: i32| usize::try_from(code).map_or(f64::NAN, |code| doses[code]);
        return Ok(codes.into_iter().map(of).collect());
    }
    let mut numbers = corpus.obs_numbers(column)?;
    let beside = format!("{column}_unit");
    let factors: Vec<f64> = match unit {
        Some(unit) => vec![1.0 / unit.per_molar(); numbers.len()],
        None if corpus.manifest().obs.iter().any(|c| c.name == beside) => {
            let read = |text: &String| Unit::parse(text).and_then(|unit| Dose::new(1.0, unit));
            let (units, wrong) = each(corpus.categories(&beside)?, read);
            refuse(&beside, &wrong)?;
            let codes = corpus.obs_codes(&beside)?.into_iter();
            codes
                .map(|code| usize::try_from(code).map_or(f64::NAN, |code| units[code]))
                .collect()
        }
        None => {
            return Err(Error::options(
                format!("obs column `{column}` holds numbers without a unit, so they are no doses"),
                format!("name the unit of all of them, or add an obs column `{beside}`"),
            ));
        }
    };
    for (number, factor) in numbers.iter_mut().zip(factors) {
        *number *= factor;
    }
    if let Some(cell) = numbers.iter().position(|n| *n < 0.0 || n.is_infinite()) {
        let problem = format!("obs column `{column}` has the dose {} mol/l", numbers[cell]);
        return Err(Error::corpus(
            corpus.path(),
            corpus.place_of(cell as u64),
            problem,
        ));
    }
    Ok(numbers)
}

fn each(
    texts: &[String],
    read: impl Fn(&String) -> Result<Dose, String>,
) -> (Vec<f64>, Vec<String>) {
    let mut wrong = Vec::new();
    let doses = texts.iter().map(|text| match read(text) {
        Ok(dose) => dose.molar,
        Err(problem) => {
            wrong.push(problem.replace('`', ""));
            f64::NAN
        }
    });
    (doses.collect(), wrong)
}

fn refuse(column: &str, wrong: &[String]) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::options(
        format!(
            "{} categories of obs column `{column}` are no doses: {}",
            wrong.len(),
            listed(wrong)
        ),
        "write doses with their unit, such as `10 uM`, or name the unit of numbers without one",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn molar(text: &str) -> f64 {
        Dose::parse(text, None).unwrap().molar()
    }

    #[test]
    fn a_dose_is_a_number_with_a_unit() {
        assert_eq!(molar("10 uM"), 1e-5);
        assert_eq!(molar("10\u{b5}M"), 1e-5);
        assert_eq!(molar("10 \u{3bc}M"), 1e-5);
        assert_eq!(molar("1e4nM"), 1e-5);
        assert_eq!(molar("0.5 mM"), 5e-4);
        assert_eq!(molar("0 M"), 0.0);
        let nanomolar = Some(Unit::Nanomolar);
        assert_eq!(Dose::parse("10000", nanomolar).unwrap().molar(), 1e-5);
        // Its own unit counts before the default.
        assert_eq!(Dose::parse("10 uM", nanomolar).unwrap().molar(), 1e-5);
    }

    #[test]
    fn what_is_no_dose_says_why() {
        let wrong = |text: &str| Dose::parse(text, None).unwrap_err();
        assert_eq!(wrong("10"), "`10` has no unit");
        assert!(wrong("10 mg").contains("`mg` is no unit of concentration"));
        // A nanometre is no nanomolar.
        assert!(wrong("10 nm").contains("`nm` is no unit"));
        assert!(wrong("high").contains("does not begin with a number"));
        assert!(wrong("-1 uM").contains("-1 is not possible"));
        assert!(wrong("1e999 uM").contains("inf is not possible"));
    }

    #[test]
    fn one_concentration_has_one_text() {
        for text in ["10 uM", "10000 nM", "0.01 mM", "1e-5 M"] {
            assert_eq!(Dose::parse(text, None).unwrap().to_string(), "10 uM");
        }
        for (text, expected) in [
            ("0.05 uM", "50 nM"),
            ("0 nM", "0 M"),
            ("0.25 pM", "0.25 pM"),
            ("999.9 nM", "999.9 nM"),
            ("2 M", "2 M"),
        ] {
            assert_eq!(Dose::parse(text, None).unwrap().to_string(), expected);
        }
    }
}
