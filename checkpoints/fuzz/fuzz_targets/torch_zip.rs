//! A torch.save archive, as raw bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    scpeft_checkpoint::fuzzing::torch_zip(bytes);
});
