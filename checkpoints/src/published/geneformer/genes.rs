//! The dictionaries of genes: tokens, medians, and other names of genes.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::fsx;
use crate::pickle::{self, DictionaryValue, PickleError};

const TOKENS: &str = "token_dictionary";
const MEDIANS: &str = "gene_median_dictionary";
const OTHER_NAMES: &str = "ensembl_mapping_dict";
const PAD: &str = "<pad>";
const MASK: &str = "<mask>";

/// What a model knows of genes.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneDictionaries {
    /// Tokens with their ids, which are 0 to V-1, in the order of ids.
    tokens: IndexMap<String, usize>,
    /// Median of each gene's expression over the cells of the pretraining.
    medians: IndexMap<String, f64>,
    /// Old identifiers and symbols with the identifiers that the others know.
    other_names: IndexMap<String, String>,
}

/// Where published dictionaries lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pickles {
    /// From tokens to ids.
    pub tokens: PathBuf,
    /// From genes to medians.
    pub medians: PathBuf,
    /// From other names to genes; the first generation has none.
    pub other_names: Option<PathBuf>,
}

impl Pickles {
    /// Looks for dictionaries in a directory by their published names, for those that are not given.
    ///
    /// # Errors
    /// When one is missing, or several could be meant.
    pub fn find(
        dir: &Path,
        tokens: Option<PathBuf>,
        medians: Option<PathBuf>,
        other_names: Option<PathBuf>,
    ) -> Result<Self> {
        let needed = |given: Option<PathBuf>, stem: &'static str| match given {
            Some(path) => Ok(path),
            None => find(dir, stem)?.ok_or_else(|| Error::MissingFile {
                dir: dir.to_owned(),
                wanted: format!("{stem}….pkl"),
                help: "the dictionaries are published apart from the weights, in the package \
                       `geneformer`: name them with `--tokens` and `--medians`",
            }),
        };
        Ok(Self {
            tokens: needed(tokens, TOKENS)?,
            medians: needed(medians, MEDIANS)?,
            other_names: match other_names {
                Some(path) => Some(path),
                None => find(dir, OTHER_NAMES)?,
            },
        })
    }
}

/// The pickle in a directory whose name begins with `stem`.
fn find(dir: &Path, stem: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(stem) && name.ends_with(".pkl") {
            found.push(path.clone());
        }
    }
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => Err(Error::Content {
            path: dir.to_owned(),
            reason: format!(
                "holds `{}` and `{}`, and only one belongs to the weights",
                first.display(),
                second.display()
            ),
            help: Some("name it with `--tokens`, `--medians` or `--ensembl-map`"),
        }),
    }
}

impl GeneDictionaries {
    /// Dictionaries of these tokens, medians and other names; `path` names the culprit.
    ///
    /// # Errors
    /// When ids are not 0 to V-1, a special token is missing, a median is not a number above 0, or
    /// no gene has both.
    pub fn new(
        tokens: IndexMap<String, usize>,
        medians: IndexMap<String, f64>,
        other_names: IndexMap<String, String>,
        path: &Path,
    ) -> Result<Self> {
        let mut by_id: Vec<(String, usize)> = tokens.into_iter().collect();
        by_id.sort_by_key(|(_, id)| *id);
        let gap = by_id
            .iter()
            .enumerate()
            .find(|(place, (_, id))| place != id);
        if let Some((place, (token, id))) = gap {
            return Err(Error::content(
                path,
                format!(
                    "ids must be 0 to {} without gaps, but `{token}` has id {id} where {place} is due",
                    by_id.len() - 1
                ),
            ));
        }
        let tokens: IndexMap<String, usize> = by_id.into_iter().collect();
        if let Some(missing) = [PAD, MASK].iter().find(|name| !tokens.contains_key(**name)) {
            return Err(Error::content(path, format!("has no token `{missing}`")));
        }
        let wrong = medians.iter().find(|(_, m)| !(m.is_finite() && **m > 0.0));
        if let Some((gene, median)) = wrong {
            return Err(Error::content(
                path,
                format!("the median of `{gene}` is {median}, expected a number above 0"),
            ));
        }
        if !medians.keys().any(|gene| tokens.contains_key(gene)) {
            let first = |names: Vec<&String>| {
                let gene = names.into_iter().find(|n| !n.starts_with('<'));
                gene.cloned().unwrap_or_default()
            };
            return Err(Error::Content {
                path: path.to_owned(),
                reason: format!(
                    "no gene has both a token and a median: tokens are of genes such as `{}`, \
                     medians of `{}`",
                    first(tokens.keys().collect()),
                    first(medians.keys().collect())
                ),
                help: Some("both dictionaries must be of the same generation"),
            });
        }
        Ok(Self {
            tokens,
            medians,
            other_names,
        })
    }

    /// Reads the pickles that the authors publish.
    ///
    /// # Errors
    /// When one is malformed, refers to classes that numbers do not need, or holds other values.
    pub fn from_pickles(pickles: &Pickles) -> Result<Self> {
        let tokens = read_pickle(&pickles.tokens, |value| match value {
            DictionaryValue::Int(id) => usize::try_from(id).ok(),
            _ => None,
        })?;
        let medians = read_pickle(&pickles.medians, |value| match value {
            DictionaryValue::Float(median) => Some(median),
            DictionaryValue::Int(median) => Some(median as f64),
            DictionaryValue::Text(_) => None,
        })?;
        let other_names = match &pickles.other_names {
            Some(path) => read_pickle(path, |value| match value {
                DictionaryValue::Text(name) => Some(name),
                _ => None,
            })?,
            None => IndexMap::new(),
        };
        Self::new(tokens, medians, other_names, &pickles.tokens)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn read(dir: &Path) -> Result<Self> {
        for stem in [TOKENS, MEDIANS] {
            if !json_path(dir, stem).exists() {
                return Err(Error::MissingFile {
                    dir: dir.to_owned(),
                    wanted: format!("{stem}.json"),
                    help: "published weights come without the dictionaries of genes: \
                           `scpeft-checkpoint convert DIR OUT --tokens token_dictionary….pkl \
                           --medians gene_median_dictionary….pkl` puts them into one directory",
                });
            }
        }
        let names = json_path(dir, OTHER_NAMES);
        let other_names = if names.exists() {
            read_json(&names)?
        } else {
            IndexMap::new()
        };
        Self::new(
            read_json(&json_path(dir, TOKENS))?,
            read_json(&json_path(dir, MEDIANS))?,
            other_names,
            dir,
        )
    }

    /// Writes the dictionaries as JSON, with every digit of the medians.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&json_path(dir, TOKENS), &self.tokens)?;
        write_json(&json_path(dir, MEDIANS), &self.medians)?;
        if !self.other_names.is_empty() {
            write_json(&json_path(dir, OTHER_NAMES), &self.other_names)?;
        }
        Ok(())
    }

    /// Number of tokens V.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token; never.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens with their ids, in the order of ids.
    pub fn tokens(&self) -> &IndexMap<String, usize> {
        &self.tokens
    }

    /// Medians by gene.
    pub fn medians(&self) -> &IndexMap<String, f64> {
        &self.medians
    }

    /// Other names of genes.
    pub fn other_names(&self) -> &IndexMap<String, String> {
        &self.other_names
    }
}

fn json_path(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.json"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&fsx::read(path)?).map_err(|e| Error::content(path, e.to_string()))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::content(path, e.to_string()))?;
    fsx::write_atomic(path, text.as_bytes())
}

/// A pickled dictionary whose values `take` accepts.
fn read_pickle<T>(
    path: &Path,
    take: impl Fn(DictionaryValue) -> Option<T>,
) -> Result<IndexMap<String, T>> {
    let entries = pickle::read_dictionary(&fsx::read(path)?).map_err(|e| match e {
        PickleError::Forbidden(class) => Error::content(
            path,
            format!("refers to the Python class `{class}`, which no dictionary of genes needs"),
        ),
        PickleError::Malformed(reason) => Error::damaged(path, format!("its pickle: {reason}")),
        PickleError::Limit(reason) => Error::content(path, format!("its pickle: {reason}")),
    })?;
    let mut map = IndexMap::with_capacity(entries.len());
    for (name, value) in entries {
        let shown = format!("{value:?}");
        let Some(value) = take(value) else {
            return Err(Error::content(
                path,
                format!("the value of `{name}` is {shown}, which another dictionary would hold"),
            ));
        };
        map.insert(name, value);
    }
    Ok(map)
}
