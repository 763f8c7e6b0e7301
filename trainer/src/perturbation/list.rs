//! Lists of conditions to predict: a CSV file with a column `perturbation` (or `drug`), and `context`
//! and `dose` where the run knows such.

use std::path::Path;

use scpeft_evaluation::splits::Condition;

use super::labels::ONE_CONTEXT;
use crate::failure::{self, Failure};

/// Names of the column of perturbations.
const PERTURBATION: [&str; 2] = ["perturbation", "drug"];

/// Which columns a list must have, beside that of perturbations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// The run has contexts.
    pub(crate) context: bool,
    /// The run's conditions have doses.
    pub(crate) dose: bool,
}

/// Reads a list.
///
/// # Errors
/// A file that cannot be read, columns that are missing or that the run knows nothing of, values that
/// are missing, a condition twice.
pub(crate) fn read(path: &Path, wanted: Wanted) -> failure::Result<Vec<Condition>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::data(format!("cannot read `{}`: {e}", path.display())))?;
    parse(&text, wanted).map_err(|problem| {
        Failure::data(format!(
            "`{}`{problem}\nhelp: a list of conditions is a CSV file with a header, {}",
            path.display(),
            expected(wanted)
        ))
    })
}

fn expected(wanted: Wanted) -> String {
    let mut columns = vec!["drug"];
    columns.extend(wanted.context.then_some("context"));
    columns.extend(wanted.dose.then_some("dose"));
    format!("`{}`", columns.join(","))
}

fn parse(text: &str, wanted: Wanted) -> Result<Vec<Condition>, String> {
    let mut lines = (1..).zip(text.trim_start_matches('\u{feff}').lines());
    let header = lines.find(|(_, line)| !line.trim().is_empty());
    let header = header.ok_or_else(|| " is empty".to_owned())?;
    let header = fields(header.1).map_err(|e| format!(", line {}: {e}", header.0))?;
    let find = |names: &[&str]| header.iter().position(|n| names.contains(&n.as_str()));
    let present = || header.join("`, `");
    let column = |name: &str, used: bool| match (find(&[name]), used) {
        (Some(place), true) => Ok(Some(place)),
        (None, false) => Ok(None),
        (None, true) => Err(format!(" has no column `{name}`, it has `{}`", present())),
        (Some(_), false) => Err(format!(
            " has a column `{name}`, of which the run knows nothing (`perturbation.{name}` is unset)"
        )),
    };
    let perturbation = find(&PERTURBATION)
        .ok_or_else(|| format!(" has no column `drug`, it has `{}`", present()))?;
    let (context, dose) = (
        column("context", wanted.context)?,
        column("dose", wanted.dose)?,
    );
    let mut found: Vec<Condition> = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |problem: String| -> String { format!(", line {number}: {problem}") };
        let values = fields(line).map_err(wrong)?;
        if values.len() != header.len() {
            return Err(wrong(format!(
                "has {} values, the header names {}",
                values.len(),
                header.len()
            )));
        }
        let value = |place: usize| match values[place].as_str() {
            "" => Err(wrong(format!("`{}` is missing", header[place]))),
            text => Ok(text.to_owned()),
        };
        let condition = Condition {
            perturbation: value(perturbation)?,
            context: context.map_or(Ok(ONE_CONTEXT.to_owned()), value)?,
            dose: dose.map(value).transpose()?,
        };
        if found.contains(&condition) {
            let name = scpeft_evaluation::study::name_of(&condition);
            return Err(wrong(format!("`{name}` comes a second time")));
        }
        found.push(condition);
    }
    if found.is_empty() {
        return Err(" names no condition".to_owned());
    }
    Ok(found)
}

/// The values of a line; those in quotes may hold commas, and quotes doubled.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut found = vec![String::new()];
    let mut quoted = false;
    let mut rest = line.chars().peekable();
    while let Some(next) = rest.next() {
        let field = found.last_mut().ok_or("has no value")?;
        match next {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => found.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    Ok(found.iter().map(|field| field.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted {
        context: true,
        dose: true,
    };

    #[test]
    fn quotes_hold_commas_and_columns_come_in_any_order() {
        let text = "dose,drug,context\n\n10 nM,\"1,2-diol\",A549\r\n1 uM,\"say \"\"x\"\"\",K562\n";
        let found = parse(text, ALL).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].perturbation, "1,2-diol");
        assert_eq!(found[1].perturbation, "say \"x\"");
        assert_eq!(found[1].dose.as_deref(), Some("1 uM"));
        let none = Wanted {
            context: false,
            dose: false,
        };
        assert_eq!(
            parse("perturbation\nJQ1\n", none).unwrap()[0].context,
            "all"
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let wrong = |text: &str| parse(text, ALL).unwrap_err();
        assert_eq!(wrong(""), " is empty");
        assert_eq!(wrong("drug,context,dose\n"), " names no condition");
        assert!(wrong("drug,context\nx,y\n").contains("no column `dose`"));
        assert!(wrong("name,context,dose\nx,y,z\n").contains("no column `drug`"));
        assert!(wrong("drug,context,dose\nx,y\n").starts_with(", line 2: has 2 values"));
        assert!(wrong("drug,context,dose\nx,,1 nM\n").contains("line 2: `context` is missing"));
        assert!(wrong("drug,context,dose\n\"x,y,z\n").contains("line 2: a quote"));
        let twice = wrong("drug,context,dose\nx,y,z\nx,y,z\n");
        assert!(
            twice.contains("line 3: `x | y | z` comes a second time"),
            "{twice}"
        );
        let none = Wanted {
            context: false,
            dose: false,
        };
        assert!(
            parse("drug,dose\nx,1 nM\n", none)
                .unwrap_err()
                .contains("perturbation.dose")
        );
    }
}
