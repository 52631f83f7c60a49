//! Fuzzes the inspection of Go programs with arbitrary tables (`handshake_fuzz::go`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|description: &[u8]| {
    handshake_fuzz::elf::inspect(&handshake_fuzz::go::file(description));
});
