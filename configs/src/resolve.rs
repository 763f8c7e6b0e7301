//! From file text and overrides to a [`Config`] that knows where each value came from.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::error::{At, ConfigError, ConfigErrors};
use crate::field::{Field, Section};
use crate::schema::{
    AdapterSection, BackboneSection, CheckpointSection, Config, DataSection, DrugSection,
    LogSection, MetricsSection, PerturbationSection, RunSection, Shape, TaskSection, TrainSection,
    WatchdogSection,
};
use crate::validate::validate;

/// Where the value of a key came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// The configuration file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// Line of the key, counted from 1.
        line: usize,
    },
    /// A `--set key=value`.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Override => f.write_str("--set"),
        }
    }
}

/// A valid configuration with the origin of each of its keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    /// Dotted key to origin, in the order of the schema; keys that do not apply are absent.
    pub origins: IndexMap<String, Origin>,
}

/// A value as given, before it is checked against the schema.
struct Given {
    value: Value,
    at: At,
}

/// The given values and the mistakes found while sections take theirs.
pub(crate) struct Reader {
    given: IndexMap<String, Given>,
    /// Where each key and table of the file begins.
    in_file: BTreeMap<String, At>,
    /// Where each key that a section took was written.
    pub(crate) places: IndexMap<&'static str, At>,
    /// Keys whose value was refused; their default stands in and is not checked further.
    pub(crate) refused: HashSet<&'static str>,
    pub(crate) errors: Vec<ConfigError>,
}

impl Reader {
    /// The value of `key`, or its default when it was not given or is of the wrong type.
    pub(crate) fn take<T: Field>(&mut self, key: &'static str, default: impl Fn() -> T) -> T {
        let Some(Given { value, at }) = self.given.shift_remove(key) else {
            return default();
        };
        self.places.insert(key, at.clone());
        T::parse(&value).unwrap_or_else(|mismatch| {
            let suggestion = value
                .as_str()
                .and_then(|text| nearest(text, mismatch.choices.iter().copied()))
                .map(|name| format!("did you mean `{name}`?"));
            self.refused.insert(key);
            self.errors.push(ConfigError::Type {
                at,
                key: key.to_owned(),
                expected: mismatch.expected,
                found: describe(&value),
                suggestion,
            });
            default()
        })
    }

    /// Whether the file or an override gave this key.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Where the key was written, if it was.
    pub(crate) fn at(&self, key: &str) -> At {
        self.places.get(key).cloned().unwrap_or(At::Unset)
    }

    /// Reports what no section took.
    fn report_rest(&mut self) {
        let sections = sections();
        let mut unknown_sections: IndexMap<String, At> = IndexMap::new();
        for (key, given) in std::mem::take(&mut self.given) {
            let empty_table = given.value.is_table();
            let (section, leaf) = key.rsplit_once('.').unwrap_or(("", &key));
            if sections.contains_key(key.as_str()) {
                if !empty_table {
                    self.errors.push(ConfigError::Type {
                        at: given.at,
                        key,
                        expected: "a section".to_owned(),
                        found: describe(&given.value),
                        suggestion: None,
                    });
                }
            } else if empty_table {
                unknown_sections.entry(key).or_insert(given.at);
            } else if section.is_empty() || sections.contains_key(section) {
                let suggestion = Some(suggest_key(section, leaf, &sections));
                self.errors.push(ConfigError::UnknownKey {
                    at: given.at,
                    key,
                    suggestion,
                });
            } else {
                let at = self.in_file.get(section).cloned().unwrap_or(given.at);
                unknown_sections.entry(section.to_owned()).or_insert(at);
            }
        }
        for (section, at) in unknown_sections {
            let suggestion = nearest(&section, sections.keys().copied())
                .map(|name| format!("did you mean `[{name}]`?"));
            self.errors.push(ConfigError::UnknownSection {
                at,
                section,
                suggestion,
            });
        }
    }
}

/// Resolves a configuration: defaults, then the file's values, then the overrides
/// (`section.key=value`, where the value is TOML or a bare string), the last one winning.
///
/// # Errors
/// Every mistake at once.
pub fn resolve(
    file: Option<(&Path, &str)>,
    overrides: &[String],
) -> Result<Resolved, ConfigErrors> {
    let (mut given, in_file) = match file {
        Some((path, text)) => read_text(path, text).map_err(ConfigErrors::new)?,
        None => Default::default(),
    };
    let mut errors = Vec::new();
    for text in overrides {
        match read_override(text) {
            Some((key, value)) => {
                let at = At::Override(text.clone());
                flatten(&key, value, &mut |key, value| {
                    given.insert(
                        key,
                        Given {
                            value,
                            at: at.clone(),
                        },
                    );
                });
            }
            None => errors.push(ConfigError::Override { text: text.clone() }),
        }
    }
    let (places, refused) = (IndexMap::new(), HashSet::new());
    let mut reader = Reader {
        given,
        in_file,
        places,
        refused,
        errors,
    };
    let mut config = Config {
        run: RunSection::read(&mut reader),
        data: DataSection::read(&mut reader),
        backbone: BackboneSection::read(&mut reader),
        adapter: AdapterSection::read(&mut reader),
        task: TaskSection::read(&mut reader),
        perturbation: PerturbationSection::read(&mut reader),
        train: TrainSection::read(&mut reader),
        checkpoint: CheckpointSection::read(&mut reader),
        log: LogSection::read(&mut reader),
        metrics: MetricsSection::read(&mut reader),
        watchdog: WatchdogSection::read(&mut reader),
    };
    reader.report_rest();
    if !reader.is_given("run.name")
        && let Some(last) = config.run.dir.file_name()
    {
        config.run.name = last.to_string_lossy().into_owned();
    }
    validate(&config, &mut reader);
    if !reader.errors.is_empty() {
        return Err(ConfigErrors::new(reader.errors));
    }
    let origins = origins(&config, &reader);
    Ok(Resolved { config, origins })
}

/// Reads a configuration file and resolves it.
///
/// # Errors
/// When the file cannot be read, and as [`resolve`].
pub fn load(path: &Path, overrides: &[String]) -> Result<Resolved, ConfigErrors> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let reason = error.to_string();
        ConfigErrors::new(vec![ConfigError::Read {
            path: path.to_owned(),
            reason,
        }])
    })?;
    resolve(Some((path, &text)), overrides)
}

/// The reference manual: every section and key with its documentation, as text.
pub fn manual() -> String {
    let mut text = String::new();
    for (section, keys) in sections() {
        let _ = writeln!(text, "[{section}]");
        for (key, lines) in keys {
            let _ = writeln!(text, "  {key}");
            for line in *lines {
                let _ = writeln!(text, "     {line}");
            }
        }
        text.push('\n');
    }
    text
}

type Keys = &'static [(&'static str, &'static [&'static str])];

/// Every section with its keys, in the order of the schema.
fn sections() -> IndexMap<&'static str, Keys> {
    fn entry<S: Section>() -> (&'static str, Keys) {
        (S::PATH, S::KEYS)
    }
    IndexMap::from([
        entry::<RunSection>(),
        entry::<DataSection>(),
        entry::<BackboneSection>(),
        entry::<Shape>(),
        entry::<AdapterSection>(),
        entry::<DrugSection>(),
        entry::<TaskSection>(),
        entry::<PerturbationSection>(),
        entry::<TrainSection>(),
        entry::<CheckpointSection>(),
        entry::<LogSection>(),
        entry::<MetricsSection>(),
        entry::<WatchdogSection>(),
    ])
}

/// Values by dotted key, empty tables kept as themselves, and where each key or table begins.
type Text = (IndexMap<String, Given>, BTreeMap<String, At>);

fn read_text(path: &Path, text: &str) -> Result<Text, Vec<ConfigError>> {
    let line_of = |offset: usize| {
        let end = offset.min(text.len());
        text.as_bytes()[..end].split(|&byte| byte == b'\n').count()
    };
    let at = |offset| At::File {
        path: path.to_owned(),
        line: line_of(offset),
    };
    let syntax = |error: &toml::de::Error| ConfigError::Syntax {
        at: at(error.span().map_or(0, |span| span.start)),
        reason: error.message().trim().replace('\n', ", "),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(syntax).collect());
    }
    let values: toml::Table = toml::from_str(text).map_err(|e| vec![syntax(&e)])?;
    let mut offsets = BTreeMap::new();
    key_offsets("", table.get_ref(), &mut offsets);
    let mut given = IndexMap::new();
    flatten("", Value::Table(values), &mut |key, value| {
        let offset = offsets.get(&key).copied().unwrap_or(0);
        given.insert(
            key,
            Given {
                value,
                at: at(offset),
            },
        );
    });
    let places = offsets
        .into_iter()
        .map(|(key, offset)| (key, at(offset)))
        .collect();
    Ok((given, places))
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn key_offsets(prefix: &str, table: &DeTable<'_>, offsets: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        offsets.insert(path.clone(), key.span().start);
        if let DeValue::Table(inner) = value.get_ref() {
            key_offsets(&path, inner, offsets);
        }
    }
}

/// Calls `found` for every leaf below `key`, and for every empty table.
fn flatten(key: &str, value: Value, found: &mut dyn FnMut(String, Value)) {
    match value {
        Value::Table(table) if key.is_empty() || !table.is_empty() => {
            for (name, inner) in table {
                flatten(&join(key, &name), inner, found);
            }
        }
        leaf => found(key.to_owned(), leaf),
    }
}

/// Splits `key=value`; a value that is not TOML is taken as a string.
fn read_override(text: &str) -> Option<(String, Value)> {
    let (key, raw) = text.split_once('=')?;
    let (key, raw) = (key.trim(), raw.trim());
    if key.is_empty() || key.split('.').any(|part| part.trim().is_empty()) {
        return None;
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {raw}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    Some((
        key.to_owned(),
        parsed.unwrap_or_else(|| Value::String(raw.to_owned())),
    ))
}

/// The value as an error message shows it, long ones shortened.
fn describe(value: &Value) -> String {
    let kind = match value {
        Value::String(_) => "the string ",
        Value::Array(_) => "the list ",
        Value::Table(_) => return "a section".to_owned(),
        _ => "",
    };
    let text = value.to_string();
    let text = if text.chars().count() > 60 {
        format!("{}…", text.chars().take(60).collect::<String>())
    } else {
        text
    };
    format!("{kind}`{text}`")
}

/// The candidate closest to `text`, if one is close enough to be a slip of the pen.
fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|name| (strsim::jaro_winkler(&text.to_lowercase(), name), name))
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

fn suggest_key(section: &str, leaf: &str, sections: &IndexMap<&'static str, Keys>) -> String {
    let owner = sections
        .iter()
        .find(|(_, keys)| keys.iter().any(|(key, _)| *key == leaf));
    if let Some((owner, _)) = owner {
        return format!("`{leaf}` belongs to `[{owner}]`");
    }
    let keys = sections.get(section).copied().unwrap_or(&[]);
    if let Some(name) = nearest(leaf, keys.iter().map(|(key, _)| *key)) {
        return format!("did you mean `{name}`?");
    }
    if keys.is_empty() {
        let names: Vec<_> = sections.keys().map(|name| format!("[{name}]")).collect();
        return format!("keys live in sections: {}", names.join(", "));
    }
    let names: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    format!("`[{section}]` has {}", names.join(", "))
}

fn origins(config: &Config, reader: &Reader) -> IndexMap<String, Origin> {
    let mut origins = IndexMap::new();
    crate::render::visit(config, &mut |section, values| {
        for (key, _) in values {
            let key = format!("{section}.{key}");
            let origin = match reader.at(&key) {
                At::Unset => Origin::Default,
                At::File { path, line } => Origin::File { path, line },
                At::Override(_) => Origin::Override,
            };
            origins.insert(key, origin);
        }
    });
    origins
}
