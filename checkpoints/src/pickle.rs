//! A reader for the pickles of `torch.save`, which builds tensors and nothing else.
//!
//! A pickle is a program for a stack machine. This one has no calls: the few classes that tensors
//! need are names it knows ([`Global`]), any other name is an error, and `REDUCE` only combines
//! known names with their arguments. Objects live in an arena and refer to each other by index, so
//! that neither deep nesting nor cycles can exhaust the stack. Size, objects and memo are bounded.

use std::collections::{HashMap, HashSet};

use crate::tensor::Dtype;

/// Largest pickle that is read; the one of a 12-layer model has about 20 kB.
pub(crate) const PICKLE_BYTES_MAX: usize = 64 << 20;
/// Most objects and memo entries of a pickle.
const OBJECTS_MAX: usize = 4 << 20;
/// Longest name of a tensor, storage or class: names are copied, and memo entries would let a small
/// file repeat a long one without end.
const NAME_BYTES_MAX: usize = 4096;
/// Most arguments of a known name; tensors have seven.
const ARGUMENTS_MAX: usize = 8;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 16;

/// Why a pickle was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PickleError {
    /// It refers to a class that is not allowed.
    Forbidden(String),
    /// It is not a well-formed pickle of tensors.
    Malformed(String),
}

type Result<T> = std::result::Result<T, PickleError>;

fn malformed<T>(reason: impl Into<String>) -> Result<T> {
    Err(PickleError::Malformed(reason.into()))
}

/// A tensor as the pickle describes it, before its storage is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorRecord {
    /// Name of the storage in the archive.
    pub(crate) storage: String,
    pub(crate) dtype: Dtype,
    /// Elements of the storage.
    pub(crate) storage_len: usize,
    /// First element in the storage.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// The tensors of a pickled dictionary, in its order, and the keys of what else it holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) tensors: Vec<(String, TensorRecord)>,
    pub(crate) others: Vec<String>,
}

/// The names a pickle of tensors may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

fn global(module: &str, name: &str) -> Result<Global> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Global::RebuildParameter
        }
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
        ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
        _ => {
            let class: String = format!("{module}.{name}").chars().take(200).collect();
            return Err(PickleError::Forbidden(class.escape_debug().to_string()));
        }
    })
}

/// Index of an object in the arena.
type Id = u32;

#[derive(Debug)]
enum Object {
    None,
    Bool,
    Int(i64),
    Float,
    Bytes,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        key: String,
        dtype: Dtype,
        len: usize,
    },
    Tensor(TensorRecord),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Float => "a float",
            Self::Bytes => "bytes",
            Self::Text(_) => "a str",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// Reads the pickle of a state dict, either bare or under `model_state_dict` or `state_dict`.
pub(crate) fn read(bytes: &[u8]) -> Result<Records> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return malformed(format!(
            "it has {} bytes, more than the {PICKLE_BYTES_MAX} allowed",
            bytes.len()
        ));
    }
    let mut machine = Machine {
        input: bytes,
        at: 0,
        ..Machine::default()
    };
    let root = machine.run()?;
    machine.state_dict(root)
}

#[derive(Default)]
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// Stack heights at which open marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Pairs copied by `OrderedDict(list)`, bounded because one list can be used many times.
    pairs_copied: usize,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode).map_err(|e| match e {
                PickleError::Malformed(reason) => {
                    PickleError::Malformed(format!("{reason} (opcode {opcode:#04x} at byte {at})"))
                }
                forbidden @ PickleError::Forbidden(_) => forbidden,
            })?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME: nothing to build.
            0x80 => self.take(1).map(|_| ()),
            0x95 => self.take(8).map(|_| ()),
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let known = global(&module, &name)?;
                self.push(Object::Global(known))
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                let known = global(&module, &name)?;
                self.push(Object::Global(known))
            }
            b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'h' => {
                let index = u32::from(self.take(1)?[0]);
                self.recall(index)
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index)
            }
            b'(' => self.mark(),
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_mark().map(|_| ()),
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items))
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..=opcode - 0x85 {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Object::Tuple(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            b'R' | 0x81 => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            _ => self.scalar(opcode),
        }
    }

    fn scalar(&mut self, opcode: u8) -> Result<()> {
        let object = match opcode {
            b'N' => Object::None,
            0x88 | 0x89 => Object::Bool,
            b'K' => Object::Int(i64::from(self.take(1)?[0])),
            b'M' => Object::Int(self.u16()?),
            b'J' => Object::Int(i64::from(self.u32()? as i32)),
            0x8a => Object::Int(self.long()?),
            b'G' => {
                self.take(8)?;
                Object::Float
            }
            b'X' | b'T' => {
                let len = self.u32()? as usize;
                self.text(len)?
            }
            0x8c | b'U' => {
                let len = usize::from(self.take(1)?[0]);
                self.text(len)?
            }
            0x8d => {
                let len = self.u64()?;
                self.text(len)?
            }
            b'B' => {
                let len = self.u32()? as usize;
                self.take(len)?;
                Object::Bytes
            }
            b'C' => {
                let len = usize::from(self.take(1)?[0]);
                self.take(len)?;
                Object::Bytes
            }
            _ => return malformed("unsupported opcode"),
        };
        self.push(object)
    }

    // Reading the input.

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self
            .at
            .checked_add(count)
            .filter(|&end| end <= self.input.len());
        let Some(end) = end else {
            return malformed("it ends in the middle");
        };
        let taken = &self.input[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<i64> {
        let bytes = self.take(2)?;
        Ok(i64::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<usize> {
        let bytes: [u8; 8] = self.take(8)?.try_into().expect("eight bytes were taken");
        usize::try_from(u64::from_le_bytes(bytes))
            .map_err(|_| PickleError::Malformed("a length overflows".to_owned()))
    }

    /// A little-endian two's complement integer of stated length.
    fn long(&mut self) -> Result<i64> {
        let len = usize::from(self.take(1)?[0]);
        let bytes = self.take(len)?;
        if len > 8 {
            return malformed("an integer has more than 64 bits");
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let mut full = [fill; 8];
        full[..len].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(full))
    }

    fn text(&mut self, len: usize) -> Result<Object> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => Ok(Object::Text(text.to_owned())),
            Err(_) => malformed("a string is not UTF-8"),
        }
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.input[self.at..];
        let Some(len) = rest.iter().take(4096).position(|&byte| byte == b'\n') else {
            return malformed("a name does not end");
        };
        let line = String::from_utf8_lossy(&rest[..len]).into_owned();
        self.at += len + 1;
        Ok(line)
    }

    // The stack and the memo.

    fn push(&mut self, object: Object) -> Result<()> {
        if self.objects.len() >= OBJECTS_MAX {
            return malformed(format!("it has more than {OBJECTS_MAX} objects"));
        }
        self.stack.push(self.objects.len() as Id);
        self.objects.push(object);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() >= OBJECTS_MAX {
            return malformed("too many open marks");
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return malformed("the stack is empty");
        }
        Ok(self.stack.pop().expect("it is higher than the floor"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => malformed("there is no open mark"),
        }
    }

    fn pop_text(&mut self) -> Result<String> {
        let id = self.pop()?;
        self.text_of(id)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => malformed("the stack is empty"),
        }
    }

    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            b'q' => u32::from(self.take(1)?[0]),
            b'r' => self.u32()?,
            _ => self.memo.len() as u32,
        };
        let top = self.top()?;
        if self.memo.len() >= OBJECTS_MAX {
            return malformed(format!("its memo has more than {OBJECTS_MAX} entries"));
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&index) else {
            return malformed(format!("memo entry {index} was never stored"));
        };
        if self.stack.len() >= OBJECTS_MAX {
            return malformed("the stack is too deep");
        }
        self.stack.push(id);
        Ok(())
    }

    // Building.

    fn object(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    fn text_of(&self, id: Id) -> Result<String> {
        match self.object(id) {
            Object::Text(text) if text.len() <= NAME_BYTES_MAX => Ok(text.clone()),
            Object::Text(_) => malformed(format!("a name is longer than {NAME_BYTES_MAX} bytes")),
            other => malformed(format!("{} stands where a str must", other.kind())),
        }
    }

    fn size_of(&self, id: Id) -> Result<usize> {
        match self.object(id) {
            Object::Int(value) => usize::try_from(*value)
                .map_err(|_| PickleError::Malformed(format!("{value} stands where a size must"))),
            other => malformed(format!("{} stands where a size must", other.kind())),
        }
    }

    fn short_tuple(&self, id: Id, most: usize) -> Result<Vec<Id>> {
        match self.object(id) {
            Object::Tuple(items) if items.len() <= most => Ok(items.clone()),
            Object::Tuple(items) => malformed(format!(
                "a tuple has {} items where {most} are the most",
                items.len()
            )),
            other => malformed(format!("{} stands where a tuple must", other.kind())),
        }
    }

    fn sizes_of(&self, id: Id) -> Result<Vec<usize>> {
        let items = self.short_tuple(id, DIMENSIONS_MAX)?;
        items.iter().map(|&item| self.size_of(item)).collect()
    }

    fn append(&mut self, mut items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.objects[id as usize] {
            Object::List(list) => {
                list.append(&mut items);
                Ok(())
            }
            other => malformed(format!("cannot append to {}", other.kind())),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
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
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let arguments = self.short_tuple(arguments, ARGUMENTS_MAX)?;
        let object = match self.object(callee) {
            Object::Global(Global::OrderedDict) => self.ordered_dict(&arguments)?,
            Object::Global(Global::RebuildTensor) => Object::Tensor(self.tensor(&arguments)?),
            Object::Global(Global::RebuildParameter) => {
                match arguments.first().map(|&id| self.object(id)) {
                    Some(Object::Tensor(tensor)) => Object::Tensor(tensor.clone()),
                    _ => return malformed("a parameter is not built from a tensor"),
                }
            }
            other => return malformed(format!("{} cannot be called", other.kind())),
        };
        self.push(object)
    }

    /// Empty, or from a list of pairs as old Pythons write it.
    fn ordered_dict(&mut self, arguments: &[Id]) -> Result<Object> {
        let mut dict = Vec::new();
        if let Some(&first) = arguments.first() {
            let Object::List(pairs) = self.object(first) else {
                return malformed("an OrderedDict is not built from a list of pairs");
            };
            if self.pairs_copied + pairs.len() > OBJECTS_MAX {
                return malformed(format!("it copies more than {OBJECTS_MAX} pairs"));
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

    fn tensor(&self, arguments: &[Id]) -> Result<TensorRecord> {
        // (storage, storage_offset, size, stride, requires_grad, backward_hooks[, metadata])
        if !(6..=7).contains(&arguments.len()) {
            return malformed(format!("a tensor has {} arguments", arguments.len()));
        }
        let Object::Storage { key, dtype, len } = self.object(arguments[0]) else {
            return malformed("a tensor has no storage");
        };
        let record = TensorRecord {
            storage: key.clone(),
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

    /// `BUILD`: attributes of a dictionary (`_metadata` of a state dict) are not needed.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.object(self.top()?) {
            Object::Dict(_) | Object::Tensor(_) => Ok(()),
            other => malformed(format!("{} cannot have attributes", other.kind())),
        }
    }

    /// `BINPERSID`: ('storage', class, key, location, elements).
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let items = self.short_tuple(id, ARGUMENTS_MAX)?;
        let [tag, class, key, _location, len] = items[..] else {
            return malformed(format!("a storage has {} fields", items.len()));
        };
        if self.text_of(tag)? != "storage" {
            return malformed("a persistent id is not that of a storage");
        }
        let Object::Global(Global::Storage(dtype)) = *self.object(class) else {
            return malformed("a storage has no type");
        };
        let key = self.text_of(key)?;
        let len = self.size_of(len)?;
        self.push(Object::Storage { key, dtype, len })
    }

    // Taking the result apart.

    fn state_dict(&self, root: Id) -> Result<Records> {
        let Object::Dict(entries) = self.object(root) else {
            return malformed(format!(
                "it holds {}, not a dict of tensors",
                self.object(root).kind()
            ));
        };
        let mut entries = entries;
        for wanted in ["model_state_dict", "state_dict"] {
            let nested = entries.iter().find_map(|&(key, value)| {
                let named = matches!(self.object(key), Object::Text(text) if text == wanted);
                match self.object(value) {
                    Object::Dict(inner) if named => Some(inner),
                    _ => None,
                }
            });
            if let Some(inner) = nested {
                entries = inner;
                break;
            }
        }
        let mut records = Records::default();
        let mut names = HashSet::new();
        for &(key, value) in entries {
            let name = self.text_of(key)?;
            match self.object(value) {
                Object::Tensor(tensor) => records.tensors.push((name.clone(), tensor.clone())),
                other => records.others.push(format!("{name} ({})", other.kind())),
            }
            // Checked here, not by the caller, because repetition is what memo entries make cheap.
            if !names.insert(name) {
                return malformed("a key of its dict appears twice");
            }
        }
        if records.tensors.is_empty() {
            return malformed(format!(
                "its dict holds no tensors, only [{}]",
                records
                    .others
                    .iter()
                    .take(10)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests;
