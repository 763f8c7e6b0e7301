//! How a rank tells the launcher where it is, and how the launcher asks it to save or to leave.
//!
//! One JSON object a line, over a Unix socket or TCP. A rank connects, says [`Hello`] with the
//! token of the run, then [`Beat`]s at least once a second, so that the age of the last one means
//! liveness; at its end it says [`Bye`]. The launcher answers with [`Command`]s. Whoever does not
//! know the token is cut off at its first line.
//!
//! A rank finds the launcher through [`ADDRESS_VARIABLE`] and [`TOKEN_VARIABLE`]; without them
//! there is nobody to tell and [`Beater`] does nothing. [`Beater`] never blocks the loop and never
//! fails it: a run does not depend on being watched.

mod beater;
mod wire;

pub use beater::{Beater, INTERVAL_MAX, INTERVAL_MIN};
pub use wire::{Address, Connection, LINE_BYTES_MAX, Lines, tokens_match};

use serde::{Deserialize, Serialize};

/// Version of the messages; a launcher refuses others.
pub const VERSION: u32 = 1;

/// Where the launcher listens: `unix:/path` or `tcp:host:port`.
pub const ADDRESS_VARIABLE: &str = "SCPEFT_HEARTBEAT";

/// The secret of the run.
pub const TOKEN_VARIABLE: &str = "SCPEFT_HEARTBEAT_TOKEN";

/// What a rank is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// Everything before the first step.
    Setup,
    /// Waiting for the loader.
    Data,
    /// Forward and backward.
    Forward,
    /// Waiting for the other ranks and exchanging with them.
    Collective,
    /// Clipping and the update.
    Optimizer,
    /// Evaluation.
    Eval,
    /// Writing a checkpoint, or waiting for it.
    Checkpoint,
    /// Everything is done.
    Done,
}

impl Section {
    /// All sections, in the order of [`Beat::section_seconds`].
    pub const ALL: [Self; 8] = [
        Self::Setup,
        Self::Data,
        Self::Forward,
        Self::Collective,
        Self::Optimizer,
        Self::Eval,
        Self::Checkpoint,
        Self::Done,
    ];

    /// Its name in messages and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Collective => "collective",
            Self::Optimizer => "optimizer",
            Self::Eval => "eval",
            Self::Checkpoint => "checkpoint",
            Self::Done => "done",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Who is speaking for a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The program itself.
    #[default]
    Rank,
    /// The process that started it and waits for its end.
    Guard,
}

/// Who a rank is. May be sent again on the same connection when more is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The secret of the run.
    pub token: String,
    /// Who is speaking.
    pub role: Role,
    /// Global rank.
    pub rank: u32,
    /// Ranks in the run.
    pub world_size: u32,
    /// Rank among those of its host.
    pub local_rank: u32,
    /// Host name.
    pub host: String,
    /// Process id on its host.
    pub pid: u32,
    /// Device it computes on, `cpu` or `cuda:0`; empty while unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Run directory, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<String>,
    /// Port of its metrics, once bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<u16>,
}

impl Hello {
    /// Checks version and token, for the launcher.
    ///
    /// # Errors
    /// When one of them is another.
    pub fn admit(&self, token: &str) -> Result<(), HeartbeatError> {
        if !tokens_match(&self.token, token) {
            return Err(HeartbeatError::Token);
        }
        if self.version != VERSION {
            return Err(HeartbeatError::Version {
                found: self.version,
            });
        }
        Ok(())
    }
}

/// Where a rank is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps planned; 0 while unknown.
    pub planned_steps: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// What it is doing.
    pub section: Section,
    /// Seconds spent in each section so far, in the order of [`Section::ALL`].
    pub section_seconds: [f64; Section::ALL.len()],
    /// Resident memory in bytes; 0 while unknown.
    pub memory_bytes: u64,
    /// Device memory in use in bytes, where there is a device that tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_bytes: Option<u64>,
    /// Loss of the last step (rank 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The selecting metric of the last evaluation (rank 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// Cells per second of the whole run (rank 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cells_per_second: Option<f64>,
    /// Step of the last complete checkpoint (rank 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<u64>,
}

impl Default for Beat {
    fn default() -> Self {
        Self {
            step: 0,
            planned_steps: 0,
            epoch: 0,
            section: Section::Setup,
            section_seconds: [0.0; Section::ALL.len()],
            memory_bytes: 0,
            device_memory_bytes: None,
            loss: None,
            metric: None,
            cells_per_second: None,
            checkpoint_step: None,
        }
    }
}

/// The end of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bye {
    /// Its exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it (guards only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel killed something for want of memory meanwhile (guards only).
    #[serde(default)]
    pub out_of_memory: bool,
    /// The last lines that it wrote (guards only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

/// What a rank or its guard says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Message {
    /// First line of a connection.
    Hello(Hello),
    /// Where it is.
    Beat(Beat),
    /// Last line of a connection.
    Bye(Bye),
}

/// What the launcher asks of a rank. The ranks agree on the step at which they do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Command {
    /// Write a checkpoint after this step and go on.
    Save,
    /// Write a checkpoint after this step and leave with the code for "preempted".
    Drain,
}

/// Why a heartbeat connection or its settings were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeartbeatError {
    /// The address is not understood.
    #[error("`{value}` is no heartbeat address, expected `unix:/path` or `tcp:host:port`")]
    Address {
        /// As it was given.
        value: String,
    },
    /// There is an address, but no token.
    #[error("`{ADDRESS_VARIABLE}` is set, but `{TOKEN_VARIABLE}` is not")]
    NoToken,
    /// A line is too long.
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    Oversized,
    /// A line is not a message.
    #[error("not a heartbeat message: {reason}")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// A message of another version.
    #[error("heartbeats of version `{found}`, expected `{VERSION}`")]
    Version {
        /// As it was given.
        found: u32,
    },
    /// Whoever speaks does not know the secret of the run.
    #[error("wrong token")]
    Token,
    /// The connection or its thread failed.
    #[error("heartbeat connection: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads one line, without its end, as a message of a rank ([`Message`]) or of the launcher
/// ([`Command`]).
///
/// # Errors
/// When the line is too long or is not such a message.
pub fn decode<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T, HeartbeatError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(HeartbeatError::Oversized);
    }
    serde_json::from_slice(line).map_err(|error| HeartbeatError::Malformed {
        reason: error.to_string(),
    })
}

/// A message as a line with its end.
pub fn encode<T: Serialize>(message: &T) -> String {
    // Numbers that are not finite become null, which reads as "none"; nothing else can fail.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            version: VERSION,
            token: "secret".into(),
            rank: 1,
            world_size: 2,
            host: "node".into(),
            pid: 7,
            ..Hello::default()
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let beat = Beat {
            step: 3,
            section: Section::Eval,
            loss: Some(0.5),
            ..Beat::default()
        };
        let bye = Bye {
            code: 137,
            signal: Some(9),
            out_of_memory: true,
            last_lines: vec!["one \"two\"".into(), "\u{1b}[0m".into()],
        };
        for message in [
            Message::Hello(hello()),
            Message::Beat(beat),
            Message::Bye(bye),
        ] {
            let line = encode(&message);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(
                decode::<Message>(line.trim_end().as_bytes()).unwrap(),
                message
            );
        }
        assert_eq!(encode(&Command::Drain), "{\"kind\":\"drain\"}\n");
        assert_eq!(
            decode::<Command>(b"{\"kind\":\"save\"}").unwrap(),
            Command::Save
        );
    }

    #[test]
    fn a_loss_that_is_not_finite_is_sent_as_none() {
        let beat = Beat {
            loss: Some(f64::NAN),
            ..Beat::default()
        };
        let line = encode(&Message::Beat(beat));
        let Message::Beat(read) = decode(line.trim_end().as_bytes()).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(read.loss, None);
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        let known = encode(&Message::Hello(hello()));
        let extra = known.replacen("\"rank\":1", "\"rank\":1,\"sudo\":true", 1);
        let negative = known.replacen("\"rank\":1", "\"rank\":-1", 1);
        for line in [
            "",
            "{}",
            "[1]",
            "{\"kind\":\"shout\"}",
            extra.trim_end(),
            negative.trim_end(),
        ] {
            let error = decode::<Message>(line.as_bytes()).unwrap_err();
            assert!(
                matches!(error, HeartbeatError::Malformed { .. }),
                "{line}: {error}"
            );
        }
        let long = vec![b' '; LINE_BYTES_MAX + 1];
        assert!(matches!(
            decode::<Message>(&long),
            Err(HeartbeatError::Oversized)
        ));
        assert!(decode::<Command>(b"{\"kind\":\"bye\"}").is_err());
    }

    #[test]
    fn only_the_token_and_version_of_the_run_are_admitted() {
        assert!(hello().admit("secret").is_ok());
        assert!(matches!(
            hello().admit("secrex"),
            Err(HeartbeatError::Token)
        ));
        let newer = Hello {
            version: VERSION + 1,
            ..hello()
        };
        assert!(matches!(
            newer.admit("secret"),
            Err(HeartbeatError::Version { found: 2 })
        ));
    }

    #[test]
    fn sections_are_listed_in_their_order() {
        for (index, section) in Section::ALL.into_iter().enumerate() {
            assert_eq!(section.index(), index);
            assert_eq!(encode(&section), format!("\"{}\"\n", section.name()));
        }
    }
}
