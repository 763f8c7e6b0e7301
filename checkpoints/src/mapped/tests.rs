//! Tensors in place: where they lie, how long they live, and that the file never changes.

use std::path::{Path, PathBuf};

use super::*;
use crate::tensor::TensorFile;
use crate::write_safetensors;

fn stored(dir: &Path) -> PathBuf {
    let path = dir.join("x.safetensors");
    let tensors = [
        ("wide".to_owned(), HostTensor::from_i64(vec![2], &[7, -7])),
        (
            "w".to_owned(),
            HostTensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]),
        ),
    ];
    write_safetensors(&path, &tensors).unwrap();
    path
}

#[test]
fn a_tensor_outlives_the_file_it_was_opened_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = TensorFile::open(&stored(dir.path())).unwrap();
    let tensor = file.mapped("w").unwrap().in_place().unwrap();
    let start = file.get("w").unwrap().data.as_ptr();
    assert_eq!(tensor.as_mut_ptr().cast_const(), start, "no copy was made");
    let again = tensor.clone();
    assert!(Arc::ptr_eq(&tensor.owner(), &again.owner()));
    drop((file, tensor));
    assert_eq!((again.dtype(), again.shape()), (Dtype::F32, &[2, 2][..]));
    assert_eq!(again.as_host().to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert!(again.alignment() >= 4 && again.alignment() <= 4096);
}

#[test]
fn writing_to_the_memory_leaves_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = stored(dir.path());
    let before = std::fs::read(&path).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let tensor = file.mapped("w").unwrap().in_place().unwrap();
    let nine = 9.0_f32.to_le_bytes();
    // SAFETY: the tensor has four elements of four bytes, and no slice of them is borrowed.
    unsafe { tensor.as_mut_ptr().copy_from(nine.as_ptr(), nine.len()) };
    assert_eq!(tensor.as_host().to_f32().unwrap(), [9.0, 2.0, 3.0, 4.0]);
    drop((file, tensor));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let reopened = TensorFile::open(&path).unwrap();
    assert_eq!(
        reopened.get("w").unwrap().to_f32().unwrap(),
        [1.0, 2.0, 3.0, 4.0]
    );
}

#[test]
fn an_address_that_does_not_fit_the_type_asks_for_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.safetensors");
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    // A header whose length is 2 modulo 4 puts the data, at 8 plus it, out of step.
    let mut padded = header.to_vec();
    while padded.len() % 4 != 2 {
        padded.push(b' ');
    }
    let bytes = [
        &(padded.len() as u64).to_le_bytes()[..],
        &padded,
        &1.5_f32.to_le_bytes(),
    ]
    .concat();
    std::fs::write(&path, bytes).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let Mapping::NeedsCopy(reason) = file.mapped("w").unwrap() else {
        panic!("an unaligned tensor was given in place");
    };
    assert_eq!(
        reason,
        CopyReason::Unaligned {
            alignment: 2,
            needed: 4
        }
    );
    assert_eq!(
        reason.to_string(),
        "it lies at a multiple of 2 bytes where 4 are needed"
    );
    assert_eq!(file.get("w").unwrap().to_f32().unwrap(), [1.5]);
    assert!(matches!(
        file.mapped("v"),
        Err(crate::Error::NoTensor { .. })
    ));
}
