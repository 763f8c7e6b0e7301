//! The whitelist: every class and function that a pickle of tensors may name.

use super::{PickleError, Result};
use crate::tensor::Dtype;

/// The names a pickle of tensors may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    NumpyScalar,
    NumpyType,
}

/// What a pickle is read for; each has names of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Wanted {
    /// Tensors.
    #[default]
    Tensors,
    /// A dictionary whose numbers may be numpy's.
    Numbers,
}

/// Looks a name up.
///
/// # Errors
/// When it is not on the list.
pub(super) fn global(wanted: Wanted, module: &str, name: &str) -> Result<Global> {
    let known = match wanted {
        Wanted::Tensors => of_tensors(module, name),
        Wanted::Numbers => of_numbers(module, name),
    };
    known.ok_or_else(|| {
        let class: String = format!("{module}.{name}").chars().take(200).collect();
        PickleError::Forbidden(class.escape_debug().to_string())
    })
}

fn of_numbers(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        // numpy 2 moved it.
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
        ("numpy", "dtype") => Global::NumpyType,
        _ => return None,
    })
}

fn of_tensors(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
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
        _ => return None,
    })
}
