//! Archives made here with the zip crate: strides, bounds, damage.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use super::*;
use crate::mapped::{CopyReason, Mapping};
use crate::tensor::{Dtype, TensorFile};

fn record(shape: &[usize], strides: &[usize], offset: usize, storage_len: usize) -> TensorRecord {
    TensorRecord {
        storage: "0".into(),
        dtype: Dtype::F32,
        storage_len,
        offset,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    }
}

/// The pickle of `{"w": tensor}` for sizes below 256.
fn pickle(record: &TensorRecord) -> Vec<u8> {
    let small = |n: usize| vec![b'K', u8::try_from(n).unwrap()];
    let sizes = |list: &[usize]| {
        let items: Vec<u8> = list.iter().flat_map(|&n| small(n)).collect();
        [b"(".as_slice(), &items, b"t"].concat()
    };
    let text = |s: &str| [&[b'X', s.len() as u8, 0, 0, 0], s.as_bytes()].concat();
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(&record.storage),
        text("cpu"),
        small(record.storage_len),
        b"tQ".to_vec(),
        small(record.offset),
        sizes(&record.shape),
        sizes(&record.strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
    ]
    .concat()
}

fn archive_of(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn saved(record: &TensorRecord, values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let pickle = pickle(record);
    let entries: [(&str, &[u8]); 3] = [
        ("m/data.pkl", &pickle),
        ("m/byteorder", b"little"),
        ("m/data/0", &data),
    ];
    archive_of(&entries, CompressionMethod::Stored)
}

struct Stored {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn store(bytes: &[u8]) -> Stored {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    std::fs::write(&path, bytes).unwrap();
    Stored { _dir: dir, path }
}

fn error(bytes: &[u8]) -> Error {
    TensorFile::open(&store(bytes).path).unwrap_err()
}

fn message(bytes: &[u8]) -> String {
    error(bytes).to_string()
}

const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

#[test]
fn contiguous_tensors_are_slices_of_the_file_and_others_are_copied_in_order() {
    for (record, expected, is_borrowed) in [
        (
            record(&[2, 3], &[3, 1], 0, 6),
            vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            true,
        ),
        (
            record(&[3, 2], &[1, 3], 0, 6),
            vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0],
            false,
        ),
        (record(&[2], &[1], 4, 6), vec![4.0, 5.0], true),
        (record(&[2], &[3], 1, 6), vec![1.0, 4.0], false),
        (record(&[], &[], 2, 6), vec![2.0], true),
        (record(&[0, 3], &[3, 1], 0, 6), vec![], true),
        (record(&[1, 2], &[77, 1], 0, 6), vec![0.0, 1.0], true),
    ] {
        let stored = store(&saved(&record, &SIX));
        let file = TensorFile::open(&stored.path).unwrap();
        file.verify().unwrap();
        let tensor = file.get("w").unwrap();
        assert_eq!(tensor.shape, record.shape);
        assert_eq!(tensor.to_f32().unwrap(), expected, "{record:?}");
        let borrowed = matches!(tensor.data, std::borrow::Cow::Borrowed(_));
        assert_eq!(borrowed, is_borrowed, "{record:?}");
        match file.mapped("w").unwrap() {
            Mapping::InPlace(mapped) => assert_eq!(mapped.as_host(), tensor),
            Mapping::NeedsCopy(CopyReason::Strided) => assert!(!is_borrowed, "{record:?}"),
            // The zip crate does not align what it writes.
            Mapping::NeedsCopy(CopyReason::Unaligned { alignment, .. }) => assert!(alignment < 4),
        }
    }
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    for (record, expected) in [
        (
            record(&[7], &[1], 0, 7),
            "needs a storage of 7 elements of 4 bytes",
        ),
        (
            record(&[2, 3], &[3, 1], 1, 6),
            "reaches beyond its storage of 6 elements",
        ),
        (record(&[2], &[6], 0, 6), "reaches beyond its storage"),
        (record(&[4, 4], &[0, 1], 0, 6), "repeats elements"),
    ] {
        let error = error(&saved(&record, &SIX));
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains("tensor `w`"),
            "{text}"
        );
    }
    let mut huge = record(&[1, 1, 1], &[1, 1, 1], 0, 6);
    huge.shape = vec![usize::MAX, usize::MAX, 2];
    assert!(
        locate(&huge, &(0..24))
            .unwrap_err()
            .contains("reaches beyond")
    );
    huge.shape = vec![2, 1, 1];
    huge.strides = vec![usize::MAX, usize::MAX, usize::MAX];
    assert!(
        locate(&huge, &(0..24))
            .unwrap_err()
            .contains("reaches beyond")
    );
    huge.shape = vec![0, usize::MAX, usize::MAX];
    assert!(locate(&huge, &(0..24)).unwrap().bytes.is_empty());
}

/// Central directory headers of an archive without comments, by position.
fn directory(archive: &[u8]) -> Vec<usize> {
    let end = archive.len() - 22;
    let field = |at: usize, len: usize| {
        let bytes = &archive[at..at + len];
        bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte))
    };
    let mut at = field(end + 16, 4);
    let mut headers = Vec::new();
    while at < end {
        headers.push(at);
        at += 46 + field(at + 28, 2) + field(at + 30, 2) + field(at + 32, 2);
    }
    headers
}

/// Two storages of six values, of which the pickle uses the first.
fn two_storages() -> Vec<u8> {
    let data: Vec<u8> = SIX.iter().flat_map(|x| x.to_le_bytes()).collect();
    let pickle = pickle(&record(&[6], &[1], 0, 6));
    let entries: [(&str, &[u8]); 3] = [
        ("m/data.pkl", &pickle),
        ("m/data/0", &data),
        ("m/data/1", &data),
    ];
    archive_of(&entries, CompressionMethod::Stored)
}

#[test]
fn storages_that_lie_about_where_they_are_are_damage() {
    let whole = two_storages();
    assert!(TensorFile::open(&store(&whole).path).is_ok());
    let headers = directory(&whole);
    let patched = |header: usize, field: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[headers[header] + field..][..bytes.len()].copy_from_slice(bytes);
        changed
    };
    // Both sizes (compressed at 20, plain at 24) far beyond the file, then one byte apart.
    let large = patched(1, 20, &[0, 0, 0, 0x70, 0, 0, 0, 0x70]);
    let uneven = patched(1, 24, &[23, 0, 0, 0]);
    let first = whole[headers[1] + 42..][..4].to_vec();
    let shared = patched(2, 42, &first);
    let nowhere = patched(2, 42, &[0xff, 0xff, 0xff, 0x7f]);
    let renamed = patched(2, 46, b"m/data/0");
    let encrypted = patched(2, 8, &[1, 0]);
    for (bytes, expected) in [
        (large, "reaches beyond the file"),
        (uneven, "reaches beyond the file"),
        (shared, "overlap"),
        (nowhere, "cannot be located"),
        (renamed, "two zip entries have the same name"),
        (encrypted, "compressed or encrypted"),
    ] {
        let error = error(&bytes);
        assert!(
            matches!(&error, Error::Damaged { reason, .. } if reason.contains(expected)),
            "expected `{expected}`, got {error:?}"
        );
    }
}

#[test]
fn compressed_entries_are_refused_so_that_nothing_can_be_inflated() {
    let bomb = vec![0; 1 << 20];
    let pickle = pickle(&record(&[6], &[1], 0, 6));
    let entries: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &bomb)];
    let archive = archive_of(&entries, CompressionMethod::Deflated);
    assert!(archive.len() < 1 << 14, "{}", archive.len());
    let error = error(&archive);
    assert!(
        matches!(&error, Error::Damaged { reason, .. } if reason.contains("is compressed")),
        "{error:?}"
    );
}

/// The pickle of `{"t0": view, "t1": view, ...}`, all of one storage.
fn views(count: usize, record: &TensorRecord) -> Vec<u8> {
    let one = pickle(record);
    let value = &one[one.iter().position(|&b| b == b'c').unwrap()..one.len() - 2];
    let mut bytes = [b"\x80\x02".as_slice(), value, b"q\x000}("].concat();
    for index in 0..count {
        let name = format!("t{index}");
        bytes.extend([b'X', name.len() as u8, 0, 0, 0]);
        bytes.extend(name.as_bytes());
        bytes.extend(b"h\x00");
    }
    bytes.extend(b"u.");
    bytes
}

#[test]
fn one_storage_under_many_names_cannot_grow_without_end() {
    let values: Vec<u8> = (0_u8..=254)
        .flat_map(|x| f32::from(x).to_le_bytes())
        .collect();
    let view = record(&[255], &[1], 0, 255);
    let of = |count: usize| {
        let pickle = views(count, &view);
        let entries: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &values)];
        archive_of(&entries, CompressionMethod::Stored)
    };
    let tied = store(&of(3));
    assert_eq!(TensorFile::open(&tied.path).unwrap().names().count(), 3);
    let error = error(&of(200));
    assert!(
        matches!(&error, Error::Limit { reason, .. } if reason.contains("more than 8 times")),
        "{error:?}"
    );
}

#[test]
fn limits_of_the_pickle_reach_the_caller_by_their_own_variant() {
    let long = "n".repeat(5000);
    let mut bytes = b"\x80\x02}X".to_vec();
    bytes.extend(5000_u32.to_le_bytes());
    bytes.extend(long.as_bytes());
    bytes.extend(b"Ns.");
    let archive = archive_of(&[("m/data.pkl", &bytes)], CompressionMethod::Stored);
    assert!(matches!(error(&archive), Error::Limit { .. }));
    let class = archive_of(
        &[("m/data.pkl", b"cos\nsystem\n.")],
        CompressionMethod::Stored,
    );
    assert!(matches!(error(&class), Error::ForbiddenClass { class, .. } if class == "os.system"));
}

#[test]
fn a_changed_byte_is_found_by_verify() {
    let mut bytes = saved(&record(&[6], &[1], 0, 6), &SIX);
    let at = bytes
        .windows(4)
        .position(|w| w == 5.0_f32.to_le_bytes())
        .unwrap();
    bytes[at] ^= 1;
    let stored = store(&bytes);
    let file = TensorFile::open(&stored.path).unwrap();
    assert!(
        file.verify()
            .unwrap_err()
            .to_string()
            .contains("zip entry 2")
    );
}

#[test]
fn files_that_are_not_torch_archives_are_named() {
    let pickle = pickle(&record(&[6], &[1], 0, 6));
    let stored = CompressionMethod::Stored;
    let deflated = CompressionMethod::Deflated;
    for (bytes, expected) in [
        (Vec::new(), "it is empty"),
        (b"hello, world".to_vec(), "neither safetensors nor zip"),
        (b"\x80\x02}.".to_vec(), "before PyTorch 1.6"),
        (
            archive_of(&[("readme", b"x")], stored),
            "without exactly one data.pkl",
        ),
        (
            archive_of(&[("m/data.pkl", &pickle)], stored),
            "has no storage `0`",
        ),
        (
            archive_of(&[("m/data.pkl", &pickle)], deflated),
            "is compressed",
        ),
        (
            archive_of(&[("m/data.pkl", &pickle), ("m/byteorder", b"big")], stored),
            "big-endian",
        ),
        (
            archive_of(&[("m/data.pkl", &pickle), ("m/constants.pkl", b"")], stored),
            "TorchScript",
        ),
        (
            archive_of(&[("m/data.pkl", b"cos\nsystem\n.")], stored),
            "Python class `os.system`",
        ),
    ] {
        let text = message(&bytes);
        assert!(
            text.contains(expected),
            "expected `{expected}`, got `{text}`"
        );
    }
}

#[test]
fn a_truncated_archive_is_an_error_at_every_length() {
    let whole = saved(&record(&[6], &[1], 0, 6), &SIX);
    let stored = store(&whole);
    for len in 0..whole.len() {
        std::fs::write(&stored.path, &whole[..len]).unwrap();
        assert!(TensorFile::open(&stored.path).is_err(), "cut at {len}");
    }
}

#[test]
fn seeds_of_the_fuzz_targets_are_sound_files() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, tensors) in [
        ("torch_zip/two_tensors", 3),
        ("torch_zip/empty_tensor", 1),
        ("safetensors/two_tensors", 2),
        ("safetensors/empty", 0),
    ] {
        let file = TensorFile::open(&seeds.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        file.verify().unwrap();
        assert_eq!(file.tensors().count(), tensors, "{name}");
    }
}

proptest! {
    #[test]
    fn a_damaged_archive_never_panics(at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = saved(&record(&[2, 3], &[1, 2], 0, 6), &SIX);
        let at = at % bytes.len();
        bytes[at] = byte;
        let stored = store(&bytes);
        if let Ok(file) = TensorFile::open(&stored.path) {
            let _ = file.verify();
            for (_, tensor) in file.tensors() {
                prop_assert_eq!(tensor.data.len(), tensor.len() * tensor.dtype.size());
            }
        }
    }

    #[test]
    fn random_bytes_behind_a_magic_number_are_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(TensorFile::open(&store(&[b"PK\x03\x04", &bytes[..]].concat()).path).is_err());
    }
}
