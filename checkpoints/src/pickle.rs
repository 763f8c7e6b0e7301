//! A reader for pickles, which builds tensors of `torch.save`, or a dictionary of numbers and names,
//! and nothing else.
//!
//! A pickle is a program for a stack machine (`machine`). This one has no calls: the few classes
//! that tensors need are names it knows (`global`), any other name is an error, and `REDUCE` only
//! combines known names with their arguments (`build`). Objects live in an arena and refer to each
//! other by index (`object`), so that neither deep nesting nor cycles can exhaust the stack. Size,
//! objects and memo are bounded.

mod build;
mod dictionary;
mod global;
mod input;
mod machine;
mod object;
mod records;
mod variants;

use std::rc::Rc;

use crate::tensor::Dtype;
pub(crate) use dictionary::DictionaryValue;
use machine::Machine;

/// Largest pickle that is read; the one of a 12-layer model has about 20 kB.
pub(crate) const PICKLE_BYTES_MAX: usize = 16 << 20;
/// Most objects, memo entries, open marks and copied pairs of a pickle, and most places of its
/// stack: a byte can make one, so the file's size alone does not bound the memory. The pickle of a
/// 12-layer model has about 3,000 objects.
const OBJECTS_MAX: usize = 1 << 20;
/// Most tensors of a pickle. Each has lists of sizes that one memo entry can give to all.
const TENSORS_MAX: usize = 1 << 16;
/// Longest name of a tensor, storage or class.
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
    /// It has more of something than any file of tensors needs.
    Limit(String),
}

type Result<T> = std::result::Result<T, PickleError>;

fn malformed<T>(reason: impl Into<String>) -> Result<T> {
    Err(PickleError::Malformed(reason.into()))
}

fn limit<T>(reason: impl Into<String>) -> Result<T> {
    Err(PickleError::Limit(reason.into()))
}

/// A tensor as the pickle describes it, before its storage is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorRecord {
    /// Name of the storage in the archive; shared, because many tensors may lie in one.
    pub(crate) storage: Rc<str>,
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
    pub(crate) tensors: Vec<(String, Rc<TensorRecord>)>,
    pub(crate) others: Vec<String>,
    /// Of a file of several models: their settings, as JSON.
    pub(crate) settings: Vec<(String, serde_json::Value)>,
}

/// Reads the pickle of a state dict, either bare or under `model_state_dict` or `state_dict`; or of
/// several models, each a dictionary with its `state_dict` and perhaps its `config`. Tensors are then
/// called `{model}/{name}`, settings `{model}/config`.
pub(crate) fn read(bytes: &[u8]) -> Result<Records> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return limit(format!(
            "it has {} bytes, more than the {PICKLE_BYTES_MAX} allowed",
            bytes.len()
        ));
    }
    let mut machine = Machine::new(bytes);
    let root = machine.run()?;
    machine.state_dict(root)
}

/// Reads the pickle of a dictionary from names to numbers or names; numbers may be numpy's.
pub(crate) fn read_dictionary(bytes: &[u8]) -> Result<Vec<(String, DictionaryValue)>> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return limit(format!(
            "it has {} bytes, more than the {PICKLE_BYTES_MAX} allowed",
            bytes.len()
        ));
    }
    let mut machine = Machine::with_numbers(bytes);
    let root = machine.run()?;
    machine.dictionary(root)
}

#[cfg(test)]
mod tests;
