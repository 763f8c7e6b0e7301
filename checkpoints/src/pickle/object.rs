//! The objects that a pickle builds, in an arena and by index.

use std::rc::Rc;

use super::TensorRecord;
use super::dictionary::ScalarType;
use super::global::Global;
use crate::tensor::Dtype;

/// Index of an object in the arena.
pub(super) type Id = u32;

/// A value. What is long is behind a pointer, so that many small ones stay small.
#[derive(Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// The first few of them: numbers are short.
    Bytes(Vec<u8>),
    Text(Rc<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        key: Rc<str>,
        dtype: Dtype,
        len: usize,
    },
    Tensor(Rc<TensorRecord>),
    ScalarType(ScalarType),
}

impl Object {
    /// What it is in Python's words, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Bytes(_) => "bytes",
            Self::Text(_) => "a str",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::ScalarType(_) => "a number type",
        }
    }
}
