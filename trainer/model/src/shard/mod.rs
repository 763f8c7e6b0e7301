//! Frozen blocks that are not all there: each rank of a group holds an equal share of every block,
//! perhaps in 8 bits, and a block is put together from the shares of all just before it is used.
//!
//! The tensors that a model is bound to are handles. [`BlockStore::need`] lets the handles of one
//! block refer to gathered memory and takes it away from the block before; in between they hold
//! NaN. Code of blocks and adapters knows nothing of it. A graph of autograd would refer to gathered
//! memory after the next block has come into it, so only executors that recompute use a store: they
//! drop the graph of a block before they need another one.
//!
//! Gathers are issued by whoever implements [`Gather`]: this crate communicates with nobody.

mod image;
pub(crate) mod int8;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::params::{Precision, Storage, TensorSpec};
use crate::{Error, Result};

use image::Image;

/// Puts the shares of a group of ranks together.
pub trait Gather: std::fmt::Debug {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn ranks(&self) -> usize;

    /// Starts to gather every rank's `part`, u8 `[n]`, into `whole`, u8 `[ranks * n]`, in rank
    /// order; both on the CPU and contiguous. All ranks of the group start the same gathers in the
    /// same order.
    ///
    /// # Errors
    /// When the transport fails.
    fn start(&self, part: &Tensor, whole: &Tensor) -> Result<Box<dyn Gathering>>;
}

/// A gather that was started. Dropping it waits, too.
pub trait Gathering: std::fmt::Debug {
    /// Waits until `whole` is complete.
    ///
    /// # Errors
    /// When the transport fails.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// A rank that shares with nobody: it holds whole blocks in another form than they are used in.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Gather for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn start(&self, _part: &Tensor, _whole: &Tensor) -> Result<Box<dyn Gathering>> {
        Err(Error::Internal("a block that is whole was gathered".into()))
    }
}

/// The gather of a share that is the whole.
#[derive(Debug)]
struct Whole;

impl Gathering for Whole {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What a store holds and has moved so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of this rank's shares of all blocks.
    pub resident_bytes: usize,
    /// Bytes of the largest block, as it is stored.
    pub block_bytes: usize,
    /// Bytes that unpacking adds while the largest block is used; 0 when blocks are stored as they
    /// are used.
    pub unpacked_bytes: usize,
    /// Bytes of all blocks.
    pub total_bytes: usize,
    /// Bytes of gathered blocks, complete or under way, and of what is unpacked.
    pub gathered_bytes: usize,
    /// The most that [`Usage::gathered_bytes`] ever was.
    pub peak_gathered_bytes: usize,
    /// Gathers started.
    pub gathers: u64,
    /// Bytes received from other ranks.
    pub received_bytes: u64,
}

/// The shares of one rank, and the blocks that are there at the moment.
#[derive(Debug)]
pub struct BlockStore {
    gather: Rc<dyn Gather>,
    device: Device,
    images: Vec<Image>,
    parts: Vec<Tensor>,
    /// The block whose handles have values.
    present: RefCell<Option<Gathered>>,
    /// The block that is on its way.
    coming: RefCell<Option<(Gathered, Box<dyn Gathering>)>>,
    /// Memory of gathers that nobody uses. It is used again and not given back: freed and taken anew for
    /// every block, it would leave holes among the activations that no other block fits into.
    spare: RefCell<Vec<Tensor>>,
    usage: Cell<Usage>,
}

/// A block in memory.
#[derive(Debug)]
struct Gathered {
    layer: usize,
    /// The shares of all ranks, u8, on the device of the model.
    whole: Tensor,
    /// The memory on the CPU that the shares were gathered into; `None` where nothing is gathered.
    memory: Option<Tensor>,
    /// What it takes besides the shares: gathered, and unpacked.
    bytes: usize,
}

impl BlockStore {
    /// Makes the frozen tensors of block `layer` available, and starts to gather block `next`. A
    /// block stays until another is needed, so at most two are in memory: this one and the next.
    ///
    /// # Errors
    /// When the transport or libtorch fails.
    pub(crate) fn need(&self, layer: usize, next: Option<usize>) -> Result<()> {
        if self.layer_present() != Some(layer) {
            self.evict()?;
            self.fill(layer)?;
        }
        match next.filter(|&next| next != layer) {
            Some(next) if self.layer_coming() != Some(next) => {
                self.drop_coming()?;
                let started = self.start(next)?;
                *self.coming.borrow_mut() = Some(started);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What it holds and has moved.
    pub fn usage(&self) -> Usage {
        self.usage.get()
    }

    /// Number of blocks.
    pub(crate) fn n_blocks(&self) -> usize {
        self.images.len()
    }

    fn layer_present(&self) -> Option<usize> {
        self.present.borrow().as_ref().map(|g| g.layer)
    }

    fn layer_coming(&self) -> Option<usize> {
        self.coming.borrow().as_ref().map(|(g, _)| g.layer)
    }

    fn fill(&self, layer: usize) -> Result<()> {
        if self.layer_coming() != Some(layer) {
            self.drop_coming()?;
        }
        let coming = self.coming.borrow_mut().take();
        let (mut gathered, gathering) = match coming {
            Some(coming) => coming,
            None => self.start(layer)?,
        };
        gathering.wait()?;
        if self.device != Device::Cpu {
            gathered.whole = gathered.whole.f_to_device(self.device)?;
        }
        self.images[layer].fill(&gathered.whole)?;
        let unpacked = self.images[layer].unpacked_bytes();
        gathered.bytes += unpacked;
        self.count(unpacked);
        *self.present.borrow_mut() = Some(gathered);
        Ok(())
    }

    fn start(&self, layer: usize) -> Result<(Gathered, Box<dyn Gathering>)> {
        let part = &self.parts[layer];
        let alone = self.gather.ranks() == 1;
        let (whole, memory, gathering): (_, _, Box<dyn Gathering>) = if alone {
            (part.shallow_clone(), None, Box::new(Whole))
        } else {
            let memory = self.memory()?;
            let bytes = part.numel() * self.gather.ranks();
            let whole = memory.f_narrow(0, 0, bytes as i64)?;
            let gathering = self.gather.start(part, &whole)?;
            (whole, Some(memory), gathering)
        };
        let bytes = if alone { 0 } else { whole.numel() };
        self.count(bytes);
        let mut usage = self.usage.get();
        usage.gathers += u64::from(!alone);
        usage.received_bytes += bytes.saturating_sub(part.numel()) as u64;
        self.usage.set(usage);
        let gathered = Gathered {
            layer,
            whole,
            memory,
            bytes,
        };
        Ok((gathered, gathering))
    }

    /// Room for the largest block.
    fn memory(&self) -> Result<Tensor> {
        if let Some(spare) = self.spare.borrow_mut().pop() {
            return Ok(spare);
        }
        let bytes = self.usage.get().block_bytes as i64;
        Ok(Tensor::f_empty([bytes], (Kind::Uint8, Device::Cpu))?)
    }

    fn count(&self, bytes: usize) {
        let mut usage = self.usage.get();
        usage.gathered_bytes += bytes;
        usage.peak_gathered_bytes = usage.peak_gathered_bytes.max(usage.gathered_bytes);
        self.usage.set(usage);
    }

    fn evict(&self) -> Result<()> {
        let Some(gathered) = self.present.borrow_mut().take() else {
            return Ok(());
        };
        self.images[gathered.layer].clear()?;
        self.forget(gathered);
        Ok(())
    }

    fn drop_coming(&self) -> Result<()> {
        let Some((gathered, gathering)) = self.coming.borrow_mut().take() else {
            return Ok(());
        };
        gathering.wait()?;
        self.forget(gathered);
        Ok(())
    }

    fn forget(&self, gathered: Gathered) {
        let mut usage = self.usage.get();
        usage.gathered_bytes -= gathered.bytes;
        self.usage.set(usage);
        self.spare.borrow_mut().extend(gathered.memory);
    }
}

/// A store while its tensors are being loaded, in the order of their specs.
#[derive(Debug)]
pub(crate) struct StoreBuilder {
    gather: Rc<dyn Gather>,
    device: Device,
    images: Vec<Image>,
    parts: Vec<Tensor>,
    handles: Vec<(usize, usize, Tensor)>,
    loaded: usize,
}

impl StoreBuilder {
    /// Room for the tensors of `specs`, which all belong to blocks.
    pub(crate) fn new<'a>(
        gather: Rc<dyn Gather>,
        specs: impl Iterator<Item = (usize, &'a TensorSpec)>,
        (precision, storage): (Precision, Storage),
        device: Device,
    ) -> Result<Self> {
        let mut images: Vec<Image> = Vec::new();
        let mut handles = Vec::new();
        let mut absent: Vec<Tensor> = Vec::new();
        for (layer, spec) in specs {
            if images.len() <= layer {
                images.resize_with(layer + 1, Image::default);
            }
            let image = &mut images[layer];
            let (kind, storage) = (spec.kind(precision), spec.storage(storage));
            let known = absent.iter().position(|nan| nan.kind() == kind);
            let nan = known.unwrap_or(absent.len());
            if known.is_none() {
                absent.push(Tensor::f_full([1], f64::NAN, (kind, device))?);
            }
            let handle = image.push(&spec.shape, storage, &absent[nan])?;
            handles.push((layer, image.pieces.len() - 1, handle));
        }
        let part = |image: &Image| -> Result<Tensor> {
            let share = image.share(gather.ranks()) as i64;
            Ok(Tensor::f_zeros([share], (Kind::Uint8, Device::Cpu))?)
        };
        let parts = images.iter().map(part).collect::<Result<_>>()?;
        Ok(Self {
            gather,
            device,
            images,
            parts,
            handles,
            loaded: 0,
        })
    }

    /// Keeps this rank's share of the next tensor; returns its handle.
    pub(crate) fn load(&mut self, value: &Tensor) -> Result<Tensor> {
        let Some((layer, index, handle)) = self.handles.get(self.loaded) else {
            return Err(Error::Internal("a block has an unknown tensor".into()));
        };
        self.loaded += 1;
        let (image, part) = (&self.images[*layer], &self.parts[*layer]);
        image.keep(*index, value, part, self.gather.rank())?;
        Ok(handle.shallow_clone())
    }

    pub(crate) fn finish(self) -> BlockStore {
        let whole = |i: &Image| i.share(self.gather.ranks()) * self.gather.ranks();
        let usage = Usage {
            resident_bytes: self.parts.iter().map(Tensor::numel).sum(),
            block_bytes: self.images.iter().map(whole).max().unwrap_or(0),
            unpacked_bytes: (self.images.iter().map(Image::unpacked_bytes))
                .max()
                .unwrap_or(0),
            total_bytes: self.images.iter().map(Image::bytes).sum(),
            ..Usage::default()
        };
        BlockStore {
            gather: self.gather,
            device: self.device,
            images: self.images,
            parts: self.parts,
            present: RefCell::new(None),
            coming: RefCell::new(None),
            spare: RefCell::new(Vec::new()),
            usage: Cell::new(usage),
        }
    }
}
