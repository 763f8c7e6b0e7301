//! Doses: a number with a unit of amount of substance per volume.

/// Units with what they are in nM.
const UNITS: [(&str, f64); 7] = [
    ("pM", 1e-3),
    ("nM", 1.0),
    ("uM", 1e3),
    // The micro sign and the Greek letter.
    ("\u{b5}M", 1e3),
    ("\u{3bc}M", 1e3),
    ("mM", 1e6),
    ("M", 1e9),
];

/// A dose in nM. `unit` is that of bare numbers, when they have one.
///
/// # Errors
/// What is wrong with the text: no number above 0, no unit, or one that is not known.
pub(crate) fn nanomolar(text: &str, unit: Option<&str>) -> Result<f64, String> {
    let text = text.trim();
    // The longest unit that the text ends with: `mM` ends with `M` too.
    let known = |wanted: &str| UNITS.iter().find(|(name, _)| *name == wanted);
    let own = (UNITS.iter().filter(|(name, _)| text.ends_with(name)))
        .max_by_key(|(name, _)| name.chars().count());
    let (number, factor) = match (own, unit) {
        (Some((name, factor)), _) => (&text[..text.len() - name.len()], *factor),
        (None, _) if text.parse::<f64>().is_err() => {
            return Err("is no number with a unit such as `10 nM`".to_owned());
        }
        (None, None) => return Err("has no unit".to_owned()),
        (None, Some(unit)) => match known(unit) {
            Some((_, factor)) => (text, *factor),
            None => return Err(format!("has the unit `{unit}`, which is not known")),
        },
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value * factor),
        Ok(value) => Err(format!("is {value}, expected a number above 0")),
        Err(_) => Err("is no number with a unit such as `10 nM`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doses_are_read_with_their_unit_or_that_of_the_column() {
        let near = |found: Result<f64, String>, expected: f64| {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-9 * expected, "{found}");
        };
        near(nanomolar("10 nM", None), 10.0);
        near(nanomolar("0.2 uM", None), 200.0);
        near(nanomolar("0.2\u{b5}M", Some("nM")), 200.0);
        near(nanomolar("1e3", Some("nM")), 1000.0);
        near(nanomolar(" 2mM", None), 2e6);
        near(nanomolar("1 M", None), 1e9);
        assert_eq!(nanomolar("10", None).unwrap_err(), "has no unit");
        assert!(nanomolar("10 mg", None).unwrap_err().contains("10 nM"));
        assert!(nanomolar("nM", None).unwrap_err().contains("no number"));
        assert!(nanomolar("0 nM", None).unwrap_err().contains("above 0"));
        assert!(nanomolar("-1", Some("uM")).unwrap_err().contains("above 0"));
    }
}
