//! Settings of the drug-conditional adapter as files name them.

use serde::{Deserialize, Serialize};

/// Where the molecule enters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DrugReading {
    /// Bottlenecks whose biases the molecule generates:
    /// `drug_adapters.{i}.attn|ffn.down|up|f_down.net|f_up.net.weight|bias`.
    Bottleneck {
        /// Sublayers that carry one.
        site: DrugSite,
        /// Its width.
        bottleneck: usize,
        /// What the molecule generates.
        bias: DrugBias,
        /// Width between the two layers of the generator; absent when it is one layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generator_hidden: Option<usize>,
        /// Inside the bottleneck.
        activation: DrugActivation,
    },
    /// Keys and values of some tokens: `drug_adapters.{i}.to_k|to_v.weight|bias`.
    Prefix {
        /// Tokens of a layer.
        token_nums: usize,
    },
    /// Added to the embedding: `drug_proj.weight|bias`.
    InputAdd {},
}

/// Sublayers with a bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrugSite {
    /// The feed-forward half.
    FeedForward,
    /// The attention.
    Attention,
    /// Both.
    Both,
}

/// What the molecule generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrugBias {
    /// The bias of the down projection.
    Down,
    /// The biases of both projections.
    DownAndUp,
    /// Nothing.
    Static,
}

/// Inside the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrugActivation {
    /// max(0, x).
    Relu,
    /// The exact GELU.
    Gelu,
}

impl DrugReading {
    /// Whether layers carry it.
    pub(super) fn in_layers(&self) -> bool {
        !matches!(self, Self::InputAdd {})
    }

    /// What is wrong with the settings, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let zero = match self {
            Self::Bottleneck { bottleneck: 0, .. } => "bottleneck",
            Self::Bottleneck {
                generator_hidden: Some(0),
                ..
            } => "generator_hidden",
            Self::Prefix { token_nums: 0 } => "token_nums",
            _ => return None,
        };
        Some(format!("`{zero}` must be at least 1"))
    }
}
