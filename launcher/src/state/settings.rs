//! `config.toml` of a run directory as a list: every key with its value and where it came from.

use serde::Serialize;

/// A key of the resolved configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its section.
    pub section: String,
    /// Its name.
    pub key: String,
    /// As TOML; `None` when it is unset.
    pub value: Option<String>,
    /// Where the value came from: `default`, a file with a line, or `--set`.
    pub origin: String,
}

/// Reads what `scpeft-train` writes: `key = value # origin` and `# key is unset # origin` lines.
pub(super) fn parse(text: &str) -> Vec<Setting> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let (setting, origin) = line.rsplit_once(" # ").unwrap_or((line, ""));
        let unset = setting
            .strip_prefix("# ")
            .and_then(|setting| setting.strip_suffix(" is unset"));
        let (key, value) = match (unset, setting.split_once(" = ")) {
            (Some(key), _) => (key, None),
            (None, Some((key, value))) if !key.starts_with('#') => (key, Some(value.to_owned())),
            _ => continue,
        };
        found.push(Setting {
            section: section.clone(),
            key: key.to_owned(),
            value,
            origin: origin.to_owned(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_origins_are_told_apart() {
        let text = "[run]\ndir = \"a # b\" # f.toml:4\n# label is unset # default\n\n\
                    # a remark\n[train]\nlr = 0.1 # --set\n";
        let rows: Vec<_> = parse(text)
            .into_iter()
            .map(|s| (s.section, s.key, s.value, s.origin))
            .collect();
        let row = |section: &str, key: &str, value: Option<&str>, origin: &str| {
            (
                section.into(),
                key.into(),
                value.map(Into::into),
                origin.into(),
            )
        };
        assert_eq!(
            rows,
            [
                row("run", "dir", Some("\"a # b\""), "f.toml:4"),
                row("run", "label", None, "default"),
                row("train", "lr", Some("0.1"), "--set"),
            ]
        );
    }
}
