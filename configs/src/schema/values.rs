//! Keys whose values are more than one name or number.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::choices::{AdapterKind, LayerRule};
use crate::field::{Field, Mismatch};

/// The layers that carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// By rule.
    Rule(LayerRule),
    /// By index, counted from 0.
    List(Vec<usize>),
}

impl Layers {
    /// The chosen layer indices of a backbone with `n_layers` layers, ascending. Indices that the
    /// backbone does not have are returned as the error.
    ///
    /// # Errors
    /// The listed indices that are `>= n_layers`.
    pub fn indices(&self, n_layers: usize) -> Result<Vec<usize>, Vec<usize>> {
        match self {
            Self::Rule(LayerRule::All) => Ok((0..n_layers).collect()),
            Self::Rule(LayerRule::FirstHalf) => Ok((0..n_layers / 2).collect()),
            Self::List(list) => {
                let beyond: Vec<usize> = list.iter().copied().filter(|&i| i >= n_layers).collect();
                if !beyond.is_empty() {
                    return Err(beyond);
                }
                let mut list = list.clone();
                list.sort_unstable();
                Ok(list)
            }
        }
    }
}

impl Field for Layers {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        if value.is_array()
            && let Ok(list) = Vec::parse(value)
        {
            return Ok(Self::List(list));
        }
        LayerRule::parse(value)
            .map(Self::Rule)
            .map_err(|e| Mismatch {
                expected: format!("{} or a list of layer indices such as `[0, 2]`", e.expected),
                choices: e.choices,
            })
    }
    fn render(&self) -> Option<Value> {
        match self {
            Self::Rule(rule) => rule.render(),
            Self::List(list) => list.render(),
        }
    }
}

/// Where the vocabulary of a randomly initialised backbone comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Vocab {
    /// The genes of the corpus.
    Corpus,
    /// A `vocab.json`.
    Path(PathBuf),
}

impl From<String> for Vocab {
    fn from(text: String) -> Self {
        if text == "corpus" {
            Self::Corpus
        } else {
            Self::Path(text.into())
        }
    }
}

impl From<Vocab> for String {
    fn from(vocab: Vocab) -> Self {
        match vocab {
            Vocab::Corpus => "corpus".to_owned(),
            Vocab::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Field for Vocab {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        let expected = "`corpus` or the path of a vocab.json";
        value
            .as_str()
            .map(|s| s.to_owned().into())
            .ok_or_else(|| Mismatch::new(expected))
    }
    fn render(&self) -> Option<Value> {
        Some(Value::String(self.clone().into()))
    }
}

/// How deep cells should have been sequenced: a letter and a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TargetDepth {
    /// `t4`: the log10 of the counts that every cell should have.
    Fixed(f32),
    /// `f2`: a multiple of a cell's own counts.
    Fold(f32),
    /// `a1`: what is added to the log10 of a cell's own counts.
    Added(f32),
}

const TARGET_DEPTH: &str = "`t`, `f` or `a` with a number above 0, such as `t4`";

impl TryFrom<String> for TargetDepth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let rule = text.get(..1).unwrap_or_default();
        let number = text.get(1..).and_then(|n| n.parse::<f32>().ok());
        match (rule, number.filter(|n| n.is_finite() && *n > 0.0)) {
            ("t", Some(depth)) => Ok(Self::Fixed(depth)),
            ("f", Some(fold)) => Ok(Self::Fold(fold)),
            ("a", Some(more)) => Ok(Self::Added(more)),
            _ => Err(format!("expected {TARGET_DEPTH}, found `{text}`")),
        }
    }
}

impl From<TargetDepth> for String {
    fn from(depth: TargetDepth) -> Self {
        match depth {
            TargetDepth::Fixed(depth) => format!("t{depth}"),
            TargetDepth::Fold(fold) => format!("f{fold}"),
            TargetDepth::Added(more) => format!("a{more}"),
        }
    }
}

impl Field for TargetDepth {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        let text = value.as_str().map(str::to_owned);
        text.and_then(|text| text.try_into().ok())
            .ok_or_else(|| Mismatch::new(TARGET_DEPTH))
    }
    fn render(&self) -> Option<Value> {
        Some(Value::String((*self).into()))
    }
}

/// The adapters of a model: one name, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdapterKinds(Vec<AdapterKind>);

impl AdapterKinds {
    /// One kind.
    pub fn one(kind: AdapterKind) -> Self {
        Self(vec![kind])
    }

    /// The kinds as written.
    pub fn listed(&self) -> &[AdapterKind] {
        &self.0
    }

    /// The kinds that are attached: `none` stands for nothing, `hybrid` for two.
    pub fn attached(&self) -> Vec<AdapterKind> {
        let parts = |kind: &AdapterKind| match kind {
            AdapterKind::None => vec![],
            AdapterKind::Hybrid => vec![AdapterKind::Encoder, AdapterKind::Token],
            one => vec![*one],
        };
        self.0.iter().flat_map(parts).collect()
    }

    /// Whether `kind` is attached.
    pub fn has(&self, kind: AdapterKind) -> bool {
        self.attached().contains(&kind)
    }
}

impl std::fmt::Display for AdapterKinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|kind| kind.as_str()).collect();
        f.write_str(&names.join("+"))
    }
}

impl Field for AdapterKinds {
    fn parse(value: &Value) -> Result<Self, Mismatch> {
        if value.is_array() {
            return Vec::parse(value).map(Self);
        }
        AdapterKind::parse(value)
            .map(Self::one)
            .map_err(|e| Mismatch {
                expected: format!("{} or a list of them", e.expected),
                choices: e.choices,
            })
    }
    fn render(&self) -> Option<Value> {
        match self.0.as_slice() {
            [one] => one.render(),
            many => many.to_vec().render(),
        }
    }
}
