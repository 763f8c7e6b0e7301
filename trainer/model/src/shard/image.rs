//! The frozen tensors of a block side by side in one run of bytes, and a rank's share of it.

use tch::{Device, Kind, Tensor};

use super::int8;
use crate::Result;
use crate::params::Storage;

/// Tensors, and the shares of ranks, begin at multiples of this many bytes: what vectorised kernels
/// like, and a multiple of every element size.
pub(super) const ALIGNMENT: usize = 64;

/// Where a tensor lies in its block's image.
#[derive(Debug)]
pub(super) struct Piece {
    /// Handle that the model is bound to.
    pub(super) tensor: Tensor,
    /// What it refers to while it is not there: a single NaN.
    absent: Tensor,
    shape: Vec<i64>,
    kind: Kind,
    storage: Storage,
    offset: usize,
    bytes: usize,
}

/// The frozen tensors of one block.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) pieces: Vec<Piece>,
    bytes: usize,
}

impl Image {
    /// Appends a tensor that is used in the format of `absent`, a single NaN that all tensors of that
    /// format share; returns its handle, without values yet.
    pub(super) fn push(
        &mut self,
        shape: &[i64],
        storage: Storage,
        absent: &Tensor,
    ) -> Result<Tensor> {
        let (kind, device) = (absent.f_kind()?, absent.device());
        let bytes = storage.bytes(shape, kind);
        let tensor = Tensor::f_empty([0], (kind, device))?;
        let piece = Piece {
            tensor: tensor.shallow_clone(),
            absent: absent.shallow_clone(),
            shape: shape.to_vec(),
            kind,
            storage,
            offset: self.bytes,
            bytes,
        };
        piece.clear()?;
        self.bytes += bytes.next_multiple_of(ALIGNMENT);
        self.pieces.push(piece);
        Ok(tensor)
    }

    /// Bytes of all tensors, each rounded up to its alignment.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that each of `ranks` ranks holds; the last of them holds padding.
    pub(super) fn share(&self, ranks: usize) -> usize {
        self.bytes.div_ceil(ranks).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of the tensors that are stored in another form, as they are used.
    pub(super) fn unpacked_bytes(&self) -> usize {
        let packed = self.pieces.iter().filter(|p| p.storage != Storage::Full);
        packed.map(|p| Storage::Full.bytes(&p.shape, p.kind)).sum()
    }

    /// Copies what the share `part` (number `rank`) has of tensor number `index`, whose value is
    /// `value`. Nothing else of `value` is read, unless it is packed.
    pub(super) fn keep(
        &self,
        index: usize,
        value: &Tensor,
        part: &Tensor,
        rank: usize,
    ) -> Result<()> {
        let piece = &self.pieces[index];
        let share = part.numel();
        let (begin, end) = (rank * share, (rank + 1) * share);
        let from = piece.offset.max(begin);
        let to = (piece.offset + piece.bytes).min(end);
        if from >= to {
            return Ok(());
        }
        let bytes = match piece.storage {
            Storage::Full => {
                let size = piece.kind.elt_size_in_bytes();
                let (first, count) = ((from - piece.offset) / size, (to - from) / size);
                value
                    .f_contiguous()?
                    .f_view([-1])?
                    .f_narrow(0, first as i64, count as i64)?
                    .f_to_device(Device::Cpu)?
                    .f_to_kind(piece.kind)?
                    .f_view_dtype(Kind::Uint8)?
            }
            Storage::Int8 => {
                let (first, count) = (from - piece.offset, to - from);
                int8::pack(value)?.f_narrow(0, first as i64, count as i64)?
            }
        };
        part.f_narrow(0, (from - begin) as i64, (to - from) as i64)?
            .f_copy_(&bytes)?;
        Ok(())
    }

    /// Gives the handles their values: views of `whole`, the gathered shares, or what is unpacked
    /// from it.
    pub(super) fn fill(&self, whole: &Tensor) -> Result<()> {
        for piece in &self.pieces {
            let bytes = whole.f_narrow(0, piece.offset as i64, piece.bytes as i64)?;
            let shape = piece.shape.as_slice();
            let value = match piece.storage {
                Storage::Full => bytes.f_view_dtype(piece.kind)?.f_view(shape)?,
                Storage::Int8 => int8::unpack(&bytes, shape, piece.kind)?,
            };
            piece.set(&value)?;
        }
        Ok(())
    }

    /// Takes the values from the handles again.
    pub(super) fn clear(&self) -> Result<()> {
        self.pieces.iter().try_for_each(Piece::clear)
    }
}

impl Piece {
    /// A single NaN in the shape of the tensor: whoever computes with a tensor that is not there
    /// gets NaN, and not yesterday's memory.
    fn clear(&self) -> Result<()> {
        self.set(&self.absent.f_expand(self.shape.as_slice(), false)?)
    }

    fn set(&self, source: &Tensor) -> Result<()> {
        let mut handle = self.tensor.shallow_clone();
        let _ = tch::no_grad(|| handle.f_set_source_tensor_(source))?;
        Ok(())
    }
}
