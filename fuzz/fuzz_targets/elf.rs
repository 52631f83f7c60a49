//! Fuzzes the inspection of a mapped file with arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    handshake_fuzz::elf::inspect(file);
});
