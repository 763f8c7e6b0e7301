//! Follows a file of lines that somebody else writes: reads what was added, and starts again when
//! the file was replaced or cut.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Most that one look reads; the rest comes with the next one.
const BYTES_PER_LOOK: u64 = 8 << 20;
/// A longer line is no record of ours and is left out.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A place in a file of lines.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    /// Device and inode of the file that was read.
    file: Option<(u64, u64)>,
    offset: u64,
    partial: Vec<u8>,
    too_long: bool,
}

/// What has changed since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Everything read before is void: the file is another one now, or gone.
    pub(super) restarted: bool,
    /// New complete lines.
    pub(super) lines: Vec<String>,
}

impl Follower {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            offset: 0,
            partial: Vec::new(),
            too_long: false,
        }
    }

    /// Reads what is new. A file that cannot be read has nothing new.
    pub(super) fn look(&mut self) -> News {
        let mut news = News::default();
        let opened = File::open(&self.path).and_then(|file| Ok((file.metadata()?, file)));
        let Ok((meta, mut file)) = opened else {
            news.restarted = self.file.is_some();
            self.restart(None);
            return news;
        };
        let identity = Some((meta.dev(), meta.ino()));
        if self.file != identity || meta.len() < self.offset {
            news.restarted = self.file.is_some();
            self.restart(identity);
        }
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.take(BYTES_PER_LOOK).read_to_end(&mut bytes));
        if read.is_ok() {
            self.offset += bytes.len() as u64;
            self.cut(&bytes, &mut news.lines);
        }
        news
    }

    fn restart(&mut self, file: Option<(u64, u64)>) {
        self.file = file;
        self.offset = 0;
        self.partial.clear();
        self.too_long = false;
    }

    fn cut(&mut self, mut bytes: &[u8], lines: &mut Vec<String>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            if !self.too_long {
                lines.push(String::from_utf8_lossy(&self.partial).into_owned());
            }
            self.partial.clear();
            self.too_long = false;
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.too_long |= self.partial.len() + bytes.len() > LINE_BYTES_MAX;
        if self.too_long {
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn looked(follower: &mut Follower) -> (bool, String) {
        let news = follower.look();
        (news.restarted, news.lines.join(","))
    }

    #[test]
    fn only_new_and_complete_lines_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut follower = Follower::new(path.clone());
        assert_eq!(looked(&mut follower), (false, String::new()));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"a\nb").unwrap();
        assert_eq!(looked(&mut follower), (false, "a".into()));
        file.write_all(b"c\nd\n").unwrap();
        assert_eq!(looked(&mut follower), (false, "bc,d".into()));
        assert_eq!(looked(&mut follower), (false, String::new()));
    }

    #[test]
    fn a_replaced_or_cut_file_is_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "a\nb\n").unwrap();
        let mut follower = Follower::new(path.clone());
        assert_eq!(looked(&mut follower), (false, "a,b".into()));
        std::fs::write(folder.path().join("g"), "x\ny\nz\n").unwrap();
        std::fs::rename(folder.path().join("g"), &path).unwrap();
        assert_eq!(looked(&mut follower), (true, "x,y,z".into()));
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(2)
            .unwrap();
        assert_eq!(looked(&mut follower), (true, "x".into()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(looked(&mut follower), (true, String::new()));
    }

    #[test]
    fn a_line_without_end_costs_no_memory_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        std::fs::write(&path, format!("a\n{long}")).unwrap();
        let mut follower = Follower::new(path.clone());
        assert_eq!(looked(&mut follower), (false, "a".into()));
        assert!(follower.partial.capacity() <= 2 * LINE_BYTES_MAX);
        std::fs::write(&path, format!("a\n{long}\nb\n")).unwrap();
        assert_eq!(looked(&mut follower), (false, "b".into()));
    }
}
