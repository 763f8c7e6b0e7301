//! Choosing the device, and the process-wide settings of libtorch.

use tch::{Cuda, Device};

use crate::{Error, Result};

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA when a device is usable, else CPU.
    Auto,
    /// CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

/// The device of a rank. Must run before the first tensor exists.
///
/// # Errors
/// CUDA was asked for and there is none.
pub fn select(choice: DeviceChoice, local_rank: usize) -> Result<Device> {
    if choice == DeviceChoice::Cpu {
        return Ok(Device::Cpu);
    }
    load_cuda_library();
    let devices = usize::try_from(Cuda::device_count()).unwrap_or(0);
    match (choice, devices) {
        (DeviceChoice::Cuda, 0) => Err(Error::NoCuda),
        (_, 0) => Ok(Device::Cpu),
        (_, n) => Ok(Device::Cuda(local_rank % n)),
    }
}

/// The linker drops `libtorch_cuda`, because nothing refers to it by symbol; libtorch finds its
/// CUDA part only when that library is loaded. Loading it by hand lets one binary serve hosts with
/// and without a GPU.
fn load_cuda_library() {
    let flags = libc::RTLD_NOW | libc::RTLD_GLOBAL;
    // SAFETY: dlopen with a constant, NUL-terminated name; the handle is kept for the life of the
    // process, and a failure (no driver, CPU-only libtorch) leaves CUDA unavailable.
    unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), flags) };
}

/// Gives libtorch `threads` threads. Must run before the first operation.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Seeds libtorch's generators: everything drawn until the next call depends on `seed` alone.
pub fn seed_dropout(seed: u64) {
    tch::manual_seed(seed as i64);
}

/// One seed from two: neighbouring values share nothing.
pub fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_neighbouring_steps_and_micro_batches_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4 {
            for step in 0..32 {
                for micro in 0..8 {
                    assert!(seen.insert(mix(mix(seed, step), micro)));
                }
            }
        }
    }
}
