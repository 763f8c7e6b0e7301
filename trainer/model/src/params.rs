//! The tensors of a model: frozen ones on their own, trainable ones as views of one flat buffer.

use std::rc::Rc;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use crate::init::Init;
use crate::shard::{Alone, BlockStore, Gather, StoreBuilder, int8};
use crate::{Error, Result};

/// What a tensor belongs to; the freeze rule and the loading policy go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Part of the pretrained encoder: must come from the weights.
    Backbone,
    /// Task head: taken from the weights when they hold it, else initialised.
    Head,
    /// Adapter: initialised, never part of a backbone's weights.
    Adapter,
    /// Running statistic of a batch norm: never trained by gradients, saved with the adapter.
    Buffer,
    /// Fixed numbers of the pretrained encoder that count as no parameters, random features for
    /// instance: must come from the weights, never train.
    Constant,
}

impl Role {
    /// Whether tensors of this role are parameters, which may train and are counted.
    pub fn is_parameter(self) -> bool {
        !matches!(self, Self::Buffer | Self::Constant)
    }
}

/// The number formats of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Everything in f32.
    #[default]
    F32,
    /// Frozen matrices and activations in bf16; trainable tensors, norms, and reductions in f32.
    Bf16,
    /// Everything in f64, to check one way of computing against another.
    F64,
}

impl Precision {
    /// Format of frozen matrices and of activations.
    pub fn compute(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F64 => Kind::Double,
        }
    }

    /// Format of trainable tensors, norms, embeddings of cells and losses.
    pub fn full(self) -> Kind {
        match self {
            Self::F32 | Self::Bf16 => Kind::Float,
            Self::F64 => Kind::Double,
        }
    }
}

/// How frozen matrices of blocks are kept while they are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// As they are used.
    #[default]
    Full,
    /// In 8 bits with a scale for each output channel, unpacked block by block.
    Int8,
}

impl Storage {
    /// Bytes of a tensor that is used in `kind`.
    pub fn bytes(self, shape: &[i64], kind: Kind) -> usize {
        match self {
            Self::Full => shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes(),
            Self::Int8 => int8::bytes(shape),
        }
    }
}

/// One tensor of a model before it exists.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name in the published checkpoints.
    pub name: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// Values when no weights are loaded for it.
    pub init: Init,
    /// What it belongs to.
    pub role: Role,
    /// Kept in full precision when frozen matrices are not: norms, statistics, scalars' encoders.
    pub full_precision: bool,
    /// Kept in double precision whatever the model's: a table that is given and never trains.
    pub double_precision: bool,
    /// The block of the backbone that it is part of; such tensors may be sharded while frozen.
    pub block: Option<usize>,
}

impl TensorSpec {
    /// A tensor called `name`.
    pub fn new(name: String, shape: &[i64], init: Init, role: Role) -> Self {
        Self {
            name,
            shape: shape.to_vec(),
            init,
            role,
            full_precision: !role.is_parameter(),
            double_precision: false,
            block: None,
        }
    }

    /// The same tensor, never stored in less than full precision.
    #[must_use]
    pub fn in_full_precision(mut self) -> Self {
        self.full_precision = true;
        self
    }

    /// The same tensor in double precision; it never trains.
    #[must_use]
    pub fn in_double_precision(mut self) -> Self {
        self.double_precision = true;
        self
    }

    /// Whether it may train at all.
    pub fn may_train(&self) -> bool {
        self.role.is_parameter() && !self.double_precision
    }

    /// The same tensor as a part of block `layer`.
    #[must_use]
    pub fn in_block(mut self, layer: usize) -> Self {
        self.block = Some(layer);
        self
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// How it is kept, as a frozen part of a block, in a model with this storage: vectors and what
    /// needs full precision are never packed.
    pub fn storage(&self, storage: Storage) -> Storage {
        if self.shape.len() == 2 && !self.full_precision {
            storage
        } else {
            Storage::Full
        }
    }

    /// Number format while it is frozen.
    pub fn kind(&self, precision: Precision) -> Kind {
        if self.double_precision {
            Kind::Double
        } else if self.full_precision {
            precision.full()
        } else {
            precision.compute()
        }
    }
}

/// How [`Params::build`] lays tensors out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// Seed of the tensors that no weights hold.
    pub seed: u64,
    /// Where the tensors live.
    pub device: Device,
    /// Elements that the gradient buffer has beyond the trainable parameters: what the trainer
    /// sends along with the gradients in one all-reduce.
    pub tail: usize,
    /// Number formats.
    pub precision: Precision,
    /// How frozen matrices of blocks are kept.
    pub storage: Storage,
}

impl Layout {
    /// f32 on the CPU, nothing beside the gradients.
    pub fn cpu(seed: u64) -> Self {
        Self {
            seed,
            device: Device::Cpu,
            tail: 0,
            precision: Precision::F32,
            storage: Storage::Full,
        }
    }
}

/// Where a trainable tensor lies in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Name of the tensor.
    pub name: String,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Shape.
    pub shape: Vec<i64>,
}

impl Slot {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

#[derive(Debug)]
struct Entry {
    tensor: Tensor,
    role: Role,
    trainable: bool,
}

/// All tensors of a model on one device.
///
/// Invariant: trainable tensors are leaves whose storage is [`Params::flat`] and whose gradients
/// accumulate in place into [`Params::grad`]; frozen tensors and buffers share no storage with
/// either and never require gradients.
#[derive(Debug)]
pub struct Params {
    entries: IndexMap<String, Entry>,
    slots: Vec<Slot>,
    flat: Tensor,
    grad: Tensor,
    device: Device,
    precision: Precision,
    store: Option<Rc<BlockStore>>,
}

impl Params {
    /// Builds every tensor of `specs`, whole.
    ///
    /// `weights` returns the loaded value of a tensor, or `None` when the weights hold none; then
    /// the tensor starts from its [`Init`]. `trainable` is the freeze rule; buffers never train.
    /// A frozen tensor that already has its format and device is taken as it is, without a copy.
    ///
    /// # Errors
    /// A loaded tensor of another shape, or libtorch out of memory.
    pub fn build(
        specs: &[TensorSpec],
        weights: impl FnMut(&TensorSpec) -> Result<Option<Tensor>>,
        trainable: impl Fn(&TensorSpec) -> bool,
        layout: Layout,
    ) -> Result<Self> {
        Self::build_sharded(specs, weights, trainable, layout, None)
    }

    /// As [`Params::build`]; with `gather`, of the frozen tensors of blocks only this rank's share
    /// is kept. What else a loaded tensor has is not read.
    ///
    /// # Errors
    /// As [`Params::build`].
    pub fn build_sharded(
        specs: &[TensorSpec],
        mut weights: impl FnMut(&TensorSpec) -> Result<Option<Tensor>>,
        trainable: impl Fn(&TensorSpec) -> bool,
        layout: Layout,
        gather: Option<Rc<dyn Gather>>,
    ) -> Result<Self> {
        let (seed, device, precision, storage) =
            (layout.seed, layout.device, layout.precision, layout.storage);
        // Packed blocks are unpacked one by one, which is a store's business, shared or not.
        let gather = match (gather, storage) {
            (None, Storage::Int8) => Some(Rc::new(Alone) as Rc<dyn Gather>),
            (gather, _) => gather,
        };
        let trainable = |s: &TensorSpec| s.may_train() && trainable(s);
        let total: usize = specs
            .iter()
            .filter(|s| trainable(s))
            .map(TensorSpec::numel)
            .sum();
        let flat = Tensor::f_zeros([total as i64], (precision.full(), device))?;
        let grad = Tensor::f_zeros([(total + layout.tail) as i64], (precision.full(), device))?;
        let of_block = |s: &TensorSpec| s.block.filter(|_| !trainable(s));
        let mut store = match gather {
            Some(gather) => {
                let parts = specs.iter().filter_map(|s| Some((of_block(s)?, s)));
                let form = (precision, storage);
                Some(StoreBuilder::new(gather, parts, form, device)?)
            }
            None => None,
        };
        let mut entries = IndexMap::with_capacity(specs.len());
        let mut slots = Vec::new();
        let mut offset = 0;
        for spec in specs {
            let value = start_value(spec, weights(spec)?, seed)?;
            let is_trainable = trainable(spec);
            let tensor = if is_trainable {
                let slot = Slot {
                    name: spec.name.clone(),
                    offset,
                    shape: spec.shape.clone(),
                };
                let view = leaf_view(&flat, &grad, &slot, &value)?;
                offset += slot.numel();
                slots.push(slot);
                view
            } else if let Some(store) = store.as_mut().filter(|_| spec.block.is_some()) {
                store.load(&value)?
            } else {
                frozen(spec, &value, precision, device)?
            };
            let entry = Entry {
                tensor,
                role: spec.role,
                trainable: is_trainable,
            };
            entries.insert(spec.name.clone(), entry);
        }
        Ok(Self {
            entries,
            slots,
            flat,
            grad,
            device,
            precision,
            store: store.map(|store| Rc::new(store.finish())),
        })
    }

    /// The sharded blocks, where there are any.
    pub fn store(&self) -> Option<&Rc<BlockStore>> {
        self.store.as_ref()
    }

    /// A handle on tensor `name`.
    ///
    /// # Errors
    /// When the model has no such tensor.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.entries.get(name) {
            Some(entry) => Ok(entry.tensor.shallow_clone()),
            None => Err(Error::MissingTensor {
                name: name.to_owned(),
                shape: Vec::new(),
            }),
        }
    }

    /// Name, tensor, role and trainability of every tensor, in order of construction.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor, Role, bool)> {
        self.entries
            .iter()
            .map(|(name, e)| (name.as_str(), &e.tensor, e.role, e.trainable))
    }

    /// Names and tensors of the running statistics, in order of construction.
    pub fn buffers(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries
            .iter()
            .filter(|(_, e)| e.role == Role::Buffer)
            .map(|(name, e)| (name.as_str(), &e.tensor))
    }

    /// Number formats.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The flat master buffer `[n]` of the trainable tensors, in full precision.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The flat gradient buffer `[n + tail]`, in full precision.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// Layout of the flat buffer.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Number of trainable parameters n.
    pub fn trainable_count(&self) -> usize {
        self.slots.iter().map(Slot::numel).sum()
    }

    /// Number of parameters, frozen ones included; running statistics and constants are none.
    pub fn total_count(&self) -> usize {
        self.entries
            .values()
            .filter(|e| e.role.is_parameter())
            .map(|e| e.tensor.numel())
            .sum()
    }

    /// Where the tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sets every gradient to zero.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        let _ = self.grad.f_zero_()?;
        Ok(())
    }

    /// Overwrites a running statistic.
    ///
    /// # Errors
    /// No such buffer, or another shape.
    pub fn set_buffer(&self, name: &str, value: &Tensor) -> Result<()> {
        let entry = self.entries.get(name).filter(|e| e.role == Role::Buffer);
        let Some(entry) = entry else {
            return Err(Error::MissingTensor {
                name: name.to_owned(),
                shape: value.size(),
            });
        };
        if entry.tensor.size() != value.size() {
            return Err(Error::ShapeMismatch {
                name: name.to_owned(),
                expected: entry.tensor.size(),
                found: value.size(),
            });
        }
        entry
            .tensor
            .shallow_clone()
            .f_copy_(&value.f_to_device(self.device)?)?;
        Ok(())
    }

    /// Overwrites a trainable tensor.
    ///
    /// # Errors
    /// Unknown or frozen tensor, or another shape.
    pub fn set_trainable(&self, name: &str, value: &Tensor) -> Result<()> {
        let slot = self.slots.iter().find(|s| s.name == name);
        let Some(slot) = slot else {
            return Err(Error::MissingTensor {
                name: name.to_owned(),
                shape: value.size(),
            });
        };
        if slot.shape != value.size() {
            return Err(Error::ShapeMismatch {
                name: name.to_owned(),
                expected: slot.shape.clone(),
                found: value.size(),
            });
        }
        slice(&self.flat, slot)?.f_copy_(&value.f_to_device(self.device)?)?;
        Ok(())
    }
}

/// What a tensor starts from: its value in the weights, or else its [`Init`].
fn start_value(spec: &TensorSpec, loaded: Option<Tensor>, seed: u64) -> Result<Tensor> {
    let value = match loaded {
        Some(tensor) => tensor,
        None => Tensor::f_from_slice(&spec.init.values(seed, &spec.name, spec.numel()))?
            .f_view(spec.shape.as_slice())?,
    };
    if value.size() != spec.shape {
        return Err(Error::ShapeMismatch {
            name: spec.name.clone(),
            expected: spec.shape.clone(),
            found: value.size(),
        });
    }
    Ok(value)
}

/// A frozen tensor that is whole on this rank, in its format on its device.
fn frozen(
    spec: &TensorSpec,
    value: &Tensor,
    precision: Precision,
    device: Device,
) -> Result<Tensor> {
    let frozen = value.f_to_device(device)?.f_to_kind(spec.kind(precision))?;
    if spec.role.is_parameter() {
        return Ok(frozen);
    }
    // Updated in place: must not write into the weights it was loaded from.
    crate::ops::copy(&frozen)
}

/// The part of a flat buffer that belongs to `slot`, in the slot's shape.
fn slice(flat: &Tensor, slot: &Slot) -> Result<Tensor> {
    Ok(flat
        .f_narrow(0, slot.offset as i64, slot.numel() as i64)?
        .f_view(slot.shape.as_slice())?)
}

/// Copies `value` into the flat buffer and returns a leaf over that storage, whose gradient
/// storage is the matching part of `grad`.
///
/// libtorch accumulates into a gradient in place when it exists. A first backward pass of zero
/// makes it exist; its storage is then exchanged for a view of the flat gradient buffer, so that
/// no step ever gathers gradients.
fn leaf_view(flat: &Tensor, grad: &Tensor, slot: &Slot, value: &Tensor) -> Result<Tensor> {
    let mut view = slice(flat, slot)?;
    view.f_copy_(value)?;
    let leaf = view.f_detach()?.f_set_requires_grad(true)?;
    leaf.f_mul_scalar(0.0)?
        .f_sum(flat.f_kind()?)?
        .f_backward()?;
    let mut leaf_grad = leaf.f_grad()?;
    let _ = leaf_grad.f_set_source_tensor_(&slice(grad, slot)?)?;
    Ok(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<TensorSpec> {
        vec![
            TensorSpec::new("frozen".into(), &[2, 2], Init::Ones, Role::Backbone),
            TensorSpec::new("a".into(), &[2], Init::Ones, Role::Adapter),
            TensorSpec::new("b".into(), &[3, 2], Init::linear(2), Role::Head),
        ]
    }

    fn build() -> Params {
        Params::build(
            &specs(),
            |_| Ok(None),
            |s| s.role != Role::Backbone,
            Layout {
                tail: 4,
                ..Layout::cpu(7)
            },
        )
        .unwrap()
    }

    #[test]
    fn gradients_of_repeated_backward_passes_add_up_in_the_flat_buffer() {
        let mut params = build();
        assert_eq!((params.trainable_count(), params.total_count()), (8, 12));
        let (a, b) = (params.get("a").unwrap(), params.get("b").unwrap());
        for _ in 0..2 {
            let loss = (b.matmul(&a) * 3.0).sum(Kind::Float);
            loss.backward();
        }
        let grad: Vec<f32> = Vec::try_from(params.grad()).unwrap();
        let b_sum: Vec<f32> =
            Vec::try_from(b.sum_dim_intlist(0, false, Kind::Float).detach()).unwrap();
        for i in 0..2 {
            assert!((grad[i] - 6.0 * b_sum[i]).abs() < 1e-6, "{grad:?}");
        }
        assert_eq!(&grad[2..8], &[6.0; 6]);
        assert_eq!(&grad[8..], &[0.0; 4]);
        params.zero_grad().unwrap();
        assert_eq!(params.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
        (b.sum(Kind::Float)).backward();
        let grad: Vec<f32> = Vec::try_from(params.grad()).unwrap();
        assert_eq!(grad, [0., 0., 1., 1., 1., 1., 1., 1., 0., 0., 0., 0.]);
    }

    #[test]
    fn an_update_of_the_flat_buffer_is_seen_by_the_bound_tensors() {
        let params = build();
        let a = params.get("a").unwrap();
        let _ = params.flat().shallow_clone().fill_(0.5);
        assert_eq!(Vec::<f32>::try_from(a.detach()).unwrap(), [0.5, 0.5]);
        assert!(!params.get("frozen").unwrap().requires_grad());
    }

    #[test]
    fn wrong_shapes_and_unknown_names_are_errors() {
        let wrong = Params::build(
            &specs(),
            |s| Ok((s.name == "b").then(|| Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)))),
            |_| false,
            Layout::cpu(0),
        );
        assert!(matches!(wrong, Err(Error::ShapeMismatch { .. })));
        assert!(build().get("c").is_err());
    }
}
