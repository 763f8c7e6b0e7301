//! TensorBoard's event files: records of a length, a checksum, a protocol buffer and a checksum.
//!
//! The formats are those of TensorFlow (`tensorflow/core/lib/io/record_writer`, `core/util/event.proto`,
//! `core/framework/summary.proto`). Of the messages only scalars are needed, so they are encoded here.
//! Each start of a run has a file of its own. That of a resumed run begins with a session start at its
//! step, upon which TensorBoard drops what earlier files have from there on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Entry;
use crate::failure::{Result, io};

/// What the first event of a file says it is.
const VERSION: &str = "brain.Event:2";

#[derive(Debug)]
pub(super) struct Events {
    file: File,
}

impl Events {
    /// Opens a new file for a run that goes on behind `resume_step`.
    pub(super) fn open(run_dir: &Path, resume_step: u64, now: SystemTime) -> Result<Self> {
        let folder = run_dir.join("tensorboard");
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        // TensorBoard reads the files in the order of their names, so the time comes first.
        let nanos = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.{}",
            nanos / 1_000_000_000,
            nanos % 1_000_000_000,
            std::process::id()
        );
        let path = folder.join(name);
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut events = Self {
            file: file.map_err(io(&path))?,
        };
        let mut records = record(&version(now));
        if resume_step > 0 {
            records.extend(record(&session_start(now, resume_step + 1)));
        }
        events.file.write_all(&records).map_err(io(&path))?;
        Ok(events)
    }

    /// Writes a scalar `SPLIT/NAME` for each value.
    pub(super) fn write(&mut self, entry: &Entry<'_>, now: SystemTime) -> io::Result<()> {
        self.file.write_all(&record(&scalars(entry, now)))
    }
}

fn version(now: SystemTime) -> Vec<u8> {
    let mut event = event(now, 0);
    bytes(&mut event, 3, VERSION.as_bytes());
    event
}

fn session_start(now: SystemTime, step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut session = Vec::new();
    number(&mut session, 1, START);
    let mut event = event(now, step);
    bytes(&mut event, 7, &session);
    event
}

fn scalars(entry: &Entry<'_>, now: SystemTime) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, scalar) in &entry.values {
        let mut value = Vec::new();
        bytes(&mut value, 1, format!("{}/{name}", entry.split).as_bytes());
        key(&mut value, 2, 5);
        value.extend((*scalar as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = event(now, entry.step);
    bytes(&mut event, 5, &summary);
    event
}

/// The beginning of an `Event`: wall time in seconds and step.
fn event(now: SystemTime, step: u64) -> Vec<u8> {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let mut event = Vec::new();
    key(&mut event, 1, 1);
    event.extend(seconds.to_le_bytes());
    number(&mut event, 2, step);
    event
}

/// Number and wire type of a field: 0 for a varint, 1 for 8 bytes, 2 for a length, 5 for 4 bytes.
fn key(message: &mut Vec<u8>, field: u64, wire: u64) {
    varint(message, field << 3 | wire);
}

fn number(message: &mut Vec<u8>, field: u64, value: u64) {
    key(message, field, 0);
    varint(message, value);
}

fn bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(message, field, 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Frames a message.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(message);
    record.extend(masked(crc32c(message)).to_le_bytes());
    record
}

/// Checksums of checksums are weak, so those that are stored are disguised.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The CRC-32 of Castagnoli, bit by bit: a few hundred bytes per log step.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Values of RFC 3720, appendix B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_event_is_the_protocol_buffer_that_it_should_be() {
        let entry = Entry {
            kind: "eval",
            split: "valid",
            step: 300,
            epoch: 1,
            values: vec![("f1", 0.5)],
        };
        let now = UNIX_EPOCH + Duration::from_millis(1500);
        let mut expected = vec![0x09];
        expected.extend(1.5_f64.to_le_bytes());
        expected.extend([0x10, 0xac, 0x02]);
        expected.extend([0x2a, 17, 0x0a, 15, 0x0a, 8]);
        expected.extend(b"valid/f1");
        expected.push(0x15);
        expected.extend(0.5_f32.to_le_bytes());
        assert_eq!(scalars(&entry, now), expected);
    }
}
