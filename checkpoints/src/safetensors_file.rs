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
        Error::damaged(path, format!("its safetensors header does not fit its content: {e}"))
    };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let base = 8 + header;
    let mut contents = Contents::default();
    if let Some(map) = metadata.metadata() {
        contents.metadata = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    }
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("the name comes from the header");
        let dtype = from_safetensors(info.dtype).ok_or_else(|| {
            Error::content(path, format!("tensor `{name}` has the unsupported type {:?}", info.dtype))
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
        return Err(Error::content(path, format!("tensor `{name}` appears twice")));
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
    let metadata = Metadata::new(Some(format), infos)
        .map_err(|e| Error::content(path, format!("a tensor's data does not fit its shape: {e}")))?;
    let mut header = serde_json::to_vec(&metadata)
        .map_err(|e| Error::content(path, format!("header cannot be written: {e}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    fsx::write_atomic_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        sorted.iter().try_for_each(|(_, tensor)| file.write_all(&tensor.data))
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
