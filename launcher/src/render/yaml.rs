//! Values as YAML, so that whatever a string holds, a reader finds exactly that string.

use serde_json::Value;
use std::fmt::Write as _;

/// One document. Keys are ours and plain; mappings keep their order.
///
/// What follows is indented by two spaces. A text of several plain lines becomes a literal block, any
/// other string that could be taken for something else is quoted and escaped.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

/// Writes a collection as lines of its own, indented by `depth` steps.
fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(text, "{indent}{key}:");
                after_key(text, value, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_collection(item) {
                    // The first key of a mapping stands beside the dash.
                    let mut inner = String::new();
                    block(&mut inner, item, depth + 1);
                    let _ = write!(text, "{indent}- {}", inner.trim_start());
                } else {
                    let _ = write!(text, "{indent}-");
                    after_key(text, item, depth);
                }
            }
        }
        scalar => after_key(text, scalar, depth),
    }
}

/// Writes a value behind `key:` or `-`.
fn after_key(text: &mut String, value: &Value, depth: usize) {
    match value {
        value if is_collection(value) => {
            text.push('\n');
            block(text, value, depth + 1);
        }
        Value::String(string) if is_plain_text(string) => {
            text.push_str(" |\n");
            for line in string.lines() {
                let indent = if line.is_empty() { 0 } else { depth + 1 };
                let _ = writeln!(text, "{}{line}", "  ".repeat(indent));
            }
        }
        Value::String(string) => {
            let _ = writeln!(text, " {}", scalar(string));
        }
        // Numbers, true, false and null; an empty collection in its short form.
        other => {
            let _ = writeln!(text, " {other}");
        }
    }
}

fn is_collection(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Several lines of printable ASCII that a literal block gives back unchanged.
fn is_plain_text(string: &str) -> bool {
    let printable = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
    string.ends_with('\n')
        && !string.ends_with("\n\n")
        && !string.starts_with([' ', '\n'])
        && string.lines().count() > 1
        && string.chars().all(printable)
}

fn scalar(string: &str) -> String {
    // What YAML 1.1 takes for a truth value or for nothing.
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    // An option such as `--config` is plain as well.
    let begins = string.strip_prefix("--").unwrap_or(string);
    let is_plain = begins.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && string.chars().all(plain)
        && !WORDS.contains(&string.to_ascii_lowercase().as_str());
    if is_plain {
        return string.to_owned();
    }
    let mut quoted = String::from('"');
    for c in string.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            '\n' => quoted.push_str("\\n"),
            ' ' => quoted.push(c),
            c if c.is_ascii_graphic() => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn collections_are_nested_and_scalars_keep_their_type() {
        let value = json!({"a": 1, "b": {"c": [true, "true", {"d": "x y", "e": {}}], "f": []},
                           "g": [["1.5", "v1.5", "é", ""]], "h": "one\n\ntwo\n"});
        let expected = "\
a: 1
b:
  c:
    - true
    - \"true\"
    - d: \"x y\"
      e: {}
  f: []
g:
  - - \"1.5\"
    - v1.5
    - \"\\U000000E9\"
    - \"\"
h: |
  one

  two
";
        assert_eq!(document(&value), expected);
    }

    #[test]
    fn nothing_in_a_string_ends_it() {
        for string in [
            "a: b", "x\n- y", "\" # ", "*p", "a\\", "\u{7f}\t", "-", "~", " a\nb\n",
        ] {
            let text = document(&json!([string, "end"]));
            let (first, rest) = text.split_once('\n').unwrap();
            assert!(first.starts_with("- \"") && first.ends_with('"'), "{text}");
            assert_eq!(rest, "- end\n", "{text}");
        }
    }
}
