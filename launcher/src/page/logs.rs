//! The end of a rank's log.

use crate::guard::log_name;
use crate::state::Redactor;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Bytes that are read from the end.
const BYTES: u64 = 64 << 10;
/// Lines that are shown.
const LINES: usize = 200;

/// The last lines of the log of `rank`, without secrets and terminal controls.
///
/// # Errors
/// When there is no such log.
pub(super) fn tail(run_dir: &Path, rank: u32, redactor: &Redactor) -> io::Result<String> {
    // The name is made from a number, and a link in its place is not followed: nothing outside the
    // run directory is read.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(run_dir.join("logs").join(log_name(rank)))?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("no file"));
    }
    let from = meta.len().saturating_sub(BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may be half of one.
    let text = match text.split_once('\n') {
        Some((_, rest)) if from > 0 => rest,
        _ => &text,
    };
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    Ok(redactor.text(&plain(&last.join("\n"))))
}

/// Without escape sequences and control characters; of a line that was written over, the last state.
fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut line_begins = 0;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\u{1b}' => {
                if characters.next_if_eq(&'[').is_some() {
                    while characters.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                    characters.next();
                }
            }
            '\r' if characters.peek().is_none_or(|next| *next == '\n') => {}
            '\r' => shown.truncate(line_begins),
            '\n' => {
                shown.push('\n');
                line_begins = shown.len();
            }
            '\t' => shown.push('\t'),
            c if c.is_control() => {}
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown_plain() {
        let run = tempfile::tempdir().unwrap();
        let logs = run.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let lines: Vec<String> = (0..100_000).map(|line| format!("line {line}\n")).collect();
        let mut text = lines.concat();
        text.push_str("\u{1b}[31mred\u{1b}[0m\u{7} é\n10 %\r20 %\rend https://u:p@h\r\n");
        std::fs::write(logs.join(log_name(3)), &text).unwrap();
        let tail = |rank| tail(run.path(), rank, &Redactor::default());
        let shown = tail(3).unwrap();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), LINES);
        assert_eq!(
            lines[LINES - 3..],
            ["line 99999", "red é", "end https://[hidden]@h"]
        );
        assert!(tail(4).is_err());
    }

    #[test]
    fn a_link_in_place_of_a_log_is_not_followed() {
        let run = tempfile::tempdir().unwrap();
        std::fs::create_dir(run.path().join("logs")).unwrap();
        std::fs::write(run.path().join("secret"), "secret").unwrap();
        let link = run.path().join("logs").join(log_name(0));
        std::os::unix::fs::symlink(run.path().join("secret"), link).unwrap();
        assert!(tail(run.path(), 0, &Redactor::default()).is_err());
    }
}
