//! What the page never shows: credentials in URLs, values of secret settings and of the secret
//! variables of the environment.

use serde_json::Value;

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";
/// A shorter value is a word that may stand anywhere.
const VALUE_BYTES_MIN: usize = 6;
/// Parts of names whose values are secret. `token` alone would hide settings about gene tokens.
const SECRET_NAMES: &[&str] = &[
    "secret",
    "password",
    "passwd",
    "credential",
    "access_key",
    "accesskey",
    "api_key",
    "apikey",
    "account_key",
    "private_key",
    "auth_token",
    "access_token",
    "session_token",
    "security_token",
    "bearer",
    "signature",
];
/// Names of query parameters that sign a URL.
const SIGNING: &[&str] = &["sig", "sv", "se", "sp", "token", "key"];

/// Hides secrets in texts.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    values: Vec<String>,
}

/// Whether what has this name is secret.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

impl Redactor {
    /// One that knows the secret variables among `environment`.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let secret =
            |name: &str| is_secret_name(name) || name.to_ascii_uppercase().contains("TOKEN");
        let mut values: Vec<String> = environment
            .into_iter()
            .filter(|(name, value)| secret(name) && value.len() >= VALUE_BYTES_MIN)
            .map(|(_, value)| value)
            .collect();
        // A secret that contains another one goes first.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values }
    }

    /// One that knows this process's environment.
    pub fn of_this_process() -> Self {
        let lossy = |word: std::ffi::OsString| word.to_string_lossy().into_owned();
        Self::new(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
    }

    /// Adds a value that must not be shown.
    #[must_use]
    pub fn and(mut self, value: &str) -> Self {
        if value.len() >= VALUE_BYTES_MIN {
            self.values.push(value.to_owned());
        }
        self
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut shown = text.to_owned();
        for value in &self.values {
            if shown.contains(value.as_str()) {
                shown = shown.replace(value.as_str(), HIDDEN);
            }
        }
        if shown.contains("://") {
            shown = without_credentials(&shown);
        }
        if shown.contains('=') {
            shown = without_assignments(&shown);
        }
        shown
    }

    /// Hides what is secret in every string of a JSON value, names left alone.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let shown = self.text(text);
                if shown != *text {
                    *text = shown;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.value(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.value(value)),
            _ => {}
        }
    }

    /// The value of a setting, hidden when its name says so.
    pub fn setting(&self, name: &str, value: &str) -> String {
        if is_secret_name(name) {
            HIDDEN.to_owned()
        } else {
            self.text(value)
        }
    }
}

/// Where a URL ends in a text.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || "\"'`<>|,;)]}".contains(c)
}

/// Takes `user:password@` and signing query parameters out of every URL of a text.
fn without_credentials(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        // A password may hold characters that end a URL elsewhere; an `@` on the way tells.
        let line = &after[..after.find(char::is_whitespace).unwrap_or(after.len())];
        let authority = &line[..line.find(['/', '?', '#']).unwrap_or(line.len())];
        let after = match authority.rfind('@') {
            Some(at) => {
                shown.push_str(HIDDEN);
                &after[at..]
            }
            None => after,
        };
        let (url, tail) = after.split_at(after.find(ends_url).unwrap_or(after.len()));
        match url.split_once('?') {
            Some((path, query)) => {
                shown.push_str(path);
                shown.push('?');
                let parts: Vec<String> = query.split('&').map(parameter).collect();
                shown.push_str(&parts.join("&"));
            }
            None => shown.push_str(url),
        }
        rest = tail;
    }
    shown.push_str(rest);
    shown
}

fn parameter(part: &str) -> String {
    match part.split_once('=') {
        Some((name, _)) if is_secret_name(name) || SIGNING.contains(&name) => {
            format!("{name}={HIDDEN}")
        }
        _ => part.to_owned(),
    }
}

/// Hides the value of `NAME=value` where the name is that of a secret.
fn without_assignments(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let mut rest = text;
    while let Some(at) = rest.find('=') {
        let (before, after) = rest.split_at(at + 1);
        shown.push_str(before);
        let name_begins = before[..at].rfind(|c| !is_name(c)).map_or(0, |at| {
            at + before[at..].chars().next().map_or(1, char::len_utf8)
        });
        let ends = |c: char| c.is_whitespace() || "&\"'`,;".contains(c);
        // A quoted value ends with its quote.
        let quote = after.chars().next().filter(|c| "\"'".contains(*c));
        let end = match quote {
            Some(quote) => after[1..].find(quote).map_or(after.len(), |at| at + 2),
            None => after.find(ends).unwrap_or(after.len()),
        };
        if is_secret_name(&before[name_begins..at]) && end > 0 {
            shown.push_str(HIDDEN);
            rest = &after[end..];
        } else {
            rest = after;
        }
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_urls_are_hidden_wherever_they_stand() {
        let redactor = Redactor::default();
        for (text, expected) in [
            ("s3://bucket/cells", "s3://bucket/cells"),
            ("https://u:p@h/x y", "https://[hidden]@h/x y"),
            (
                "at `https://u:p%40q@h:9/x`, again",
                "at `https://[hidden]@h:9/x`, again",
            ),
            ("https://u:p'w,1@h/x", "https://[hidden]@h/x"),
            (
                "a https://k@h and az://c:d@e",
                "a https://[hidden]@h and az://[hidden]@e",
            ),
            ("https://h/x?sig=a%2Fb&n=1", "https://h/x?sig=[hidden]&n=1"),
            (
                "https://h/?X-Amz-Signature=ab&X-Amz-Credential=cd",
                "https://h/?X-Amz-Signature=[hidden]&X-Amz-Credential=[hidden]",
            ),
            ("mail a@b.c", "mail a@b.c"),
            ("://", "://"),
        ] {
            assert_eq!(redactor.text(text), expected);
        }
    }

    #[test]
    fn secret_variables_and_settings_are_hidden_and_others_are_not() {
        let environment = [
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
            ("HF_TOKEN", "hf_abcdef"),
            ("HOME", "/root/home"),
            ("SHORT_TOKEN", "a"),
        ];
        let pairs = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let redactor = Redactor::new(pairs).and("0123456789abcdef");
        for (text, expected) in [
            ("key wJalrXUtnFEMI, hf_abcdef", "key [hidden], [hidden]"),
            ("in /root/home a", "in /root/home a"),
            ("#token=0123456789abcdef", "#token=[hidden]"),
            (
                "AWS_SECRET_ACCESS_KEY=x1 a=b",
                "AWS_SECRET_ACCESS_KEY=[hidden] a=b",
            ),
            (
                "--set store.password=\"a b\" --set a=1",
                "--set store.password=[hidden] --set a=1",
            ),
            ("é password=x", "é password=[hidden]"),
            ("micro_batch_tokens=12", "micro_batch_tokens=12"),
        ] {
            assert_eq!(redactor.text(text), expected);
        }
        assert_eq!(redactor.setting("access_key", "x"), HIDDEN);
        assert_eq!(redactor.setting("token_nums", "8"), "8");
        let mut value = serde_json::json!({"a": ["hf_abcdef", 1, {"b": "https://u:p@h"}]});
        redactor.value(&mut value);
        assert_eq!(
            value.to_string(),
            r#"{"a":["[hidden]",1,{"b":"https://[hidden]@h"}]}"#
        );
    }
}
