//! Taking the result apart: a dictionary from names to numbers or names, as gene dictionaries are
//! pickled. Numbers may be scalars of numpy.

use super::machine::Machine;
use super::object::{Id, Object};
use super::{Result, malformed};

/// A value of a dictionary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DictionaryValue {
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A name.
    Text(String),
}

/// The type of a numpy scalar, without its byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScalarType {
    Int { bytes: usize },
    Unsigned { bytes: usize },
    Float { bytes: usize },
}

impl ScalarType {
    /// The type that numpy calls `name`: kind and number of bytes.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "i1" | "i2" | "i4" | "i8" => Self::Int { bytes: digit(name) },
            "u1" | "u2" | "u4" => Self::Unsigned { bytes: digit(name) },
            "f4" | "f8" => Self::Float { bytes: digit(name) },
            _ => return None,
        })
    }

    /// The number in little-endian `bytes`.
    pub(super) fn read(self, bytes: &[u8]) -> Option<Object> {
        let (Self::Int { bytes: size }
        | Self::Unsigned { bytes: size }
        | Self::Float { bytes: size }) = self;
        if bytes.len() != size {
            return None;
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let fill = match self {
            Self::Int { .. } if negative => 0xff,
            _ => 0,
        };
        let mut full = [fill; 8];
        full[..size].copy_from_slice(bytes);
        Some(match self {
            Self::Int { .. } | Self::Unsigned { .. } => Object::Int(i64::from_le_bytes(full)),
            Self::Float { bytes: 4 } => {
                let low = u32::from_le_bytes([full[0], full[1], full[2], full[3]]);
                Object::Float(f64::from(f32::from_bits(low)))
            }
            Self::Float { .. } => Object::Float(f64::from_le_bytes(full)),
        })
    }
}

/// The last character of a type's name.
fn digit(name: &str) -> usize {
    name.bytes()
        .last()
        .map_or(0, |byte| usize::from(byte - b'0'))
}

impl Machine<'_> {
    /// The entries of a dictionary in its order.
    ///
    /// # Errors
    /// When it is none, a key is no name or appears twice, or a value is neither number nor name.
    pub(super) fn dictionary(&self, root: Id) -> Result<Vec<(String, DictionaryValue)>> {
        let Object::Dict(entries) = self.object(root) else {
            return malformed(format!("it holds {}, not a dict", self.object(root).kind()));
        };
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        let mut read = Vec::with_capacity(entries.len());
        for &(key, value) in entries {
            let name = self.text_of(key)?;
            let value = match self.object(value) {
                Object::Int(number) => DictionaryValue::Int(*number),
                Object::Float(number) => DictionaryValue::Float(*number),
                Object::Text(_) => DictionaryValue::Text(self.text_of(value)?.to_string()),
                other => return malformed(format!("the value of `{name}` is {}", other.kind())),
            };
            if !seen.insert(name.clone()) {
                return malformed(format!("the key `{name}` appears twice"));
            }
            read.push((name.to_string(), value));
        }
        Ok(read)
    }
}
