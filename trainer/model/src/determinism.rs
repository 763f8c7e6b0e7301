//! The switch of libtorch for deterministic algorithms, which its C interface does not have.
//!
//! Three functions of its C++ interface are looked up by name in the libraries that the process has
//! loaded. Their names hold the types of their arguments, so a libtorch with others is noticed; on
//! x86-64 they are called as C functions whose first argument is the object (Itanium C++ ABI). What a
//! name does not hold is what comes back: `at::globalContext` returns a reference, which is an address,
//! the setter nothing and the getter a `bool`, in the headers of the libtorch that is built against.

use std::ffi::{CStr, c_void};

use crate::{Error, Result};

/// `at::Context& at::globalContext()`.
const CONTEXT: &CStr = c"_ZN2at13globalContextEv";
/// `void at::Context::setDeterministicAlgorithms(bool wanted, bool warn_only)`.
const SET: &CStr = c"_ZN2at7Context26setDeterministicAlgorithmsEbb";
/// `bool at::Context::deterministicAlgorithms() const`.
const IS_SET: &CStr = c"_ZNK2at7Context23deterministicAlgorithmsEv";

/// From now on libtorch uses deterministic algorithms alone, an operation that has none fails, and
/// memory that is handed out is filled with NaN first.
///
/// # Errors
/// When this libtorch has no such switch.
pub fn require() -> Result<()> {
    let (context, set, is_set) = (symbol(CONTEXT)?, symbol(SET)?, symbol(IS_SET)?);
    // SAFETY: the symbols are the functions that their names say, of a library that is never unloaded,
    // with these arguments and results (see above). The context lives as long as the process.
    let is_on = unsafe {
        let context: extern "C" fn() -> *mut c_void = std::mem::transmute(context);
        let set: extern "C" fn(*mut c_void, bool, bool) = std::mem::transmute(set);
        let is_set: extern "C" fn(*const c_void) -> bool = std::mem::transmute(is_set);
        let context = context();
        set(context, true, false);
        is_set(context)
    };
    if is_on {
        Ok(())
    } else {
        Err(Error::NoDeterminism)
    }
}

/// A function of a loaded library.
fn symbol(name: &CStr) -> Result<*mut c_void> {
    // SAFETY: looks a NUL-terminated name up and calls nothing.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return Err(Error::NoDeterminism);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn libtorch_heeds_the_switch() {
        let put = || {
            let mut into = Tensor::zeros([4], (Kind::Float, Device::Cpu));
            let places = Tensor::from_slice(&[1_i64, 1]);
            into.f_put_(&places, &Tensor::from_slice(&[2.0_f32, 3.0]), false)
                .map(|_| ())
        };
        put().unwrap();
        require().unwrap();
        // Which of two values stays is left open: no deterministic algorithm.
        let refused = put().unwrap_err().to_string();
        assert!(refused.contains("deterministic"), "{refused}");
        let handed_out = Tensor::empty([64], (Kind::Float, Device::Cpu));
        assert!(bool::try_from(handed_out.isnan().all()).unwrap());
    }
}
