//! Addresses, lines with a limit, and the comparison of secrets.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::HeartbeatError;

/// The longest line that is read. The last lines of a rank are what takes the room.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// How long what was sent over TCP may go unanswered before the connection counts as broken. Without
/// it a host that is cut off would believe in its launcher for a quarter of an hour.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Where a launcher listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = HeartbeatError;

    fn from_str(value: &str) -> Result<Self, HeartbeatError> {
        let refused = || HeartbeatError::Address {
            value: value.to_owned(),
        };
        match value.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", host)) => match host.rsplit_once(':') {
                Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Self::Tcp(host.to_owned()))
                }
                _ => Err(refused()),
            },
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp:{host}"),
        }
    }
}

/// An open connection of either kind. Reading never waits; writing waits for a bounded time.
#[derive(Debug)]
pub enum Connection {
    /// Over a socket in the file system.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Connection {
    /// Connects, waiting at most `patience` per address, and later as long for each write.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(address: &Address, patience: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(patience))?;
                Ok(Self::Unix(stream))
            }
            Address::Tcp(host) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "no address of that name");
                for address in host.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_write_timeout(Some(patience))?;
                            give_up_after(&stream, UNANSWERED)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Writes a line, or fails within the patience.
    ///
    /// # Errors
    /// When the other side is gone or does not read.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(line.as_bytes()),
            Self::Tcp(stream) => stream.write_all(line.as_bytes()),
        }
    }

    /// Reads what has arrived, without waiting; 0 when nothing has.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.set_nonblocking(true)?;
        let got = match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        };
        self.set_nonblocking(false)?;
        match got {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn set_nonblocking(&self, yes: bool) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(yes),
            Self::Tcp(stream) => stream.set_nonblocking(yes),
        }
    }
}

/// Breaks a connection when the other host has not acknowledged anything for this long.
fn give_up_after(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let millis = libc::c_uint::try_from(patience.as_millis()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the descriptor is open, and the option takes a number of the size that is given.
    let failed = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            std::ptr::from_ref(&millis).cast(),
            size_of::<libc::c_uint>() as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cuts a stream of bytes into lines of at most [`LINE_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    used: usize,
}

impl Lines {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line, without its end; `None` until more is pushed.
    ///
    /// # Errors
    /// When a line is too long, complete or not.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, HeartbeatError> {
        let rest = &self.buffer[self.used..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(rest.len()) > LINE_BYTES_MAX {
            return Err(HeartbeatError::Oversized);
        }
        let Some(end) = end else {
            return Ok(None);
        };
        let start = self.used;
        self.used += end + 1;
        Ok(Some(&self.buffer[start..start + end]))
    }
}

/// Whether two secrets are equal, in a time that depends on the length of `given` alone.
pub fn tokens_match(given: &str, expected: &str) -> bool {
    let (given, expected) = (given.as_bytes(), expected.as_bytes());
    let mut difference = u8::from(given.len() != expected.len() || expected.is_empty());
    for (index, byte) in given.iter().enumerate() {
        difference |= byte ^ expected.get(index % expected.len().max(1)).unwrap_or(&0);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in [
            "unix:/run/x.sock",
            "tcp:node1:4000",
            "tcp:[::1]:1",
            "tcp:10.0.0.1:65535",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "unix:relative",
            "tcp:node1",
            "tcp::80",
            "tcp:node:70000",
            "http://x:1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("unix:/path"),
                "{error}"
            );
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_fall() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for part in ["a", "b\nc", "\n\nd"] {
            lines.push(part.as_bytes());
            while let Some(line) = lines.next_line().unwrap() {
                seen.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        assert_eq!(seen, ["ab", "c", ""]);
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_BYTES_MAX]);
        assert!(lines.next_line().unwrap().is_none());
        lines.push(b"x");
        assert!(matches!(lines.next_line(), Err(HeartbeatError::Oversized)));
    }

    #[test]
    fn only_the_same_token_matches() {
        assert!(tokens_match("abc", "abc"));
        for (given, expected) in [
            ("abd", "abc"),
            ("ab", "abc"),
            ("abcabc", "abc"),
            ("", "abc"),
            ("", ""),
        ] {
            assert!(!tokens_match(given, expected), "{given} {expected}");
        }
    }
}
