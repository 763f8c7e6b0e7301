//! Mapped files, and tensors that are bytes of one with the map as their owner: what it takes to
//! use published weights in place, without a second copy in memory.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use crate::tensor::{Dtype, HostTensor};

/// A whole file in memory, mapped privately: a page that is written to becomes this process's own
/// copy, so that nothing done to the memory can reach the file. Pages that are only read are shared
/// with every process that maps the file, and with the page cache.
#[derive(Debug)]
pub struct FileMap {
    raw: MmapRaw,
}

impl FileMap {
    /// Maps `file`, which must be neither truncated nor written to while the map lives.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private, so writes through it stay here; that nobody changes the file
        // meanwhile is the documented condition of `TensorFile::open`.
        let map = unsafe { MmapOptions::new().map_copy(file) }?;
        Ok(Self { raw: map.into() })
    }

    /// The content of the file.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: pointer and length are those of the map, which lives as long as `self`. Nobody
        // writes while the slice is borrowed: the condition of `MappedTensor::as_mut_ptr`.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.raw.len()) }
    }
}

/// A row-major tensor inside a mapped file, little-endian and aligned to its element type. Clones
/// share the map, which is unmapped with the last of them and of the files that it came from.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    owner: Arc<FileMap>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl MappedTensor {
    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, `shape` product times element size bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// What keeps the bytes alive: whoever uses the pointer holds a clone of this.
    pub fn owner(&self) -> Arc<FileMap> {
        Arc::clone(&self.owner)
    }

    /// Address of the first element, valid as long as the [`owner`](Self::owner) lives. Writing
    /// through it never changes the file, but other tensors over the same bytes see it: whoever
    /// writes must make sure that no slice of them is borrowed meanwhile.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.owner.raw.as_mut_ptr().wrapping_add(self.range.start)
    }

    /// The largest power of two up to 4,096 that divides the address.
    pub fn alignment(&self) -> usize {
        alignment(self.as_mut_ptr())
    }

    /// The same tensor as borrowed bytes.
    pub fn as_host(&self) -> HostTensor<'_> {
        HostTensor {
            dtype: self.dtype,
            shape: self.shape.clone(),
            data: Cow::Borrowed(self.bytes()),
        }
    }
}

/// How a tensor of a file can be had.
#[derive(Debug, Clone)]
pub enum Mapping {
    /// In place.
    InPlace(MappedTensor),
    /// Only as a copy, by [`TensorFile::get`](crate::TensorFile::get).
    NeedsCopy(CopyReason),
}

impl Mapping {
    /// The tensor in place; `None` when a copy is needed.
    pub fn in_place(self) -> Option<MappedTensor> {
        match self {
            Self::InPlace(tensor) => Some(tensor),
            Self::NeedsCopy(_) => None,
        }
    }
}

/// Why the bytes of a file do not serve as a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyReason {
    /// The elements do not lie in row-major order.
    Strided,
    /// The address is not a multiple of the element size.
    Unaligned {
        /// Largest power of two that divides the address.
        alignment: usize,
        /// Bytes of an element.
        needed: usize,
    },
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strided => f.write_str("its elements do not lie in row-major order"),
            Self::Unaligned { alignment, needed } => write!(
                f,
                "it lies at a multiple of {alignment} bytes where {needed} are needed"
            ),
        }
    }
}

/// The tensor at `range`, in place when its address fits its type.
pub(crate) fn in_place(
    owner: &Arc<FileMap>,
    range: Range<usize>,
    dtype: Dtype,
    shape: &[usize],
) -> Mapping {
    let tensor = MappedTensor {
        owner: Arc::clone(owner),
        range,
        dtype,
        shape: shape.to_vec(),
    };
    let found = tensor.alignment();
    if found < dtype.size() {
        return Mapping::NeedsCopy(CopyReason::Unaligned {
            alignment: found,
            needed: dtype.size(),
        });
    }
    Mapping::InPlace(tensor)
}

fn alignment(pointer: *const u8) -> usize {
    1 << pointer.addr().trailing_zeros().min(12)
}

#[cfg(test)]
mod tests;
