//! Tensors as bytes, and files of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::mapped::{self, CopyReason, FileMap, Mapping};

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dtype {
    /// Truth values, one byte each.
    Bool,
    /// Unsigned, 8 bit.
    U8,
    /// Signed, 8 bit.
    I8,
    /// Signed, 16 bit.
    I16,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// Signed, 32 bit.
    I32,
    /// IEEE single precision.
    F32,
    /// Signed, 64 bit.
    I64,
    /// IEEE double precision.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The name that safetensors uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::F32 => "F32",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A contiguous row-major tensor in host memory, little-endian, borrowed or owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTensor<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// The elements. Borrowed bytes may be unaligned.
    pub data: Cow<'a, [u8]>,
}

impl<'a> HostTensor<'a> {
    /// Single-precision values as a tensor that borrows them.
    ///
    /// # Panics
    /// When `values` does not have as many elements as `shape`.
    pub fn borrow_f32(shape: Vec<usize>, values: &'a [f32]) -> Self {
        let elements: usize = shape.iter().product();
        assert_eq!(elements, values.len(), "shape {shape:?}");
        Self {
            dtype: Dtype::F32,
            shape,
            data: Cow::Borrowed(bytemuck::cast_slice(values)),
        }
    }
}

impl HostTensor<'_> {
    /// Single-precision values as a tensor.
    ///
    /// # Panics
    /// When `values` does not have as many elements as `shape`.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> HostTensor<'static> {
        Self::from_pod(Dtype::F32, shape, values)
    }

    /// Integers as a tensor.
    ///
    /// # Panics
    /// When `values` does not have as many elements as `shape`.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> HostTensor<'static> {
        Self::from_pod(Dtype::I64, shape, values)
    }

    fn from_pod<T: bytemuck::Pod>(
        dtype: Dtype,
        shape: Vec<usize>,
        values: &[T],
    ) -> HostTensor<'static> {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "shape {shape:?}"
        );
        HostTensor {
            dtype,
            shape,
            data: Cow::Owned(bytemuck::cast_slice(values).to_vec()),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in single precision, from any floating type.
    ///
    /// # Errors
    /// When the type is not a floating one.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = &self.data;
        Ok(match self.dtype {
            Dtype::F32 => elements(bytes, f32::from_le_bytes).collect(),
            Dtype::F16 => elements(bytes, half::f16::from_le_bytes)
                .map(half::f16::to_f32)
                .collect(),
            Dtype::BF16 => elements(bytes, half::bf16::from_le_bytes)
                .map(half::bf16::to_f32)
                .collect(),
            Dtype::F64 => elements(bytes, f64::from_le_bytes)
                .map(|x| x as f32)
                .collect(),
            found => {
                return Err(Error::Dtype {
                    expected: "a floating type",
                    found,
                });
            }
        })
    }

    /// The values of an I64 tensor.
    ///
    /// # Errors
    /// When the type is another.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => Ok(elements(&self.data, i64::from_le_bytes).collect()),
            found => Err(Error::Dtype {
                expected: "I64",
                found,
            }),
        }
    }

    /// The same tensor with its own bytes.
    pub fn into_owned(self) -> HostTensor<'static> {
        HostTensor {
            dtype: self.dtype,
            shape: self.shape,
            data: Cow::Owned(self.data.into_owned()),
        }
    }
}

/// The elements of possibly unaligned bytes.
fn elements<const N: usize, T>(
    bytes: &[u8],
    convert: impl Fn([u8; N]) -> T,
) -> impl Iterator<Item = T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(move |chunk| convert(*chunk))
}

/// Kinds of tensor files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// safetensors.
    Safetensors,
    /// The zip archive of `torch.save`.
    TorchZip,
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "torch.save zip",
        })
    }
}

/// Where a tensor lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Strides in elements when the elements do not lie in row-major order.
    pub(crate) strides: Option<Vec<usize>>,
    /// Bytes of the file: exactly the elements, or, with strides, from the first element on.
    pub(crate) bytes: Range<usize>,
}

impl Entry {
    /// The elements in row-major order, out of the bytes of the file.
    pub(crate) fn data<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        let bytes = &file[self.bytes.clone()];
        match &self.strides {
            None => Cow::Borrowed(bytes),
            Some(strides) => Cow::Owned(gather(bytes, self.dtype.size(), &self.shape, strides)),
        }
    }
}

/// What a reader found in a file.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) tensors: IndexMap<String, Entry>,
    pub(crate) others: Vec<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A memory-mapped file of named tensors.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<FileMap>,
    format: FileFormat,
    contents: Contents,
}

impl TensorFile {
    /// Opens a safetensors file or a zip-format `torch.save` file; the content decides which.
    ///
    /// The file must not be changed while it is open: it is mapped, not copied.
    ///
    /// # Errors
    /// When it cannot be read, is neither, is truncated, or its pickle asks for anything but
    /// tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(Error::io("inspect", path))?;
        if !meta.is_file() {
            return Err(Error::content(path, "is not a regular file"));
        }
        let map = FileMap::new(&file).map_err(Error::io("map", path))?;
        let format = detect(path, map.bytes())?;
        let contents = match format {
            FileFormat::Safetensors => crate::safetensors_file::read(path, map.bytes())?,
            FileFormat::TorchZip => crate::torch_zip::read(path, map.bytes())?,
        };
        Ok(Self {
            path: path.to_owned(),
            map: Arc::new(map),
            format,
            contents,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which kind of file it is.
    pub fn format(&self) -> FileFormat {
        self.format
    }

    /// Names of the tensors, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.tensors.keys().map(String::as_str)
    }

    /// Names of entries of a pickled dictionary that are not tensors.
    pub fn others(&self) -> &[String] {
        &self.contents.others
    }

    /// The `__metadata__` of a safetensors file; of a torch.save file of several models the settings of
    /// each, `{model}/config`, as JSON.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.contents
            .tensors
            .get(name)
            .map(|entry| (entry.dtype, &entry.shape[..]))
    }

    /// A tensor; copied only when its elements do not lie in row-major order.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<HostTensor<'_>> {
        let entry = self.entry(name)?;
        Ok(HostTensor {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: entry.data(self.map.bytes()),
        })
    }

    /// A tensor in place, with an owner that keeps the map alive after this file is closed.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn mapped(&self, name: &str) -> Result<Mapping> {
        let entry = self.entry(name)?;
        if entry.strides.is_some() {
            return Ok(Mapping::NeedsCopy(CopyReason::Strided));
        }
        let range = entry.bytes.clone();
        Ok(mapped::in_place(
            &self.map,
            range,
            entry.dtype,
            &entry.shape,
        ))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.contents
            .tensors
            .get(name)
            .ok_or_else(|| Error::NoTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            })
    }

    /// Every tensor with its name, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, HostTensor<'_>)> {
        self.names()
            .map(|name| (name, self.get(name).expect("the name comes from the file")))
    }

    /// Reads every byte and compares the checksums that the format has.
    ///
    /// # Errors
    /// When one differs.
    pub fn verify(&self) -> Result<()> {
        match self.format {
            // safetensors has no checksums; its header was checked against the size on opening.
            FileFormat::Safetensors => Ok(()),
            FileFormat::TorchZip => crate::torch_zip::verify(&self.path, self.map.bytes()),
        }
    }
}

fn detect(path: &Path, bytes: &[u8]) -> Result<FileFormat> {
    const EXPECTED: &str = "expected a safetensors file or a zip-format torch.save file";
    let format = |reason: &str, help| Error::Format {
        path: path.to_owned(),
        reason: reason.to_owned(),
        help,
    };
    if bytes.is_empty() {
        return Err(format("it is empty", EXPECTED));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Ok(FileFormat::TorchZip);
    }
    let header = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
    if header.is_some_and(|n| n <= 100_000_000) && bytes.get(8) == Some(&b'{') {
        return Ok(FileFormat::Safetensors);
    }
    if bytes.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") || bytes[0] == 0x80 {
        return Err(format(
            "it is a bare pickle, as torch.save wrote before PyTorch 1.6",
            "load it with torch and save it again: the zip format is the default since PyTorch 1.6",
        ));
    }
    Err(format(
        "its first bytes are those of neither safetensors nor zip",
        EXPECTED,
    ))
}

/// Copies strided elements into row-major order.
fn gather(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0_usize; shape.len()];
    for _ in 0..count {
        let at: usize = index
            .iter()
            .zip(strides)
            .map(|(i, stride)| i * stride)
            .sum();
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_types_become_single_precision_and_integers_are_refused() {
        let tensor = |dtype, data: &[u8]| HostTensor {
            dtype,
            shape: vec![data.len() / dtype.size()],
            data: Cow::Owned(data.to_vec()),
        };
        let half = half::f16::from_f32(-1.5).to_le_bytes();
        assert_eq!(tensor(Dtype::F16, &half).to_f32().unwrap(), [-1.5]);
        let brain = half::bf16::from_f32(3.0).to_le_bytes();
        assert_eq!(tensor(Dtype::BF16, &brain).to_f32().unwrap(), [3.0]);
        assert_eq!(
            tensor(Dtype::F64, &0.25_f64.to_le_bytes())
                .to_f32()
                .unwrap(),
            [0.25]
        );
        let message = HostTensor::from_i64(vec![1], &[3])
            .to_f32()
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "tensor of type I64 where a floating type is needed"
        );
        assert!(HostTensor::from_f32(vec![1], &[3.0]).to_i64().is_err());
    }
}
