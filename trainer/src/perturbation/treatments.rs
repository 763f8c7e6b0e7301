//! What the drug adapter is told of each condition: the molecule's embedding, and the dose.

use std::collections::BTreeMap;
use std::path::Path;

use scpeft_config::{AdapterKind, Config};
use scpeft_data::Corpus;
use scpeft_data::doses::{Dose, Unit};
use scpeft_data::molecules::Molecules;
use scpeft_evaluation::splits::Condition;

use super::conditions::{Conditions, shortened};
use super::labels::Column;
use crate::failure::{Failure, Result};

/// Doses are told in nM.
const NANO_PER_MOLAR: f64 = 1e9;

/// One vector a condition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Treatments {
    /// Length of a vector.
    pub width: usize,
    rows: BTreeMap<usize, Vec<f32>>,
}

/// The table that a configuration names, when the model is told of molecules.
///
/// # Errors
/// A table that cannot be read.
pub(crate) fn table(config: &Config) -> Result<Option<Molecules>> {
    let path = config.perturbation.molecules.as_ref();
    let path = path.filter(|_| config.adapter.kind.has(AdapterKind::Drug));
    Ok(path.map(|path| Molecules::read(path)).transpose()?)
}

/// Numbers that describe a treatment.
pub(crate) fn width(config: &Config, table: &Molecules) -> usize {
    table.width() + usize::from(config.perturbation.dose_input)
}

/// Fills in how wide treatments are, as the table has it.
///
/// # Errors
/// A table that cannot be read, or of another width than the configuration says.
pub(crate) fn complete(config: &mut Config) -> Result<()> {
    let Some(table) = table(config)? else {
        return Ok(());
    };
    let found = width(config, &table);
    match config.adapter.drug.width {
        Some(wanted) if wanted != found => {
            let path = config.perturbation.molecules.clone().unwrap_or_default();
            Err(wrong_width(&path, wanted, found))
        }
        _ => {
            config.adapter.drug.width = Some(found);
            Ok(())
        }
    }
}

fn wrong_width(path: &Path, wanted: usize, found: usize) -> Failure {
    Failure::data(format!(
        "`{}`: treatments have {found} numbers, the adapter is made for {wanted}\n\
         help: use embeddings of the encoder that the adapter was trained with",
        path.display()
    ))
}

/// The keys that molecules go by: each perturbation's own in a column, and its name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(BTreeMap<String, String>);

impl Keys {
    /// # Errors
    /// A column that is missing, or a perturbation with two keys in it.
    pub(crate) fn read(corpus: &Corpus, config: &Config) -> Result<Self> {
        let own = &config.perturbation;
        let (Some(column), Some(perturbation)) = (&own.molecule_key, &own.column) else {
            return Ok(Self::default());
        };
        let (keys, names) = (
            Column::read(corpus, column)?,
            Column::read(corpus, perturbation)?,
        );
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for cell in 0..corpus.n_cells() {
            let (Some(name), Some(key)) = (names.of(cell), keys.of(cell)) else {
                continue;
            };
            match found.get(name) {
                None => {
                    found.insert(name.clone(), key.clone());
                }
                Some(known) if known == key => {}
                Some(known) => {
                    let line = format!("`{name}` (`{known}` and `{key}`)");
                    if !conflicts.contains(&line) {
                        conflicts.push(line);
                    }
                }
            }
        }
        if conflicts.is_empty() {
            return Ok(Self(found));
        }
        Err(Failure::data(format!(
            "{} perturbation(s) have two keys of a molecule in obs column `{column}`: {}\n\
             help: write each molecule the same way in all cells",
            conflicts.len(),
            shortened(&conflicts)
        )))
    }

    fn of<'a>(&'a self, perturbation: &'a str) -> Vec<&'a str> {
        let own = self.0.get(perturbation).map(String::as_str);
        own.into_iter().chain([perturbation]).collect()
    }
}

/// The vector of each of `conditions`, in their order.
///
/// # Errors
/// Molecules without an embedding, all of them; a dose that is not a number with a unit; a table of
/// another width than the adapter.
pub(crate) fn vectors(
    config: &Config,
    table: &Molecules,
    keys: &Keys,
    conditions: &[&Condition],
) -> Result<Vec<Vec<f32>>> {
    let found = width(config, table);
    if let Some(wanted) = config.adapter.drug.width.filter(|wanted| *wanted != found) {
        let path = config.perturbation.molecules.clone().unwrap_or_default();
        return Err(wrong_width(&path, wanted, found));
    }
    let mut names: Vec<&str> = conditions.iter().map(|c| c.perturbation.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let wanted: Vec<Vec<&str>> = names.iter().map(|name| keys.of(name)).collect();
    let embeddings = table.embeddings(&wanted)?;
    let embedding: BTreeMap<&str, &[f32]> = names.into_iter().zip(embeddings).collect();
    let doses = doses(config, conditions)?;
    let of = |(condition, dose): (&&Condition, Option<f64>)| {
        let mut vector = embedding[condition.perturbation.as_str()].to_vec();
        vector.extend(dose.map(|dose| dose.log10() as f32));
        vector
    };
    Ok(conditions.iter().zip(doses).map(of).collect())
}

/// The doses in nM, where they are an input.
fn doses(config: &Config, conditions: &[&Condition]) -> Result<Vec<Option<f64>>> {
    let own = &config.perturbation;
    if !own.dose_input {
        return Ok(vec![None; conditions.len()]);
    }
    let unit = own.dose_unit.as_deref().map(Unit::parse).transpose();
    let unit =
        unit.map_err(|problem| Failure::config(format!("`perturbation.dose_unit`: {problem}")))?;
    let mut bad: BTreeMap<&str, String> = BTreeMap::new();
    let mut found = Vec::with_capacity(conditions.len());
    for condition in conditions {
        let text = condition.dose.as_deref().unwrap_or_default();
        match Dose::parse(text, unit).map(Dose::molar) {
            Ok(molar) if molar > 0.0 => found.push(Some(NANO_PER_MOLAR * molar)),
            Ok(_) => {
                bad.insert(text, format!("`{text}` has no logarithm"));
            }
            Err(problem) => {
                bad.insert(text, problem);
            }
        }
    }
    if bad.is_empty() {
        return Ok(found);
    }
    let lines: Vec<String> = bad.into_values().collect();
    Err(Failure::data(format!(
        "{} dose(s) cannot be used: {}\n\
         help: write doses like `10 nM`, or name the unit of bare numbers in `perturbation.dose_unit`",
        lines.len(),
        shortened(&lines)
    )))
}

impl Treatments {
    /// The vectors of the wanted conditions of a corpus.
    ///
    /// # Errors
    /// See [`vectors`].
    pub(crate) fn of(
        config: &Config,
        corpus: &Corpus,
        table: &Molecules,
        conditions: &Conditions,
        wanted: &[usize],
    ) -> Result<Self> {
        let keys = Keys::read(corpus, config)?;
        let list: Vec<&Condition> = wanted.iter().map(|&c| &conditions.list[c]).collect();
        let vectors = vectors(config, table, &keys, &list)?;
        Ok(Self {
            width: width(config, table),
            rows: wanted.iter().copied().zip(vectors).collect(),
        })
    }

    /// The vector of a condition.
    pub fn get(&self, condition: usize) -> Option<&[f32]> {
        self.rows.get(&condition).map(Vec::as_slice)
    }
}
