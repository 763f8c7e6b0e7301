//! Entrances for the targets in `fuzz/`: each reads bytes as a file of one format and, where that
//! succeeds, everything in it. They return what was found, so that nothing is optimised away.

use std::path::Path;

use crate::error::Result;
use crate::tensor::Contents;
use crate::{pickle, safetensors_file, torch_zip};

/// Reads a pickle; returns the number of tensors.
pub fn pickle(bytes: &[u8]) -> usize {
    pickle::read(bytes).map_or(0, |records| records.tensors.len())
}

/// Reads a `torch.save` archive, every tensor in it, and its checksums; returns the bytes of the
/// tensors.
pub fn torch_zip(bytes: &[u8]) -> usize {
    let path = Path::new("fuzz.pt");
    let read = every_tensor(torch_zip::read(path, bytes), bytes);
    let verified = torch_zip::verify(path, bytes).is_ok();
    read + usize::from(verified)
}

/// Reads a safetensors file and every tensor in it; returns the bytes of the tensors.
pub fn safetensors(bytes: &[u8]) -> usize {
    let path = Path::new("fuzz.safetensors");
    every_tensor(safetensors_file::read(path, bytes), bytes)
}

/// # Panics
/// When a tensor does not have as many bytes as its shape says.
fn every_tensor(contents: Result<Contents>, bytes: &[u8]) -> usize {
    let Ok(contents) = contents else { return 0 };
    let sizes = contents.tensors.values().map(|entry| {
        let data = entry.data(bytes);
        let expected = entry.shape.iter().product::<usize>() * entry.dtype.size();
        assert_eq!(data.len(), expected, "shape {:?}", entry.shape);
        data.len()
    });
    sizes.sum()
}
