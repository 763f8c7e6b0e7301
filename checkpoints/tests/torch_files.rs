//! Files in the exact layout of `torch.save`: read, verified, and usable in place.

#![allow(clippy::unwrap_used)]

mod support;

use scpeft_checkpoint::{Error, HostTensor, TensorFile};
use support::torch_save::TorchSave;

#[test]
fn a_file_with_data_descriptors_reads_verifies_and_is_usable_in_place() {
    let weight = HostTensor::from_f32(vec![2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let count = HostTensor::from_i64(vec![], &[-3]);
    let bytes = TorchSave::default()
        .tensor("w", &weight)
        .tensor("n", &count)
        .alias("tied", "w")
        .int("epoch", 3)
        .build();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::write(&path, &bytes).unwrap();
    let file = TensorFile::open(&path).unwrap();
    file.verify().unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["w", "n", "tied"]);
    assert_eq!(file.others(), ["epoch (an int)"]);
    assert_eq!(file.get("n").unwrap(), count);
    let tensor = file.mapped("w").unwrap().in_place().unwrap();
    assert_eq!(tensor.as_host(), weight);
    assert!(tensor.alignment() >= 64, "{}", tensor.alignment());
    let tied = file.mapped("tied").unwrap().in_place().unwrap();
    assert_eq!(tied.as_mut_ptr(), tensor.as_mut_ptr());
    // The size in the descriptor is not what is believed, the directory's is: a change of the
    // descriptor alone changes nothing, of the data it is found.
    let at = bytes.windows(4).position(|w| w == b"PK\x07\x08").unwrap();
    let mut changed = bytes.clone();
    changed[at + 8..at + 16].fill(0xff);
    std::fs::write(&path, &changed).unwrap();
    assert_eq!(TensorFile::open(&path).unwrap().get("w").unwrap(), weight);
    let five = 5.0_f32.to_le_bytes();
    let at = bytes.windows(4).position(|w| w == five).unwrap();
    changed = bytes;
    changed[at] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    let error = TensorFile::open(&path).unwrap().verify().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}
