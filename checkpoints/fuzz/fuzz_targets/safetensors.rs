//! A safetensors file, as raw bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    scpeft_checkpoint::fuzzing::safetensors(bytes);
});
