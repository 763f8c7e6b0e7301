//! Reading the bytes of a pickle: fixed-width numbers, counted strings, lines.

use super::object::Object;
use super::{PickleError, Result, malformed};

/// Longest line: module or name of a class.
const LINE_BYTES_MAX: usize = 4096;

/// The bytes of a pickle and how far they have been read.
#[derive(Debug, Default)]
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self
            .at
            .checked_add(count)
            .filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return malformed("it ends in the middle");
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<i64> {
        let bytes = self.take(2)?;
        Ok(i64::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<usize> {
        let bytes: [u8; 8] = self.take(8)?.try_into().expect("eight bytes were taken");
        usize::try_from(u64::from_le_bytes(bytes))
            .map_err(|_| PickleError::Malformed("a length overflows".to_owned()))
    }

    /// A little-endian two's complement integer of stated length.
    pub(super) fn long(&mut self) -> Result<i64> {
        let len = usize::from(self.take(1)?[0]);
        let bytes = self.take(len)?;
        if len > 8 {
            return malformed("an integer has more than 64 bits");
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let mut full = [fill; 8];
        full[..len].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(full))
    }

    pub(super) fn text(&mut self, len: usize) -> Result<Object> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => Ok(Object::Text(text.into())),
            Err(_) => malformed("a string is not UTF-8"),
        }
    }

    pub(super) fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest
            .iter()
            .take(LINE_BYTES_MAX)
            .position(|&byte| byte == b'\n')
        else {
            return malformed("a name does not end");
        };
        let line = String::from_utf8_lossy(&rest[..len]).into_owned();
        self.at += len + 1;
        Ok(line)
    }
}
