//! What is said of the sizes of a model.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fsx;

/// The only architecture that is read.
const MODEL: &str = "mae_autobin";

/// The fields that matter, typed, and all others as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScfoundationConfig {
    /// Always `mae_autobin`.
    #[serde(default = "mae_autobin")]
    pub model: String,
    /// Genes and the two read depths.
    pub seq_len: usize,
    /// Bins of the auto-discretisation.
    pub bin_num: usize,
    /// Weight of a bin's own activation.
    #[serde(default = "one")]
    pub bin_alpha: f64,
    /// The number that stands for padding.
    pub pad_token_id: f64,
    /// The number that stands for a hidden value.
    pub mask_token_id: f64,
    /// The encoder.
    pub encoder: StackConfig,
    /// The decoder, where the weights have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<StackConfig>,
    /// Every other field.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A stack of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackConfig {
    /// Width of the hidden states.
    pub hidden_dim: usize,
    /// Layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head; a share of the hidden width when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dim_head: Option<usize>,
    /// Width of the feed-forward layer; four times the hidden width when absent. Published files leave
    /// it to the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ff_dim: Option<usize>,
    /// `transformer` or `performer`.
    pub module_type: String,
    /// Whether norms come before attention and feed-forward half.
    #[serde(default)]
    pub norm_first: bool,
    /// Every other field.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

fn mae_autobin() -> String {
    MODEL.to_owned()
}
fn one() -> f64 {
    1.0
}

impl StackConfig {
    /// Width of the feed-forward layer.
    pub fn feed_forward(&self) -> usize {
        self.ff_dim.unwrap_or(4 * self.hidden_dim)
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.dim_head.unwrap_or(self.hidden_dim / self.heads.max(1))
    }
}

impl ScfoundationConfig {
    /// Reads the file that a conversion wrote.
    ///
    /// # Errors
    /// When it is not JSON, a needed field is missing or of the wrong type, or it describes another
    /// architecture.
    pub fn read(path: &Path) -> Result<Self> {
        let value = serde_json::from_slice(&fsx::read(path)?)
            .map_err(|e| Error::content(path, e.to_string()))?;
        Self::checked(value, path)
    }

    /// From the settings of a published model, the entries of `model_config.mae_autobin` and
    /// `dataset_config.rnaseq` side by side.
    ///
    /// # Errors
    /// As [`ScfoundationConfig::read`].
    pub fn from_published(settings: &Value, path: &Path) -> Result<Self> {
        let mut flat = Map::new();
        for part in ["/model_config/mae_autobin", "/dataset_config/rnaseq"] {
            let entries = settings.pointer(part).and_then(Value::as_object);
            let entries = entries.ok_or_else(|| {
                Error::content(
                    path,
                    format!("its settings have no `{}`", &part[1..].replace('/', ".")),
                )
            })?;
            flat.extend(entries.clone());
        }
        Self::checked(Value::Object(flat), path)
    }

    fn checked(value: Value, path: &Path) -> Result<Self> {
        let config: Self =
            serde_json::from_value(value).map_err(|e| Error::content(path, e.to_string()))?;
        let refuse = |key: &str, found: &str, expected: &str| {
            Err(Error::content(
                path,
                format!("`{key}` is `{found}`, only `{expected}` is read"),
            ))
        };
        if config.model != MODEL {
            return refuse("model", &config.model, MODEL);
        }
        let encoder = &config.encoder;
        let stacks = [
            ("encoder", Some(encoder), "transformer"),
            ("decoder", config.decoder.as_ref(), "performer"),
        ];
        for (name, stack, kind) in stacks {
            let Some(stack) = stack else { continue };
            if stack.module_type != kind {
                return refuse(&format!("{name}.module_type"), &stack.module_type, kind);
            }
            let sizes = [
                stack.hidden_dim,
                stack.depth,
                stack.heads,
                stack.head_width(),
            ];
            if sizes.contains(&0) {
                return Err(Error::content(
                    path,
                    format!("a size of `{name}` is 0: {sizes:?}"),
                ));
            }
        }
        if encoder.norm_first {
            return refuse("encoder.norm_first", "true", "false");
        }
        if config.bin_num == 0
            || config.seq_len < 3
            || !encoder.hidden_dim.is_multiple_of(encoder.heads)
        {
            return Err(Error::content(
                path,
                format!(
                    "`bin_num` must be above 0, `seq_len` at least 3 and `encoder.hidden_dim` a multiple \
                     of `encoder.heads`; got {}, {}, {} and {}",
                    config.bin_num, config.seq_len, encoder.hidden_dim, encoder.heads
                ),
            ));
        }
        Ok(config)
    }
}
