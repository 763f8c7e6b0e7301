//! How stores are used, from the environment or from a caller.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Error, Result};

/// Environment variable: folder of the cache.
const CACHE_DIR: &str = "SCPEFT_CACHE_DIR";
/// Environment variable: limit of the cache.
const CACHE_BYTES: &str = "SCPEFT_CACHE_BYTES";
/// Environment variable: how often a request is sent again.
const RETRIES: &str = "SCPEFT_STORE_RETRIES";
/// Environment variable: seconds after which a transfer is given up.
const TIMEOUT: &str = "SCPEFT_STORE_TIMEOUT";

/// How remote files are read. Local ones need none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// How often a request that failed is sent again.
    pub retries: u32,
    /// How long one fetch may take, with all its retries.
    pub timeout: Duration,
    /// Where ranges are kept once they were fetched.
    pub cache: Option<CacheOptions>,
    /// Settings of the client, named as the variables that set them (`aws_endpoint_url`); they win over the
    /// environment.
    pub settings: Vec<(String, String)>,
}

/// A local cache of remote files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// Its folder, made when it is missing. Several processes may share it.
    pub dir: PathBuf,
    /// How many bytes its files may hold.
    pub bytes: u64,
}

impl Default for StoreOptions {
    /// Ten retries within two minutes, no cache.
    fn default() -> Self {
        Self {
            retries: 10,
            timeout: Duration::from_mins(2),
            cache: None,
            settings: Vec::new(),
        }
    }
}

impl StoreOptions {
    /// What `SCPEFT_STORE_RETRIES`, `SCPEFT_STORE_TIMEOUT` (seconds), `SCPEFT_CACHE_DIR` and
    /// `SCPEFT_CACHE_BYTES` say, and defaults for the rest.
    ///
    /// # Errors
    /// When a variable cannot be understood, or only one of the two of the cache is set.
    pub fn from_env() -> Result<Self> {
        let variable = |name: &'static str| match std::env::var(name) {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::options(format!("{name} is not UTF-8"), ""))
            }
        };
        Self::from_text(
            variable(RETRIES)?.as_deref(),
            variable(TIMEOUT)?.as_deref(),
            variable(CACHE_DIR)?.as_deref(),
            variable(CACHE_BYTES)?.as_deref(),
        )
    }

    fn from_text(
        retries: Option<&str>,
        timeout: Option<&str>,
        dir: Option<&str>,
        bytes: Option<&str>,
    ) -> Result<Self> {
        let mut options = Self::default();
        if let Some(text) = retries {
            options.retries = text.parse().map_err(|_| {
                Error::options(
                    format!("{RETRIES} is `{text}`, expected a whole number"),
                    "",
                )
            })?;
        }
        if let Some(text) = timeout {
            let seconds = text.parse().ok().filter(|&seconds: &u64| seconds > 0);
            options.timeout = seconds.map(Duration::from_secs).ok_or_else(|| {
                Error::options(
                    format!("{TIMEOUT} is `{text}`, expected seconds, 1 or more"),
                    "",
                )
            })?;
        }
        options.cache = match (dir, bytes) {
            (None, None) => None,
            (Some(dir), Some(text)) => Some(CacheOptions {
                dir: PathBuf::from(dir),
                bytes: parse_bytes(text).ok_or_else(|| {
                    Error::options(
                        format!("{CACHE_BYTES} is `{text}`, expected a size"),
                        "write a number of bytes, or one with a unit such as 200GB or 64GiB",
                    )
                })?,
            }),
            (Some(_), None) => {
                return Err(Error::options(
                    format!("{CACHE_DIR} is set, but {CACHE_BYTES} is not"),
                    format!("say how much the cache may hold, such as {CACHE_BYTES}=200GB"),
                ));
            }
            (None, Some(_)) => {
                return Err(Error::options(
                    format!("{CACHE_BYTES} is set, but {CACHE_DIR} is not"),
                    format!("name the folder of the cache with {CACHE_DIR}"),
                ));
            }
        };
        Ok(options)
    }
}

/// A number of bytes, perhaps with a unit.
fn parse_bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let unit = UNITS
        .iter()
        .find_map(|(name, size)| Some((text.strip_suffix(name)?, *size)));
    let (number, size) = unit.unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_understood() {
        let options =
            StoreOptions::from_text(Some("3"), Some("7"), Some("/c"), Some("2 MiB")).unwrap();
        assert_eq!(options.retries, 3);
        assert_eq!(options.timeout, Duration::from_secs(7));
        let cache = options.cache.unwrap();
        assert_eq!((cache.dir, cache.bytes), (PathBuf::from("/c"), 2 << 20));
        assert_eq!(
            StoreOptions::from_text(None, None, None, None).unwrap(),
            StoreOptions::default()
        );
        assert_eq!(parse_bytes("12"), Some(12));
        assert_eq!(parse_bytes("3GB"), Some(3_000_000_000));
    }

    #[test]
    fn mistakes_name_the_variable() {
        let message = |retries, timeout, dir, bytes| {
            StoreOptions::from_text(retries, timeout, dir, bytes)
                .unwrap_err()
                .to_string()
        };
        assert!(message(Some("x"), None, None, None).contains("SCPEFT_STORE_RETRIES is `x`"));
        assert!(message(None, Some("0"), None, None).contains("SCPEFT_STORE_TIMEOUT is `0`"));
        assert!(message(None, None, Some("/c"), None).contains("SCPEFT_CACHE_BYTES is not"));
        assert!(message(None, None, None, Some("1")).contains("SCPEFT_CACHE_DIR is not"));
        assert!(message(None, None, Some("/c"), Some("many")).contains("`many`, expected a size"));
    }
}
