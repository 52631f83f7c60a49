//! Any bytes as a file that a process has mapped.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    handshake_fuzz::elf::inspect(file);
});
