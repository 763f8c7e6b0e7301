//! A resolved configuration as TOML, each key with its origin.

use std::fmt::Write as _;

use toml::Value;

use crate::field::Section;
use crate::resolve::{Origin, Resolved};
use crate::schema::Config;

/// Calls `found` for every section with its keys and values, leaving out keys that do not apply:
/// the shape and vocabulary of a backbone that brings its own.
pub(crate) fn visit(
    config: &Config,
    found: &mut dyn FnMut(&'static str, Vec<(&'static str, Option<Value>)>),
) {
    let published = config.backbone.path.is_some();
    let mut keep = |section: &'static str, mut values: Vec<(&'static str, Option<Value>)>| {
        if published && section == "backbone.shape" {
            return;
        }
        if published && section == "backbone" {
            values.retain(|(key, _)| *key != "vocab");
        }
        found(section, values);
    };
    config.run.visit(&mut keep);
    config.data.visit(&mut keep);
    config.backbone.visit(&mut keep);
    config.adapter.visit(&mut keep);
    config.task.visit(&mut keep);
    config.perturbation.visit(&mut keep);
    config.train.visit(&mut keep);
    config.checkpoint.visit(&mut keep);
    config.log.visit(&mut keep);
    config.metrics.visit(&mut keep);
    config.watchdog.visit(&mut keep);
}

impl Resolved {
    /// The configuration as TOML that resolves to the same [`Config`]: every key with its value
    /// and, as a comment, where the value came from. Unset keys appear as comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        visit(&self.config, &mut |section, values| {
            if !text.is_empty() {
                text.push('\n');
            }
            let _ = writeln!(text, "[{section}]");
            for (key, value) in values {
                let origin = self.origins.get(&format!("{section}.{key}"));
                let origin = comment(origin.unwrap_or(&Origin::Default));
                let _ = match value {
                    Some(value) => writeln!(text, "{key} = {value} # {origin}"),
                    None => writeln!(text, "# {key} is unset # {origin}"),
                };
            }
        });
        text
    }
}

/// The origin on one line: a file name may hold characters that end a comment.
fn comment(origin: &Origin) -> String {
    origin
        .to_string()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
