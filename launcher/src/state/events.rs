//! Events of `events.jsonl` in words.

use crate::relay::Outcome;
use serde::Serialize;
use serde_json::Value;

/// How an event is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// Worth knowing.
    Plain,
    /// As it should be.
    Good,
    /// Look here.
    Bad,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Unix time.
    pub time: f64,
    /// As the file has it.
    pub kind: String,
    /// In words.
    pub text: String,
    /// How it is to be taken.
    pub tone: Tone,
}

impl Event {
    /// Puts an event into words; one of a kind that is not known here by its name and fields.
    pub fn of(event: &Value) -> Self {
        let kind = event["kind"].as_str().unwrap_or_default();
        let (tone, text) = match kind {
            "start" => (
                Tone::Plain,
                format!("Started on {}", counted(&event["ranks"], "rank")),
            ),
            "done" => (Tone::Good, "Everything was done".to_owned()),
            "stop" => (Tone::Plain, stopped(event)),
            "failure" => (Tone::Bad, failed(event)),
            "restart" => (Tone::Plain, restarted(event)),
            "give-up" => (
                Tone::Bad,
                format!(
                    "Given up after {} without progress",
                    counted(&event["restarts"], "restart")
                ),
            ),
            "ask" if event["what"] == "save" => (
                Tone::Plain,
                "A checkpoint was asked for on the page".to_owned(),
            ),
            "ask" => (Tone::Plain, "A stop was asked for on the page".to_owned()),
            _ => (Tone::Plain, by_fields(kind, event)),
        };
        Self {
            time: event["time"].as_f64().unwrap_or(0.0),
            kind: kind.to_owned(),
            text,
            tone,
        }
    }
}

fn counted(count: &Value, thing: &str) -> String {
    match count.as_u64() {
        Some(1) => format!("1 {thing}"),
        Some(count) => format!("{count} {thing}s"),
        None => format!("some {thing}s"),
    }
}

fn stopped(event: &Value) -> String {
    match event["code"].as_i64() {
        None => "Stopped on request while waiting to start again".into(),
        Some(85) => "Stopped on request, state saved".into(),
        Some(code) => format!("Stopped on request (exit code {code})"),
    }
}

fn failed(event: &Value) -> String {
    let code = event["code"]
        .as_i64()
        .and_then(|code| i32::try_from(code).ok());
    let meaning = code.and_then(|code| Outcome::with(code).message);
    let meaning = meaning.unwrap_or_else(|| "the run failed".into());
    let mut text = match (event["rank"].as_u64(), event["host"].as_str()) {
        (Some(rank), Some(host)) => format!("Rank {rank} on {host} failed first: {meaning}"),
        _ => format!("Failed: {meaning}"),
    };
    if let Some(cause) = event["cause"].as_str() {
        text.push_str(". Likely cause: ");
        text.push_str(cause);
    }
    text
}

fn restarted(event: &Value) -> String {
    let from = match event["checkpoint_step"].as_u64() {
        Some(0) | None => "from the beginning".to_owned(),
        Some(step) => format!("from the checkpoint of step {step}"),
    };
    match event["after_seconds"].as_u64() {
        Some(seconds) => format!("Starts again after {seconds} s, {from}"),
        None => format!("Starts again, {from}"),
    }
}

fn by_fields(kind: &str, event: &Value) -> String {
    let fields = event.as_object().into_iter().flatten();
    let fields: Vec<String> = fields
        .filter(|(name, value)| !["time", "kind"].contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| match value.as_str() {
            Some(text) => format!("{name} {text}"),
            None => format!("{name} {value}"),
        })
        .collect();
    let mut text = kind.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if !fields.is_empty() {
        text.push_str(": ");
        text.push_str(&fields.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_told_in_words() {
        let text = |event: Value| Event::of(&event).text;
        let failure = json!({"kind": "failure", "code": 3, "rank": 1, "host": "n2", "signal": null,
                             "cause": "the corpus"});
        for (event, expected) in [
            (json!({"kind": "start", "ranks": 1}), "Started on 1 rank"),
            (
                json!({"kind": "stop", "code": 85}),
                "Stopped on request, state saved",
            ),
            (
                json!({"kind": "restart", "after_seconds": 2, "checkpoint_step": 40, "step": 44}),
                "Starts again after 2 s, from the checkpoint of step 40",
            ),
            (
                json!({"kind": "shrink", "ranks": 3, "host": "n1"}),
                "Shrink: ranks 3, host n1",
            ),
            (json!({"kind": ""}), ""),
        ] {
            assert_eq!(text(event), expected);
        }
        let failure = Event::of(&failure);
        assert_eq!(failure.tone, Tone::Bad);
        assert!(
            failure
                .text
                .starts_with("Rank 1 on n2 failed first: the corpus or an input")
        );
        assert!(
            failure.text.ends_with("Likely cause: the corpus"),
            "{}",
            failure.text
        );
    }
}
