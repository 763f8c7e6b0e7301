//! Tables about samples, drugs or cell lines: each of their columns follows from one obs column.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::IndexOptions;
use super::columns::is_missing;
use super::table::{Table, Values};
use crate::corpus::{Lookup, ObsColumn, ObsKind, SourceFile};
use crate::storage::StoreOptions;
use crate::{Error, Result};

/// A table that tells more of the values of an obs column.
#[derive(Debug, Clone)]
pub struct SideTable {
    /// Its name, without `.parquet`.
    pub name: &'static str,
    /// The obs column that it is joined on.
    pub on: &'static str,
    /// Names that its own column of keys may have.
    pub keys: &'static [&'static str],
    /// The file; `None` looks for `metadata/NAME.parquet` beside the data.
    pub file: Option<PathBuf>,
}

/// The column of doses in a table of samples.
const DOSES: &str = "drugname_drugconc";

impl SideTable {
    /// The tables of Tahoe-100M: samples (with doses), drugs and cell lines.
    pub fn tahoe(
        samples: Option<PathBuf>,
        drugs: Option<PathBuf>,
        lines: Option<PathBuf>,
    ) -> Vec<Self> {
        vec![
            Self {
                name: "sample_metadata",
                on: "sample",
                keys: &["sample"],
                file: samples,
            },
            Self {
                name: "drug_metadata",
                on: "drug",
                keys: &["drug"],
                file: drugs,
            },
            Self {
                name: "cell_line_metadata",
                on: "cell_line_id",
                keys: &["cell_line_id", "Cell_ID_Cellosaur"],
                file: lines,
            },
        ]
    }
}

/// The obs columns that a table adds.
pub(super) struct Joined {
    pub(super) columns: Vec<ObsColumn>,
    pub(super) source: SourceFile,
}

/// A table of this name beside the data: in its folder `metadata`, or in that of its parent.
pub(super) fn beside(source: &Path, name: &str, store: &StoreOptions) -> Result<Option<Table>> {
    let file = format!("metadata/{name}.parquet");
    for folder in [Some(source), source.parent()].into_iter().flatten() {
        // The parent of a bucket is no place.
        let store_lost = source.to_string_lossy().contains("://")
            && url::Url::parse(&folder.to_string_lossy()).is_ok_and(|url| !url.has_host());
        if !store_lost && let Some(table) = Table::read(&folder.join(&file), store)? {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Joins a table; `None`, with a note, when there is none.
pub(super) fn join(
    side: &SideTable,
    source: &Path,
    options: &IndexOptions,
    obs: &[ObsColumn],
    notes: &mut Vec<String>,
) -> Result<Option<Joined>> {
    let name = side.name;
    let table = match &side.file {
        Some(path) => Some(
            Table::read(path, &options.store)?
                .ok_or_else(|| Error::corpus(path, name, "does not exist"))?,
        ),
        None => beside(source, name, &options.store)?,
    };
    let Some(table) = table else {
        notes.push(format!(
            "there is no metadata/{name}.parquet beside the data: no columns follow from `{}`",
            side.on
        ));
        return Ok(None);
    };
    let on = obs.iter().find(|column| {
        let shard_name = column.source.as_deref().unwrap_or(&column.name);
        shard_name == side.on && column.lookup.is_none() && column.kind == ObsKind::Category
    });
    let Some(on) = on else {
        notes.push(format!(
            "{name} is left out: the files have no categories in a column `{}`",
            side.on
        ));
        return Ok(None);
    };
    let (key, keys) = match table.find(side.keys) {
        Some((key, values)) => (key.clone(), values.texts()),
        None => (side.on.to_owned(), table.column(side.on)?.texts()),
    };
    let known: BTreeSet<&str> = keys.iter().flatten().map(String::as_str).collect();
    let lacking = on.categories.iter().filter(|c| !known.contains(c.as_str()));
    let lacking: Vec<&String> = lacking.collect();
    if let Some(first) = lacking.first() {
        let (n, all) = (lacking.len(), on.categories.len());
        if n == all {
            let problem = format!(
                "none of the {all} values of `{}` in the files is there, the first is `{first}`\nhelp: pass the table that belongs to these files",
                side.on
            );
            return Err(Error::corpus(
                &table.path,
                format!("column `{key}`"),
                problem,
            ));
        }
        notes.push(format!(
            "{n} of the {all} values of `{}` are not in {name}, the first is `{first}`: their cells have none of its columns",
            side.on
        ));
    }
    for column in &table.unread {
        notes.push(format!(
            "{name}: column `{column}` is left out: it holds neither text nor numbers"
        ));
    }
    let wanted: BTreeSet<&str> = on.categories.iter().map(String::as_str).collect();
    let joining = Joining {
        side,
        keys: &keys,
        wanted,
    };
    let mut columns = Vec::new();
    for (column, values) in table.columns.iter().filter(|(column, _)| *column != key) {
        if obs.iter().chain(&columns).any(|c| c.name == *column) {
            notes.push(format!(
                "{name}: column `{column}` is left out: there is one of this name"
            ));
            continue;
        }
        columns.extend(joining.column(column, values, notes));
    }
    Ok(Some(Joined {
        columns,
        source: table.source,
    }))
}

struct Joining<'a> {
    side: &'a SideTable,
    keys: &'a [Option<String>],
    wanted: BTreeSet<&'a str>,
}

impl Joining<'_> {
    fn column(&self, name: &str, values: &Values, notes: &mut Vec<String>) -> Vec<ObsColumn> {
        match values {
            Values::Text(texts) if name == DOSES => self.doses(texts, notes),
            Values::Text(texts) => {
                let texts = texts.iter().map(|t| t.clone().filter(|t| !is_missing(t)));
                let texts = texts.map(|t| t.map(Value::String));
                self.lookup(name, ObsKind::Category, texts, notes)
                    .into_iter()
                    .collect()
            }
            Values::Number(numbers) => {
                let numbers = numbers.iter().map(|n| n.filter(|n| n.is_finite()));
                let numbers = numbers.map(|n| n.map(|n| json!(n)));
                self.lookup(name, ObsKind::Number, numbers, notes)
                    .into_iter()
                    .collect()
            }
        }
    }

    /// The dose as a number and its unit, out of `[('drug',0.05,'uM')]`.
    fn doses(&self, texts: &[Option<String>], notes: &mut Vec<String>) -> Vec<ObsColumn> {
        let parsed: Vec<Option<(f64, String)>> =
            texts.iter().map(|t| t.as_deref().and_then(dose)).collect();
        let unclear = texts
            .iter()
            .zip(&parsed)
            .filter(|(t, p)| t.is_some() && p.is_none());
        let unclear: Vec<&String> = unclear.filter_map(|(t, _)| t.as_ref()).collect();
        if let Some(first) = unclear.first() {
            notes.push(format!(
                "{}: {} of {} values of `{DOSES}` do not tell one dose, the first is `{first}`: their cells have none",
                self.side.name,
                unclear.len(),
                texts.len()
            ));
        }
        let numbers = parsed
            .iter()
            .map(|p| p.as_ref().map(|(dose, _)| json!(dose)));
        let number = self.lookup("dose", ObsKind::Number, numbers, notes);
        let units = parsed
            .iter()
            .map(|p| p.as_ref().map(|(_, unit)| json!(unit)));
        let unit = self.lookup("dose_unit", ObsKind::Category, units, notes);
        number.into_iter().chain(unit).collect()
    }

    /// What each key stands for. A key with several rows must have the same value in all of them.
    fn lookup(
        &self,
        name: &str,
        kind: ObsKind,
        values: impl Iterator<Item = Option<Value>>,
        notes: &mut Vec<String>,
    ) -> Option<ObsColumn> {
        let mut seen: HashMap<&str, Option<Value>> = HashMap::new();
        for (key, value) in self.keys.iter().zip(values) {
            let Some(key) = key.as_deref().filter(|key| self.wanted.contains(key)) else {
                continue;
            };
            if seen.get(key).is_some_and(|other| *other != value) {
                notes.push(format!(
                    "{}: column `{name}` is left out: it has several values for `{key}`",
                    self.side.name
                ));
                return None;
            }
            seen.insert(key, value);
        }
        let values: IndexMap<String, Value> = self
            .wanted
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), seen.get(key)?.clone()?)))
            .collect();
        let categories: BTreeSet<String> = match kind {
            ObsKind::Category => values
                .values()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => BTreeSet::new(),
        };
        let mut column = ObsColumn::new(name, kind, categories.into_iter().collect());
        let on = self.side.on.to_owned();
        column.lookup = Some(Lookup { column: on, values });
        Some(column)
    }
}

/// Reads one dose, written as a list of one tuple: a name in quotes, a number, a unit in quotes.
fn dose(text: &str) -> Option<(f64, String)> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    let inner = inner.strip_suffix(',').unwrap_or(inner).trim();
    let inner = inner.strip_prefix('(')?.strip_suffix(')')?;
    let (_, rest) = quoted(inner.trim_start())?;
    let (number, rest) = rest.trim_start().strip_prefix(',')?.split_once(',')?;
    let (unit, rest) = quoted(rest.trim_start())?;
    let number: f64 = number.trim().parse().ok()?;
    (rest.trim().is_empty() && number.is_finite()).then_some((number, unit))
}

/// A string in single or double quotes at the beginning of a text, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.push(chars.next()?.1),
            char if char == quote => return Some((value, &text[at + 1..])),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doses_are_read() {
        let read = |text: &str| dose(text);
        assert_eq!(
            read("[('8-Hydroxyquinoline',0.05,'uM')]"),
            Some((0.05, "uM".into()))
        );
        assert_eq!(
            read("[ (\"5'-x, (R)\", 5.0, 'uM'), ]"),
            Some((5.0, "uM".into()))
        );
        assert_eq!(read(r"[('it\'s',1e-3,'nM')]"), Some((0.001, "nM".into())));
        for text in [
            "",
            "[]",
            "[('a',x,'uM')]",
            "[('a',1,'uM'),('b',2,'uM')]",
            "('a',1,'uM')",
            "[('a',1,'uM",
            "[('a',inf,'uM')]",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
