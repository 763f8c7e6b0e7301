//! Building dictionaries, storages and tensors out of what lies on the stack.

use std::rc::Rc;

use super::dictionary::ScalarType;
use super::global::Global;
use super::machine::Machine;
use super::object::{Id, Object};
use super::{
    ARGUMENTS_MAX, DIMENSIONS_MAX, NAME_BYTES_MAX, OBJECTS_MAX, PickleError, Result, TensorRecord,
    limit, malformed,
};

impl Machine<'_> {
    pub(super) fn object(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    pub(super) fn text_of(&self, id: Id) -> Result<Rc<str>> {
        match self.object(id) {
            Object::Text(text) if text.len() <= NAME_BYTES_MAX => Ok(Rc::clone(text)),
            Object::Text(_) => limit(format!("a name is longer than {NAME_BYTES_MAX} bytes")),
            other => malformed(format!("{} stands where a str must", other.kind())),
        }
    }

    pub(super) fn size_of(&self, id: Id) -> Result<usize> {
        match self.object(id) {
            Object::Int(value) => usize::try_from(*value)
                .map_err(|_| PickleError::Malformed(format!("{value} stands where a size must"))),
            other => malformed(format!("{} stands where a size must", other.kind())),
        }
    }

    pub(super) fn short_tuple(&self, id: Id, most: usize) -> Result<Vec<Id>> {
        match self.object(id) {
            Object::Tuple(items) if items.len() <= most => Ok(items.clone()),
            Object::Tuple(items) => malformed(format!(
                "a tuple has {} items where {most} are the most",
                items.len()
            )),
            other => malformed(format!("{} stands where a tuple must", other.kind())),
        }
    }

    pub(super) fn sizes_of(&self, id: Id) -> Result<Vec<usize>> {
        let items = self.short_tuple(id, DIMENSIONS_MAX)?;
        items.iter().map(|&item| self.size_of(item)).collect()
    }

    pub(super) fn append(&mut self, mut items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.objects[id as usize] {
            Object::List(list) => {
                list.append(&mut items);
                Ok(())
            }
            other => malformed(format!("cannot append to {}", other.kind())),
        }
    }

    pub(super) fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let id = self.top()?;
        if !items.len().is_multiple_of(2) {
            return malformed("a key has no value");
        }
        match &mut self.objects[id as usize] {
            Object::Dict(dict) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            other => malformed(format!("cannot set items of {}", other.kind())),
        }
    }

    /// `REDUCE` and `NEWOBJ`: a known name with its arguments.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let arguments = self.short_tuple(arguments, ARGUMENTS_MAX)?;
        let object = match self.object(callee) {
            Object::Global(Global::OrderedDict) => self.ordered_dict(&arguments)?,
            Object::Global(Global::RebuildTensor) => {
                Object::Tensor(Rc::new(self.tensor(&arguments)?))
            }
            Object::Global(Global::RebuildParameter) => {
                match arguments.first().map(|&id| self.object(id)) {
                    Some(Object::Tensor(tensor)) => Object::Tensor(Rc::clone(tensor)),
                    _ => return malformed("a parameter is not built from a tensor"),
                }
            }
            Object::Global(Global::NumpyType) => self.scalar_type(&arguments)?,
            Object::Global(Global::NumpyScalar) => self.numpy_scalar(&arguments)?,
            other => return malformed(format!("{} cannot be called", other.kind())),
        };
        self.push(object)
    }

    /// `dtype(name, align, copy)`.
    fn scalar_type(&self, arguments: &[Id]) -> Result<Object> {
        let Some(&name) = arguments.first() else {
            return malformed("a number type has no name");
        };
        let name = self.text_of(name)?;
        match ScalarType::named(&name) {
            Some(found) => Ok(Object::ScalarType(found)),
            None => malformed(format!("numbers of type `{name}` are not read")),
        }
    }

    /// `scalar(dtype, bytes)`.
    fn numpy_scalar(&self, arguments: &[Id]) -> Result<Object> {
        let [kind, bytes] = arguments[..] else {
            return malformed(format!("a number has {} arguments", arguments.len()));
        };
        match (self.object(kind), self.object(bytes)) {
            (Object::ScalarType(kind), Object::Bytes(bytes)) => kind
                .read(bytes)
                .map_or_else(|| malformed("a number has not the bytes of its type"), Ok),
            (kind, bytes) => malformed(format!(
                "a number is made of {} and {}",
                kind.kind(),
                bytes.kind()
            )),
        }
    }

    /// Empty, or from a list of pairs as old Pythons write it.
    pub(super) fn ordered_dict(&mut self, arguments: &[Id]) -> Result<Object> {
        let mut dict = Vec::new();
        if let Some(&first) = arguments.first() {
            let Object::List(pairs) = self.object(first) else {
                return malformed("an OrderedDict is not built from a list of pairs");
            };
            if self.pairs_copied + pairs.len() > OBJECTS_MAX {
                return limit(format!("it copies more than {OBJECTS_MAX} pairs"));
            }
            for &pair in pairs {
                match self.object(pair) {
                    Object::Tuple(items) | Object::List(items) if items.len() == 2 => {
                        dict.push((items[0], items[1]));
                    }
                    _ => return malformed("an OrderedDict is not built from a list of pairs"),
                }
            }
        }
        self.pairs_copied += dict.len();
        Ok(Object::Dict(dict))
    }

    pub(super) fn tensor(&self, arguments: &[Id]) -> Result<TensorRecord> {
        // (storage, storage_offset, size, stride, requires_grad, backward_hooks[, metadata])
        if !(6..=7).contains(&arguments.len()) {
            return malformed(format!("a tensor has {} arguments", arguments.len()));
        }
        let Object::Storage { key, dtype, len } = self.object(arguments[0]) else {
            return malformed("a tensor has no storage");
        };
        let record = TensorRecord {
            storage: Rc::clone(key),
            dtype: *dtype,
            storage_len: *len,
            offset: self.size_of(arguments[1])?,
            shape: self.sizes_of(arguments[2])?,
            strides: self.sizes_of(arguments[3])?,
        };
        if record.shape.len() != record.strides.len() {
            return malformed("a tensor has not as many strides as dimensions");
        }
        Ok(record)
    }

    /// `BUILD`: attributes of a dictionary (`_metadata` of a state dict) are not needed; those of a
    /// number type say its byte order.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.object(self.top()?) {
            Object::ScalarType(_) => {
                // (version, byte order, ...)
                let items = self.short_tuple(state, ARGUMENTS_MAX)?;
                let order = match items.get(1) {
                    Some(&order) => self.text_of(order)?,
                    None => return malformed("a number type has no byte order"),
                };
                match &*order {
                    "<" | "|" => Ok(()),
                    other => malformed(format!("numbers of byte order `{other}` are not read")),
                }
            }
            Object::Dict(_) | Object::Tensor(_) => Ok(()),
            other => malformed(format!("{} cannot have attributes", other.kind())),
        }
    }

    /// `BINPERSID`: ('storage', class, key, location, elements).
    pub(super) fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let items = self.short_tuple(id, ARGUMENTS_MAX)?;
        let [tag, class, key, _location, len] = items[..] else {
            return malformed(format!("a storage has {} fields", items.len()));
        };
        if &*self.text_of(tag)? != "storage" {
            return malformed("a persistent id is not that of a storage");
        }
        let Object::Global(Global::Storage(dtype)) = *self.object(class) else {
            return malformed("a storage has no type");
        };
        let key = self.text_of(key)?;
        let len = self.size_of(len)?;
        self.push(Object::Storage { key, dtype, len })
    }
}
