//! The zip archive of `torch.save`: `<name>/data.pkl` describes tensors, `<name>/data/<key>` are
//! their storages, stored uncompressed, so that tensors are slices of the mapped file.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::pickle::{self, PickleError, TensorRecord};
use crate::tensor::{Contents, Entry};

/// Most bytes of all tensors together, as a multiple of the file: tensors may share a storage (tied
/// weights, views), and each is written or copied on its own.
const SHARING_MAX: usize = 8;

fn archive<'a>(path: &Path, bytes: &'a [u8]) -> Result<ZipArchive<Cursor<&'a [u8]>>> {
    ZipArchive::new(Cursor::new(bytes)).map_err(|e| {
        Error::damaged(
            path,
            format!("its zip directory cannot be read ({e}): is it truncated?"),
        )
    })
}

/// Byte ranges of the entries by name.
fn entries(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Range<usize>>> {
    let mut archive = archive(path, bytes)?;
    // The archive keeps one entry of each name: which one, other readers may see differently.
    if archive.has_duplicate_names() {
        return Err(Error::damaged(path, "two zip entries have the same name"));
    }
    let mut entries = HashMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        let damaged = |what: &str| Error::damaged(path, format!("zip entry {index} {what}"));
        let file = archive
            .by_index_raw(index)
            .map_err(|e| damaged(&format!("cannot be located ({e})")))?;
        let name = file
            .name()
            .map_err(|_| damaged("has an unreadable name"))?
            .into_owned();
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            return Err(damaged(&format!(
                "(`{name}`) is compressed or encrypted, which torch.save never does"
            )));
        }
        let start = file.data_start().and_then(|at| usize::try_from(at).ok());
        let range = start.and_then(|start| {
            let end = start.checked_add(usize::try_from(file.size()).ok()?)?;
            (end <= bytes.len() && file.size() == file.compressed_size()).then_some(start..end)
        });
        let range = range.ok_or_else(|| damaged(&format!("(`{name}`) reaches beyond the file")))?;
        entries.insert(name, range);
    }
    refuse_overlaps(path, &entries)?;
    Ok(entries)
}

/// Entries that share bytes would let a small file hold any amount of data.
fn refuse_overlaps(path: &Path, entries: &HashMap<String, Range<usize>>) -> Result<()> {
    let mut sorted: Vec<_> = entries
        .iter()
        .filter(|(_, range)| !range.is_empty())
        .collect();
    sorted.sort_by_key(|(_, range)| range.start);
    let clash = sorted
        .windows(2)
        .find(|pair| pair[1].1.start < pair[0].1.end);
    match clash {
        None => Ok(()),
        Some(pair) => Err(Error::damaged(
            path,
            format!("zip entries `{}` and `{}` overlap", pair[0].0, pair[1].0),
        )),
    }
}

/// Reads the pickle and locates every tensor.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let entries = entries(path, bytes)?;
    let mut pickles = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(prefix), None) = (pickles.next(), pickles.next()) else {
        return Err(Error::Format {
            path: path.to_owned(),
            reason: "it is a zip archive without exactly one data.pkl".to_owned(),
            help: "expected a file written by torch.save; a TorchScript or other archive is not one",
        });
    };
    if entries.contains_key(&format!("{prefix}constants.pkl")) {
        return Err(Error::Format {
            path: path.to_owned(),
            reason: "it is a TorchScript archive".to_owned(),
            help: "save the module's `state_dict()` with torch.save",
        });
    }
    if let Some(range) = entries.get(&format!("{prefix}byteorder"))
        && &bytes[range.clone()] != b"little"
    {
        return Err(Error::content(path, "was written on a big-endian machine"));
    }
    let pickle = &bytes[entries[&format!("{prefix}data.pkl")].clone()];
    let records = pickle::read(pickle).map_err(|e| match e {
        PickleError::Forbidden(class) => Error::ForbiddenClass {
            path: path.to_owned(),
            class,
        },
        PickleError::Malformed(reason) => Error::damaged(path, format!("its pickle: {reason}")),
        PickleError::Limit(reason) => Error::Limit {
            path: path.to_owned(),
            reason: format!("its pickle: {reason}"),
        },
    })?;
    let settings = records.settings.into_iter();
    let mut contents = Contents {
        others: records.others,
        metadata: settings.map(|(k, v)| (k, v.to_string())).collect(),
        ..Contents::default()
    };
    let most = bytes.len().saturating_mul(SHARING_MAX);
    let mut total = 0_usize;
    for (name, record) in records.tensors {
        let storage = entries
            .get(&format!("{prefix}data/{}", record.storage))
            .ok_or_else(|| {
                Error::damaged(
                    path,
                    format!("tensor `{name}` has no storage `{}`", record.storage),
                )
            })?;
        let entry = locate(&record, storage)
            .map_err(|reason| Error::damaged(path, format!("tensor `{name}` {reason}")))?;
        // A tensor has no more elements than its storage, so this cannot overflow before it is seen.
        total += entry.shape.iter().product::<usize>() * entry.dtype.size();
        if total > most {
            return Err(Error::Limit {
                path: path.to_owned(),
                reason: format!(
                    "its tensors share storages so often that they are more than {SHARING_MAX} \
                     times the file"
                ),
            });
        }
        contents.tensors.insert(name, entry);
    }
    Ok(contents)
}

/// Checks a tensor against its storage and finds its bytes.
fn locate(record: &TensorRecord, storage: &Range<usize>) -> Result<Entry, String> {
    let size = record.dtype.size();
    let declared = record.storage_len.checked_mul(size);
    if declared.is_none_or(|bytes| bytes > storage.len()) {
        return Err(format!(
            "needs a storage of {} elements of {size} bytes, but the entry has {} bytes",
            record.storage_len,
            storage.len()
        ));
    }
    let outside = || {
        format!(
            "(shape {:?}, strides {:?}, offset {}) reaches beyond its storage of {} elements",
            record.shape, record.strides, record.offset, record.storage_len
        )
    };
    let count = record
        .shape
        .iter()
        .try_fold(1_usize, |product, &n| product.checked_mul(n))
        .ok_or_else(outside)?;
    // One past the last element that is touched.
    let reach = if count == 0 {
        0
    } else {
        let last = record
            .shape
            .iter()
            .zip(&record.strides)
            .try_fold(0_usize, |sum, (&n, &s)| {
                sum.checked_add((n - 1).checked_mul(s)?)
            });
        last.and_then(|last| last.checked_add(1))
            .ok_or_else(outside)?
    };
    let end = record
        .offset
        .checked_add(reach)
        .filter(|&end| end <= record.storage_len);
    let end = end.ok_or_else(outside)?;
    if count > record.storage_len {
        return Err("repeats elements of its storage, which is not supported".to_owned());
    }
    let start = storage.start + record.offset * size;
    let strides = (!is_contiguous(record)).then(|| record.strides.clone());
    Ok(Entry {
        dtype: record.dtype,
        shape: record.shape.clone(),
        strides,
        bytes: start..storage.start + end * size,
    })
}

fn is_contiguous(record: &TensorRecord) -> bool {
    if record.shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    record
        .shape
        .iter()
        .zip(&record.strides)
        .rev()
        .all(|(&n, &stride)| {
            let fits = n <= 1 || stride == expected;
            expected *= n.max(1);
            fits
        })
}

/// Compares the checksum of every entry.
pub(crate) fn verify(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut archive = archive(path, bytes)?;
    let mut buffer = vec![0; 1 << 20];
    for index in 0..archive.len() {
        let damaged = |e: String| Error::damaged(path, format!("zip entry {index}: {e}"));
        let mut file = archive
            .by_index(index)
            .map_err(|e| damaged(e.to_string()))?;
        // The archive compares the CRC when the entry is read to its end.
        while file.read(&mut buffer).map_err(|e| damaged(e.to_string()))? > 0 {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
