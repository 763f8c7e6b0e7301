//! The hosts of a run: `--hosts h1:8,h2:8` or a file of `host slots=8` lines.

use std::path::{Path, PathBuf};

/// A host and how many ranks it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Ranks that it takes, at least 1.
    pub slots: u32,
}

/// Why a list of hosts is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostsError {
    /// An entry that is not understood.
    #[error("{place}: `{entry}` names no host, expected `host` or `host{separator}8`")]
    Entry {
        /// Where it stands.
        place: String,
        /// As it was given.
        entry: String,
        /// What goes between host and slots there.
        separator: &'static str,
    },
    /// A host twice.
    #[error("{place}: `{name}` is listed twice\nhelp: list it once, with the sum of its slots")]
    Twice {
        /// Where it stands.
        place: String,
        /// The host.
        name: String,
    },
    /// No host at all.
    #[error("{place}: no host is listed")]
    None {
        /// Where one was expected.
        place: String,
    },
    /// The file cannot be read.
    #[error("cannot read the hosts in `{}`: {reason}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// Reads `h1:8,h2:8`; a host without a number takes one rank.
///
/// # Errors
/// When an entry is not understood or a host comes twice.
pub fn parse_list(text: &str) -> Result<Vec<Host>, HostsError> {
    let place = || "`--hosts`".to_owned();
    let mut hosts = Vec::new();
    for entry in text.split(',') {
        let (name, slots) = entry.split_once(':').unwrap_or((entry, "1"));
        add(&mut hosts, name, slots, place(), entry, ":")?;
    }
    Ok(hosts)
}

/// Reads a file with a `host` or `host slots=8` on each line; `#` begins a comment.
///
/// # Errors
/// When the file cannot be read, a line is not understood, a host comes twice, or there is none.
pub fn read_file(file: &Path) -> Result<Vec<Host>, HostsError> {
    let text = std::fs::read_to_string(file).map_err(|error| HostsError::Read {
        file: file.to_owned(),
        reason: error.to_string(),
    })?;
    let mut hosts = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let (name, rest) = entry
            .split_once(char::is_whitespace)
            .unwrap_or((entry, "slots=1"));
        let slots = rest.trim().strip_prefix("slots=").unwrap_or_default();
        let place = format!("`{}`, line {}", file.display(), number + 1);
        add(&mut hosts, name, slots, place, entry, " slots=")?;
    }
    if hosts.is_empty() {
        return Err(HostsError::None {
            place: format!("`{}`", file.display()),
        });
    }
    Ok(hosts)
}

fn add(
    hosts: &mut Vec<Host>,
    name: &str,
    slots: &str,
    place: String,
    entry: &str,
    separator: &'static str,
) -> Result<(), HostsError> {
    // A name that begins with a dash would be read as an option of whatever starts the ranks.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let named = !name.is_empty() && !name.starts_with('-') && name.chars().all(plain);
    let slots = slots.parse().ok().filter(|slots| *slots > 0);
    let (true, Some(slots)) = (named, slots) else {
        return Err(HostsError::Entry {
            place,
            entry: entry.to_owned(),
            separator,
        });
    };
    if hosts.iter().any(|host| host.name == name) {
        return Err(HostsError::Twice {
            place,
            name: name.to_owned(),
        });
    }
    hosts.push(Host {
        name: name.to_owned(),
        slots,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(hosts: &[Host]) -> Vec<(&str, u32)> {
        hosts.iter().map(|h| (h.name.as_str(), h.slots)).collect()
    }

    #[test]
    fn lists_and_files_say_the_same() {
        let list = parse_list("a:8,b-1.x:2,10.0.0.3").unwrap();
        assert_eq!(names(&list), [("a", 8), ("b-1.x", 2), ("10.0.0.3", 1)]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        std::fs::write(
            &file,
            "# ours\na slots=8\n\nb-1.x  slots=2 # old\n10.0.0.3\n",
        )
        .unwrap();
        assert_eq!(read_file(&file).unwrap(), list);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, expected) in [
            ("", "`--hosts`: `` names no host"),
            ("a:0", "`a:0` names no host, expected `host` or `host:8`"),
            ("a:x", "`a:x` names no host"),
            ("-x:1", "`-x:1` names no host"),
            ("a b", "`a b` names no host"),
            ("a:1,,b", "`` names no host"),
            ("a:1,a:2", "`a` is listed twice"),
        ] {
            let error = parse_list(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        std::fs::write(&file, "a slots=1\nb cores=3\n").unwrap();
        let error = read_file(&file).unwrap_err().to_string();
        assert!(error.contains("hosts`, line 2: `b cores=3`"), "{error}");
        std::fs::write(&file, "# nobody\n").unwrap();
        assert!(matches!(read_file(&file), Err(HostsError::None { .. })));
        assert!(matches!(
            read_file(folder.path()),
            Err(HostsError::Read { .. })
        ));
    }
}
