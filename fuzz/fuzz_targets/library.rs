//! Fuzzes the inspection of libraries with the wanted functions and arbitrary code in them
//! (`handshake_fuzz::library`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|description: &[u8]| {
    handshake_fuzz::elf::inspect(&handshake_fuzz::library::file(description));
});
