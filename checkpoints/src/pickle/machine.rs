//! The stack machine: opcodes, stack, marks and memo.

use std::collections::HashMap;
use std::rc::Rc;

use super::global::{Wanted, global};
use super::input::Input;
use super::object::{Id, Object};
use super::{OBJECTS_MAX, PickleError, Result, limit, malformed};

#[derive(Default)]
pub(super) struct Machine<'a> {
    input: Input<'a>,
    pub(super) objects: Vec<Object>,
    stack: Vec<Id>,
    /// Stack heights at which open marks lie.
    marks: Vec<usize>,
    wanted: Wanted,
    memo: HashMap<u32, Id>,
    /// Pairs copied by `OrderedDict(list)`, bounded because one list can be used many times.
    pub(super) pairs_copied: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            input: Input::new(bytes),
            ..Self::default()
        }
    }

    /// A machine that knows the numbers of numpy, and no tensors.
    pub(super) fn with_numbers(bytes: &'a [u8]) -> Self {
        Self {
            wanted: Wanted::Numbers,
            ..Self::new(bytes)
        }
    }

    /// Runs the program; returns what it leaves on top of the stack.
    ///
    /// # Errors
    /// At the first opcode that is unknown or does not fit the stack, and at forbidden names.
    pub(super) fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.input.at();
            let opcode = self.input.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode).map_err(|e| match e {
                PickleError::Malformed(reason) => {
                    PickleError::Malformed(format!("{reason} (opcode {opcode:#04x} at byte {at})"))
                }
                other => other,
            })?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME: nothing to build.
            0x80 => self.input.take(1).map(|_| ()),
            0x95 => self.input.take(8).map(|_| ()),
            b'c' => {
                let module = self.input.line()?;
                let name = self.input.line()?;
                let known = global(self.wanted, &module, &name)?;
                self.push(Object::Global(known))
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                let known = global(self.wanted, &module, &name)?;
                self.push(Object::Global(known))
            }
            b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'h' => {
                let index = u32::from(self.input.take(1)?[0]);
                self.recall(index)
            }
            b'j' => {
                let index = self.input.u32()?;
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
            0x88 | 0x89 => Object::Bool(opcode == 0x88),
            b'K' => Object::Int(i64::from(self.input.take(1)?[0])),
            b'M' => Object::Int(self.input.u16()?),
            b'J' => Object::Int(i64::from(self.input.u32()? as i32)),
            0x8a => Object::Int(self.input.long()?),
            b'G' => {
                let bytes: [u8; 8] = self
                    .input
                    .take(8)?
                    .try_into()
                    .expect("eight bytes were taken");
                Object::Float(f64::from_be_bytes(bytes))
            }
            b'X' | b'T' => {
                let len = self.input.u32()? as usize;
                self.input.text(len)?
            }
            0x8c | b'U' => {
                let len = usize::from(self.input.take(1)?[0]);
                self.input.text(len)?
            }
            0x8d => {
                let len = self.input.u64()?;
                self.input.text(len)?
            }
            b'B' => {
                let len = self.input.u32()? as usize;
                short_bytes(self.input.take(len)?)
            }
            b'C' => {
                let len = usize::from(self.input.take(1)?[0]);
                short_bytes(self.input.take(len)?)
            }
            _ => return malformed("unsupported opcode"),
        };
        self.push(object)
    }

    pub(super) fn push(&mut self, object: Object) -> Result<()> {
        if self.objects.len() >= OBJECTS_MAX {
            return limit(format!("it has more than {OBJECTS_MAX} objects"));
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
            return limit("too many open marks");
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Result<Id> {
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

    fn pop_text(&mut self) -> Result<Rc<str>> {
        let id = self.pop()?;
        self.text_of(id)
    }

    pub(super) fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => malformed("the stack is empty"),
        }
    }

    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            b'q' => u32::from(self.input.take(1)?[0]),
            b'r' => self.input.u32()?,
            _ => self.memo.len() as u32,
        };
        let top = self.top()?;
        if self.memo.len() >= OBJECTS_MAX {
            return limit(format!("its memo has more than {OBJECTS_MAX} entries"));
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&index) else {
            return malformed(format!("memo entry {index} was never stored"));
        };
        if self.stack.len() >= OBJECTS_MAX {
            return limit("the stack is too deep");
        }
        self.stack.push(id);
        Ok(())
    }
}

/// Bytes, of which no more are kept than a number has, and one to tell longer ones.
fn short_bytes(bytes: &[u8]) -> Object {
    Object::Bytes(bytes[..bytes.len().min(9)].to_vec())
}
