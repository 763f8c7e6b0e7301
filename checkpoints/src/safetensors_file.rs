//! The safetensors format. The header is checked by the `safetensors` crate; the file is written
//! here, so that it is streamed, synced and renamed, with ordinary permissions.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};

use crate::error::{Error, Result};
use crate::fsx;
use crate::tensor::{Contents, Dtype, Entry, HostTensor};

fn from_safetensors(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as St;
    Some(match dtype {
        St::BOOL => Dtype::Bool,
        St::U8 => Dtype::U8,
        St::I8 => Dtype::I8,
        St::I16 => Dtype::I16,
        St::F16 => Dtype::F16,
        St::BF16 => Dtype::BF16,
        St::I32 => Dtype::I32,
        St::F32 => Dtype::F32,
        St::I64 => Dtype::I64,
        St::F64 => Dtype::F64,
        _ => return None,
    })
}

fn to_safetensors(dtype: Dtype) -> safetensors::Dtype {
    use safetensors::Dtype as St;
    match dtype {
        Dtype::Bool => St::BOOL,
        Dtype::U8 => St::U8,
        Dtype::I8 => St::I8,
        Dtype::I16 => St::I16,
        Dtype::F16 => St::F16,
        Dtype::BF16 => St::BF16,
        Dtype::I32 => St::I32,
        Dtype::F32 => St::F32,
        Dtype::I64 => St::I64,
        Dtype::F64 => St::F64,
    }
}

/// Reads the header; tensors stay where they are.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let damaged = |e: safetensors::SafeTensorError| {
        Error::damaged(
            path,
            format!("its safetensors header does not fit its content: {e}"),
        )
    };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let base = 8 + header;
    let mut contents = Contents::default();
    if let Some(map) = metadata.metadata() {
        contents.metadata = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    }
    for name in metadata.offset_keys() {
        let info = metadata
            .info(&name)
            .expect("the name comes from the header");
        let dtype = from_safetensors(info.dtype).ok_or_else(|| {
            Error::content(
                path,
                format!("tensor `{name}` has the unsupported type {:?}", info.dtype),
            )
        })?;
        let (start, end) = info.data_offsets;
        let entry = Entry {
            dtype,
            shape: info.shape.clone(),
            strides: None,
            bytes: base + start..base + end,
        };
        contents.tensors.insert(name, entry);
    }
    Ok(contents)
}

/// Writes tensors as a safetensors file with `__metadata__` `{"format": "pt"}`, atomically. The
/// bytes depend on names, types, shapes and values only, not on the order of `tensors`.
///
/// # Errors
/// When the file cannot be written, a name appears twice, or data does not fit a shape.
pub fn write_safetensors(path: &Path, tensors: &[(String, HostTensor<'_>)]) -> Result<()> {
    let mut sorted: Vec<&(String, HostTensor<'_>)> = tensors.iter().collect();
    // Wide types first keeps every tensor aligned without gaps, as the format recommends.
    sorted.sort_by(|(left_name, left), (right_name, right)| {
        let by_type = to_safetensors(right.dtype).cmp(&to_safetensors(left.dtype));
        by_type.then_with(|| left_name.cmp(right_name))
    });
    let mut names = HashSet::new();
    if let Some((name, _)) = sorted.iter().find(|(name, _)| !names.insert(name)) {
        return Err(Error::content(
            path,
            format!("tensor `{name}` appears twice"),
        ));
    }
    let mut infos = Vec::with_capacity(sorted.len());
    let mut offset = 0;
    for (name, tensor) in &sorted {
        let end = offset + tensor.data.len();
        infos.push((
            name.clone(),
            TensorInfo {
                dtype: to_safetensors(tensor.dtype),
                shape: tensor.shape.clone(),
                data_offsets: (offset, end),
            },
        ));
        offset = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|e| {
        Error::content(path, format!("a tensor's data does not fit its shape: {e}"))
    })?;
    let mut header = serde_json::to_vec(&metadata)
        .map_err(|e| Error::content(path, format!("header cannot be written: {e}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    fsx::write_atomic_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        sorted
            .iter()
            .try_for_each(|(_, tensor)| file.write_all(&tensor.data))
    })
}

/// The tensor with data borrowed from this one.
pub(crate) fn borrowed<'a>(tensor: &'a HostTensor<'_>) -> HostTensor<'a> {
    HostTensor {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        data: Cow::Borrowed(&tensor.data),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::TensorFile;

    proptest! {
        #[test]
        fn tensors_read_back_as_written_in_any_order(
            sizes in proptest::collection::btree_map("[a-z.]{1,8}", (0_usize..4, 0_usize..4), 0..6),
        ) {
            let tensors: Vec<(String, HostTensor<'_>)> = sizes
                .iter()
                .map(|(name, &(rows, columns))| {
                    let values: Vec<f32> = (0..rows * columns).map(|x| x as f32 - 1.5).collect();
                    (name.clone(), HostTensor::from_f32(vec![rows, columns], &values))
                })
                .chain([("n".repeat(9), HostTensor::from_i64(vec![1], &[-7]))])
                .collect();
            let dir = tempfile::tempdir().unwrap();
            let (forward, backward) = (dir.path().join("a"), dir.path().join("b"));
            write_safetensors(&forward, &tensors).unwrap();
            let reversed: Vec<_> = tensors.iter().rev().cloned().collect();
            write_safetensors(&backward, &reversed).unwrap();
            prop_assert_eq!(std::fs::read(&forward).unwrap(), std::fs::read(&backward).unwrap());
            let file = TensorFile::open(&forward).unwrap();
            prop_assert_eq!(file.names().count(), tensors.len());
            for (name, tensor) in &tensors {
                prop_assert_eq!(&file.get(name).unwrap(), tensor);
            }
        }
    }

    #[test]
    fn what_cannot_be_written_or_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let one = HostTensor::from_f32(vec![1], &[1.0]);
        let twice = [
            ("w".to_owned(), one.clone()),
            ("w".to_owned(), HostTensor::from_i64(vec![1], &[1])),
        ];
        let message = write_safetensors(&path, &twice).unwrap_err().to_string();
        assert!(message.contains("tensor `w` appears twice"), "{message}");
        let short = [(
            "w".to_owned(),
            HostTensor {
                shape: vec![2],
                ..one.clone()
            },
        )];
        let message = write_safetensors(&path, &short).unwrap_err().to_string();
        assert!(message.contains("does not fit its shape"), "{message}");
        assert!(!path.exists());
        write_safetensors(&path, &[("w".to_owned(), one)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "cut at {len}");
        }
    }
}
